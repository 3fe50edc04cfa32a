"""The compiled segments of one call: the slots that its values lie in, who runs them, and what
crosses the borders of a run of them."""
