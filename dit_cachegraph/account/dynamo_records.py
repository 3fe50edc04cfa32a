"""What Dynamo itself has noted of a model's code: what it compiled of it, whether it gave up.

Dynamo keeps what it compiled by code object, up to a limit; beyond it, what fits none of that runs
eagerly for good, until `torch._dynamo.reset()`. Code that it left out once it leaves out for good
as well. Nothing of this is private to a model: models of one class share their code, and so do all
whose `forward` bears one decorator.

Dynamo is imported when it is first asked, and so never where nothing is compiled.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from torch._dynamo.types import CacheEntry

_GUARD = re.compile(r"^\d+/\d+: (.*?)(?:\s*#.*)?$", re.MULTILINE)
_ATTRIBUTE_SETTING = "allow_unspec_int_on_nn_module"
# What Dynamo notes where every guard holds (torch 2.13; earlier).
_NO_GUARD_FAILED = (
    "passed during recompilation-reason analysis",
    "Unable to find recompilation reasons",
)


@dataclass(frozen=True, slots=True)
class LimitReached:
    """`num_compiled` versions of `code` are Dynamo's `limit`; `guard` is the one that failed last,
    where that is still known. `num_at_once` were compiled although no guard had failed: threads
    that make a first call at once each compile it, since none finds what another is compiling."""

    code: str
    num_compiled: int
    limit: str
    guard: str | None
    is_of_attribute: bool
    num_at_once: int

    def __str__(self) -> str:
        failed = "" if self.guard is None else f" (the guard that failed last: `{self.guard}`)"
        helps = f"raise `torch._dynamo.config.{self.limit}`"
        if self.is_of_attribute:
            helps = f"set `torch._dynamo.config.{_ATTRIBUTE_SETTING} = True`, or {helps}"
        if self.num_at_once:
            failed += f", {self.num_at_once} of them anew since threads began at once"
            helps = f"let one call end before other threads make theirs, or {helps}"
        return (
            f"Dynamo has compiled {self.code} {self.num_compiled} times{failed}, its limit, and "
            f"runs what fits none of them eagerly: {helps}, and call `torch._dynamo.reset()`"
        )


def codes_of(function: Callable[..., object]) -> Iterator[CodeType]:
    """The code of a function or a bound method, and of what stands behind its decorators."""
    found: object = function
    while found is not None:
        bare = found.func if isinstance(found, partial) else found
        bare = bare.__func__ if isinstance(bare, MethodType) else bare
        if isinstance(bare, FunctionType):
            yield bare.__code__
        found = getattr(found, "__wrapped__", None)


def limit_reached(
    codes: Sequence[CodeType], module: nn.Module | None, recompile_limit: int | None = None
) -> LimitReached | None:
    """The limit that the first of `codes` has reached for calls of `module`; `recompile_limit` is
    that of its call, where it has one of its own."""
    config = torch._dynamo.config
    limit = config.recompile_limit if recompile_limit is None else recompile_limit
    for code in codes:
        entries = _compiled_of(code)
        num_own = sum(_counts_for(entry, module) for entry in entries)
        if num_own >= limit:
            return _told(code, entries, num_own, "recompile_limit")
        if len(entries) >= config.accumulated_recompile_limit:
            return _told(code, entries, len(entries), "accumulated_recompile_limit")
    return None


def is_left_out(codes: Sequence[CodeType]) -> bool:
    """Whether Dynamo has looked at it, and compiled nothing of the innermost that it looked at."""
    seen = [code for code in codes if code in torch._dynamo.convert_frame.input_codes]
    return bool(seen) and not _compiled_of(seen[-1])


def _compiled_of(code: CodeType) -> "list[CacheEntry]":
    return torch._dynamo.eval_frame._debug_get_cache_entry_list(code)


def _counts_for(entry: "CacheEntry", module: nn.Module | None) -> bool:
    """What was compiled for one very module counts for that alone."""
    bound = [ref() for ref in entry.guard_manager.id_matched_objs.values()]
    modules = [found for found in bound if isinstance(found, nn.Module)]
    return not modules or module in modules


def _told(
    code: CodeType, entries: "Sequence[CacheEntry]", num_compiled: int, limit: str
) -> LimitReached:
    reasons = _reasons({entry.compile_id.frame_id for entry in entries})
    failed = [reason for reason in reasons if not _says_none_failed(reason)]
    guard = _GUARD.search(failed[-1]) if failed else None
    return LimitReached(
        code=f"`{code.co_name}` ({code.co_filename.rpartition('/')[2]}:{code.co_firstlineno})",
        num_compiled=num_compiled,
        limit=limit,
        guard=guard.group(1).strip() if guard else None,
        is_of_attribute=bool(failed) and _ATTRIBUTE_SETTING in failed[-1],
        num_at_once=len(reasons) - len(failed),
    )


def _reasons(frame_ids: set[int | None]) -> list[str]:
    """Why the frame was compiled anew, or should have been, each time."""
    found = []
    for metrics in torch._dynamo.utils.get_compilation_metrics():
        frame_id, _, _ = str(metrics.compile_id).partition("/")
        if metrics.recompile_reason and frame_id.isdigit() and int(frame_id) in frame_ids:
            found.append(metrics.recompile_reason)
    return found


def _says_none_failed(reason: str) -> bool:
    return any(said in reason for said in _NO_GUARD_FAILED)
