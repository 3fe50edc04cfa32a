"""Whose call is it.

A call goes on with the one track that it fits: same key; same conditioning, by the very objects, or
by content where those are dead or written over; the schedule moved on; latents near. If two fit, or
it repeats the last call, it computes. And nothing is decided later: where a call is unsure, what
was kept is forgotten, and it goes on.
"""
