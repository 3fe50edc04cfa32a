"""What has to be right on a device: each part yields what goes into its JSON, and raises in the end
where an output or a decision was wrong."""

import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

import dit_cachegraph
from bench.gpu.image import build, image_of
from bench.gpu.modes import MODES, Mode, compiled, drawn, hits_of
from bench.gpu.profiled import Profiled, profiled
from bench.gpu.run import MAX_ERROR, NEEDS_GPU, Found, Run, worst_error
from bench.gpu.transformers import FluxLike
from bench.kernels.__main__ import measure_case
from bench.kernels.cases import OPS, OPS_WITH_ORDER, SMALLER_MODELS, Case
from bench.kernels.device import device_of


def facts(run: Run) -> Found:
    """The device and its software, and each kernel once, against float64."""
    yield "device", asdict(device_of(run.device))
    for op in OPS:
        order = 1 if op in OPS_WITH_ORDER else None
        for dtype in ("bfloat16", "float32"):
            case = Case(op, "small", SMALLER_MODELS["small"], 1, dtype, order)
            yield str(case), measure_case(case, run.device, 1, run.inner).errors


def decisions(run: Run) -> Found:
    """A small FLUX in each mode: the same decisions as on the CPU, and outputs near its own."""
    wrong = []
    for name, mode in MODES.items():
        outputs, hits = {}, {}
        for device in dict.fromkeys((torch.device("cpu"), run.device)):
            torch._dynamo.reset()
            model = build(
                partial(FluxLike, run.sizes.small_flux), torch.device("cpu"), torch.float32
            )
            model.to(device)
            call = compiled(model, run.inner, mode.settings)
            outputs[device] = [out.cpu() for out in drawn(model, call, image_of(model), mode)]
            hits[str(device)] = hits_of(model)
        on_cpu, *others = outputs.values()
        errors = [worst_error(own, on_cpu) for own in others]
        yield name, {"decisions": hits, "errors": errors}
        if len(set(hits.values())) > 1 or not all(error <= MAX_ERROR for error in errors):
            wrong.append(f"{name}: decided {hits} and is off by {errors}")
    _raise(wrong)


def waits(run: Run) -> Found:
    """Where the host waits at a hit and at a computed step, in each mode: copies that are waited
    for, and what torch calls a synchronising operation, of which there may be none."""
    if not run.has_gpu:
        yield NEEDS_GPU
        return
    wrong: list[str] = []
    for name, mode in MODES.items():
        found = _waits_in(run, mode)
        yield name, {kind: seen._asdict() for kind, seen in found.items()}
        wrong += [
            f"{name}: a {kind} step has {seen.num_syncs} synchronising operations and waits in "
            f"{seen.waits}, at most {mode.max_waits} waits are right"
            for kind, seen in found.items()
            if seen.num_syncs or sum(seen.waits.values()) > mode.max_waits
        ]
    _raise(wrong)


class _Seen(NamedTuple):
    """Of one step: operations that synchronise, calls in which the host waits, and kernels."""

    num_syncs: int
    waits: dict[str, int]
    num_kernels: int


def _waits_in(run: Run, mode: Mode) -> dict[str, _Seen]:
    """Of a computed step and of a hit, the one of each that waits most."""
    torch._dynamo.reset()
    model = build(partial(FluxLike, run.sizes.small_flux), run.device, torch.bfloat16)
    call, image = compiled(model, run.inner, mode.settings), image_of(model)
    drawn(model, call, image, mode)
    dit_cachegraph.reset(model)
    found: dict[str, list[_Seen]] = {"computed": [], "hit": []}
    with mode.inside():
        for step, inputs in enumerate(image):
            done, num_syncs = _watched(partial(call, **inputs), run.device)
            if step < len(image) // 2:  # Until all is there that a step may keep.
                continue
            kind = "hit" if hits_of(model)[-1] == "H" else "computed"
            found[kind].append(_Seen(num_syncs, done.num_waits, done.num_kernels))
    return {kind: max(seen, key=_num_stops) for kind, seen in found.items() if seen}


def _num_stops(seen: _Seen) -> int:
    return seen.num_syncs + sum(seen.waits.values())


def _watched(call: Callable[[], object], device: torch.device) -> tuple[Profiled, int]:
    """What one call does, and how often torch warns of an operation that synchronises."""
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            seen = profiled(call, device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return seen, sum("synchroniz" in str(warning.message) for warning in said)


def two_threads(run: Run) -> Found:
    """Two images at once through one model, each on a stream of its own: as drawn alone."""
    torch._dynamo.reset()
    model = build(partial(FluxLike, run.sizes.small_flux), run.device, torch.float32)
    mode = MODES["default preset"]
    call, images = compiled(model, run.inner, mode.settings), [image_of(model, s) for s in (0, 1)]
    alone = [drawn(model, call, image, mode) for image in images]
    outputs: dict[int, list[Tensor]] = {}

    def draw(which: int) -> None:
        with torch.no_grad(), _stream_of(run), dit_cachegraph.request(f"image {which}"):
            outputs[which] = [call(**inputs) for inputs in images[which]]

    threads = [threading.Thread(target=draw, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors = [worst_error(outputs[which], alone[which]) for which in range(2)]
    yield "errors", errors
    if not all(error <= MAX_ERROR for error in errors):
        _raise([f"two images at once are off by {errors} of those drawn alone"])


def _raise(wrong: Sequence[str]) -> None:
    if wrong:
        raise RuntimeError("; ".join(wrong))


def _stream_of(run: Run) -> torch.cuda.StreamContext:
    return torch.cuda.stream(torch.cuda.Stream(run.device) if run.has_gpu else None)
