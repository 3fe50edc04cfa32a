"""Compile time: an FX graph comes in, a trunk of compiled segments goes out."""
