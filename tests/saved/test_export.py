"""A model that was exported and is run where neither Dynamo nor its code is: the pictures and the
decisions of the compiled one; and files, weights and calls that don't fit, which are refused."""

import collections
import copy
import io
import json
import pickle
import sys
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.export import Dim

import dit_cachegraph as dc
from dit_cachegraph.policy.rules.even import EvenSchedule
from support.exported_runs import Call, run_alone, run_here
from support.halved_weight import HalvedWeight
from support.toy_dits import AddingBlock, ToyDiT, adding_dit, toy_inputs

SETTINGS = {"Fn_compute_blocks": 1, "max_warmup_steps": 0, "residual_diff_threshold": 0.2}
EVEN = {"rule": "even", "every": 2, "max_warmup_steps": 1}
ANGLES = (90.0, 80.0, 70.0, 60.0, 50.0)
OPEN = dict.fromkeys(toy_inputs(90.0), {0: Dim.DYNAMIC})
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.skipif(
        torch.torch_version.TorchVersion(torch.__version__) < "2.13", reason="tried since 2.13"
    ),
]


def toy() -> nn.Module:
    return adding_dit(0.5, 0.25, 1.0).eval()


def steps_of(key: str, *, batch: int = 2, seed: int = 0) -> list[Call]:
    """An image of five steps."""
    inputs, calls = toy_inputs(90.0, seed=seed, batch=batch), []
    for angle in ANGLES:
        moved = {"hidden_states": inputs["hidden_states"].clone()}
        calls.append(Call(key, {**inputs, **moved, "timestep": torch.full((batch,), angle)}, {}))
    return calls


def interleaved(*images: list[Call]) -> list[Call]:
    return [call for step in zip(*images, strict=True) for call in step]


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path, model = tmp_path_factory.mktemp("exported") / "toy.dcx", toy()
    dc.configure(model, **SETTINGS)
    dc.export(model, toy_inputs(90.0), path, OPEN)
    return path


@pytest.fixture(scope="module")
def model(file):
    return dc.load_exported(file, toy().state_dict())


@pytest.fixture(autouse=True)
def anew(request):
    if "model" in request.fixturenames:
        dc.reset(request.getfixturevalue("model"))


def test_it_runs_alone_as_the_compiled_model_does(file, tmp_path):
    calls = interleaved(steps_of("a"), steps_of("b", seed=1))
    calls += interleaved(steps_of("c", batch=3), steps_of("d", batch=3, seed=1))
    calls[10] = calls[10]._replace(configure=EVEN)
    compiled = torch.compile(toy(), backend="cachedit", options={"inner_backend": "eager"})
    dc.configure(compiled, **SETTINGS)
    expected, alone = (
        run_here(compiled, calls),
        run_alone(file, toy().state_dict(), calls, tmp_path),
    )
    torch.testing.assert_close(alone.outputs, expected.outputs, rtol=0, atol=1e-6)
    assert alone.steps == expected.steps
    hits = [hit for _, hit, _ in alone.steps]
    assert hits[:10:2] == [False, True, True, True, False]
    assert hits[10::2] == [False, True, False, True, False], "the other rule, at run time"
    assert "cached" in alone.text and "loaded in" in alone.text
    assert alone.report["graphs"][0]["share_of_weights"] > 0


def test_settings_of_configure_are_in_the_file(model):
    (settings,) = run_one(model).settings
    assert settings["rule"] == "dbcache" and settings["residual_diff_threshold"] == 0.2


def run_one(model):
    run_here(model, steps_of("one"))
    return dc.summary(model)


def test_a_batch_of_requests_decides_each_for_itself(model):
    alone = [
        run_here(model, steps_of(key, batch=2, seed=seed)) for key, seed in (("a", 0), ("b", 1))
    ]
    dc.reset(model)
    inputs = [steps_of("", seed=seed) for seed in (0, 1)]
    handles = [dc.request("first"), dc.request("second", residual_diff_threshold=0.05)]
    for i in range(len(ANGLES)):
        joined = {
            name: torch.cat([image[i].arguments[name][:1] for image in inputs])
            for name in inputs[0][i].arguments
        }
        with dc.requests(handles):
            output = model(**joined)
        torch.testing.assert_close(output[:1], alone[0].outputs[i][:1], rtol=0, atol=1e-6)
    hits = [[step.hit for step in handle.report.steps] for handle in handles]
    assert hits[0] == [False, True, True, True, False] and hits[1][:3] == [False, True, False]


def test_however_a_tensor_lies_in_memory(model):
    call = steps_of("a")[0].arguments
    latents = call["hidden_states"].transpose(0, 1).contiguous().transpose(0, 1)
    other = {**call, "hidden_states": latents, "timestep": torch.tensor([90.0]).expand(2)}
    assert not latents.is_contiguous()
    torch.testing.assert_close(model(**other), model(**call))


def test_a_weight_that_is_written_to_computes(file):
    state = toy().state_dict()
    model = dc.load_exported(file, state)
    calls = steps_of("a")
    run_here(model, calls[:2])
    state["blocks.1.step"].mul_(2)
    ran = run_here(model, calls[2:3])
    assert [hit for _, hit, _ in ran.steps] == [False, True, False]
    expected = adding_dit(0.5, 0.5, 1.0)(**calls[2].arguments)
    torch.testing.assert_close(ran.outputs[0], expected)


def test_it_can_be_neither_moved_nor_given_weights_of_another_dtype(file):
    model = dc.load_exported(file, toy().state_dict())
    with pytest.raises(dc.InvalidConfig, match="stays on its device and in its dtype"):
        model.bfloat16()
    model.load_state_dict(toy().double().state_dict(), assign=True)
    with pytest.raises(dc.InvalidConfig, match="is `.*float64`, and was exported as `.*float32`"):
        run_here(model, steps_of("a"))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (lambda w: w[:2], r"is `proj_in.weight: \[2, 8\] float32`"),
        (lambda w: w.t().contiguous().t(), r"with strides \[1, 8\]`, and was exported as"),
        (lambda w: w.double(), "float64`, and was exported as"),
    ],
    ids=["smaller", "transposed", "a dtype"],
)
def test_a_weight_that_is_given_other_data_is_refused(file, data, said):
    """Its code would read what lies beyond it."""
    model = dc.load_exported(file, toy().state_dict())
    first, second, *_ = steps_of("a")
    run_here(model, [first])
    model.proj_in.weight.data = data(toy().proj_in.weight.data)
    with pytest.raises(dc.InvalidConfig, match=said):
        run_here(model, [second])


def test_a_weight_that_lies_elsewhere_is_refused(file):
    model = dc.load_exported(file, toy().state_dict())
    model.proj_in.weight = nn.Parameter(model.proj_in.weight.to("meta"), requires_grad=False)
    with pytest.raises(dc.InvalidConfig, match="proj_in.weight lies on meta, and the code is for"):
        run_here(model, steps_of("a"))


def test_weights_of_a_class_of_their_own_are_refused(file):
    state = {name: HalvedWeight(tensor) for name, tensor in toy().state_dict().items()}
    with pytest.raises(dc.CannotLoad, match="lacks `embed.weight"):
        dc.load_exported(file, state)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_it_can_be_neither_copied_nor_pickled(model, copied):
    with pytest.raises(TypeError, match="call `load_exported` again"):
        copied(model)


def test_what_has_no_folder_is_said_before_it_is_traced(tmp_path):
    with pytest.raises(FileNotFoundError):
        dc.export(toy(), {"no such": "argument"}, tmp_path / "none" / "toy.dcx")


def test_a_pipeline_is_no_transformer(tmp_path):
    pipe = SimpleNamespace(transformer=toy(), components={})
    with pytest.raises(dc.UnknownTarget, match="takes one transformer, as `pipe.transformer`, got"):
        dc.export(pipe, {}, tmp_path / "toy.dcx")


@pytest.mark.parametrize("example", [None, (torch.ones(1),)], ids=["none", "a tuple"])
def test_an_example_without_names(tmp_path, example):
    with pytest.raises(TypeError, match="export takes the arguments of one call by name"):
        dc.export(torch.nn.Linear(1, 1), example, tmp_path / "model.dcx")


def test_what_is_mapped_over_is_refused(model):
    call = steps_of("a")[0].arguments
    latents = torch.stack([call["hidden_states"]] * 3)
    with pytest.raises(dc.InvalidConfig, match="hidden_states is .* compiled code takes plain"):
        torch.vmap(lambda each: model(**{**call, "hidden_states": each}))(latents)


def test_it_has_no_code_to_explain(model):
    with pytest.raises(dc.InvalidConfig, match="was exported, and has no code to trace"):
        dc.explain(model, **toy_inputs(90.0))


def test_before_a_call_it_says_so(file):
    model = dc.load_exported(file, toy().state_dict())
    assert dc.summary(model).standing == "not called yet"
    assert (
        type(model).__name__ == "ToyDiT" and model.state_dict().keys() == toy().state_dict().keys()
    )


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda kw: {}, TypeError, "exported for calls with hidden_states, timestep"),
        (lambda kw: kw | {"scale": 1}, TypeError, "this one has hidden_states, .*scale"),
        (lambda kw: kw | {"timestep": 90.0}, dc.InvalidConfig, "timestep is 90.0"),
        (lambda kw: kw | {"timestep": [kw["timestep"]]}, TypeError, "lists and dicts"),
        (lambda kw: kw | {"timestep": kw["timestep"].double()}, dc.InvalidConfig, "float64"),
        (lambda kw: kw | {"timestep": HalvedWeight(kw["timestep"])}, dc.InvalidConfig, "a Halved"),
        (lambda kw: kw | {"timestep": kw["timestep"][:1]}, dc.InvalidConfig, r"float32 \[s"),
        (lambda kw: kw | {"hidden_states": kw["hidden_states"][:, 1:]}, dc.InvalidConfig, "2, 5,"),
        (lambda kw: {n: v[:1] for n, v in kw.items()}, dc.InvalidConfig, "from 2.*has 1"),
    ],
    ids=[
        *("nothing", "more", "a number", "a list", "a dtype", "a class"),
        *("sizes", "a fixed size", "a bound"),
    ],
)  # fmt: skip
def test_a_call_of_another_form_is_refused(model, change, error, said):
    with pytest.raises(error, match=said):
        model(**change(steps_of("a")[0].arguments))


def rewritten(data: bytes, **changes: object) -> bytes:
    """A whole archive with other parts: bytes, None for a part that is left out, or what a function
    makes of it."""
    source, target = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    parts = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(target, "w") as archive:
        for name in (*parts, *(changes.keys() - parts.keys())):
            change = changes.get(name, parts.get(name))
            part = change(parts[name]) if callable(change) else change
            if part is not None:
                archive.writestr(name, part)
    return target.getvalue()


def part_of(data: bytes, name: str) -> bytes:
    return zipfile.ZipFile(io.BytesIO(data)).read(name)


def in_manifest(**changes: object):
    def change(data: bytes) -> bytes:
        told = json.loads(data)
        for place, value in changes.items():
            outer, _, inner = place.partition("__")
            if inner:
                told[outer][inner] = value
            else:
                told[outer] = value
        return json.dumps(told).encode()

    return lambda data: rewritten(data, **{"manifest.json": change})


def flipped(data: bytes) -> bytes:
    place = len(data) // 2
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def of_part(name: str, change: object):
    return lambda data: rewritten(data, **{name: change})


NOT_WHOLE, CHANGED = "no file that `export` has written whole", "missing or was changed"
DAMAGES = {
    "cut short": (lambda data: data[:-1], NOT_WHOLE),
    "half of it": (lambda data: data[: len(data) // 2], NOT_WHOLE),
    "empty": (lambda data: b"", NOT_WHOLE),
    "a bit": (flipped, NOT_WHOLE),
    "a text": (lambda data: b"weights of a model", NOT_WHOLE),
    "another archive": (lambda data: part_of(data, "segments.pt2"), NOT_WHOLE),
    "no manifest": (of_part("manifest.json", None), NOT_WHOLE),
    "a manifest of something else": (of_part("manifest.json", b"[1]"), NOT_WHOLE),
    "other code": (of_part("segments.pt2", flipped), "segments.pt2.*" + CHANGED),
    "another plan": (of_part("plan.json", lambda data: data + b" "), "plan.json.*" + CHANGED),
    "no tensors": (of_part("constants.pt", None), "constants.pt.*" + CHANGED),
    "a part more": (of_part("more.py", b"print()"), "more.py.*" + CHANGED),
    "another hash": (in_manifest(programs={"plan.json": "0"}), "constants.pt.*" + CHANGED),
    "another version of ours": (in_manifest(maker__dit_cachegraph="9"), "with dit_cachegraph 9"),
    "another torch": (in_manifest(maker__torch="9"), "saved with torch 9, and this is"),
    "another machine": (in_manifest(maker__machine="abacus"), "saved with machine abacus"),
    "another device": (in_manifest(maker__device="cuda"), "saved with device cuda"),
    "a CPU that has more": (in_manifest(built_for=["wings"]), "a CPU that has wings, which this"),
}  # fmt: skip


def loaded_libraries() -> set[str]:
    """What code has been loaded into this process, as Linux tells it."""
    lines = Path("/proc/self/maps").read_text().splitlines() if sys.platform == "linux" else []
    return {line.split()[-1] for line in lines if ".so" in line}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere this isn't told")
def test_code_that_is_loaded_is_seen(file):
    before = loaded_libraries()
    model = dc.load_exported(file, toy().state_dict())
    run_here(model, steps_of("a"))
    (graph,) = dc.summary(model).graphs
    assert len(loaded_libraries() - before) == graph.num_compiled


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_other_file_is_loaded(file, tmp_path, damage):
    change, said = DAMAGES[damage]
    other, before = tmp_path / "other.dcx", loaded_libraries()
    other.write_bytes(change(file.read_bytes()))
    with pytest.raises(dc.CannotLoad, match=said):
        dc.load_exported(other, toy().state_dict())
    assert loaded_libraries() == before, "nothing of it has run"
    with pytest.raises(dc.CannotLoad, match="can't be read"):
        dc.load_exported(tmp_path / "none.dcx", toy().state_dict())


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({}, "lacks `embed.weight: .* float32`"),
        (adding_dit(0.5, 0.25).state_dict(), r"lacks `blocks.2.step: \[\] float32`"),
        (toy().double().state_dict(), "lacks `embed.weight: .* float32`.*; it has `.* float64`"),
        (toy(), "takes the weights by name, as of `transformer.state_dict.*, got ToyDiT"),
        ({"embed.weight": torch.ones(2).numpy()}, "`embed.weight` is no tensor: ndarray"),
    ],
    ids=["none", "a shallower model's", "a dtype", "a model", "arrays"],
)
def test_weights_that_dont_fit_are_refused(file, weights, said):
    with pytest.raises(dc.CannotLoad, match=said):
        dc.load_exported(file, weights)


class OrderedDiT(ToyDiT):
    def forward(self, hidden_states, timestep, encoder_hidden_states):
        output = super().forward(hidden_states, timestep, encoder_hidden_states)
        return collections.OrderedDict(sample=output)


class Mine(EvenSchedule):
    """A rule of the user's own, of a name that is taken."""


def with_own_rule() -> nn.Module:
    model = toy()
    dc.configure(model, rule=Mine(every=2))
    return model


def compiled_in_place() -> nn.Module:
    model = toy()
    model.compile(backend="cachedit")
    return model


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: adding_dit(1.0), "nothing to export: not cached"),
        (lambda: OrderedDiT([AddingBlock(1.0), AddingBlock(2.0)]), "returns a .*OrderedDict"),
        (with_own_rule, "'even' is a Mine of your own"),
        (compiled_in_place, "compiled already"),
    ],
    ids=["no blocks", "a class", "a rule", "compiled"],
)
def test_what_cant_be_exported_says_why(tmp_path, build, said):
    with pytest.raises(dc.CannotSave, match=said):
        dc.export(build(), toy_inputs(90.0), tmp_path / "x.dcx")
    assert not list(tmp_path.iterdir())


def test_sizes_of_what_isnt_given_are_refused(tmp_path):
    with pytest.raises(dc.InvalidConfig, match="tells of image, which the example doesn't have"):
        dc.export(toy(), toy_inputs(90.0), tmp_path / "x.dcx", {"image": {0: Dim.DYNAMIC}})


@pytest.mark.parametrize(
    ("latents", "sizes"),
    [
        (torch.ones(1, 4, 8), {3: Dim.DYNAMIC}),
        (torch.ones(1, 4, 8), {-1: Dim.DYNAMIC}),
        ([torch.ones(2), torch.ones(1, 4, 8)], [None, {3: Dim.DYNAMIC}]),
    ],
    ids=["beyond the last", "from behind", "in a list"],
)
def test_a_dimension_that_isnt_there_is_refused(tmp_path, latents, sizes):
    example, open_sizes = {"hidden_states": latents}, {"hidden_states": sizes}
    with pytest.raises(dc.InvalidConfig, match="dimension (3|-1) of hidden_states, which has 3"):
        dc.export(toy(), example, tmp_path / "x.dcx", open_sizes)


def test_a_multiple_of_a_size_is_refused(tmp_path):
    example = toy_inputs(90.0, batch=4)
    half = {name: {0: 2 * Dim("half")} for name in example}
    with warnings.catch_warnings(), pytest.raises(dc.CannotSave, match="no multiple of them"):
        warnings.simplefilter("ignore")
        dc.export(toy(), example, tmp_path / "x.dcx", half)
