"""What drives the models of the state explorer's tests, and what says what must come of it."""
