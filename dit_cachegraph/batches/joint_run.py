"""A call in which each sample is a step of its own: the walks of all of them, side by side.

    sample 0   prologue | block 0 | decide: hit      | estimate ........ | epilogue
    sample 1   prologue | block 0 | decide: compute  | blocks 1 to 18    | epilogue
    sample 2   prologue | decide: compute | blocks 0 to 18 ............. | epilogue
    joint      0 1 2      0 1 2                        1 2                 0 1 2

A walk says which segments it wants next. Those that lie first run first, once for all samples that
want them. Where blocks can't run for some samples alone, all compute as soon as one does.
"""

from collections.abc import Callable, Iterator, Sequence

from dit_cachegraph.batches.joint_values import JointValues
from dit_cachegraph.policy.rule import Decision, ProbeKind
from dit_cachegraph.runtime.step import Step
from dit_cachegraph.segments.slots import Values

Range = tuple[int, int]
OTHER_REGIONS = "the settings of its samples ask for other regions"


class JointRun:
    """The steps of one call, under way. `run` runs segments on some values; `why_whole` says why
    blocks can't run for some samples alone, if they can't."""

    def __init__(
        self,
        steps: Sequence[Step],
        walks: Sequence[Iterator[Range]],
        values: JointValues,
        run: Callable[[Values, int, int], None],
        why_whole: str | None,
    ) -> None:
        self._steps, self._walks, self._values, self._run = steps, walks, values, run
        self._wanted: dict[int, Range] = {}
        self._why_whole = why_whole
        self._are_alike = len({(s.plan.spans, s.plan.settings.common.enabled) for s in steps}) == 1
        self._needs_modulated = any(_compares_modulated_input(step) for step in steps)

    def finish(self) -> tuple[object, ...]:
        """Run all of it; returns what the call does."""
        for k in range(len(self._steps)):
            self._advance(k)
        while self._wanted:
            at = min(start for start, _ in self._wanted.values())
            here = tuple(k for k, (start, _) in self._wanted.items() if start == at)
            waiting = [k for k in here if self._wanted[k][1] == at]
            if waiting:
                self._agree(waiting)
                for k in waiting:
                    self._advance(k)
            else:
                self._run_first(tuple(sorted(here)), at)
        return self._values.results()

    def _advance(self, k: int) -> None:
        wanted = next(self._walks[k], None)
        self._wanted.pop(k, None)
        if wanted is not None:
            self._wanted[k] = wanted

    def _run_first(self, here: tuple[int, ...], at: int) -> None:
        """Run what all that are here want, up to where another one joins them or one stops."""
        stops = [self._wanted[k][1] for k in here]
        joins = [start for start, _ in self._wanted.values() if start > at]
        stop = min(*stops, *joins) if joins else min(stops)
        self._values.run(self._run, here, at, stop)
        if at == 0 and self._needs_modulated:
            self._values.put_modulated_input()
        for k in here:
            end = self._wanted[k][1]
            self._wanted[k] = (stop, end)
            if stop == end:
                self._advance(k)

    def _agree(self, waiting: Sequence[int]) -> None:
        """Where a region can't run for some samples alone, all compute as soon as one does."""
        steps = [self._steps[k] for k in waiting if self._steps[k].regions]
        if self._why_whole is None or len(self._steps) == 1:
            return
        asked = next((step for step in steps if not step.regions[-1].decision.hit), None)
        if asked is None and self._are_alike:
            return
        why = self._why_whole if self._are_alike else f"{self._why_whole}, and {OTHER_REGIONS}"
        for step in steps:
            decided = step.regions[-1]
            if decided.decision.hit:
                named = "" if asked is None else f" with {asked.conditioning.label}"
                reason = f"computed{named}: {why}"
                decided.decision = Decision(False, reason, decided.decision.diff)


def _compares_modulated_input(step: Step) -> bool:
    probes = [region.probe for region in step.plan.regions]
    return any(probe is not None and probe.kind is ProbeKind.MODULATED_INPUT for probe in probes)
