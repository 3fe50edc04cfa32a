"""A batch in which each sample has a request of its own: it decides alone and runs with those that
compute. On top of the driver of one request."""
