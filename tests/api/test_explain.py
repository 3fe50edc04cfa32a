"""`explain`: what would be cut, without a compilation and without a trace in the model."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import dit_cachegraph as dc
from api.test_report import NOT_CALLED, draw
from dit_cachegraph.demo.flux_scenes import pipeline_around
from support.tiny_models import FLUX, POOLED_DIM, TEXT_DIM, build_flux
from support.toy_dits import GatedBlock, ToyDiT, TwoListDiT, adding_dit, gated_dit, toy_inputs
from support.toy_runs import compile_toy, run, toy_steps

INPUTS = toy_inputs(90.0)
CALL = {
    "height": 32,
    "width": 32,
    "num_inference_steps": 2,
    "guidance_scale": 0.0,
    "output_type": "latent",
}


class BrokenDiT(ToyDiT):
    """A graph break between the second and the third block."""

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor | None = None
    ) -> Tensor:
        h, temb = self.proj_in(hidden_states), self.embed(timestep)
        h = self.blocks[0](h, temb)
        h = self.blocks[1](h, temb)
        torch._dynamo.graph_break()
        h = self.blocks[2](h, temb)
        h = self.blocks[3](h, temb)
        return self.proj_out(self.blocks[4](h, temb))


def call_of_a_pipeline() -> dict[str, object]:
    embeddings = {"prompt_embeds": torch.ones(1, 5, TEXT_DIM)}
    return {**embeddings, "pooled_prompt_embeds": torch.ones(1, POOLED_DIM), **CALL}


def traces(model: nn.Module) -> dict[str, object]:
    """All that could be left in a module and below it: classes, attributes, hooks, weights."""
    found: dict[str, object] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        found[path] = type(module), type(module).__call__, type(module).forward
        for name, value in vars(module).items():
            content = list(value.items()) if isinstance(value, dict) else value
            # Containers as they are now; everything else has to be the very same object.
            copied = copy.copy(content) if isinstance(content, list | set) else content
            found[f"{path}.{name}"] = id(value), copied
    for path, tensor in model.state_dict().items():
        found[f"weights of {path}"] = tensor.data_ptr(), tensor.clone().tolist()
    return found


def test_text_says_what_is_found():
    assert str(dc.explain(gated_dit(4), **INPUTS)) == (
        "1 graph\n"
        "blocks x 4: 4 blocks\n"
        "  blocks: Pattern_3 (h -> h)\n"
        "  6 segments, 3 distinct\n"
        "  Fn=0, Bn=0: a hit skips 4 blocks\n"
        "  the blocks are 94% of the model's weights; a hit skips 90% of its work"
    )


def test_arguments_by_position_and_by_name_are_one():
    model = gated_dit(4)
    explained = dc.explain(model, *INPUTS.values())
    assert explained.graphs == dc.explain(model, **INPUTS).graphs


def test_code_has_every_distinct_segment_and_their_order():
    explained = dc.explain(TwoListDiT(2, 3), **INPUTS)
    (code,), (graph,) = explained.code, explained.graphs
    lines = code.splitlines()
    assert [line for line in lines if line.startswith("# segment")] == [
        "# segment 0: prologue",
        "# segment 1: blocks.0 (and 1 more)",
        "# segment 2: single_blocks.0 (and 2 more)",
        "# segment 3: epilogue",
    ]
    assert code.count("def forward(") == graph.num_compiled == 4
    order = [line.split(" = segment ") for line in lines if " = segment " in line]
    assert [(name, int(rest.split("(")[0])) for name, rest in order] == [
        ("# prologue", 0),
        ("# blocks.0", 1),
        ("# blocks.1", 1),
        ("# single_blocks.0", 2),
        ("# single_blocks.1", 2),
        ("# single_blocks.2", 2),
        ("# epilogue", 3),
    ]
    assert code.count("scaled_dot_product_attention") == 1
    assert "forward" not in repr(explained)


def test_it_finds_what_the_backend_compiles():
    model = TwoListDiT(2, 3)
    (explained,) = dc.explain(model, **INPUTS).graphs
    compiled = compile_toy(model)
    run(compiled, INPUTS)
    (graph,) = dc.summary(compiled).graphs
    assert explained.block_lists == graph.block_lists
    assert explained.num_segments == graph.num_segments == 7
    assert explained.num_compiled == graph.num_compiled


def test_nothing_is_compiled():
    counters.clear()
    model = gated_dit(4)
    dc.explain(model, **INPUTS)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["aot_autograd"] and not counters["inductor"]
    assert str(dc.summary(model)).startswith(NOT_CALLED)


def test_the_module_is_as_it_was():
    model = gated_dit(4)
    before = traces(model)
    dc.explain(model, **INPUTS)
    assert traces(model) == before
    assert torch.is_grad_enabled()


@pytest.mark.e2e
def test_a_pipeline_with_the_arguments_of_its_call():
    model = build_flux(2, 3)
    pipe = pipeline_around(model)
    draw(pipe)  # the pipeline leaves an attribute of its own
    before = traces(model)
    explained = dc.explain(pipe, **call_of_a_pipeline())
    assert [(b.name, b.num_blocks) for b in explained.graphs[0].block_lists] == [
        ("transformer_blocks", 2),
        ("single_transformer_blocks", 3),
    ]
    assert explained.code[0].count("def forward(") == explained.graphs[0].num_compiled == 4
    assert traces(model) == before
    assert str(dc.summary(pipe)).startswith(NOT_CALLED)
    inputs = FLUX.make_inputs(model, batch=1, size=2, text_tokens=5, seed=0)
    assert dc.explain(model, **inputs).graphs == explained.graphs


@pytest.mark.e2e
@pytest.mark.parametrize("is_in_place", [True, False])
def test_a_pipeline_that_is_compiled_is_not_affected(is_in_place):
    model = build_flux(1, 2)
    options = {"inner_backend": "eager", "residual_diff_threshold": 1.0, "max_warmup_steps": 1}
    pipe = pipeline_around(model)
    if is_in_place:
        model.compile(backend="cachedit", options=options)
    else:
        pipe.transformer = torch.compile(model, backend="cachedit", options=options)
    draw(pipe)
    before = dc.summary(pipe)
    assert dc.explain(pipe, **call_of_a_pipeline()).graphs[0].num_blocks == 3
    assert dc.summary(pipe) == before
    counters.clear()
    draw(pipe)
    assert counters["stats"]["unique_graphs"] == 0
    assert dc.summary(pipe).num_hits == 2 * before.num_hits == 2


def test_a_module_that_is_compiled_is_not_affected():
    compiled = compile_toy(adding_dit(1, 2, 3), residual_diff_threshold=1.0)
    first, second, third = toy_steps([90.0, 60.0, 30.0])
    run(compiled, first)
    run(compiled, second)
    before = dc.summary(compiled)
    assert dc.explain(compiled, **INPUTS).graphs[0].num_blocks == 3
    assert dc.summary(compiled) == before
    counters.clear()
    run(compiled, third)
    assert counters["stats"]["unique_graphs"] == 0
    assert [step.hit for step in dc.summary(compiled).steps] == [False, True, True]


def test_graph_breaks_are_told():
    explained = dc.explain(BrokenDiT([GatedBlock() for _ in range(5)]), **INPUTS)
    assert [graph.num_blocks for graph in explained.graphs] == [2, 3]
    assert str(explained).startswith("2 graphs: it breaks at ")
    assert len(explained.code) == 2 and all("def forward(" in code for code in explained.code)


def test_a_refusal_is_told_and_not_warned(recwarn):
    explained = dc.explain(adding_dit(1), **INPUTS)
    (graph,) = explained.graphs
    assert (graph.num_blocks, explained.code) == (0, ("",))
    assert graph.refusals[0].startswith("not cached: ")
    assert str(explained) == f"1 graph\n{graph.refusals[0]}"
    assert not [w for w in recwarn if issubclass(w.category, dc.NotCachedWarning)]


def test_a_pipeline_that_calls_no_transformer():
    class Idle:
        def __init__(self) -> None:
            self.components = {"transformer": gated_dit(2)}

        def __call__(self) -> None: ...

    idle = Idle()
    with pytest.raises(ValueError, match="returned without calling its transformer"):
        dc.explain(idle)
    assert not idle.components["transformer"]._forward_pre_hooks


def test_an_error_of_the_model_is_its_own_and_leaves_no_hook():
    class Failing:
        def __init__(self) -> None:
            self.components = {"transformer": gated_dit(2)}

        def __call__(self) -> None:
            raise KeyError("no prompt")

    failing = Failing()
    with pytest.raises(KeyError, match="no prompt"):
        dc.explain(failing)
    assert not failing.components["transformer"]._forward_pre_hooks


def test_what_a_pipeline_changes_for_its_call_is_explained_and_taken_back():
    """As one with perturbed attention sets other processors, and takes them back at its end."""

    class Perturbing:
        def __init__(self) -> None:
            self.components = {"transformer": gated_dit(3)}

        def __call__(self) -> None:
            for block in self.components["transformer"].blocks:
                del block.norm
                block.norm, block.is_perturbed = torch.tanh, True
            self.components["transformer"](**INPUTS)

    pipe = Perturbing()
    model = pipe.components["transformer"]
    before = traces(model)
    assert "layer_norm" not in dc.explain(pipe).code[0]
    assert traces(model) == before
    assert "layer_norm" in dc.explain(model, **INPUTS).code[0]


def test_a_compiled_forward():
    model = gated_dit(4)
    compiled = compile_toy(model.forward)
    with torch.no_grad():
        assert dc.explain(compiled, **INPUTS).graphs[0].num_blocks == 4
    assert str(dc.summary(model)).startswith(NOT_CALLED)


def test_many_explanations_do_not_keep_the_model_from_being_compiled():
    model = gated_dit(4)
    for _ in range(10):
        assert len(dc.explain(model, **INPUTS).graphs) == 1
    compiled = compile_toy(model, residual_diff_threshold=1.0)
    for inputs in toy_steps([90.0, 60.0]):
        run(compiled, inputs)
    assert [step.hit for step in dc.summary(compiled).steps] == [False, True]


def test_the_region_is_the_one_that_was_configured():
    model = gated_dit(8)
    dc.configure(model, Fn_compute_blocks=3, Bn_compute_blocks=1)
    assert dc.explain(model, **INPUTS).graphs[0].region == (3, 7)
