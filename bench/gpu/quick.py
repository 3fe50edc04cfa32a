"""What has to be quick on a device: each part compares outputs before it times, and yields what
goes into its JSON."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import cycle

import torch
from torch import Tensor, nn

import dit_cachegraph
from bench.gpu.image import Inputs, build, image_of
from bench.gpu.modes import Called, compiled
from bench.gpu.profiled import profiled
from bench.gpu.run import MAX_ERROR, NEEDS_GPU, Found, Run, worst_error
from bench.gpu.timing import Kind, time_in_turn
from bench.gpu.transformers import DitLike, FluxLike
from bench.kernels.__main__ import measure_case
from bench.kernels.cases import MODELS, OPS, OPS_WITH_ORDER, SMALLER_MODELS, Case
from bench.kernels.results import to_json

NEVER_HITS, ALWAYS_HITS = 1e-9, 10.0
FIRST_BLOCK = {"rule": "dbcache", "Fn_compute_blocks": 1, "max_warmup_steps": 0}
# What the first calls of a run of segments do before its graph is there, and some.
NUM_WARM_CALLS = 4


def full_flux(run: Run) -> Found:
    """FLUX at its own size in bfloat16: a computed step and a hit, to a plain step and to the floor
    of a hit, which is the model with one block. Then a profile of each."""
    yield "sizes", asdict(run.sizes.flux)
    model = build(partial(FluxLike, run.sizes.flux), run.device, torch.bfloat16)
    image, call = image_of(model), compiled(model, run.inner, FIRST_BLOCK)
    yield "error to eager", _checked(call, model, image, model)
    floor = torch.compile(_one_block_of(model), backend=run.inner)
    kinds = {"floor": Kind(_steps(floor, image)), **_ours(model, call, image, "")}
    yield "times to floor", _times(kinds, "floor", run)
    yield "profiles", _profiles(kinds, run.device)
    # Last, since it compiles each block by itself, which takes longer than all before.
    plain = torch.compile(model, backend=run.inner)
    yield "error to plain", _checked(call, plain, image, model)
    yield "times", _times({"plain": Kind(_steps(plain, image)), **kinds}, "plain", run)


def cuda_graphs(run: Run) -> Found:
    """DiT-XL/2, whose step waits for the host to launch, with and without CUDA graphs."""
    if not run.has_gpu:
        yield NEEDS_GPU
        return
    model = build(partial(DitLike, run.sizes.dit), run.device, torch.bfloat16)
    image, plain = image_of(model), torch.compile(model, backend=run.inner)
    kinds = {"plain": Kind(_steps(plain, image))}
    for name, options in (("", {}), (", graphs", {"cuda_graphs": True})):
        call = compiled(model, run.inner, {**FIRST_BLOCK, **options})
        yield f"error to plain{name}", _checked(call, plain, image, model)
        kinds |= _ours(model, call, image, name)
    yield "graphs", [graph.cuda_graphs for graph in dit_cachegraph.summary(model).graphs]
    yield "times", _times(kinds, "plain", run)
    yield "profiles", _profiles(kinds, run.device)


def bandwidth(run: Run) -> Found:
    """Each kernel on a stream of FLUX, beside a copy and torch's own operations."""
    sizes = (MODELS if run.has_gpu else SMALLER_MODELS)["flux" if run.has_gpu else "small"]
    cases = [
        Case(op, "flux", sizes, 1, "bfloat16", 1 if op in OPS_WITH_ORDER else None) for op in OPS
    ]
    for case in cases:
        measured = measure_case(case, run.device, run.sizes.num_rounds, run.inner)
        yield str(case), to_json(measured)


def _times(kinds: Mapping[str, Kind], base: str, run: Run) -> dict[str, object]:
    times = time_in_turn(kinds, base, run.device, run.sizes.num_rounds)
    return {name: asdict(timed) for name, timed in times.items()}


def _one_block_of(model: nn.Module) -> nn.Module:
    """The model with its first block alone, of the very same weights: two would not fit."""
    assert isinstance(model, FluxLike)
    first = FluxLike.__new__(FluxLike)
    nn.Module.__init__(first)
    first.sizes = model.sizes
    for name, child in model.named_children():
        first.add_module(name, child)
    first.double_blocks = nn.ModuleList([model.double_blocks[0]])
    first.single_blocks = nn.ModuleList()
    return first.eval()


def _steps(call: Called, image: Sequence[Inputs]) -> Callable[[], object]:
    """The next step of image after image at each call."""
    steps = cycle(image)
    return lambda: call(**next(steps))


def _ours(model: nn.Module, call: Called, image: Sequence[Inputs], name: str) -> dict[str, Kind]:
    """A computed step and a hit, which goes on with what the computed one has kept."""
    step, kinds = _steps(call, image), {}
    for kind, threshold in (("computed", NEVER_HITS), ("hit", ALWAYS_HITS)):
        prepare = partial(dit_cachegraph.configure, model, residual_diff_threshold=threshold)
        kinds[kind + name] = Kind(step, prepare)
        prepare()
        for _ in range(NUM_WARM_CALLS):
            step()
        last = dit_cachegraph.summary(model).steps[-1]
        if last.hit != (kind == "hit"):
            raise RuntimeError(f"what should be a {kind} step isn't one: {last.reason}")
    return kinds


def _profiles(kinds: Mapping[str, Kind], device: torch.device) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, kind in kinds.items():
        kind.prepare()
        kind.call()
        found[name] = asdict(profiled(kind.call, device))
    return found


def _checked(call: Called, plain: Called, image: Sequence[Inputs], model: nn.Module) -> float:
    """How far a computed step is off what the plain model gives. Raises RuntimeError where that is
    more than rounding."""
    dit_cachegraph.configure(model, residual_diff_threshold=NEVER_HITS)
    own: list[Tensor] = [call(**inputs).clone() for inputs in image[:3]]
    error = worst_error(own, [plain(**inputs) for inputs in image[:3]])
    # Rounding in bfloat16, which the two fuse in other places. A graph that was cut wrongly is off
    # by a third and more.
    limit = 0.1 if own[0].dtype == torch.bfloat16 else MAX_ERROR
    if not error <= limit:
        raise RuntimeError(f"a computed step is off by {error:.2g} of the plain one")
    return error
