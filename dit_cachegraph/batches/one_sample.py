"""The trunk of a batch as one of its samples sees it: a batch of one.

Of what the functions do for the whole batch two things would not fit a sample. The fused diff,
compiled for the sizes of the batch, is made of the plain one; and the modulated input, which may
have that size in it, is found in a slot of its own behind all others.
"""

from collections.abc import Sequence
from dataclasses import replace

from dit_cachegraph.plan import CompiledTrunk, ModulatedInput
from dit_cachegraph.runtime.reading import plain_measure


def of_one_sample(compiled: CompiledTrunk) -> CompiledTrunk:
    """`compiled` for the values of one sample."""
    trunk = compiled.trunk
    if isinstance(trunk.modulated_input, ModulatedInput):
        behind = ModulatedInput((trunk.num_slots,), trunk.modulated_input.batch_dim)
        trunk = replace(trunk, modulated_input=behind)
    return replace(
        compiled,
        trunk=replace(trunk, measure_sizes=()),
        measure=plain_measure(trunk.batch_dim),
        modulated_input=None if compiled.modulated_input is None else _as_it_is,
    )


def _as_it_is(inputs: list[object]) -> Sequence[object]:
    return inputs
