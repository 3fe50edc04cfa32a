"""`BlockAdapter` and `ForwardPattern`: what the caller believes of a model's blocks.

Blocks are found in the graph, so these are hints: where the graph has been cut, after the first
call, they are compared with what was found, and a hint that contradicts it is an error.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

from dit_cachegraph.compat.params_modifier import Modifiers
from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.plan import BlockListReport
from dit_cachegraph.targets import modules_in

H, E = "hidden_states", "encoder_hidden_states"


class ForwardPattern(enum.Enum):
    """What a block is called with and what it returns."""

    Pattern_0 = ((H, E), (H, E))
    Pattern_1 = ((H, E), (E, H))
    Pattern_2 = ((H, E), (H,))
    Pattern_3 = ((H,), (H,))
    Pattern_4 = ((H,), (H, E))
    Pattern_5 = ((H,), (E, H))

    @property
    def In(self) -> tuple[str, ...]:  # noqa: N802  # cache-dit's names
        """What it is called with."""
        return self.value[0]

    @property
    def Out(self) -> tuple[str, ...]:  # noqa: N802
        """What it returns, in that order."""
        return self.value[1]

    @property
    def Return_H_First(self) -> bool:  # noqa: N802
        """Whether the image's stream comes first of two."""
        return self.Out == (H, E)

    @property
    def Return_H_Only(self) -> bool:  # noqa: N802
        """Whether it returns the image's stream alone."""
        return self.Out == (H,)

    @property
    def Forward_H_only(self) -> bool:  # noqa: N802
        """Whether it is called with the image's stream alone."""
        return self.In == (H,)

    def __str__(self) -> str:
        called, returned = (", ".join(name[0] for name in names) for names in self.value)
        return f"{self.name} ({called} -> {returned})"

    @staticmethod
    def supported_patterns() -> "list[ForwardPattern]":
        """All of them."""
        return list(ForwardPattern)


class Hint(NamedTuple):
    """What is believed of one block list; `name` is None for any list that is found."""

    name: str | None
    pattern: ForwardPattern | None


@dataclass(eq=False)
class BlockAdapter:
    """A pipeline or transformers, and hints on their blocks. Lists are nested as in cache-dit: by
    transformer, then by block list. The options of the search for blocks are taken and not needed.
    """

    pipe: object = None
    transformer: nn.Module | Sequence[nn.Module] | None = None
    blocks: object = None
    blocks_name: object = None
    unique_blocks_name: object = None
    dummy_blocks_names: object = None
    forward_pattern: object = None
    params_modifiers: Modifiers = None
    check_forward_pattern: bool | None = None
    check_num_outputs: bool = False
    patch_functor: object = None
    has_separate_cfg: bool = False
    auto: bool = False
    allow_prefixes: Sequence[str] = field(default_factory=list)
    check_prefixes: bool = True
    allow_suffixes: Sequence[str] = field(default_factory=list)
    check_suffixes: bool = False
    blocks_policy: str = "max"
    skip_post_init: bool = False

    def __post_init__(self) -> None:
        if self.patch_functor is not None:
            raise InvalidConfig(
                "patch_functor rewrites a forward so that its blocks can be taken out; here they "
                "are found in the graph of the forward as it is: leave it out"
            )

    @property
    def transformers(self) -> list[nn.Module]:
        """Those that are given, else those of the pipeline."""
        if self.transformer is None:
            return modules_in(self.pipe)
        given = [self.transformer] if isinstance(self.transformer, nn.Module) else self.transformer
        return [module for one in given for module in modules_in(one)]

    @property
    def components(self) -> Mapping[str, nn.Module]:
        """The transformers by name, as a pipeline has them."""
        return {f"transformer_{i}": module for i, module in enumerate(self.transformers)}

    def hints(self) -> list[tuple[Hint, ...]]:
        """Those on each transformer.

        Raises:
            InvalidConfig: `blocks` that no transformer has, or numbers that don't fit.
        """
        transformers = self.transformers
        blocks = _nested(self.blocks, len(transformers), "blocks")
        names = _nested(self.blocks_name, len(transformers), "blocks_name")
        patterns = _nested(self.forward_pattern, len(transformers), "forward_pattern")
        return [
            _hints_on(module, own_names or [_name_of(module, b) for b in own_blocks], own_patterns)
            for module, own_blocks, own_names, own_patterns in zip(
                transformers, blocks, names, patterns, strict=True
            )
        ]


def _nested(value: object, num_transformers: int, name: str) -> list[list[object]]:
    """One list a transformer, of one entry a block list."""
    if value is None:
        return [[] for _ in range(num_transformers)]
    if not isinstance(value, list | tuple):
        return [[value] for _ in range(num_transformers)]
    nested = [list(v) if isinstance(v, list | tuple) else [v] for v in value]
    if num_transformers == 1:
        return [[entry for own in nested for entry in own]]
    if len(nested) != num_transformers:
        raise InvalidConfig(f"{name} has {len(nested)} entries for {num_transformers} transformers")
    return nested


def _name_of(module: nn.Module, blocks: object) -> str:
    for name, found in module.named_modules():
        if found is blocks:
            return name
    raise InvalidConfig(f"blocks: {type(module).__name__} holds no such list of blocks")


def _hints_on(
    module: nn.Module, names: Sequence[object], patterns: Sequence[object]
) -> tuple[Hint, ...]:
    for pattern in patterns:
        if not isinstance(pattern, ForwardPattern):
            raise InvalidConfig(f"forward_pattern must be a ForwardPattern, got {pattern!r}")
    if not names:
        names = [None] * len(patterns)
    if len(patterns) == 1:
        patterns = [*patterns] * len(names)
    if patterns and len(patterns) != len(names):
        raise InvalidConfig(
            f"forward_pattern has {len(patterns)} entries for the {len(names)} block lists of "
            f"{type(module).__name__}"
        )
    each = patterns or [None] * len(names)
    return tuple(Hint(n, p) for n, p in zip(names, each, strict=True))  # type: ignore[arg-type]


def check_hints(hints: Sequence[Hint], found: Sequence[BlockListReport]) -> None:
    """Compare hints with what the graph has. A list that is found and has no hint is no matter.

    Raises:
        InvalidConfig: a hint contradicts it; the sentence has both.
    """
    in_graph = "; ".join(f"{blocks.name}: {blocks.pattern}" for blocks in found)
    for hint in hints:
        lists = [b for b in found if hint.name is None or _is_named(b.name, hint.name)]
        if not any(_agrees(hint.pattern, blocks.pattern) for blocks in lists):
            said = ": ".join(str(part) for part in hint if part is not None)
            raise InvalidConfig(
                f"the hint says {said}, and the graph has {in_graph}: correct the hint, or leave "
                "it out, since blocks are found without"
            )


def _is_named(found: str, name: str) -> bool:
    """Lists in turn have one name together; under hooks of accelerate there is more before it."""
    return any(part == name or part.endswith(f".{name}") for part in found.split(" and "))


def _agrees(pattern: ForwardPattern | None, found: str) -> bool:
    """By what is returned. What else a block reads rides along, however it is called."""
    known = [p for p in ForwardPattern if p.name in found]
    return pattern is None or not known or pattern.Out in [p.Out for p in known]


def get_adapter(pipe: object) -> BlockAdapter:
    """The adapter of a pipeline: no model needs one of its own, so it holds no hints."""
    return BlockAdapter(pipe=pipe)
