"""What one process compiled and another loads: the same pictures and decisions without a trace, and
every call or folder that doesn't fit is compiled afresh, with the reason."""

import contextlib
import hashlib
import itertools
import json
import logging
import operator
import os
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor import config
from torch._inductor.utils import fresh_cache
from torch.nn.utils.parametrizations import weight_norm

import dit_cachegraph as dc
from dit_cachegraph.cpu import cpu_features
from dit_cachegraph.models import REGISTRY
from dit_cachegraph.policy.rules.even import EvenSchedule
from dit_cachegraph.savable import SavableModel
from dit_cachegraph.saved.manifest import read_programs, write_programs
from dit_cachegraph.saved.model_parts import WatchedParts, other_model, parts_of
from support.halved_weight import HalvedWeight
from support.logged import logged
from support.tiny_pipelines import FAST_PIPELINES
from support.toy_dits import DIM, NUM_TEXT_TOKENS, GatedBlock, ReadingDiT, toy_inputs

OPTIONS = {
    "inner_backend": "eager",
    "Fn_compute_blocks": 1,
    "max_warmup_steps": 0,
    "residual_diff_threshold": 0.2,
}
FLUX = FAST_PIPELINES[0]
pytestmark = pytest.mark.skipif(
    torch.torch_version.TorchVersion(torch.__version__) < "2.13", reason="torch saves since 2.13"
)
DECISIONS = [False, True, True, True, False]
BATCHES = (2, 3)


def toy(*, depth: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return ReadingDiT([GatedBlock() for _ in range(depth)]).eval()


def draw(model, batches=BATCHES):
    """An image of five steps for each batch."""
    outputs = []
    for batch in batches:
        conditioning = toy_inputs(90.0, batch=batch)
        for angle in (90.0, 80.0, 70.0, 60.0, 50.0):
            timestep = torch.full((batch,), angle)
            with torch.no_grad():
                outputs.append(model(**{**conditioning, "timestep": timestep}))
    return outputs


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    torch._dynamo.reset()
    dc.precompile(toy(), draw, save=folder, options=OPTIONS)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy that may be damaged."""
    copy = tmp_path / "model"
    copy.mkdir()
    for path in (saved / "model").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return tmp_path


def graphs_traced() -> int:
    return counters["stats"]["unique_graphs"]


def was_loaded(model) -> list[bool]:
    return [graph.is_loaded for graph in dc.summary(model).graphs]


def compiled_afresh(model) -> list[torch.Tensor]:
    torch._dynamo.reset()
    return draw(torch.compile(model, backend="cachedit", options=OPTIONS))


def test_what_is_loaded_draws_the_same_without_a_trace(saved):
    expected = compiled_afresh(toy())
    torch._dynamo.reset()
    counters.clear()
    model = dc.load(toy(), saved, OPTIONS)
    torch.testing.assert_close(draw(model), expected, rtol=0, atol=1e-6)
    assert graphs_traced() == 0
    report = dc.summary(model)
    assert [step.hit for step in report.steps] == DECISIONS * 2
    assert was_loaded(model) == [True], "one program takes both batches"
    assert "loaded in" in str(report)
    dc.check(model)


def test_a_function_of_the_caller_that_is_compiled_leaves_it_whole(saved):
    torch._dynamo.reset()
    model, targets = dc.load(toy(), saved, OPTIONS), []

    def note(gm, _):
        targets.extend(node.target for node in gm.graph.nodes if node.op == "call_function")
        return gm.forward

    @torch.compile(backend=note)
    def doubled(**inputs):
        return 2 * model(**inputs)

    outputs = draw(doubled)
    assert set(targets) == {operator.mul}, "nothing of the driver is traced"
    assert [step.hit for step in dc.summary(model).steps] == DECISIONS * 2
    torch.testing.assert_close(outputs, [2 * output for output in compiled_afresh(toy())])


@contextlib.contextmanager
def dynamo_disabled():
    torch._dynamo.config.disable = True
    try:
        yield
    finally:
        torch._dynamo.config.disable = False


@pytest.mark.parametrize(
    "stopped",
    [lambda: torch.compiler.set_stance("force_eager"), dynamo_disabled],
    ids=["force_eager", "disable"],
)
def test_where_dynamo_is_to_run_calls_eagerly_so_are_these(saved, stopped):
    torch._dynamo.reset()
    plain = toy()
    model = dc.load(plain, saved, OPTIONS)
    draw(model, (2,))
    with stopped():
        torch.testing.assert_close(draw(model, (2,)), draw(plain, (2,)), rtol=0, atol=0)
    report = dc.summary(model)
    assert (len(report.steps), report.num_outside, report.is_cached) == (5, 5, False)
    torch._dynamo.reset()
    draw(model, (2,))
    dc.check(model)
    assert [step.hit for step in dc.summary(model).steps] == DECISIONS * 2


def test_the_process_that_saves_goes_on_with_it(tmp_path):
    model = dc.precompile(toy(), draw, save=tmp_path, options=OPTIONS)
    counters.clear()
    torch.testing.assert_close(draw(model), compiled_afresh(toy()), rtol=0, atol=1e-6)
    assert [step.hit for step in dc.summary(model).steps] == DECISIONS * 2


def test_weights_are_those_of_the_model(saved):
    model = dc.load(toy(seed=1), saved, OPTIONS)
    torch.testing.assert_close(draw(model), compiled_afresh(toy(seed=1)), rtol=0, atol=1e-6)
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    assert not torch.equal(draw(model)[0], draw(toy(seed=1))[0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda kw: kw | {"skip": True}, "skip is True in place of False"),
        (lambda kw: kw | {"encoder_hidden_states": kw["hidden_states"]}, "encoder_hidden_states"),
        (lambda kw: kw | {"hidden_states": kw["hidden_states"][:1]}, "other sizes"),
        (lambda kw: kw | {"timestep": kw["timestep"].long()}, "other sizes, dtypes"),
    ],
    ids=["a flag", "one tensor given twice", "a batch of one", "a dtype"],
)
def test_a_call_of_another_kind_is_compiled(saved, change, said):
    model, plain = dc.load(toy(), saved, OPTIONS), toy()
    inputs = change(toy_inputs(90.0))
    if inputs["hidden_states"].shape[0] == 1:
        inputs = {name: value[:1] for name, value in inputs.items()}
    counters.clear()
    with torch.no_grad(), logged(logging.WARNING) as lines:
        outputs = [model(**inputs) for _ in range(2)]
        torch.testing.assert_close(outputs, [plain(**inputs)] * 2)
    assert graphs_traced() == 1
    (line,) = [line for line in lines if "no saved program" in line]
    assert said in line


class Scaling(NamedTuple):
    by: float


@dataclass
class Gain:
    by: float
    of: Scaling


class GainedDiT(ReadingDiT):
    def forward(self, hidden_states, timestep, encoder_hidden_states, gain, tokens=slice(0, 3)):
        whole = super().forward(hidden_states, timestep, encoder_hidden_states)
        return whole[:, tokens] * gain.by * gain.of.by


def test_values_inside_of_arguments_are_told_apart(tmp_path):
    def call(model, gain, **given):
        with torch.no_grad():
            return model(**toy_inputs(90.0), gain=gain, **given)

    def gained():
        return GainedDiT([GatedBlock() for _ in range(3)]).eval()

    first = Gain(2.0, Scaling(1.0))
    dc.precompile(gained(), lambda model: call(model, first), save=tmp_path, options=OPTIONS)
    torch._dynamo.reset()
    plain = gained()
    model = dc.load(plain, tmp_path, OPTIONS)
    with logged(logging.WARNING) as lines:
        torch.testing.assert_close(call(model, Gain(2.0, Scaling(1.0))), call(plain, first))
        assert was_loaded(model) == [True]
        assert lines == []
        for gain in (Gain(3.0, Scaling(1.0)), Gain(2.0, Scaling(5.0))):
            torch.testing.assert_close(call(model, gain), call(plain, gain))
        other = {"tokens": slice(1, 4)}
        torch.testing.assert_close(call(model, first, **other), call(plain, first, **other))
    said = ["gain['by'] is 3.0", "gain['of'][0] is 5.0", "tokens['start'] is 1 in place of 0"]
    assert len(lines) == len(said)
    assert all(text in line for text, line in zip(said, lines, strict=True))


class TakingDiT(ReadingDiT):
    """Takes controls out of the caller's list, as HunyuanDiT does."""

    def forward(self, hidden_states, timestep, encoder_hidden_states, controls):
        whole = super().forward(hidden_states, timestep, encoder_hidden_states)
        while controls:
            whole = whole + controls.pop()
        return whole


def test_what_a_model_takes_out_of_a_list_was_given_to_it(tmp_path):
    def call(model):
        with torch.no_grad():
            return model(**toy_inputs(90.0), controls=[torch.ones(DIM), torch.ones(1)])

    def taking():
        return TakingDiT([GatedBlock() for _ in range(3)]).eval()

    dc.precompile(taking(), call, save=tmp_path, options=OPTIONS)
    torch._dynamo.reset()
    counters.clear()
    plain = taking()
    model = dc.load(plain, tmp_path, OPTIONS)
    torch.testing.assert_close(call(model), call(plain))
    assert graphs_traced() == 0
    assert was_loaded(model) == [True]


def expanded(batch):
    """A timestep as pipelines give it, of stride 0."""
    return {"timestep": torch.tensor(90.0).expand(batch)}


def sliced(batch):
    """A text that is a part of a longer one."""
    longer = torch.ones(batch, 2 * NUM_TEXT_TOKENS, DIM)
    return {"encoder_hidden_states": longer[:, :NUM_TEXT_TOKENS]}


def as_it_is(batch):
    return {}


@pytest.mark.parametrize("changes", [(expanded,), (sliced,), (expanded, as_it_is, sliced)])
@pytest.mark.parametrize("batches", [BATCHES, BATCHES[:1]], ids=len)
def test_tensors_are_taken_as_they_lie(tmp_path, changes, batches):
    def call(model):
        outputs = []
        for batch, change in itertools.product(batches, changes):
            with torch.no_grad():
                outputs.append(model(**toy_inputs(90.0, batch=batch) | change(batch)))
        return outputs

    dc.precompile(toy(), call, save=tmp_path, options=OPTIONS)
    torch._dynamo.reset()
    counters.clear()
    model = dc.load(toy(), tmp_path, OPTIONS)
    torch.testing.assert_close(call(model), call(toy()))
    assert graphs_traced() == 0
    assert was_loaded(model) == [True] * len(changes), "one program takes both batches"


class ChoosingDiT(ReadingDiT):
    def forward(self, hidden_states, timestep, encoder_hidden_states, choice):
        whole = super().forward(hidden_states, timestep, encoder_hidden_states)
        return 2 * whole if "twice" in choice else whole


def test_an_argument_whose_values_cant_be_told_apart_isnt_saved(tmp_path):
    model = ChoosingDiT([GatedBlock() for _ in range(3)]).eval()

    def draw_twice(model):
        with torch.no_grad():
            model(**toy_inputs(90.0), choice={"twice"})

    with pytest.raises(dc.CannotSave, match="called with a set as choice, whose values can't be"):
        dc.precompile(model, draw_twice, save=tmp_path, options=OPTIONS)


@pytest.mark.parametrize("are_inputs_of_it", [True, False])
def test_what_is_drawn_in_inference_mode_is_loaded_in_it(tmp_path, are_inputs_of_it):
    given = [toy_inputs(angle, batch=batch) for batch in BATCHES for angle in (90.0, 80.0)]

    @torch.inference_mode()
    def infer(model):
        inputs = given
        if are_inputs_of_it:
            inputs = [{name: value.clone() for name, value in each.items()} for each in given]
        return [model(**each) for each in inputs]

    dc.precompile(toy(), infer, save=tmp_path, options=OPTIONS)
    assert len(list(tmp_path.rglob("*.bin"))) == 1, "one program takes both batches"
    torch._dynamo.reset()
    model = dc.load(toy(), tmp_path, OPTIONS)
    with logged(logging.WARNING) as lines:
        torch.testing.assert_close(infer(model), infer(toy()))
        assert (was_loaded(model), lines) == ([True], [])
        draw(model, (2,))
    (line,) = lines
    assert "is_inference_mode_enabled=False" in line
    assert was_loaded(model) == [True, False]


def test_a_tensor_of_inference_mode_is_told_from_others(saved):
    model, plain = dc.load(toy(), saved, OPTIONS), toy()
    with torch.inference_mode():
        inputs = toy_inputs(90.0)
    with torch.no_grad(), logged(logging.WARNING) as lines:
        torch.testing.assert_close(model(**inputs), plain(**inputs))
    (line,) = lines
    assert "whether hidden_states was made in inference mode is True in place of False" in line


def test_with_gradients_on_nothing_saved_runs(saved):
    model = dc.load(toy(), saved, OPTIONS)
    with pytest.warns(dc.NotCachedWarning, match="compiled with gradients on"):
        output = model(**toy_inputs(90.0))
    assert output.requires_grad


def test_hooks_that_were_put_on_later_run(saved):
    inner, seen = toy(), []
    model = dc.load(inner, saved, OPTIONS)
    with torch.no_grad():
        model(**toy_inputs(90.0))
        inner.register_forward_hook(lambda *_: seen.append(1))
        model(**toy_inputs(90.0))
    assert seen == [1]


class Times:
    """What a layer calls, with a number of its own."""

    by = 1.0

    def __call__(self, x):
        return self.by * x


class TunedBlock(GatedBlock):
    """Notes the size of its last call, and keeps what it made for sizes."""

    def __init__(self):
        super().__init__()
        self.gain, self.processor = 1.0, Times()
        self.gains, self._active = {"first": 1.0, "second": 2.0}, ["first"]
        self.sizes = (4, 2)
        self.cache, self._is_called = {}, False

    def forward(self, h, temb, e=None):
        self._is_called = True
        self.cache[h.shape[1]] = temb
        gain = sum(self.gains[name] for name in self._active)
        return self.processor(self.gain * gain * super().forward(h, temb, e))


def tuned() -> nn.Module:
    torch.manual_seed(0)
    return ReadingDiT([TunedBlock() for _ in range(3)]).eval()


@pytest.fixture(scope="module")
def saved_tuned(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    dc.precompile(tuned(), draw, save=folder, options=OPTIONS)
    return folder


class Waves:
    """A table of positions, made at the first call (Z-Image's `RopeEmbedder`)."""

    def __init__(self):
        self.tables = None

    def __call__(self, positions):
        if self.tables is None:
            self.tables = [torch.sin(torch.arange(64.0))]
        return self.tables[0][positions]


class WavedDiT(ReadingDiT):
    def __init__(self, blocks):
        super().__init__(blocks)
        self.waves = Waves()

    def forward(self, hidden_states, timestep, encoder_hidden_states):
        positions = torch.arange(hidden_states.shape[1])
        moved = hidden_states + self.waves(positions)[:, None]
        return super().forward(moved, timestep, encoder_hidden_states)


def test_a_model_makes_what_it_keeps_of_its_first_call_before_it_is_read(tmp_path):
    def waved():
        torch.manual_seed(0)
        return WavedDiT([GatedBlock() for _ in range(3)]).eval()

    dc.precompile(waved(), draw, save=tmp_path, options=OPTIONS)
    torch._dynamo.reset()
    counters.clear()
    plain = waved()
    model = dc.load(plain, tmp_path, OPTIONS)
    with logged(logging.INFO) as lines:
        outputs = draw(model)
    assert graphs_traced() == 0
    assert [step.hit for step in dc.summary(model).steps] == DECISIONS * 2
    said = "WavedDiT runs once uncompiled, to make what it keeps (`waves.tables[0]`)"
    assert [line for line in lines if "uncompiled" in line] == [said]
    torch.testing.assert_close(outputs, compiled_afresh(waved()), rtol=0, atol=1e-6)
    with logged(logging.INFO) as lines:
        draw(dc.load(plain, tmp_path, OPTIONS))
    assert "WavedDiT: 1 programs loaded" in lines
    assert not [line for line in lines if "uncompiled" in line], "it has them already"


class Adapted(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.low_rank = layer, nn.Linear(DIM, 2 * DIM)

    def forward(self, x):
        return self.layer(x) + self.low_rank(x)


def adapt(block):
    block.up = Adapted(block.up)


def gain(block):
    block.gain = 3.0


def other_processor(block):
    block.processor = torch.tanh


def tune_processor(block):
    block.processor.by = 3.0


def scale(block):
    block.gains["first"] = 3.0


def switch(block):
    block._active[0] = "second"


def join(block):
    block._active.append("second")


def widen(block):
    block.sizes = (4, 3)


def hook(block):
    block.register_forward_hook(lambda *given: 2 * given[-1])


def other_forward(block):
    block.forward = lambda h, temb, e: 2 * h


def parametrize(block):
    weight_norm(block.up)
    block.up.parametrizations.weight.original0.data.mul_(2)


def halve_up(block):
    block.up.weight = nn.Parameter(HalvedWeight(block.up.weight.detach()), requires_grad=False)


def transpose(block):
    block.up.weight = nn.Parameter(block.up.weight.detach().t().contiguous().t())


CHANGES = [
    (adapt, "`blocks.1.up: Adapted in training`"),
    (gain, "`blocks.1.gain: 3.0`"),
    (other_processor, "`blocks.1.processor: .*tanh`"),
    (tune_processor, "`blocks.1.processor.by: 3.0`"),
    (scale, r"`blocks.1.gains\['first'\]: 3.0`"),
    (switch, r"`blocks.1._active\[0\]: 'second'`"),
    (join, r"`blocks.1._active\[1\]: 'second'`"),
    (widen, r"`blocks.1.sizes\[1\]: 3`"),
    (hook, r"`blocks.1: hooks or another forward \(1\)`"),
    (other_forward, r"`blocks.1: hooks or another forward \(1\)`"),
    (parametrize, "`blocks.1.up: ParametrizedLinear`"),
    (halve_up, r"`blocks.1.up.weight: \[16, 8\] float32 of HalvedWeight`"),
    (transpose, r"`blocks.1.up.weight: \[16, 8\] float32 with strides \[1, 16\]`"),
]


@pytest.mark.parametrize(("change", "sentence"), CHANGES)
def test_what_a_forward_goes_by_is_a_part_of_the_model(saved_tuned, change, sentence):
    model = tuned()
    change(model.blocks[1])
    with pytest.warns(dc.NotLoadedWarning, match=sentence):
        dc.load(model, saved_tuned, OPTIONS)


@pytest.mark.parametrize(("change", "sentence"), CHANGES)
def test_a_model_that_changes_after_loading_is_compiled_as_it_is(saved_tuned, change, sentence):
    plain = tuned()
    model = dc.load(plain, saved_tuned, {**OPTIONS})
    with logged(logging.WARNING) as lines:
        draw(model, (2,))
    assert (lines, was_loaded(model)) == ([], [True]), "what it notes of itself is no change"
    change(plain.blocks[1])
    with logged(logging.WARNING) as lines:
        outputs = draw(model, (2,))
    torch.testing.assert_close(outputs, compiled_afresh(plain)[:5])
    (line,) = lines
    assert re.search(f"the model has changed since: this one has {sentence}", line)


def test_a_change_that_is_taken_back_leaves_what_was_loaded(saved_tuned):
    plain = tuned()
    model = dc.load(plain, saved_tuned, OPTIONS)
    draw(model, (2,))
    layer = plain.blocks[1].up
    adapt(plain.blocks[1])
    draw(model, (2,))
    plain.blocks[1].up = layer
    with logged(logging.WARNING) as lines:
        draw(model, (2,))
    assert lines == []
    assert was_loaded(model) == [True, False]


def changed_first(model):
    other_processor(model.blocks[1])
    draw(model, (2,))


def changed_at_last(model):
    draw(model, (2,))
    other_processor(model.blocks[1])


def changed_for_its_calls(model):
    """As a pipeline of perturbed attention does it."""
    before = model.blocks[1].processor
    changed_first(model)
    model.blocks[1].processor = before


def test_of_a_configuration_not_where_it_came_from_nor_the_order_of_its_defaults():
    """Which differs between processes, in diffusers: that of a set of words."""
    model, other = FLUX.build().transformer, FLUX.build().transformer
    assert len(model.config["_use_default_values"]) > 1
    other.register_to_config(
        _use_default_values=model.config["_use_default_values"][::-1], _name_or_path="elsewhere"
    )
    assert other_model(parts_of(model), other) is None
    other.register_to_config(axes_dims_rope=(4, 6, 16))
    assert other_model(parts_of(model), other) == "this one has `config['axes_dims_rope'][2]: 16`"


def test_that_it_was_compiled_elsewhere_is_no_part_of_a_model():
    model = toy()
    torch.compile(model)
    assert other_model(parts_of(model), toy()) is None


@pytest.mark.parametrize("drawn", [changed_first, changed_at_last, changed_for_its_calls])
def test_a_model_that_is_changed_while_it_draws_isnt_saved(tmp_path, drawn):
    said = "changed while `draw` ran: this one has `blocks.1.processor: .*tanh`; .* it can't be"
    with pytest.raises(dc.CannotSave, match=said):
        dc.precompile(tuned(), drawn, save=tmp_path, options=OPTIONS)
    assert list(tmp_path.rglob("*.bin")) == []


def test_what_a_call_notes_that_nothing_was_saved_for_is_no_change(saved_tuned):
    model = dc.load(tuned(), saved_tuned, OPTIONS)
    draw(model, (1,))
    with logged(logging.WARNING) as lines:
        draw(model, (2,))
    assert (lines, was_loaded(model)[-1]) == ([], True)


def test_nothing_of_python_runs_for_each_part_of_a_model():
    def num_calls(depth):
        watched, calls = WatchedParts(toy(depth=depth)), []
        sys.setprofile(lambda frame, event, _: calls.append(frame) if event == "call" else None)
        try:
            watched.change()
        finally:
            sys.setprofile(None)
        return len(calls)

    assert num_calls(2) == num_calls(20)


def test_wrong_arguments_are_the_models_own_error(saved):
    model = dc.load(toy(), saved, OPTIONS)
    with pytest.raises(TypeError, match="no_such_argument"), torch.no_grad():
        model(**toy_inputs(90.0), no_such_argument=1)


def assert_afresh(model, folder, sentence, options=OPTIONS):
    with pytest.warns(dc.NotLoadedWarning, match=sentence):
        loaded = dc.load(model, folder, options)
    expected = draw(model)  # What isn't compiled.
    first = draw(loaded)[0]
    torch.testing.assert_close(first, expected[0])
    assert set(was_loaded(loaded)) == {False}


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (lambda: toy(depth=4), "saved for another ReadingDiT: this one has `blocks.3: GatedBlock`"),
        (lambda: toy(depth=2), "this one lacks `blocks.2: GatedBlock`"),
        (lambda: toy().train(), "this one has `it: ReadingDiT in training`"),
    ],
    ids=["deeper", "shallower", "in training"],
)
def test_another_model_is_compiled_afresh(saved, model, sentence):
    assert_afresh(model(), saved, sentence)


def test_another_dtype_is_refused(saved):
    with pytest.warns(dc.NotLoadedWarning, match=r"this one has `.*weight: .* bfloat16`"):
        dc.load(toy().bfloat16(), saved, OPTIONS)


@pytest.mark.parametrize("name", ["torch", "python", "machine", "device", "dit_cachegraph"])
def test_what_another_version_or_machine_made_is_compiled_afresh(folder, name):
    path = folder / "model" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["maker"][name] = "another"
    path.write_text(json.dumps(manifest))
    assert_afresh(toy(), folder, f"saved with {name} another, and this is")


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-1], lambda d: d[:-1] + b"?"], ids=["cut", "other"]
)
def test_nothing_runs_of_a_file_that_was_changed(folder, damage):
    (path,) = (folder / "model").glob("*.bin")
    path.write_bytes(damage(path.read_bytes()))
    assert_afresh(toy(), folder, "missing, cut short or changed")


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"maker": {}, "model": [], "programs": {}}', '{"maker": 3}']
)
def test_a_manifest_that_cant_be_read_is_nothing(folder, text):
    (folder / "model" / "manifest.json").write_text(text)
    assert_afresh(toy(), folder, "nothing that `precompile` has saved whole")


def test_a_program_lies_in_its_folder(folder):
    path = folder / "model" / "manifest.json"
    manifest = json.loads(path.read_text())
    (name,) = manifest["programs"]
    (folder / name).write_bytes((folder / "model" / name).read_bytes())
    manifest["programs"] = {f"../{name}": manifest["programs"][name]}
    path.write_text(json.dumps(manifest))
    assert_afresh(toy(), folder, "missing, cut short or changed")


@pytest.mark.parametrize("given", [Path(__file__), 3, None], ids=["a file", "a number", "nothing"])
def test_what_is_no_folder_is_refused(given):
    with pytest.raises(dc.InvalidConfig, match="the folder that precompile has written, got"):
        dc.load(toy(), given)


def test_what_nothing_can_be_saved_in_is_said_before_anything_is_drawn(tmp_path):
    def draw(_: nn.Module) -> None:
        pytest.fail("drawn, and compiled, for nothing")

    file = tmp_path / "a file"
    file.touch()
    with pytest.raises(dc.InvalidConfig, match="a file' is a file: give the name of a folder"):
        dc.precompile(toy(), draw, save=file, options=OPTIONS)
    with pytest.raises(NotADirectoryError):
        dc.precompile(toy(), draw, save=file / "below", options=OPTIONS)
    (tmp_path / "model").touch()
    with pytest.raises(NotADirectoryError):
        dc.precompile(toy(), draw, save=tmp_path, options=OPTIONS)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="a folder that nobody may write into")
def test_a_folder_that_is_there_and_takes_no_file_is_found_before_anything_is_drawn():
    with pytest.raises(OSError, match="/proc"):
        dc.precompile(toy(), lambda _: pytest.fail("drawn"), save="/proc", options=OPTIONS)


def test_who_saves_into_one_folder_at_once_leaves_what_one_of_them_has_saved(tmp_path):
    """One is at its second program while the other writes all of its own."""
    model, folder = toy(), tmp_path / "model"

    def programs_of_the_first():
        yield b"first"
        write_programs(folder, model, [b"second", b"second too"], parts_of(model))
        yield b"first too"

    write_programs(folder, model, [b"from before"], parts_of(model))
    write_programs(folder, model, programs_of_the_first(), parts_of(model))
    assert read_programs(folder, model) == [b"first", b"first too"]
    write_programs(folder, model, [b"last"], parts_of(model))
    assert read_programs(folder, model) == [b"last"]
    assert not [path for path in folder.iterdir() if path.read_bytes().startswith(b"first")]


def test_what_was_saved_stays_where_it_cant_be_replaced(tmp_path):
    model = toy()
    write_programs(tmp_path, model, [b"before"], parts_of(model))
    in_the_way = tmp_path / f"program_{hashlib.sha256(b'after').hexdigest()[:16]}.bin" / "below"
    in_the_way.mkdir(parents=True)
    with pytest.raises(OSError, match="program_"):
        write_programs(tmp_path, model, [b"after"], parts_of(model))
    assert read_programs(tmp_path, model) == [b"before"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def local_rule() -> object:
    class Mine(EvenSchedule):
        pass

    return Mine(every=2)


def test_options_that_have_no_form_in_a_file_are_found_before_anything_is_drawn(tmp_path):
    options = {"inner_backend": "eager", "rule": local_rule()}
    with pytest.raises(dc.CannotSave, match="rule=.*has no form in a file .*at the top of"):
        dc.precompile(toy(), lambda _: pytest.fail("drawn"), save=tmp_path, options=options)


class RuleOfMine(EvenSchedule):
    pass


def test_a_class_that_isnt_there_where_it_is_loaded_is_said(tmp_path, monkeypatch):
    options = {"inner_backend": "eager", "rule": RuleOfMine(every=2)}
    dc.precompile(toy(), draw, save=tmp_path, options=options)
    model = dc.load(toy(), tmp_path, options)
    draw(model)
    assert was_loaded(model) == [True]
    monkeypatch.delattr(sys.modules[__name__], "RuleOfMine")
    with pytest.warns(dc.NotLoadedWarning, match="isn't in this process: .*RuleOfMine"):
        dc.load(toy(), tmp_path, options)


def test_an_empty_folder_is_nothing(tmp_path):
    assert_afresh(toy(), tmp_path, "nothing that `precompile` has saved whole")


def test_other_options_are_compiled_afresh(saved):
    options = {**OPTIONS, "residual_diff_threshold": 0.1}
    assert_afresh(toy(), saved, "saved with the options .*0.2.* not .*0.1", options)


class BreakingDiT(ReadingDiT):
    def forward(self, hidden_states, timestep, encoder_hidden_states):
        torch._dynamo.graph_break()
        return super().forward(hidden_states, timestep, encoder_hidden_states)


def breaking() -> nn.Module:
    return BreakingDiT([GatedBlock() for _ in range(3)]).eval()


def compiled_in_place() -> nn.Module:
    model = toy()
    model.compile(backend="cachedit")
    return model


def compiled_outside() -> nn.Module:
    return torch.compile(toy(), backend="cachedit")


def compiled_function():
    model = toy()

    @torch.compile(backend="cachedit")
    def call(**inputs):
        return model(**inputs)

    return call


def hooked() -> nn.Module:
    model = toy()
    model.register_forward_hook(lambda *_: None)
    return model


def draw_with_gradients(model):
    model(**toy_inputs(90.0))


@pytest.mark.parametrize(
    ("model", "drawn", "sentence"),
    [
        (breaking, draw, "forward isn't one graph"),
        (lambda: toy(depth=1), draw, "there is nothing to save: not cached"),
        (compiled_in_place, draw, "compiled already"),
        (compiled_outside, draw, "as they are before `torch.compile`"),
        (compiled_function, draw, "as they are before `torch.compile`"),
        (hooked, draw, "has hooks"),
        (toy, draw_with_gradients, "gradients or autocast on"),
        (toy, lambda model: None, "never called ReadingDiT"),
    ],
    ids=[
        *("breaks", "no blocks", "compiled", "what was compiled of it", "a compiled function"),
        *("hooks", "gradients", "no call"),
    ],
)
def test_what_cant_be_saved_says_why(tmp_path, model, drawn, sentence):
    with pytest.raises(dc.CannotSave, match=sentence):
        dc.precompile(model(), drawn, save=tmp_path, options=OPTIONS)
    assert not list(tmp_path.iterdir())


def test_nothing_is_loaded_into_what_is_compiled_already(saved):
    compiled = compiled_outside()
    with pytest.raises(dc.CannotSave, match="as they are before `torch.compile`"):
        dc.load(compiled, saved, OPTIONS)
    assert set(compiled.state_dict()) == {f"_orig_mod.{name}" for name in toy().state_dict()}


class TwoTransformers:
    """As a pipeline with one for each half of the noise."""

    def __init__(self, first, second):
        self.transformer, self.transformer_2 = first, second

    @property
    def components(self):
        return {"transformer": self.transformer, "transformer_2": self.transformer_2}


def test_a_pipeline_of_which_one_part_cant_be_loaded_stays_as_it_was(saved):
    first = toy()
    pipe = TwoTransformers(first, hooked())
    with pytest.raises(dc.CannotSave, match="has hooks"):
        dc.load(pipe, saved, OPTIONS)
    assert pipe.transformer is first


def test_a_pipeline_of_two_transformers(tmp_path):
    def draw_both(pipe):
        return [*draw(pipe.transformer, (2,)), *draw(pipe.transformer_2, (2,))]

    def pipeline():
        return TwoTransformers(toy(), toy(depth=4, seed=1))

    dc.precompile(pipeline(), draw_both, save=tmp_path, options=OPTIONS)
    torch._dynamo.reset()
    pipe = dc.load(pipeline(), tmp_path, OPTIONS)
    outputs = draw_both(pipe)
    assert was_loaded(pipe.transformer) == was_loaded(pipe.transformer_2) == [True]
    afresh = [*compiled_afresh(toy())[:5], *compiled_afresh(toy(depth=4, seed=1))[:5]]
    torch.testing.assert_close(outputs, afresh, rtol=0, atol=1e-6)


class ScaledDiT(ReadingDiT):
    def forward(self, hidden_states, timestep, encoder_hidden_states, scale):
        return scale * super().forward(hidden_states, timestep, encoder_hidden_states)


def test_a_number_that_changes_at_each_step_takes_too_many_programs(tmp_path):
    model = ScaledDiT([GatedBlock() for _ in range(3)]).eval()

    def draw_with_numbers(model):
        with torch.no_grad():
            for i in range(100):
                model(**toy_inputs(90.0), scale=i / 100)

    with pytest.raises(dc.CannotSave, match=r"more than 64 ways.*scale is 0.01 in place of 0.0"):
        dc.precompile(model, draw_with_numbers, save=tmp_path, options=OPTIONS)


def test_what_wasnt_compiled_to_be_saved_cant_be():
    model = toy()
    compiled = torch.compile(model, backend="cachedit", options={"inner_backend": "aot_eager"})
    with torch.no_grad():
        compiled(**toy_inputs(90.0))
    (driver,) = REGISTRY.of_module(model).graphs.values()
    with pytest.raises(dc.CannotSave, match="its segments can't be saved"):
        SavableModel.serialize_compile_artifacts(driver)


def test_torch_saves_and_loads_it_too(tmp_path):
    """`aot_compile` with our backend, without a call of ours."""
    model, inputs = toy(), toy_inputs(90.0)
    names = ("hidden_states", "timestep", "encoder_hidden_states")

    def on_tensors(guards):
        return [guard.guard_type == "TENSOR_MATCH" and guard.name in names for guard in guards]

    compiled = torch.compile(
        model.forward,
        backend="cachedit",
        fullgraph=True,
        options={**OPTIONS, "guard_filter_fn": on_tensors},
    )
    with torch.no_grad():
        compiled.aot_compile(((), inputs)).save_compiled_function(str(tmp_path / "x"))
        with (tmp_path / "x").open("rb") as file:
            loaded = torch.compiler.load_compiled_function(file)
        torch.testing.assert_close(loaded(model, **inputs), model(**inputs))
    assert dc.summary(model).is_cached


@pytest.mark.e2e
def test_a_pipeline_is_loaded_with_its_transformer(tmp_path):
    def draw_two_sizes(pipe):
        return [pipe(**FLUX.arguments(seed))[0] for seed in (0, 1)]

    options = {"inner_backend": "eager", "residual_diff_threshold": 1.0, "max_warmup_steps": 1}
    expected = draw_two_sizes(FLUX.build())
    dc.precompile(FLUX.build(), draw_two_sizes, save=tmp_path, options=options)
    torch._dynamo.reset()
    counters.clear()
    pipe = FLUX.build()
    assert dc.load(pipe, tmp_path, options) is pipe
    dc.configure(pipe, enabled=False)
    torch.testing.assert_close(draw_two_sizes(pipe), expected)
    dc.configure(pipe, enabled=True)
    draw_two_sizes(pipe)
    assert graphs_traced() == 0
    assert dc.summary(pipe).num_hits > 0
    dc.check(pipe)


OF_INDUCTOR = {"predictor": "taylorseer", "rule": "dbcache", "max_warmup_steps": 2}
ONE_PROCESS = """
import json, sys
started = []
sys.addaudithook(lambda event, given: started.append(given) if event == "subprocess.Popen" else 0)
import torch
from torch._dynamo.utils import counters
from support.toy_dits import GatedBlock, ReadingDiT, toy_inputs
import dit_cachegraph as dc

def draw(model):
    inputs, outputs = toy_inputs(90.0), []
    for angle in (90.0, 80.0, 70.0, 60.0, 50.0):
        with torch.no_grad():
            outputs.append(model(**{**inputs, "timestep": torch.full((2,), angle)}))
    return outputs

torch.manual_seed(0)
model = ReadingDiT([GatedBlock() for _ in range(3)]).eval()
options = json.loads(sys.argv[4])
if sys.argv[1] == "save":
    model = dc.precompile(model, draw, save=sys.argv[2], options=options)
else:
    model = dc.load(model, sys.argv[2], options)
torch.save(draw(model), sys.argv[3])
told = {name: dict(counters[name]) for name in ("stats", "inductor")}
report = dc.summary(model)
told |= {"hits": [s.hit for s in report.steps], "diffs": [s.diff for s in report.steps]}
told["started"] = len(started)
print(json.dumps(told))
"""


def run_alone(
    what: str,
    folder: Path,
    cache: Path,
    options: dict[str, object] = OF_INDUCTOR,
    **environment: str,
) -> dict[str, object]:
    """Save or load in a process of its own, with Inductor, whose cache is in `cache`."""
    tests = Path(__file__).resolve().parents[1]
    paths = [str(tests), str(tests.parent), str(tests.parent / "kernels")]
    own = {"TORCHINDUCTOR_CACHE_DIR": str(cache), "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-c", ONE_PROCESS, what, str(folder), str(cache / "outputs.pt")]
        + [json.dumps(options)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **own, **environment},
    )
    return json.loads(done.stdout.splitlines()[-1])


class SavedAlone(NamedTuple):
    folder: Path
    told: dict[str, object]
    outputs: Path


@pytest.fixture(scope="module")
def saved_alone(tmp_path_factory) -> SavedAlone:
    """What a process of its own has saved, with an empty cache."""
    folder, cache = tmp_path_factory.mktemp("folder"), tmp_path_factory.mktemp("cache")
    return SavedAlone(folder, run_alone("save", folder, cache), cache / "outputs.pt")


@pytest.mark.slow
def test_a_new_process_neither_traces_nor_compiles(saved_alone, tmp_path):
    saved = saved_alone.told
    loaded = run_alone("load", saved_alone.folder, tmp_path, CXX="/bin/false")
    assert saved["stats"], "a trace would be seen"
    assert "pattern_matcher_count" in saved["inductor"], "and so would a compilation"
    assert saved["started"] > 0, "and so would a compiler"
    assert loaded["stats"] == {} and "pattern_matcher_count" not in loaded["inductor"]
    assert loaded["started"] == 0
    for told in ("hits", "diffs"):
        assert loaded[told] == saved[told]
    assert any(loaded["hits"])
    first, second = torch.load(saved_alone.outputs), torch.load(tmp_path / "outputs.pt")
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_plain_graphs_are_loaded_before_anything_else_has_called_for_their_operators(
    saved, tmp_path
):
    loaded = run_alone("load", saved, tmp_path, OPTIONS)
    assert loaded["stats"] == {}
    assert loaded["hits"] == DECISIONS
    expected = compiled_afresh(toy())[:5]
    torch.testing.assert_close(torch.load(tmp_path / "outputs.pt"), expected, rtol=0, atol=1e-6)


def built_for_another_cpu(folder: Path) -> None:
    """Give one of the instruction sets that were noted another name, and sign it."""
    path, noted = folder / "model" / "manifest.json", sorted(cpu_features())[0].encode()
    (program,) = path.parent.glob("*.bin")
    as_pickled = pickle.SHORT_BINUNICODE + bytes([len(noted)])
    assert as_pickled + noted in program.read_bytes()
    another = program.read_bytes().replace(as_pickled + noted, as_pickled + noted[:-1] + b"?")
    program.write_bytes(another)
    manifest = json.loads(path.read_text())
    manifest["programs"][program.name] = hashlib.sha256(another).hexdigest()
    path.write_text(json.dumps(manifest))


@pytest.mark.slow
def test_on_another_cpu_the_kernels_are_built_anew_or_it_is_said_why_not(saved_alone, tmp_path):
    folder = shutil.copytree(saved_alone.folder, tmp_path / "copy")
    built_for_another_cpu(folder)
    with logged(logging.WARNING) as lines, fresh_cache():
        model = dc.load(toy(), folder, OF_INDUCTOR)
    assert ["which this one lacks: a compiler builds them anew" in line for line in lines] == [True]
    torch.testing.assert_close(draw(model, (2,)), torch.load(saved_alone.outputs), rtol=0, atol=0)
    said = pytest.warns(dc.NotLoadedWarning, match=r"built anew here, which fails: No .* C\+\+")
    with config.patch({"cpp.cxx": ("/bin/false",)}), fresh_cache(), said:
        dc.load(toy(), folder, OF_INDUCTOR)
