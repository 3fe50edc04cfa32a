"""Links: blocks that were compiled one by one, joined at run time into one trunk.

The state of a call lies among the variables of the outermost module's call on Python's stack, from
where the caller's tensors are read too, so it dies with the call.

    calls 1 to 3 of a kind   WatchedCall: all runs; which output is the next link's argument, by
                             identity; whether anything else becomes of it
    chain, trunk             a real `Trunk`: segment i + 1 is link i, a slot for each stream at
                             each boundary
    from call 4 on           LinkedStep: the driver's `walk`, which each link advances by its own
                             segment; a skipped link returns a placeholder, the
                             last one the estimates

Refused for good, for a kind of call: an output that glue reads (a mode of the dispatcher, on
between the blocks of a watched call), that is written to, kept alive past the next block, or handed
on as another object; an order of blocks that isn't the list's; blocks that do less than half of the
work of all lists (`share`: no graph has the code around them).

Each later call is checked by identity, versions and weak references at each link; if it differs,
what was skipped runs, its values take the place of the placeholders, and the rest computes. What no
link sees (glue that begins to read, a caller that stops before the last block) has NaN in its
hands, or an error on a CUDA build. Other weights, or a block that was compiled anew, begin the
watching again.

It costs a call of Python and a walk up the stack for each block, a placeholder for each that is
skipped, and all glue at every step.
"""
