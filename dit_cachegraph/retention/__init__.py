"""What is held of whom, and for how long.

table       the tracks of one model, found by who is calling
by_name     ... by the name of a request, for the samples of a batch
set_aside   ... by content, for a caller who rebuilds his conditioning at every call
held        what all of them hold, counted
lifetimes   what is freed when the next image begins, at the last step, by time and by bytes

Whose call it is stands in `requests`; here is nothing but the owning.
"""
