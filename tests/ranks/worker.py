"""One rank of several: runs each case of `cases.json`, and writes what it saw.

case    {"model": "flux", "parallel": "ulysses", "settings": {...}, "num_passes": 1,
         "is_counted": False}
seen    for each step what one process alone decided, what the ranks did, how far their outputs
        are apart, and where that is counted the collectives that ran
"""

import json
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import diffusers
import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from diffusers.hooks.tensor_parallel import _resolve_tp_plan, _styles
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dit_cachegraph as dc  # noqa: E402
from ranks import cogvideox, ring_attention  # noqa: E402
from ranks.schedules import run_schedules  # noqa: E402
from ranks.unusual import run_unusual  # noqa: E402
from support.running import relative_error  # noqa: E402
from support.tiny_models import (  # noqa: E402
    FLUX,
    QWEN,
    WAN,
    Inputs,
    TinyModel,
    finish,
    trajectory,
)

TIMEOUT = timedelta(seconds=180)  # One may compile for long while the others wait.


def with_four_heads(tiny: TinyModel) -> TinyModel:
    """Enough to split them over weights, and what a rank has left over tokens."""

    def build(depth: int) -> nn.Module:
        model = tiny.build(depth)
        return finish(type(model).from_config(model.config, num_attention_heads=4), 0)

    return replace(tiny, name=f"{tiny.name} of four heads", build=build)


TINY = (FLUX, WAN, QWEN, cogvideox.COGVIDEOX, cogvideox.ROTARY)
MODELS = {tiny.name: tiny for tiny in (*TINY, *map(with_four_heads, (FLUX, WAN, QWEN)))}
DEPTH = 4
NUM_STEPS = 10
NUM_TEXT_TOKENS = 8
BOLD = {"residual_diff_threshold": 0.3, "max_warmup_steps": 1, "Fn_compute_blocks": 1}
MLPS = {
    "flux": ("transformer_blocks", "ff.net.0.proj", "ff.net.2"),
    "wan": ("blocks", "ffn.net.0.proj", "ffn.net.2"),
    "qwen": ("transformer_blocks", "img_mlp.net.0.proj", "img_mlp.net.2"),
}
Seen = dict[str, object]


def by_ulysses(model: nn.Module, name: str, inputs: Inputs) -> None:
    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=dist.get_world_size()))
    # The hooks of diffusers look at the signature once, which Dynamo doesn't trace.
    model(**inputs)


def by_a_plan_alone(model: nn.Module, name: str, inputs: Inputs) -> None:
    """Of the caller's, for a model whose attention doesn't know of other ranks."""
    config = ContextParallelConfig(ulysses_degree=dist.get_world_size())
    model.enable_parallelism(config=config, cp_plan=cogvideox.PLAN)
    model(**inputs)


def by_a_plan(model: nn.Module, name: str, inputs: Inputs) -> None:
    """And with an attention that does."""
    model.set_attn_processor(cogvideox.SharingProcessor())
    by_a_plan_alone(model, name, inputs)


def by_a_plan_in_a_ring(model: nn.Module, name: str, inputs: Inputs) -> None:
    ring_attention.register()
    model.set_attn_processor(cogvideox.SharingProcessor())
    model.set_attention_backend(ring_attention.NAME)
    config = ContextParallelConfig(ring_degree=dist.get_world_size())
    model.enable_parallelism(config=config, cp_plan=cogvideox.PLAN)
    model(**inputs)


def by_ring(model: nn.Module, name: str, inputs: Inputs) -> None:
    in_rings(model, inputs, ContextParallelConfig(ring_degree=dist.get_world_size()))


def by_ring_and_ulysses(model: nn.Module, name: str, inputs: Inputs) -> None:
    """Rings of two ranks, of pairs that exchange heads."""
    in_rings(model, inputs, ContextParallelConfig(ring_degree=2, ulysses_degree=2))


def in_rings(model: nn.Module, inputs: Inputs, config: ContextParallelConfig) -> None:
    ring_attention.register()
    model.set_attention_backend(ring_attention.NAME)
    model.enable_parallelism(config=config)
    model(**inputs)


def by_mlps(model: nn.Module, name: str, inputs: Inputs) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tp",))
    split_mlps(model, name, mesh)


def by_weights(model: nn.Module, name: str, inputs: Inputs) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tp",))
    split_weights(model, mesh)


def by_mlps_and_ulysses(model: nn.Module, name: str, inputs: Inputs) -> None:
    """Tokens over two ranks, MLPs over two of these pairs: two heads can't be split both ways."""
    mesh = init_device_mesh("cpu", (2, 1, 2), mesh_dim_names=("tp", "ring", "ulysses"))
    split_mlps(model, name, mesh["tp"])
    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2, mesh=mesh))
    model(**inputs)


def by_weights_and_ring(model: nn.Module, name: str, inputs: Inputs) -> None:
    mesh = init_device_mesh("cpu", (2, 2, 1), mesh_dim_names=("tp", "ring", "ulysses"))
    split_weights(model, mesh["tp"])
    in_rings(model, inputs, ContextParallelConfig(ring_degree=2, mesh=mesh))


def by_weights_and_ulysses(model: nn.Module, name: str, inputs: Inputs) -> None:
    """Heads over two ranks, and those of each over the two that have other tokens."""
    mesh = init_device_mesh("cpu", (2, 1, 2), mesh_dim_names=("tp", "ring", "ulysses"))
    split_weights(model, mesh["tp"])
    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2, mesh=mesh))
    model(**inputs)


def split_mlps(model: nn.Module, name: str, mesh: DeviceMesh) -> None:
    blocks, up, down = MLPS[name]
    for block in model.get_submodule(blocks):
        parallelize_module(block, mesh, {up: ColwiseParallel(), down: RowwiseParallel()})


def split_weights(model: nn.Module, mesh: DeviceMesh) -> None:
    """Those of attention and MLP, by diffusers' plan where it has one; that of Wan norms queries
    over all heads, and so has them gathered."""
    if model._tp_plan is not None:
        for block, plan in _resolve_tp_plan(model, model._tp_plan):
            parallelize_module(block, mesh, _styles(plan))
        return
    whole = ColwiseParallel(output_layouts=Replicate())
    for block in model.blocks:
        plan = {"ffn.net.0.proj": ColwiseParallel(), "ffn.net.2": RowwiseParallel()}
        for attn in ("attn1", "attn2"):
            plan |= {f"{attn}.to_{which}": whole for which in ("q", "k", "v")}
            plan[f"{attn}.to_out.0"] = RowwiseParallel(input_layouts=Replicate())
        parallelize_module(block, mesh, plan)


def by_nothing(model: nn.Module, name: str, inputs: Inputs) -> None:
    """Each rank has samples of its own."""


PARALLEL: dict[str, Callable[[nn.Module, str, Inputs], None]] = {
    "ulysses": by_ulysses,
    "a plan": by_a_plan,
    "a plan alone": by_a_plan_alone,
    "a plan in a ring": by_a_plan_in_a_ring,
    "ring": by_ring,
    "ring and ulysses": by_ring_and_ulysses,
    "mlps": by_mlps,
    "weights": by_weights,
    "mlps and ulysses": by_mlps_and_ulysses,
    "weights and ring": by_weights_and_ring,
    "weights and ulysses": by_weights_and_ulysses,
    "nothing": by_nothing,
}


def steps_of(tiny: TinyModel, model: nn.Module, num_passes: int = 1) -> list[Inputs]:
    """Those of an image: at each step a pass for each conditioning, with the same latents."""
    passes = [
        tiny.make_inputs(model, batch=1, size=4, text_tokens=NUM_TEXT_TOKENS, seed=seed)
        for seed in range(num_passes)
    ]
    steps = []
    for step in trajectory(tiny, passes[0], NUM_STEPS):
        moving = {name: step[name] for name in ("hidden_states", "timestep")}
        steps += [{**inputs, **moving} for inputs in passes]
    return steps


@dataclass
class Compiled:
    """What is compiled once, and called by all cases that take it: by model, how its ranks work
    together, and by whom it is compiled."""

    models: dict[tuple[str, str, str], tuple[nn.Module, nn.Module]] = field(default_factory=dict)

    def of(self, name: str, parallel: str, inner: str) -> tuple[nn.Module, nn.Module]:
        """A model, and the same compiled."""
        if (name, parallel, inner) not in self.models:
            tiny = MODELS[name]
            model = tiny.build(DEPTH)
            inputs = steps_of(tiny, model)[0]
            PARALLEL[parallel](model, name, inputs)
            options = {"inner_backend": inner}
            compiled = torch.compile(model, backend="cachedit", options=options)
            self.models[name, parallel, inner] = model, compiled
        return self.models[name, parallel, inner]


def run_counted(model: nn.Module, inputs: Inputs) -> tuple[Tensor, dict[str, int]]:
    """The output, and how often each collective ran."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        output = model(**inputs)[0]
    events = {event.key: event.count for event in profiled.key_averages()}
    return output, {name: count for name, count in events.items() if "c10d" in name}


def run_plainly(model: nn.Module, inputs: Inputs) -> tuple[Tensor, dict[str, int]]:
    return model(**inputs)[0], {}


def run_image(model: nn.Module, case: Seen, steps: Sequence[Inputs]) -> tuple[list[Tensor], Seen]:
    """The outputs of an image; what was decided, and the collectives of each step."""
    dc.reset(model)
    dc.configure(model, preset="balanced", **case.get("settings", BOLD))
    run = run_counted if case.get("is_counted") else run_plainly
    outputs, counted = zip(*(run(model, step) for step in steps), strict=True)
    decided = dc.summary(model).steps[-len(steps) :]
    told = [{"hit": s.hit, "reason": s.reason, "diff": s.diff} for s in decided]
    return list(outputs), {"steps": told, "collectives": counted}


def run_refused(model: nn.Module, case: Seen, steps: Sequence[Inputs]) -> Seen:
    """What a call says of settings that can't hold here, and whether the next one runs without."""
    said = None
    try:
        run_image(model, case, steps)
    except dc.InvalidConfig as error:
        said = str(error)
    dc.configure(model, preset="balanced")
    model(**steps[0])
    return {"refused": said}


def run_undivided(model: nn.Module, tiny: TinyModel, steps: Sequence[Inputs]) -> Seen:
    """What an image says whose tokens can't be divided, and the steps of the next one that can."""
    said = None
    odd = tiny.make_inputs(model, batch=1, size=5, text_tokens=NUM_TEXT_TOKENS, seed=0)
    try:
        model(**odd)
    except AssertionError as error:
        said = str(error)
    _, seen = run_image(model, {}, steps)
    return {"refused": said, "steps": seen["steps"]}


def run_case(case: Seen, compiled: Compiled) -> Seen:
    """One image by one process, and the same by all ranks; or random schedules; or what ranks may
    also meet."""
    if "unusual" in case:
        return run_unusual(Path(str(case["unusual"])))
    if "schedules" in case:
        return run_schedules(case["schedules"])
    name, inner = str(case["model"]), str(case.get("inner", "eager"))
    model, single = compiled.of(name, "nothing", inner)
    steps = steps_of(MODELS[name], model, int(case.get("num_passes", 1)))
    _, shared = compiled.of(name, str(case["parallel"]), inner)
    if case.get("is_refused"):
        return run_refused(shared, case, steps)
    if case.get("is_undivided"):
        return run_undivided(shared, MODELS[name], steps)
    wanted, alone = run_image(single, case, steps)
    outputs, seen = run_image(shared, case, steps)
    pairs = zip(outputs, wanted, strict=True)
    return {
        "alone": alone["steps"],
        "shared": seen["steps"],
        "collectives": seen["collectives"],
        "errors": [relative_error(output, other) for output, other in pairs],
        "refusals": list(dc.summary(shared).refusals),
    }


def main(folder: Path) -> None:
    dist.init_process_group("gloo", timeout=TIMEOUT)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    # diffusers divides by the number of accelerators, which is 0 on a machine without any.
    torch.accelerator.device_count = lambda: 1
    cases: Sequence[Seen] = json.loads((folder / "cases.json").read_text())
    with torch.no_grad():
        compiled = Compiled()
        seen = [run_case(case, compiled) for case in cases]
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
