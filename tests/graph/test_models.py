"""Real diffusers transformers: what is found and cut, and that nothing breaks or recompiles."""

import re
from collections import Counter
from dataclasses import dataclass

import expecttest
import pytest
import torch
from torch._dynamo.utils import counters

import dit_cachegraph as dc
from dit_cachegraph.testing.run import again
from support.running import compile_cached, relative_error, run_all
from support.tiny_models import DIT, FLUX, QWEN, SD3, SD35, WAN, TinyModel, build_flux, trajectory

pytestmark = pytest.mark.e2e

DEPTH = 6


@dataclass(frozen=True)
class Found:
    """One row of the table: a model of six blocks, and what must be found in it."""

    tiny: TinyModel
    lists: tuple[tuple[str, int, str], ...]
    num_streams: int
    num_distinct: int


TABLE = (
    # Prologue, double block, single block (the last one too: only an output is missing), epilogue.
    Found(
        FLUX,
        (
            ("transformer_blocks", 2, "Pattern_1 (h, e -> e, h)"),
            ("single_transformer_blocks", 4, "Pattern_1 (h, e -> e, h)"),
        ),
        2,
        4,
    ),
    # The last block is another one: it drops the text.
    Found(SD3, (("transformer_blocks", 6, "Pattern_1 (h, e -> e, h)"),), 2, 4),
    # And the first three have a second attention.
    Found(SD35, (("transformer_blocks", 6, "Pattern_1 (h, e -> e, h)"),), 2, 5),
    Found(WAN, (("blocks", 6, "Pattern_2 (h, e -> h)"),), 1, 3),
    Found(QWEN, (("transformer_blocks", 6, "Pattern_1 (h, e -> e, h)"),), 2, 3),
    Found(DIT, (("transformer_blocks", 6, "Pattern_3 (h -> h)"),), 1, 3),
)


def by_name(found: Found) -> str:
    return found.tiny.name


def inputs_of(tiny: TinyModel, model, batch=2, size=4, text_tokens=6, seed=0):
    return tiny.make_inputs(model, batch=batch, size=size, text_tokens=text_tokens, seed=seed)


@pytest.mark.parametrize("found", TABLE, ids=by_name)
def test_two_images_of_14_steps_are_one_cut_graph_with_hits_on_both(found):
    model = found.tiny.build(DEPTH)
    counters.clear()
    compiled = compile_cached(
        model, Fn_compute_blocks=1, residual_diff_threshold=0.3, max_warmup_steps=3
    )
    inputs = inputs_of(found.tiny, model)
    hits = []
    for image in range(2):
        steps = trajectory(found.tiny, inputs, 14, seed=image)
        hits.append([ran.hit for ran in run_all(compiled, steps)])
    assert counters["stats"]["unique_graphs"] == 1
    assert sum(counters["graph_break"].values()) == 0
    assert sum(counters["recompiles"].values()) == 0
    for image in hits:
        assert image[:3] == [False] * 3
        assert 2 <= sum(image) <= 11
    report = dc.summary(model)
    assert [s.step for s in report.steps] == [*range(14), *range(14)]
    assert_found(found, report.graphs)


def assert_found(found: Found, graphs) -> None:
    (graph,) = graphs
    lists = tuple((b.name, b.num_blocks, b.pattern) for b in graph.block_lists)
    assert lists == found.lists
    assert graph.num_blocks == DEPTH
    assert graph.num_segments == DEPTH + 2
    assert graph.num_compiled == found.num_distinct
    assert graph.num_streams == found.num_streams


@pytest.mark.parametrize("found", TABLE, ids=by_name)
def test_more_blocks_make_no_further_segment(found):
    model = found.tiny.build(DEPTH + 2)
    (graph,) = dc.explain(model, **inputs_of(found.tiny, model)).graphs
    assert graph.num_blocks == DEPTH + 2
    assert graph.num_compiled == found.num_distinct


@pytest.mark.parametrize("found", TABLE, ids=by_name)
def test_computing_and_replaying(found):
    model = found.tiny.build(DEPTH)
    compiled = compile_cached(model)
    inputs = inputs_of(found.tiny, model)
    steps = list(trajectory(found.tiny, inputs, 4))
    dc.configure(compiled, residual_diff_threshold=0.0, max_warmup_steps=0)
    for ran, kwargs in zip(run_all(compiled, steps), steps, strict=True):
        assert not ran.hit
        assert relative_error(ran.output, eager(model, kwargs)) < 1e-5
    for first, last in ((1, 0), (2, 1), (3, 2)):
        dc.configure(compiled, Fn_compute_blocks=first, Bn_compute_blocks=last)
        assert_replay_equals_computing(compiled, steps)
        assert_region_matters(compiled, model, steps)


@pytest.mark.parametrize("depth", [4, 8])
def test_controls_that_enter_between_blocks_make_no_block_of_its_own(depth):
    """diffusers computes with NumPy which of ControlNet's residuals comes where."""
    model = build_flux(1, depth - 1)
    inputs = inputs_of(FLUX, model)
    control = torch.randn(*inputs["hidden_states"].shape[:2], model.inner_dim)
    inputs["controlnet_single_block_samples"] = [control + i for i in range(depth - 1)]
    (graph,) = dc.explain(model, **inputs).graphs
    assert (graph.num_blocks, graph.num_compiled) == (depth, 5)


def eager(model, kwargs):
    with torch.no_grad():
        return model(**kwargs)[0]


def assert_replay_equals_computing(compiled, steps) -> None:
    dc.reset(compiled)
    dc.configure(compiled, residual_diff_threshold=0.5, max_warmup_steps=2)
    # The last step again, but for the last bit of its latents: the same output.
    computed, replayed = run_all(compiled, [*steps[:2], again(steps[1], steps[0])])[1:]
    assert (computed.hit, replayed.hit) == (False, True)
    assert replayed.diff < 1e-6
    assert relative_error(replayed.output, computed.output) < 1e-5


def assert_region_matters(compiled, model, steps) -> None:
    """A replay at another input differs: else the tests of replays would pass anything."""
    dc.reset(compiled)
    dc.configure(compiled, residual_diff_threshold=1.0, max_warmup_steps=1)
    halfway = torch.lerp(steps[0]["hidden_states"], steps[3]["hidden_states"], 0.5)
    moved = {**steps[3], "hidden_states": halfway}
    ran = run_all(compiled, [steps[0], moved])[1]
    assert ran.hit
    assert relative_error(ran.output, eager(model, moved)) > 1e-2


def outline(code: str) -> str:
    """A cut graph in short: of each distinct segment its inputs (weights counted), its operations
    in order of the alphabet with their number, and its outputs; then the order of the calls."""
    parts = []
    for text in code.split("# segment ")[1:]:
        lines = text.splitlines()
        signature = next(line for line in lines if line.strip().startswith("def forward"))
        # Torch before 2.13 names arguments by `_self_modules_`.
        signature = signature.replace("_self_dict_modules_", "_self_modules_")
        names = [a.split(":")[0].strip() for a in signature[signature.index("(") :].split(",")[1:]]
        values = [n.strip(" )") for n in names if "_parameters_" not in n and "_buffers_" not in n]
        num_weights = len(names) - len(values)
        ops = Counter(
            m.group(1).rpartition(".")[2]
            for line in lines
            if (m := re.match(r"\s+\w+ = ([\w.]+)\(", line))
        )
        returned = next(line for line in lines if line.strip().startswith("return"))
        parts.append(f"{lines[0]}\n  in: {', '.join(values)} + {num_weights} weights")
        parts.append("  ops: " + ", ".join(f"{k} {v}" for k, v in sorted(ops.items())))
        parts.append(f"  out: {returned.strip()[len('return ') :]}")
    return "\n".join(parts)


class CutGraphs(expecttest.TestCase):
    """The cut graph of each model, in outline; EXPECTTEST_ACCEPT=1 rewrites them."""

    maxDiff = None

    def outline_of(self, tiny: TinyModel, depth: int) -> str:
        torch._dynamo.reset()
        model = tiny.build(depth)
        return outline(dc.explain(model, **inputs_of(tiny, model, batch=1)).code[0])

    def test_flux(self):
        self.assertExpectedInline(
            self.outline_of(FLUX, 4),
            """\
0: prologue
  in: l_kwargs_hidden_states_, l_kwargs_timestep_, l_kwargs_guidance_, l_kwargs_pooled_projections_, l_kwargs_encoder_hidden_states_, l_kwargs_txt_ids_, l_kwargs_img_ids_ + 16 weights
  ops: arange 5, cat 7, contiguous 2, cos 5, exp 2, float 9, linear 8, outer 3, repeat_interleave 6, silu 3, sin 5, to 6
  out: (contiguous, conditioning, contiguous_1, freqs_cos_3, freqs_sin_3)
1: transformer_blocks.0
  in: conditioning, hidden_states, encoder_hidden_states, freqs_cos_3, freqs_sin_3 + 32 weights
  ops: cat 3, chunk 2, contiguous 4, dropout 3, flatten 3, float 4, gelu 2, layer_norm 4, linear 14, permute 4, reshape 2, rms_norm 4, scaled_dot_product_attention 1, silu 2, split_with_sizes 1, stack 2, to 7, unbind 2, unflatten 6, unsqueeze 4
  out: (contiguous_2, contiguous_3)
2: single_transformer_blocks.0 (and 2 more)
  in: encoder_hidden_states_4, hidden_states_14, conditioning, freqs_cos_3, freqs_sin_3 + 14 weights
  ops: cat 2, chunk 1, contiguous 2, flatten 3, float 4, gelu 1, layer_norm 1, linear 6, permute 4, reshape 2, rms_norm 2, scaled_dot_product_attention 1, silu 1, stack 2, to 7, unbind 2, unflatten 3, unsqueeze 1
  out: (contiguous, contiguous_1)
3: epilogue
  in: conditioning, hidden_states_39 + 4 weights
  ops: chunk 1, contiguous 1, layer_norm 1, linear 2, silu 1, to 1
  out: (contiguous,)""",
        )

    def test_sd3(self):
        self.assertExpectedInline(
            self.outline_of(SD3, 3),
            """\
0: prologue
  in: l_kwargs_hidden_states_, l_kwargs_timestep_, l_kwargs_pooled_projections_, l_kwargs_encoder_hidden_states_ + 13 weights
  ops: arange 1, cat 2, contiguous 3, conv2d 1, cos 1, exp 1, flatten 1, float 1, linear 5, reshape 2, silu 2, sin 1, to 2, transpose 1
  out: (contiguous, conditioning, contiguous_1)
1: transformer_blocks.0 (and 1 more)
  in: conditioning, hidden_states_1, encoder_hidden_states + 28 weights
  ops: cat 3, chunk 2, contiguous 2, dropout 3, gelu 2, layer_norm 4, linear 14, reshape 7, scaled_dot_product_attention 1, silu 2, to 1, transpose 7, unsqueeze 4
  out: (contiguous, contiguous_1)
2: transformer_blocks.2
  in: conditioning, hidden_states_32, encoder_hidden_states_8 + 22 weights
  ops: cat 3, chunk 2, contiguous 1, dropout 2, gelu 1, layer_norm 3, linear 11, reshape 7, scaled_dot_product_attention 1, silu 2, to 2, transpose 7, unsqueeze 2
  out: (contiguous,)
3: epilogue
  in: conditioning, hidden_states_48 + 4 weights
  ops: chunk 1, contiguous 1, einsum 1, layer_norm 1, linear 2, reshape 2, silu 1, to 1
  out: (contiguous,)""",
        )

    def test_sd35(self):
        self.assertExpectedInline(
            self.outline_of(SD35, 3),
            """\
0: prologue
  in: l_kwargs_hidden_states_, l_kwargs_timestep_, l_kwargs_pooled_projections_, l_kwargs_encoder_hidden_states_ + 13 weights
  ops: arange 1, cat 2, contiguous 3, conv2d 1, cos 1, exp 1, flatten 1, float 1, linear 5, reshape 2, silu 2, sin 1, to 2, transpose 1
  out: (contiguous, conditioning, contiguous_1)
1: transformer_blocks.0
  in: conditioning, hidden_states_1, encoder_hidden_states + 42 weights
  ops: cat 3, chunk 2, contiguous 2, dropout 4, gelu 2, layer_norm 4, linear 18, mean 6, pow 6, reshape 11, rsqrt 6, scaled_dot_product_attention 2, silu 2, to 8, transpose 11, unsqueeze 5
  out: (contiguous, contiguous_1)
2: transformer_blocks.1
  in: conditioning, hidden_states_35, encoder_hidden_states_4 + 32 weights
  ops: cat 3, chunk 2, contiguous 2, dropout 3, gelu 2, layer_norm 4, linear 14, mean 4, pow 4, reshape 7, rsqrt 4, scaled_dot_product_attention 1, silu 2, to 5, transpose 7, unsqueeze 4
  out: (contiguous, contiguous_1)
3: transformer_blocks.2
  in: conditioning, hidden_states_59, encoder_hidden_states_8 + 26 weights
  ops: cat 3, chunk 2, contiguous 1, dropout 2, gelu 1, layer_norm 3, linear 11, mean 4, pow 4, reshape 7, rsqrt 4, scaled_dot_product_attention 1, silu 2, to 6, transpose 7, unsqueeze 2
  out: (contiguous,)
4: epilogue
  in: conditioning, hidden_states_83 + 4 weights
  ops: chunk 1, contiguous 1, einsum 1, layer_norm 1, linear 2, reshape 2, silu 1, to 1
  out: (contiguous,)""",
        )

    def test_wan(self):
        self.assertExpectedInline(
            self.outline_of(WAN, 2),
            """\
0: prologue
  in: l_kwargs_hidden_states_, l_kwargs_timestep_, l_kwargs_encoder_hidden_states_ + 14 weights
  ops: arange 1, cat 4, contiguous 2, conv3d 1, cos 1, exp 1, expand 6, flatten 1, float 1, gelu 1, linear 5, reshape 8, silu 2, sin 1, split 2, transpose 1, type_as 1, unflatten 1
  out: (freqs_cos, freqs_sin, contiguous, temb, hidden_states_5, timestep_proj_1)
1: blocks.0 (and 1 more)
  in: timestep_proj_1, hidden_states_2, freqs_cos, freqs_sin, hidden_states_5 + 27 weights
  ops: chunk 1, contiguous 1, dropout 3, empty_like 2, flatten 2, float 12, gelu 1, layer_norm 3, linear 10, permute 8, rms_norm 4, scaled_dot_product_attention 2, to 3, type_as 9, unbind 2, unflatten 8
  out: (contiguous,)
2: epilogue
  in: temb, hidden_states_35 + 3 weights
  ops: chunk 1, contiguous 1, flatten 3, float 2, layer_norm 1, linear 1, permute 1, reshape 1, to 4, type_as 1, unsqueeze 1
  out: (contiguous,)""",
        )

    def test_qwen(self):
        self.assertExpectedInline(
            self.outline_of(QWEN, 2),
            """\
0: prologue
  in: l_kwargs_hidden_states_, l_kwargs_timestep_, l_kwargs_encoder_hidden_states_, l_self_modules_pos_embed_pos_freqs, l_self_modules_pos_embed_neg_freqs + 9 weights
  ops: arange 1, cat 6, clone 1, contiguous 3, cos 1, exp 1, expand 3, float 1, linear 4, mean 1, pow 1, reshape 4, rsqrt 1, silu 1, sin 1, split 2, to 7
  out: (contiguous, contiguous_1, sample_2, txt_freqs, vid_freqs)
1: transformer_blocks.0 (and 1 more)
  in: sample_2, hidden_states, encoder_hidden_states, vid_freqs, txt_freqs + 32 weights
  ops: cat 3, chunk 6, contiguous 4, dropout 3, flatten 5, float 4, gelu 2, layer_norm 4, linear 14, mean 4, permute 4, pow 4, reshape 4, rsqrt 4, scaled_dot_product_attention 1, silu 2, to 5, type_as 4, unflatten 6, unsqueeze 16, view_as_complex 4, view_as_real 4
  out: (contiguous, contiguous_3)
2: epilogue
  in: sample_2, hidden_states_34 + 4 weights
  ops: chunk 1, contiguous 1, layer_norm 1, linear 2, silu 1, to 1
  out: (contiguous,)""",
        )

    def test_dit(self):
        self.assertExpectedInline(
            self.outline_of(DIT, 2),
            """\
0: prologue
  in: l_kwargs_hidden_states_ + 3 weights
  ops: contiguous 1, conv2d 1, flatten 1, to 1, transpose 1
  out: (contiguous,)
1: transformer_blocks.0 (and 1 more)
  in: l_kwargs_timestep_, l_kwargs_class_labels_, hidden_states + 19 weights
  ops: arange 1, cat 2, chunk 1, contiguous 1, cos 1, dropout 2, embedding 1, exp 1, float 1, gelu 1, layer_norm 2, linear 9, reshape 4, scaled_dot_product_attention 1, silu 2, sin 1, to 2, transpose 4, unsqueeze 2
  out: (contiguous,)
2: epilogue
  in: l_kwargs_timestep_, l_kwargs_class_labels_, hidden_states_24 + 9 weights
  ops: arange 1, cat 2, chunk 1, contiguous 1, cos 1, einsum 1, embedding 1, exp 1, float 1, layer_norm 1, linear 4, reshape 2, silu 2, sin 1, to 1
  out: (contiguous,)""",
        )
