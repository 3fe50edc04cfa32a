"""A rule and a predictor for each block list: FLUX's double blocks by one, its single ones by
another.

    block_lists=[{"Fn_compute_blocks": 1}, {"Fn_compute_blocks": 2, "taylorseer_order": 1}]

    blocks    0 | 1 2 3 | 4 5 | 6 7 8 9 10 11      two lists, of 4 and 8 blocks
    runs      F |   A   | F F |       B            A and B are reused each by its own rule

Each list is a trunk of its own: its first and last blocks, its probe, its counters of reused
steps and what its rule remembers. A list begins with what the one before it left, computed or
reused. What is not said of a list is DBCache's default; a predictor that is named beside
`block_lists` is that of each list without one of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.later import Later
from dit_cachegraph.policy.diffs import BatchRule
from dit_cachegraph.policy.predictor import Predictor
from dit_cachegraph.policy.rule import (
    Companion,
    Decision,
    History,
    Need,
    Observation,
    Rule,
    Span,
    StepResult,
)


class Part(NamedTuple):
    """What one block list goes by: the settings as they were given, and what they add up to."""

    settings: tuple[tuple[str, object], ...]
    rule: Rule
    predictor: Predictor


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockLists(Rule):
    """The options of a rule over rules. Its memory is the `History` of each part."""

    name: ClassVar[str] = "block_lists"

    block_lists: tuple[Part, ...] = ()
    """One a block list, in the order in which they run: a dict of options of a rule and of a
    predictor."""

    _owners: tuple[int, ...] = ()
    """Whose each region is, once the trunk is known."""

    def __post_init__(self) -> None:
        if not self.block_lists:
            raise InvalidConfig("block_lists must be a sequence of settings, one dict a block list")
        for rule in self._rules:
            if rule.needs & {Need.ERROR, Need.OUTPUT} or isinstance(rule, BlockLists):
                raise InvalidConfig(
                    f"the rule {rule.name!r} looks at the whole model and can't be that of one "
                    "block list: name another rule in block_lists"
                )

    @property
    def _rules(self) -> tuple[Rule, ...]:
        return tuple([part.rule for part in self.block_lists])

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset[Need]().union(*[rule.needs for rule in self._rules])

    def spans(self, list_sizes: Sequence[int]) -> tuple[Span, ...]:
        return tuple([span for spans in self._spans_of_each(list_sizes) for span in spans])

    def _spans_of_each(self, list_sizes: Sequence[int]) -> list[tuple[Span, ...]]:
        if len(list_sizes) != len(self.block_lists):
            sizes = ", ".join(map(str, list_sizes))
            raise InvalidConfig(
                f"block_lists has settings for {len(self.block_lists)} block lists, and this model "
                f"has {len(list_sizes)}, of {sizes} blocks: give one dict for each"
            )
        found, start = [], 0
        for rule, size in zip(self._rules, list_sizes, strict=True):
            found.append(tuple([_moved(span, start, rule) for span in rule.spans((size,))]))
            start += size
        return found

    def on_trunk(self, list_sizes: Sequence[int]) -> Rule:
        spans = self._spans_of_each(list_sizes)
        owners = [k for k, own in enumerate(spans) for span in own if span.start < span.stop]
        return replace(self, _owners=tuple(owners))

    def predictor_of(self, region: int) -> Predictor:
        return self.block_lists[self._owners[region]].predictor

    def forgets(self, history: History, earlier: Sequence[Decision]) -> bool:
        k = self._owners[len(earlier)]
        return self._rules[k].forgets(self._history_of(k, history), self._of(k, earlier))

    def why_compute(
        self, history: History, earlier: Sequence[Decision], noise: float | None
    ) -> str | None:
        k = self._owners[len(earlier)]
        return self._rules[k].why_compute(self._history_of(k, history), self._of(k, earlier), noise)

    def decide(self, history: History, observation: Observation) -> Decision:
        k = self._owners[len(observation.earlier)]
        companions = [self._seen_by(k, companion) for companion in observation.companions]
        own = observation._replace(
            earlier=self._of(k, observation.earlier), companions=tuple(companions)
        )
        return self._rules[k].decide(self._history_of(k, history), own)

    @property
    def batch_rule(self) -> BatchRule:
        """That of a list which takes batches of `requests` alone, if there is one."""
        rules = {rule.batch_rule for rule in self._rules}
        return "per_sample" if "per_sample" in rules else "max"

    def sample_of(self, history: History, observation: Observation) -> int | None:
        k = self._owners[len(observation.earlier)]
        return self._rules[k].sample_of(self._history_of(k, history), observation)

    def remember(self, history: History, result: StepResult) -> object:
        return tuple([self._history_after(k, history, result) for k in range(len(self._rules))])

    def _history_after(self, k: int, history: History, result: StepResult) -> History:
        before, decisions = self._history_of(k, history), self._of(k, result.decisions)
        if not decisions:  # All of its blocks are first or last ones, or nothing was decided.
            return before
        seen = result.seen if self._owners[0] == k else Observation()
        memory = self._rules[k].remember(before, StepResult(decisions, seen))
        return before.after(decisions, memory=memory)

    def _history_of(self, k: int, history: History) -> History:
        """What happened in one list so far."""
        own = self._part_of(k, history.memory)._replace(step=history.step)
        return own.seen_by(self._rules[k], history.num_steps)

    def _part_of(self, k: int, memory: object) -> History:
        is_mine = isinstance(memory, tuple) and len(memory) == len(self.block_lists)
        return memory[k] if is_mine else History()  # type: ignore[index]

    def _of(self, k: int, decisions: Sequence[Decision]) -> tuple[Decision, ...]:
        return tuple([d for d, i in zip(decisions, self._owners, strict=False) if i == k])

    def _seen_by(self, k: int, companion: Companion) -> Companion:
        def memory() -> object:
            return self._part_of(k, companion.memory).seen_by(self._rules[k]).memory

        return companion._replace(remembered=Later(memory))


def _moved(span: Span, start: int, rule: Rule) -> Span:
    """A span of a list within the trunk. Without a diff nothing is kept to compare with."""
    probe = span.probe if Need.DIFF in rule.needs else None
    return Span(span.start + start, span.stop + start, probe, span.probe_from + start)
