"""Compile each distinct segment once, all of them before the backend returns.

Guards on sizes that a later compile would add are lost, and a helper compiled at the first step was
49 % wrong at another resolution: so nothing is compiled after this.
"""

import difflib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, get_origin

from torch import fx
from torch._dynamo.backends.registry import list_backends, lookup_backend
from torch._guards import TracingContext
from torch._subclasses import FakeTensor

from dit_cachegraph import ops
from dit_cachegraph.config import CompileOptions
from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.graph.cut.allowed_batches import allowed_batches
from dit_cachegraph.graph.cut.calling import as_called
from dit_cachegraph.graph.cut.makes_new import makes_only_new_tensors
from dit_cachegraph.graph.cut.segment_graph import Cut
from dit_cachegraph.plan import CompiledTrunk, Original, StreamKind

log = logging.getLogger("dit_cachegraph")

# The driver calls each block with the inputs that it was compiled for, and Dynamo has checked the
# call's own; on torch 2.11 to 2.13 these checks cost as much as the rest of a host-bound step.
_UNCHECKED = MappingProxyType(
    {"size_asserts": False, "alignment_asserts": False, "scalar_asserts": False}
)


@dataclass(frozen=True, slots=True)
class InnerCompiler:
    """What compiles a segment: a backend of torch by name, and Inductor's options."""

    name: str
    inductor: Mapping[str, object]

    def segment(
        self, gm: fx.GraphModule, inputs: Sequence[object], *, makes_only_new: bool
    ) -> Original:
        """The compiled function, as it is returned."""
        inputs = [_with_its_number(value) for value in inputs]
        if self.name == "inductor":
            patches = {**_UNCHECKED, **self.inductor, "triton.cudagraphs": False}
            return Original(_compile_fx(gm, inputs, patches), makes_only_new)
        return Original(lookup_backend(self.name)(gm, inputs), False)  # type: ignore[arg-type]

    def whole(self, gm: fx.GraphModule, inputs: Sequence[object]) -> Callable[..., Any]:
        """The graph compiled as it is, for a model that isn't cached."""
        if self.name == "inductor":
            return _compile_fx(gm, inputs, dict(self.inductor))
        return lookup_backend(self.name)(gm, list(inputs))  # type: ignore[arg-type]


def inner_compiler(options: CompileOptions, mode: str | None) -> InnerCompiler:
    """The inner compiler that the options ask for.

    Raises:
        InvalidConfig: the backend, the mode or an option of Inductor doesn't exist, or has
            another type.
    """
    name, mode = options.inner_backend, options.mode or mode
    if name == "cachedit" or name not in list_backends(exclude_tags=()):
        known = ", ".join(repr(n) for n in list_backends(exclude_tags=()) if n != "cachedit")
        raise InvalidConfig(f"inner_backend must be a registered backend ({known}), got {name!r}")
    inductor = {**_mode_options(mode), **_inductor_options(options.inductor)}
    if inductor and name != "inductor":
        given = "inductor" if options.inductor else "mode"
        log.warning(
            "%s is for Inductor, and nothing is done of it by inner_backend=%r", given, name
        )
    if inductor.get("triton.cudagraphs"):
        log.info(
            "%s: the cache runs without Inductor's CUDA graphs: they overwrite what it keeps; "
            "`cuda_graphs=True` in `options` captures graphs that don't",
            f"mode {mode!r}" if mode else "triton.cudagraphs",
        )
    return InnerCompiler(name, inductor)


def _mode_options(mode: str | None) -> dict[str, object]:
    if mode is None or mode == "default":
        return {}
    # Importing Inductor takes seconds, and other backends do without it.
    from torch._inductor import list_mode_options  # noqa: PLC0415

    modes = list_mode_options()
    if mode not in modes:
        raise InvalidConfig(f"mode must be one of {', '.join(map(repr, modes))}, got {mode!r}")
    return dict(modes[mode])


def _inductor_options(given: Mapping[str, object]) -> dict[str, object]:
    """The same by Inductor's own names, checked as `torch.compile` checks those of Inductor."""
    if not given:
        return {}
    from torch._inductor import config  # noqa: PLC0415

    known = config.get_config_copy()
    options = {str(name).replace("-", "_"): value for name, value in given.items()}
    for name, value in options.items():
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f": did you mean {nearest[0]}?" if nearest else ""
            raise InvalidConfig(f"inductor: Inductor has no option {name!r}{hint}")
        kind = config.get_type(name)  # type: ignore[attr-defined]
        if isinstance(kind, type) and get_origin(kind) is None and not isinstance(value, kind):
            raise InvalidConfig(f"inductor: {name} must be a {kind.__name__}, got {value!r}")
    return options


def _compile_fx(
    gm: fx.GraphModule, inputs: Sequence[object], patches: dict[str, object]
) -> Callable[..., Any]:
    from torch._inductor.compile_fx import compile_fx  # noqa: PLC0415

    compiled = compile_fx(gm, list(inputs), config_patches=patches)  # type: ignore[arg-type]
    assert callable(compiled), "only ahead-of-time compilation returns anything else"
    return compiled


def compile_segments(cut: Cut, compiler: InnerCompiler) -> CompiledTrunk:
    """Compile the distinct segments of a cut, and the fused diff of its probe stream; build the
    kernels that the driver calls between them."""
    start = time.perf_counter()
    originals = [_compiled(cut, kind, compiler) for kind in range(len(cut.graphs))]
    diff = compiler.segment(cut.measure.gm, cut.measure.example_inputs, makes_only_new=True)
    modulated = [] if cut.modulated_input is None else [Original(cut.modulated_input.gm, False)]
    stream_kind = stream_kind_of(cut)
    ops.build_kernels(stream_kind, cut.trunk.batch_dim)
    return CompiledTrunk(
        trunk=cut.trunk,
        roles=cut.roles,
        functions=tuple(map(as_called, originals)),
        measure=as_called(diff),
        modulated_input=as_called(modulated[0]) if modulated else None,
        allows_batch=allowed_batches(cut.stream.shape[0]),
        num_compiled=len(originals),
        compile_seconds=time.perf_counter() - start,
        originals=(*originals, diff, *modulated),
        stream_kind=stream_kind,
    )


def stream_kind_of(cut: Cut) -> StreamKind:
    """What kernels are built for that the driver calls on the probe stream."""
    stream = cut.stream
    width = stream.shape[-1]
    return StreamKind(stream.dtype, stream.device, width if isinstance(width, int) else None)


def _compiled(cut: Cut, kind: int, compiler: InnerCompiler) -> Original:
    segment, is_last = cut.graphs[kind], cut.trunk.segments[-1].kind == kind
    makes_only_new = makes_only_new_tensors(segment.gm.graph, is_last=is_last)
    return compiler.segment(segment.gm, segment.example_inputs, makes_only_new=makes_only_new)


def _with_its_number(value: object) -> object:
    """A number that Dynamo hands over as a tensor, such that `item` of it is known to the compiler.

    Compilers fake their inputs once more, in the mode of the tracing context (since torch 2.1), and
    what `item` gives is lost on the way; their own graph's inputs have it from the source.
    """
    context = TracingContext.try_get()
    mode = None if context is None else context.fake_mode
    if not isinstance(value, FakeTensor) or mode is None or value.item_memo is None:
        return value
    fake = mode.from_tensor(value)
    fake.item_memo = value.item_memo
    return fake
