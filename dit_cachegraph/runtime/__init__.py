"""Run time: the driver, the state and the report of its steps. No FX in here."""
