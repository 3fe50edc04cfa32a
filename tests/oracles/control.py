"""What a run with controls must do, in plain eager code of its own: when a replay is allowed, and
what it gives.

Decisions: after the warm-up every step reuses, but one whose controls have changed by 40 % or more
since the last computed step, sample by sample and control by control.
Outputs: the model runs whole; on a reuse, hooks put what entered the region plus its last computed
effect in the place of what the region's last block returns.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from zoo.entry import Inputs

BOUND = 0.4
WARM_UP = 2

Streams = tuple[Tensor | None, ...]


class ControlOracle:
    """`before` is the last block before the region, `last` the region's last one. `hints` are
    modules whose first results are the controls; without, those are given to `step`."""

    def __init__(
        self, model: nn.Module, before: nn.Module, last: nn.Module, hints: Sequence[nn.Module] = ()
    ) -> None:
        self.model = model
        self.handles = [
            before.register_forward_hook(self._enter),
            last.register_forward_hook(self._leave),
            *(hint.register_forward_hook(self._note) for hint in hints),
        ]
        self.num_steps = 0
        self.entered: Streams = ()
        self.effect: Streams = ()
        self.noted: list[Tensor] = []
        self.used: list[Tensor] = []
        self.is_hit = False

    def __enter__(self) -> "ControlOracle":
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    @torch.no_grad()
    def step(self, inputs: Inputs, controls: Sequence[Tensor]) -> tuple[bool, Tensor]:
        """Whether the step reuses, and its output. Controls that are noted scale by `controls`."""
        self.noted = []
        if self.num_steps >= WARM_UP:
            self.is_hit = True
            output = self.model(**inputs)
            now = self._scaled(controls)
            if not any(has_jumped(*pair) for pair in zip(now, self.used, strict=True)):
                self.num_steps += 1
                return True, output[0]
            self.noted = []
        self.is_hit = False
        output = self.model(**inputs)
        self.used = [control.clone() for control in self._scaled(controls)]
        self.num_steps += 1
        return False, output[0]

    def _scaled(self, controls: Sequence[Tensor]) -> list[Tensor]:
        if not self.noted:
            return list(controls)
        return [noted * scale for noted, scale in zip(self.noted, controls, strict=True)]

    def _note(self, _: nn.Module, __: object, results: Streams) -> None:
        assert results[0] is not None
        self.noted.append(results[0])

    def _enter(self, _: nn.Module, __: object, result: Tensor | Streams) -> None:
        self.entered = result if isinstance(result, tuple) else (result,)

    def _leave(self, _: nn.Module, __: object, result: Tensor | Streams) -> Tensor | Streams:
        left = result if isinstance(result, tuple) else (result,)
        if not self.is_hit:
            self.effect = _each(torch.sub, left, self.entered)
            return result
        replayed = _each(torch.add, self.entered, self.effect)
        return replayed if isinstance(result, tuple) else _only(replayed)


def has_jumped(control: Tensor, used: Tensor) -> bool:
    """True where a sample of the control changed by the bound or more."""
    moved = (control - used).abs().flatten(1).sum(1)
    size = used.abs().flatten(1).sum(1)
    return bool(((moved > 0) & (moved >= BOUND * size)).any())


def _each(
    function: Callable[[Tensor, Tensor], Tensor], values: Streams, others: Streams
) -> Streams:
    """Of the streams that are there: a last block may drop one."""
    return tuple(
        None if value is None or other is None else function(value, other)
        for value, other in zip(values, others, strict=True)
    )


def _only(streams: Streams) -> Tensor:
    (stream,) = streams
    assert stream is not None
    return stream
