"""Kinds of quantised weights, each as its own library puts them into the blocks of a tiny model.

A library that isn't installed skips what asks for its kind: `requirements/quantised.txt` has them.
Blocks are 64 wide, since 4-bit layers scale 64 values together.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers.quantizers.quantization_config import GGUFQuantizationConfig, QuantoConfig
from torch import Tensor, nn

from support import tiny_models
from support.tiny_models import FLUX, TinyModel

Quantise = Callable[[nn.Module, Sequence[str]], nn.Module]
WIDE = {"attention_head_dim": 32}
WIDE_ROPE = {"axes_dims_rope": (8, 12, 12)}


@dataclass(frozen=True)
class Kind:
    """`quantise(model, block_lists)` returns the model with quantised layers in its blocks;
    `parts_of(weight)` are the tensors that such a weight consists of. `tolerance` is how far two
    programs of a compiler may be apart: a value between two levels falls to either by rounding."""

    name: str
    quantise: Quantise
    parts_of: Callable[[nn.Parameter], list[Tensor]]
    tolerance: float = 1e-5


def build(tiny: TinyModel, depth: int) -> nn.Module:
    """The tiny model at twice its width. FLUX has one block of its first kind at any depth, so
    that two depths have the same kinds of block."""
    narrow = tiny_models.build_flux(1, depth - 1) if tiny is FLUX else tiny.build(depth)
    rope = WIDE_ROPE if tiny is FLUX else {}
    return tiny_models.finish(type(narrow)(**{**narrow.config, **WIDE, **rope}), seed=0)


def quantised_layers(model: nn.Module, block_lists: Sequence[str]) -> list[nn.Module]:
    """The linear layers of the blocks, first to last."""
    blocks = [block for name in block_lists for block in getattr(model, name)]
    return [part for block in blocks for part in block.modules() if "Linear" in type(part).__name__]


def _inside(weight: nn.Parameter) -> list[Tensor]:
    names = weight.__tensor_flatten__()[0]
    return [part for name in names if isinstance(part := getattr(weight, name), Tensor)]


def _by_torchao(config: str, *args: object, **options: object) -> Quantise:
    def quantise(model: nn.Module, block_lists: Sequence[str]) -> nn.Module:
        torchao = pytest.importorskip("torchao.quantization")
        for name in block_lists:
            torchao.quantize_(getattr(model, name), getattr(torchao, config)(*args, **options))
        return model

    return quantise


def _packed_int4(model: nn.Module, block_lists: Sequence[str]) -> nn.Module:
    """The one format of torchao's 4-bit weights that has a kernel for the CPU."""
    workflow = pytest.importorskip("torchao.prototype.quantization.int4.inference_workflow")
    torchao = pytest.importorskip("torchao.quantization")
    config = workflow.PrototypeInt4WeightOnlyConfig(group_size=32, set_inductor_config=False)
    for name in block_lists:
        torchao.quantize_(getattr(model, name), config)
    return model


def _by_quanto(model: nn.Module, block_lists: Sequence[str]) -> nn.Module:
    pytest.importorskip("optimum.quanto")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = QuantoConfig(weights_dtype="int8")
        return type(model).from_pretrained(folder, quantization_config=config)


def _by_gguf(quant_type: str) -> Quantise:
    """From a file, as diffusers loads one that was downloaded."""

    def quantise(model: nn.Module, block_lists: Sequence[str]) -> nn.Module:
        gguf = pytest.importorskip("gguf")
        quant = gguf.GGMLQuantizationType[quant_type]
        with tempfile.TemporaryDirectory() as folder:
            model.save_config(folder)
            path = str(Path(folder, "model.gguf"))
            writer = gguf.GGUFWriter(path, "diffusers")
            for name, tensor in model.state_dict().items():
                of_blocks = any(name.startswith(blocks) for blocks in block_lists)
                is_matrix = of_blocks and tensor.dim() == 2 and tensor.shape[0] > 6
                kind = quant if is_matrix else gguf.GGMLQuantizationType.F32
                data = tensor.numpy()
                writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            return type(model).from_single_file(
                path,
                config=folder,
                quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
                torch_dtype=torch.float32,
            )

    return quantise


def _by_bitsandbytes(model: nn.Module, block_lists: Sequence[str]) -> nn.Module:
    """Its 4-bit layers by hand: diffusers' loader asks for a GPU."""
    bnb = pytest.importorskip("bitsandbytes")

    def quantised(linear: nn.Linear) -> nn.Module:
        made = bnb.nn.Linear4bit(
            linear.in_features, linear.out_features, compute_dtype=torch.float32, quant_type="nf4"
        )
        data = linear.weight.data
        made.weight = bnb.nn.Params4bit(data, requires_grad=False, quant_type="nf4")
        made.bias = linear.bias
        return made.to("cpu")

    return replace_linears(model, block_lists, quantised)


def int8_of_bitsandbytes(model: nn.Module, block_lists: Sequence[str]) -> nn.Module:
    """Its 8-bit layers, without the products of outliers in another type."""
    bnb = pytest.importorskip("bitsandbytes")

    def quantised(linear: nn.Linear) -> nn.Module:
        made = bnb.nn.Linear8bitLt(
            linear.in_features, linear.out_features, has_fp16_weights=False, threshold=0.0
        )
        made.weight = bnb.nn.Int8Params(
            linear.weight.data, requires_grad=False, has_fp16_weights=False
        )
        made.bias = linear.bias
        return made.to("cpu")

    return replace_linears(model, block_lists, quantised)


def replace_linears(
    model: nn.Module, block_lists: Sequence[str], make: Callable[[nn.Linear], nn.Module]
) -> nn.Module:
    """Put what `make` returns in the place of each linear layer of the blocks."""
    for name in block_lists:
        for parent in list(getattr(model, name).modules()):
            for child, layer in list(parent.named_children()):
                if type(layer) is nn.Linear:
                    setattr(parent, child, make(layer))
    return model


KINDS = (
    Kind("torchao int8 weights", _by_torchao("Int8WeightOnlyConfig"), _inside),
    Kind(
        "torchao int8 dynamic", _by_torchao("Int8DynamicActivationInt8WeightConfig"), _inside, 0.03
    ),
    Kind("torchao fp8 weights", _by_torchao("Float8WeightOnlyConfig"), _inside),
    Kind("torchao int4 packed", _packed_int4, _inside),
    Kind("torchao int4", _by_torchao("IntxWeightOnlyConfig", torch.int4), _inside),
    Kind(
        "torchao int8 dynamic int4",
        _by_torchao("Int8DynamicActivationIntxWeightConfig", torch.int4),
        _inside,
        tolerance=0.03,
    ),
    Kind("quanto int8", _by_quanto, _inside),
    Kind("gguf Q8_0", _by_gguf("Q8_0"), lambda weight: [weight]),
    Kind("gguf Q4_0", _by_gguf("Q4_0"), lambda weight: [weight]),
    Kind("bitsandbytes nf4", _by_bitsandbytes, lambda w: [w, w.quant_state.absmax]),
)
