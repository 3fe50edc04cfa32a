"""What Inductor makes of each segment for a GPU, where there is none.

    graph of a segment -> AOTAutograd on the CPU -> the same operators on cuda:0 -> Inductor's code

`python -m support.cuda_code flux` prints a line of JSON. It is for a process of its own, since what
it tells torch can't be taken back. Nothing of the code is run, so what a GPU would be asked while
it is made is left out: whether products are quicker when padded, and choices by timing. Attention
is the operator that PyTorch calls on a GPU. A graph that launches our own kernels chooses them by
device, so AOTAutograd is given it as one of a GPU.
"""

import json
import re
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from unittest.mock import patch

import torch
import torch._inductor.compile_fx as inductor
from torch import Tensor, fx, nn
from torch._dynamo import register_backend
from torch._dynamo.device_interface import (
    CudaInterface,
    get_interface_for_device,
    register_interface_for_device,
)
from torch._inductor.fx_passes import joint_graph
from torch._inductor.graph import GraphLowering
from torch._subclasses import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from dit_cachegraph.models import REGISTRY
from dit_cachegraph.runtime.driver import CachedModel
from support.cuda_kernels import built_kernels
from support.toy_dits import TwoListDiT, toy_inputs

GPU = torch.device("cuda:0")
UNCHECKED = {"size_asserts": False, "alignment_asserts": False, "scalar_asserts": False}
H100 = SimpleNamespace(
    name="NVIDIA H100",
    major=9,
    minor=0,
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    total_memory=80 * 2**30,
)
codes: list[str] = []


class Generated(Exception):
    """The code is there, and there is nothing to load it on."""


class NoGpu(CudaInterface):
    """What Inductor asks of a device."""

    class Worker(CudaInterface.Worker):
        current_device = staticmethod(lambda: 0)
        get_device_properties = staticmethod(lambda device=None: H100)

    get_device_properties = staticmethod(lambda device=None: H100)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    is_available = staticmethod(lambda: True)
    get_compute_capability = staticmethod(lambda device=None: 90)
    is_triton_capable = staticmethod(lambda device=None: True)
    is_bf16_supported = staticmethod(lambda including_emulation=False: True)
    raise_if_triton_unavailable = staticmethod(lambda device=None: None)


def pretend_there_is_one() -> None:
    """For all of this process."""
    # Triton may not be installed.
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415
    from triton.runtime import driver  # noqa: PLC0415

    driver.set_active(SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32)))
    get_interface_for_device("cpu")  # Registers those of torch, which come before.
    for name in ("cuda", "cuda:0"):
        register_interface_for_device(name, NoGpu)
    torch.cuda.get_device_properties = lambda device=None: H100
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    GraphLowering.compile_to_module = _keep_code


def _keep_code(graph: GraphLowering) -> None:
    wrapper, _ = graph.codegen()
    codes.append(wrapper.value)
    raise Generated


@register_backend
def cuda_code(gm: fx.GraphModule, inputs: Sequence[object]) -> Callable[..., object]:
    """Keeps the code of a segment. What it returns can't be called."""
    launches_ours = any(str(node.target).startswith("dit_cachegraph") for node in gm.graph.nodes)
    with torch._inductor.config.patch({**UNCHECKED, "fx_graph_cache": False}):
        if launches_ours:
            # Patterns are traced on the device, and none of them is about our kernels.
            with patch.object(joint_graph, "lazy_init", lambda *_: None):
                _generate(lambda: inductor.compile_fx(gm, _on_gpu(inputs)))
        else:
            _call_attention_of_gpu(gm)
            inductor.compile_fx(gm, list(inputs), inner_compile=_generate_for_gpu)
    return _never


def _call_attention_of_gpu(gm: fx.GraphModule) -> None:
    for node in gm.graph.nodes:
        if node.target is nn.functional.scaled_dot_product_attention:
            node.target = _attention
    gm.recompile()


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """[batch, heads, tokens, channels], or without heads."""
    if query.dim() == 3:
        return _attention(query[:, None], key[:, None], value[:, None])[:, 0]
    assert not enable_gqa
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    return attend(query, key, value, attn_mask, False, dropout_p, is_causal, scale=scale)[0]


def _generate_for_gpu(
    gm: fx.GraphModule, example_inputs: Sequence[object], **options: object
) -> Callable[..., object]:
    """What AOTAutograd calls to have a graph of operators compiled."""
    for node in gm.graph.nodes:
        node.kwargs = {k: GPU if isinstance(v, torch.device) else v for k, v in node.kwargs.items()}
        node.meta.pop("val", None)
    inputs = _on_gpu(example_inputs)
    mode = next(t.fake_mode for t in inputs if isinstance(t, Tensor))
    FakeTensorProp(gm, mode).propagate_dont_convert_inputs(*inputs)
    _generate(lambda: inductor.compile_fx_inner(gm, inputs, **options))
    return _never


def _on_gpu(inputs: Sequence[object]) -> list[object]:
    """Fake tensors of the same kinds that lie there."""
    mode = next(t.fake_mode for t in inputs if isinstance(t, Tensor))
    with mode:
        return [
            torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=GPU)
            if isinstance(t, Tensor)
            else t
            for t in inputs
        ]


def _generate(compile_it: Callable[[], object]) -> None:
    try:
        compile_it()
    except Exception as error:
        if not isinstance(getattr(error, "inner_exception", error), Generated):
            raise


def _never(*_: object) -> object:
    raise Generated


_never._boxed_call = True


def kernels_in(code: str) -> dict[str, int]:
    """How often the code of a segment launches a kernel of its own, and calls a library's."""
    body = code[code.index("def call(") :]
    body = body[: body.index("runner = Runner")] if "runner = Runner" in body else body
    libraries = r"extern_kernels\.\w+\(|torch\.ops\.aten\.\w+\.\w+\("
    return {
        "generated": len(re.findall(r"\.run\(", body)),
        "of libraries": len(re.findall(libraries, body)),
    }


def code_of(model: nn.Module, inputs: dict[str, object], **settings: object) -> dict[str, object]:
    """Of the stages of a step: their role and what they launch; of the fused diff; the names of the
    kernels that are launched, and of those whose machine code was built."""
    codes.clear()
    options = {"inner_backend": "cuda_code", **settings}
    compiled = torch.compile(model, backend="cachedit", dynamic=False, options=options)
    try:
        with torch.no_grad():
            compiled(**inputs)
    except Generated:
        pass
    (driver,) = REGISTRY.of_module(model).graphs.values()
    assert isinstance(driver, CachedModel)
    trunk, plan = driver.compiled.trunk, driver.plans.plan((), ())
    *segments, diff = map(kernels_in, codes)
    stages = [
        [stage.role.name, *_sum(segments[s.kind] for s in trunk.segments[stage.start : stage.stop])]
        for stage in plan.stages
    ]
    named = re.findall(r"(\w+)\.run\(", "".join(codes))
    return {
        "stages": stages,
        "diff": list(diff.values()),
        "launched": sorted(set(named)),
        "built": built_kernels(codes),
    }


def _sum(counts: Sequence[dict[str, int]]) -> list[int]:
    counts = list(counts)
    return [sum(each[name] for each in counts) for name in ("generated", "of libraries")]


def toy() -> dict[str, object]:
    """Two streams, joint blocks and single ones, as FLUX has them."""
    return code_of(TwoListDiT(2, 4), toy_inputs(90.0), **SETTINGS)


def flux() -> dict[str, object]:
    """FLUX.1 at 1024 x 1024 in bfloat16, as wide as it is, with two blocks of each kind; its
    weights are fake."""
    from diffusers import FluxTransformer2DModel  # noqa: PLC0415

    with torch.device("meta"):
        model = FluxTransformer2DModel(num_layers=2, num_single_layers=2, guidance_embeds=True)
    model = model.eval().requires_grad_(False).to(torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _fake_weights(model)
        inputs = {
            "hidden_states": torch.empty(1, 4096, 64, dtype=torch.bfloat16),
            "encoder_hidden_states": torch.empty(1, 512, 4096, dtype=torch.bfloat16),
            "pooled_projections": torch.empty(1, 768, dtype=torch.bfloat16),
            "timestep": torch.empty(1, dtype=torch.bfloat16),
            "guidance": torch.empty(1),
            "txt_ids": torch.empty(512, 3),
            "img_ids": torch.empty(4096, 3),
        }
        return code_of(model, {**inputs, "return_dict": False}, **SETTINGS)


def _fake_weights(model: nn.Module) -> None:
    for module in model.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None:
                fake = torch.empty(weight.shape, dtype=weight.dtype)
                module._parameters[name] = nn.Parameter(fake, requires_grad=False)


SETTINGS = {"rule": "dbcache", "Fn_compute_blocks": 1}
MODELS = {"toy": toy, "flux": flux}

if __name__ == "__main__":
    pretend_there_is_one()
    sys.stdout.write(json.dumps(MODELS[sys.argv[1]]()))
