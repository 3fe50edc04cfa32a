"""A server of pictures: one compiled transformer, many requests over HTTP."""
