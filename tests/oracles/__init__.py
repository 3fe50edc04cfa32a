"""Eager references, written apart from the package so that the two can be compared."""
