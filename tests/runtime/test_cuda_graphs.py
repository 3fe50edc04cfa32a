"""`cuda_graphs=True`, over what stands in for CUDA graphs on a CPU: garbage wherever something is
read that the next replay may have written over."""

import gc
import threading
import weakref
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from torch import nn

import dit_cachegraph as dc
from dit_cachegraph import backend, savable
from dit_cachegraph.cuda_graphs import cuda_capturer, stage_graphs
from dit_cachegraph.cuda_graphs.captured_values import why_not_static
from dit_cachegraph.cuda_graphs.stage_graphs import GraphedRunner
from dit_cachegraph.cuda_graphs.static_buffers import StaticBuffers, fill
from dit_cachegraph.plan import RankGroups
from dit_cachegraph.savable import SavableModel
from dit_cachegraph.segments.segment_runner import SegmentRunner
from support.recorded_graphs import RecordingCapturer
from support.toy_dits import (
    AddingBlock,
    GatedBlock,
    ReadingDiT,
    ToyDiT,
    TwoListDiT,
    adding_dit,
    toy_inputs,
)
from support.toy_runs import compile_toy, run, toy_steps

TIMES = [90.0, 80.0, 70.0, 60.0, 50.0, 40.0, 30.0, 20.0]
SETTINGS = {"residual_diff_threshold": 0.3}
ALWAYS = {"residual_diff_threshold": 1.0, "predictor": "replay"}
NEVER = {"residual_diff_threshold": 0.0}


@pytest.fixture(autouse=True)
def fresh_dynamo():
    """Each test has its own driver, whose graphs are counted."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def stand_in(monkeypatch):
    """What captures for all drivers of a test."""
    capturer = RecordingCapturer()
    monkeypatch.setattr(backend, "cuda_capturer", lambda device: capturer)
    return capturer


def with_graphs(model, **settings):
    return compile_toy(model, **{**SETTINGS, **settings, "cuda_graphs": True})


def num_replays(capturer):
    return [recording.num_replays for recording in capturer.recordings]


def graph_lines(model):
    (graph,) = dc.summary(model).graphs
    return graph.cuda_graphs


def hits(model):
    return [step.hit for step in dc.summary(model).steps]


def without_graphs(model, steps, **settings):
    """What the model gives without graphs, and what it decides."""
    compiled = compile_toy(model, **{**SETTINGS, **settings})
    outputs = [run(compiled, inputs) for inputs in steps]
    decided = hits(model)
    torch._dynamo.reset()
    return outputs, decided


def assert_equal(outputs, expected):
    for output, wanted in zip(outputs, expected, strict=True):
        assert torch.equal(output, wanted)


def test_what_it_gives_and_decides_is_the_same(stand_in):
    steps = toy_steps(TIMES)
    expected, expected_hits = without_graphs(TwoListDiT(2, 4), steps)
    model = TwoListDiT(2, 4)
    compiled = with_graphs(model)
    assert_equal([run(compiled, inputs) for inputs in steps], expected)
    decided = hits(model)
    assert decided == expected_hits
    num_hits = sum(decided)
    assert 2 <= num_hits <= len(decided) - 2
    # Prologue, first block, the other blocks, epilogue.
    assert num_replays(stand_in) == [8, 8, 8 - num_hits, 8]
    (told,) = graph_lines(model)
    assert told.startswith("4 CUDA graphs, ")
    assert told in str(dc.summary(model))


@pytest.mark.parametrize(
    "settings",
    [
        {"preset": "balanced"},
        {"rule": "dbprune", "residual_diff_threshold": 0.3, "max_warmup_steps": 2},
        {"rule": "easycache", "easycache_threshold": 0.9, "max_warmup_steps": 1},
        {"steps_computation_mask": [1, 0, 1, 1, 0, 0, 1, 0], "steps_computation_policy": "static"},
    ],
    ids=["error control", "dbprune", "easycache", "mask"],
)
def test_by_other_rules_too(settings, stand_in):
    def compiled_with(model, **more):
        options = {"inner_backend": "eager", **settings, **more}
        return torch.compile(model, backend="cachedit", options=options)

    steps = toy_steps(TIMES)
    plain = compiled_with(TwoListDiT(2, 4))
    expected = [run(plain, inputs) for inputs in steps]
    expected_hits = hits(plain)
    torch._dynamo.reset()
    graphed = compiled_with(TwoListDiT(2, 4), cuda_graphs=True)
    assert_equal([run(graphed, inputs) for inputs in steps], expected)
    assert hits(graphed) == expected_hits
    assert any(expected_hits) and sum(num_replays(stand_in)) > len(steps)


def test_on_a_cpu_it_is_refused():
    sentence = "cuda_graphs needs the model on a CUDA device, and its blocks run on cpu: move it"
    with pytest.raises(Exception, match=sentence) as caught:
        run(with_graphs(adding_dit(1.0, 2.0, 4.0)), toy_inputs(90.0))
    assert isinstance(caught.value.__cause__, dc.InvalidConfig | None)
    with pytest.raises(ValueError, match=sentence):
        cuda_capturer.cuda_capturer(torch.device("cpu"))


def test_it_is_a_bool_and_of_the_compilation():
    with pytest.raises(Exception, match="cuda_graphs must be True or False, got 1"):
        run(compile_toy(adding_dit(1.0, 2.0), cuda_graphs=1), toy_inputs(90.0))
    with pytest.raises(dc.InvalidConfig, match="cuda_graphs is decided when the model is compiled"):
        dc.configure(adding_dit(1.0, 2.0), cuda_graphs=True)


def test_blocks_compiled_one_by_one_are_refused(stand_in):
    model = adding_dit(1.0, 2.0, 4.0)
    for block in model.blocks:
        block.compile(backend="cachedit", options={"inner_backend": "eager", "cuda_graphs": True})
    with pytest.raises(Exception, match="these are compiled one by one: compile the whole model"):
        run(model, toy_inputs(90.0))


def test_a_result_stays_what_it_is(stand_in):
    """Over the steps after it, which replay the same graph."""
    compiled, held = with_graphs(TwoListDiT(2, 4)), []
    for inputs in toy_steps(TIMES):
        output = run(compiled, inputs)
        held.append((output, output.clone()))
    assert num_replays(stand_in)[-1] == len(TIMES)
    for output, copy in held:
        assert torch.equal(output, copy)


def test_weights_that_moved_turn_it_off(stand_in):
    steps, model = toy_steps(TIMES), adding_dit(1.0, 2.0, 4.0)
    compiled = with_graphs(model, **NEVER)
    for inputs in steps[:2]:
        run(compiled, inputs)
    moved = model.blocks[1].step
    moved.data = moved.data.clone()
    for inputs in steps[2:]:
        torch.testing.assert_close(run(compiled, inputs), run(model, inputs))
    # Prologue and first block ran once more before it was seen.
    assert num_replays(stand_in) == [3, 3, 2, 2]
    assert all(recording.is_released for recording in stand_in.recordings)
    (told,) = graph_lines(model)
    assert told.startswith("CUDA graphs are off: weights of blocks.1 to blocks.2 lie elsewhere")
    assert "`torch._dynamo.reset()`" in told


def test_what_is_written_into_weights_is_seen(stand_in):
    """They lie where they lay."""
    steps, model = toy_steps(TIMES), adding_dit(1.0, 2.0, 4.0)
    compiled = with_graphs(model, **NEVER)
    run(compiled, steps[0])
    with torch.no_grad():
        model.blocks[1].step.add_(1.0)
    torch.testing.assert_close(run(compiled, steps[1]), run(model, steps[1]))
    assert num_replays(stand_in) == [2, 2, 2, 2]


class CastingBlock(GatedBlock):
    """Which casts its weights itself."""

    def forward(self, h, temb):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = super().forward(h, temb)
        return out.to(h.dtype)


@pytest.mark.parametrize("block", [GatedBlock, CastingBlock])
def test_under_autocast_a_graph_casts_its_weights_itself(block, stand_in):
    """What autocast keeps of them is gone after the call; and of a capture nothing is kept, which
    only the next replay makes."""
    steps, model = toy_steps(TIMES[:3]), ToyDiT([block() for _ in range(3)])
    compiled = with_graphs(model, **NEVER)
    for inputs in steps:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output, expected = run(compiled, inputs), run(model, inputs)
        torch.testing.assert_close(output, expected)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.5)
    assert num_replays(stand_in) == [3, 3, 3, 3]


class ElsewhereBlock(nn.Module):
    """Reads a tensor that lies on another device, though nothing that is in it."""

    def forward(self, h, temb, e):
        return h + temb * torch.ones_like(e, device=h.device).mean()


class ElsewhereDiT(ToyDiT):
    """Whose last block but one reads the text, which lies elsewhere."""

    def trunk(self, h, temb, e):
        for i, block in enumerate(self.blocks):
            h = block(h, temb, e) if i == len(self.blocks) - 2 else block(h, temb)
        return h


def elsewhere_dit():
    return ElsewhereDiT([AddingBlock(1.0), AddingBlock(2.0), ElsewhereBlock(), AddingBlock(4.0)])


def test_a_run_with_a_tensor_of_another_device_is_never_captured(stand_in):
    model, steps = elsewhere_dit(), toy_steps(TIMES[:3])
    text = torch.empty(2, 4, 8, device="meta")
    steps = [{**inputs, "encoder_hidden_states": text} for inputs in steps]
    compiled = with_graphs(model, Bn_compute_blocks=1, **NEVER)
    for inputs in steps:
        torch.testing.assert_close(run(compiled, inputs), run(model, inputs))
    assert num_replays(stand_in) == [3, 3, 3]
    told, why = graph_lines(model)
    assert told.startswith("3 CUDA graphs")
    assert why == "blocks.1 to blocks.2 runs without: it reads a tensor on meta"


def test_what_works_on_another_device_is_never_captured(stand_in):
    class Host(ToyDiT):
        def trunk(self, h, temb, e):
            on_host = torch.ones(8, device="meta") * 2
            return super().trunk(h + torch.zeros_like(on_host, device=h.device), temb, e)

    model = Host([AddingBlock(step) for step in (1.0, 2.0, 4.0)])
    run(with_graphs(model), toy_inputs(90.0))
    _, why = graph_lines(model)
    assert why.startswith(
        "prologue runs without: in prologue it works on meta at test_cuda_graphs.py"
    )
    assert len(stand_in.recordings) == 3


class DrawingDiT(ToyDiT):
    def trunk(self, h, temb, e):
        return super().trunk(h + torch.rand_like(h), temb, e)


class CountingDiT(ToyDiT):
    def __init__(self, blocks):
        super().__init__(blocks)
        self.register_buffer("num_calls", torch.zeros(1))

    def trunk(self, h, temb, e):
        self.num_calls.add_(1)
        return super().trunk(h + self.num_calls, temb, e)


@pytest.mark.parametrize(
    ("kind", "why"),
    [(DrawingDiT, "it draws random numbers"), (CountingDiT, "it writes in place to what it is")],
)
def test_what_a_second_run_would_change_is_not_captured(kind, why, stand_in):
    model, other = (kind([AddingBlock(step) for step in (1.0, 2.0, 4.0)]) for _ in range(2))
    compiled = with_graphs(model, **NEVER)
    for inputs in toy_steps(TIMES[:3]):
        torch.testing.assert_close(run(compiled, inputs), run(other, inputs))
    _, told = graph_lines(model)
    assert told.startswith(f"prologue runs without: in prologue {why}")
    assert num_replays(stand_in) == [3, 3, 3]


def test_a_capture_that_fails_is_eager_for_good(monkeypatch):
    """What the sine of the timestep is in. The others are captured."""
    capturer = RecordingCapturer(refused=["sin"])
    monkeypatch.setattr(backend, "cuda_capturer", lambda device: capturer)
    model, steps = adding_dit(1.0, 2.0, 4.0), toy_steps(TIMES)
    compiled = with_graphs(model, **NEVER)
    for inputs in steps:
        torch.testing.assert_close(run(compiled, inputs), run(model, inputs))
    assert capturer.num_failed == 1
    assert num_replays(capturer) == [8, 8, 8]
    _, why = graph_lines(model)
    sentence = "aten.sin.default is not permitted when stream is capturing"
    assert why == f"prologue runs without: its capture failed: {sentence}"


def test_what_else_is_raised_in_a_capture_is_raised_once(monkeypatch):
    class Interrupted(RecordingCapturer):
        def capture(self, run):
            raise KeyError("what no capture raises")

    monkeypatch.setattr(backend, "cuda_capturer", lambda device: Interrupted())
    model, (first, second) = adding_dit(1.0, 2.0, 4.0), toy_steps(TIMES[:2])
    compiled = with_graphs(model, **NEVER)
    for _ in range(4):
        with pytest.raises(KeyError, match="what no capture raises"):
            run(compiled, first)
    torch.testing.assert_close(run(compiled, second), run(model, second))
    told, *causes = graph_lines(model)
    assert told.startswith("0 CUDA graphs") and len(causes) == 4
    assert causes[0] == "prologue runs without: its capture was cut short"


def test_without_the_memory_for_it_nothing_is_captured(monkeypatch):
    """What the run itself needs is another matter: that is raised as it is."""

    class Full(RecordingCapturer):
        def warm_up(self, run):
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(backend, "cuda_capturer", lambda device: Full())
    model = adding_dit(1.0, 2.0, 4.0)
    compiled = with_graphs(model, **NEVER)
    for inputs in toy_steps(TIMES[:2]):
        torch.testing.assert_close(run(compiled, inputs), run(model, inputs))
    _, *causes = graph_lines(model)
    assert len(causes) == 4
    assert causes[-1] == "epilogue runs without: there isn't the memory to capture it"


class PickingBlock(nn.Module):
    """Adds a row of a table; a row that isn't there raises when it runs."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.ones(2, 8))
        self.register_buffer("row", torch.zeros(1, dtype=torch.int64))

    def forward(self, h, temb):
        return h + temb * nn.functional.embedding(self.row, self.table)


@pytest.mark.parametrize("num_before", [0, 2])
def test_an_exception_in_mid_step_changes_nothing(num_before, stand_in):
    """Before anything is captured, and in a replay."""
    model = ToyDiT([AddingBlock(1.0), AddingBlock(2.0), PickingBlock()])
    compiled, steps = with_graphs(model, **NEVER), toy_steps(TIMES)
    for inputs in steps[:num_before]:
        run(compiled, inputs)
    row = model.blocks[2].row.data  # Torch doesn't count writes through it.
    row.fill_(99)
    with pytest.raises(IndexError):
        run(compiled, steps[num_before])
    row.zero_()
    assert len(dc.summary(model).steps) == num_before
    for inputs in steps[num_before:]:
        torch.testing.assert_close(run(compiled, inputs), run(model, inputs))
    assert len(dc.summary(model).steps) == len(steps)
    assert len(graph_lines(model)) == 1


def test_two_threads(stand_in):
    """Images at once on one model: each is what it is alone. Two turns at once would be an error,
    and what one leaves in the pool is garbage to the other."""
    torch.manual_seed(0)
    model = TwoListDiT(2, 4)
    images = [[{**inputs, "timestep": inputs["timestep"] - i} for inputs in toy_steps(TIMES)]
              for i in range(2)]  # fmt: skip
    expected = []
    plain = compile_toy(model, **SETTINGS)
    for steps in images:
        expected.append([run(plain, inputs) for inputs in steps])
        dc.reset(model)
    torch._dynamo.reset()
    compiled = with_graphs(model)
    run(compiled, toy_steps(TIMES)[0])
    dc.reset(model)
    outputs, start = [[], []], threading.Barrier(2)

    @torch.no_grad()
    def draw(which):
        start.wait()
        for _ in range(4):
            outputs[which].clear()
            with dc.request(f"image {which}"):
                for inputs in images[which]:
                    outputs[which].append(compiled(**inputs))
            dc.reset(model, f"image {which}")

    threads = [threading.Thread(target=draw, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for which in range(2):
        assert_equal(outputs[which], expected[which])
    assert num_replays(stand_in)[0] == 2 * 4 * len(TIMES) + 1


def test_what_another_thread_turned_off_is_not_captured_anew(monkeypatch):
    """While this one waited for its turn."""

    class Slow(RecordingCapturer):
        waits = staticmethod(lambda: None)

        def in_turn(self):
            self.waits()
            return super().in_turn()

    capturer = Slow()
    monkeypatch.setattr(backend, "cuda_capturer", lambda device: capturer)
    model, (first, second) = adding_dit(1.0, 2.0, 4.0), toy_steps(TIMES[:2])
    compiled = with_graphs(model, **NEVER)
    run(compiled, first)
    driver, state = _driver_and_state(model)
    capturer.waits = lambda: driver.graphed.of(state)._turn_off("weights lie elsewhere")
    torch.testing.assert_close(run(compiled, second), run(model, second))
    assert num_replays(capturer) == [1, 1, 1, 1]


def test_first_blocks_that_change_in_mid_image(stand_in):
    """Other runs of segments, each with a graph of its own; then the first ones again."""
    steps = toy_steps(TIMES)

    def outputs_of(compiled):
        outputs = []
        for i, inputs in enumerate(steps):
            dc.configure(compiled, Fn_compute_blocks=2 if 3 <= i < 6 else 1)
            outputs.append(run(compiled, inputs))
        return outputs

    expected = outputs_of(compile_toy(TwoListDiT(2, 4), **SETTINGS))
    torch._dynamo.reset()
    model = TwoListDiT(2, 4)
    assert_equal(outputs_of(with_graphs(model)), expected)
    assert hits(model)[3] is False and any(hits(model)[4:6])
    prologue, first, others, epilogue, two, fewer = num_replays(stand_in)
    assert (prologue, epilogue) == (8, 8)
    assert (first, two) == (5, 3)
    assert others + fewer == hits(model).count(False)
    assert graph_lines(model)[0].startswith("6 CUDA graphs")


@pytest.mark.parametrize("dynamic", [False, True])
def test_each_size_has_its_graphs(dynamic, stand_in):
    """Also where sizes are numbers that a run is given: those are fixed in its graph."""
    model = ToyDiT([GatedBlock() for _ in range(3)])
    compiled = compile_toy(model, dynamic, **NEVER, cuda_graphs=True)
    for batch in (2, 3, 2, 3):
        inputs = toy_inputs(90.0, batch=batch, seed=batch)
        torch.testing.assert_close(run(compiled, inputs), run(model, inputs))
    assert num_replays(stand_in) == [2] * 8


class ScaledDiT(ToyDiT):
    """Whose text comes with a Python float, which Dynamo hands over as a tensor once it changed."""

    scale = 1.0

    def forward(self, hidden_states, timestep, encoder_hidden_states, scale):
        h = self.proj_in(hidden_states)
        for block in self.blocks:
            h = block(h, self.embed(timestep) * scale)
        return self.proj_out(h)


def test_numbers_of_the_host_are_part_of_a_graph(stand_in):
    """Two that take turns have one each; where there are more and more of them, there are none."""
    model = ScaledDiT([AddingBlock(step) for step in (1.0, 2.0, 4.0)])
    compiled = with_graphs(model, **NEVER)

    def runs_with(scale):
        inputs = {**toy_inputs(90.0), "scale": scale}
        torch.testing.assert_close(run(compiled, inputs), run(model, inputs))

    for scale in (0.5, 1.5, 2.5, 1.5, 2.5):
        runs_with(scale)
    # The prologue reads it. 0.5 is a number in Dynamo's first graph, which has a driver of its own.
    assert num_replays(stand_in) == [1, 1, 1, 1] + [2, 4, 4, 4, 2]
    for scale in (3.5, 4.5, 5.5, 1.5):
        runs_with(scale)
    assert num_replays(stand_in) == [1, 1, 1, 1] + [2, 8, 8, 8, 2, 1, 1]
    told, why = dc.summary(model).graphs[-1].cuda_graphs
    assert why.startswith("prologue runs without: it is given numbers on the host that change")


def test_those_used_last_are_kept(stand_in, monkeypatch):
    monkeypatch.setattr(stage_graphs, "MAX_GRAPHS", 8)
    model = adding_dit(1.0, 2.0, 4.0)
    compiled = compile_toy(model, True, **NEVER, cuda_graphs=True)
    for batch in (2, 3, 2, 4, 2):
        inputs = toy_inputs(90.0, batch=batch)
        torch.testing.assert_close(run(compiled, inputs), run(model, inputs))
    of_two, of_three, of_four = ([*range(i, i + 4)] for i in (0, 4, 8))
    replays, released = num_replays(stand_in), [r.is_released for r in stand_in.recordings]
    assert [replays[i] for i in (*of_two, *of_three, *of_four)] == [3] * 4 + [1] * 4 + [1] * 4
    assert released == [False] * 4 + [True] * 4 + [False] * 4
    assert graph_lines(model)[0].startswith("8 CUDA graphs, 4 given up for others, since 8 are")


def test_values_are_dropped_where_they_are_without(stand_in, monkeypatch):
    """Right after the run that reads them last."""
    given, values_of = [], SegmentRunner.values_of
    monkeypatch.setattr(
        SegmentRunner, "values_of", lambda self, args: values_of(self, given.extend(args) or args)
    )
    model = ToyDiT([GatedBlock() for _ in range(3)])
    run(with_graphs(model, **NEVER), toy_inputs(90.0))
    driver, state = _driver_and_state(model)
    graphs, kept = driver.graphed.of(state), []
    for runs in (driver.segments.run, graphs.run):
        values, held = values_of(driver.segments, given), []
        for start, stop in ((0, 1), (1, 2), (2, 4), (4, 5)):
            runs(values, start, stop)
            held.append([slot for slot, value in enumerate(values) if value is None])
        kept.append(held)
    assert kept[0] == kept[1] and len(kept[0][-1]) > 1


def test_a_graph_is_given_up_while_no_other_thread_captures(monkeypatch):
    """There is no device here, which may not be waited for then."""
    said = []
    monkeypatch.setattr(
        torch.cuda,
        "synchronize",
        lambda device: said.append((device, cuda_capturer._ONE_AT_A_TIME.locked())),
    )
    device = torch.device("cuda", 1)
    cuda_capturer.CudaGraph(Mock(torch.cuda.CUDAGraph), device).release()
    assert said == [(device, True)]


class Tagged(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (torch.ones(2), None),
        (nn.Parameter(torch.ones(2)), None),
        (nn.Buffer(torch.ones(2)), None),
        (3, None),
        (None, "a NoneType"),
        (torch.ones(2, device="meta"), "a tensor on meta"),
        (torch.ones(2).as_subclass(Tagged), "a Tagged that is no plain tensor"),
        (torch.eye(2).to_sparse(), "a Tensor that is no plain tensor"),
    ],
    ids=str,
)
def test_what_a_graph_may_be_given(value, why):
    assert why_not_static(value, torch.device("cpu")) == why


def test_models_that_share_a_driver_have_graphs_of_their_own(stand_in):
    models = [adding_dit(1.0, 2.0, 4.0), adding_dit(3.0, 5.0, 9.0)]
    compiled = [with_graphs(model, **NEVER) for model in models]
    for inputs in toy_steps(TIMES[:3]):
        for model, own in zip(models, compiled, strict=True):
            torch.testing.assert_close(run(own, inputs), run(model, inputs))
    assert num_replays(stand_in) == [3] * 8
    assert all(graph_lines(model)[0].startswith("4 CUDA graphs") for model in models)
    driver, state = (weakref.ref(x) for x in _driver_and_state(models[0]))
    graphed = driver().graphed
    assert len(graphed._of_models) == 2
    del models[0], compiled[0], own, model, inputs
    gc.collect()
    assert state() is None and len(graphed._of_models) == 1


def _driver_and_state(model):
    state = dc.models.REGISTRY.of_module(model)
    (driver,) = state.graphs.values()
    return driver, state


def reading_dit():
    torch.manual_seed(0)
    return ReadingDiT([GatedBlock() for _ in range(4)]).eval()


def test_a_batch_of_requests(stand_in):
    """The two that compute run as a batch of two does, by its graph."""

    def outputs_of(compiled):
        inputs = toy_inputs(90.0, batch=2)
        for value in inputs.values():
            torch._dynamo.mark_dynamic(value, 0)
        with torch.no_grad():
            compiled(**inputs)
        dc.reset(compiled)
        handles = [dc.request(i, **(NEVER if i else ALWAYS)) for i in range(3)]
        outputs = []
        for timestep in TIMES:
            with dc.requests(handles):
                outputs.append(run(compiled, toy_inputs(timestep, batch=3)))
        assert [handle.report.num_hits for handle in handles] == [7, 0, 0]
        return outputs

    expected = outputs_of(compile_toy(reading_dit()))
    torch._dynamo.reset()
    model = reading_dit()
    assert_equal(outputs_of(with_graphs(model)), expected)
    # At first two samples of no request, then three, of which two compute from the second step on.
    assert num_replays(stand_in) == [1, 1, 1 + 7, 1] + [8, 8, 1, 8]


class MaskedDiT(ToyDiT):
    """The blocks read a mask that the prologue makes, one row for all tokens."""

    def trunk(self, h, temb, e):
        rows = (e.mean(dim=-1) > 0).float()[:, None, :2].expand(-1, h.shape[1], -1)
        for block in self.blocks:
            h = block(h, temb) + rows.mean(dim=-1, keepdim=True)
        return h


def test_a_mask_that_is_broadcast_keeps_its_layout(stand_in):
    model = MaskedDiT([AddingBlock(step) for step in (1.0, 2.0, 4.0)])
    compiled = with_graphs(model, **NEVER)
    for inputs in toy_steps(TIMES[:3]):
        torch.testing.assert_close(run(compiled, inputs), run(model, inputs))
    assert num_replays(stand_in) == [3, 3, 3, 3]
    driver, state = _driver_and_state(model)
    kinds = [kind for (_, kinds), _ in driver.graphed.of(state)._kept for kind in kinds]
    assert any(0 in stride for *_, stride in kinds)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12.0).reshape(3, 4),
        torch.arange(3.0)[:, None].expand(3, 4),
        torch.arange(24.0).reshape(3, 8)[:, 2:6],
        torch.arange(24.0).reshape(2, 3, 4).transpose(0, 2),
        torch.arange(12)[::3],
        torch.polar(torch.ones(3), torch.arange(3.0)),
        torch.tensor(2.5),
        torch.zeros(0, 4),
        torch.tensor([True, False]),
    ],
    ids=lambda tensor: f"{tensor.dtype}{list(tensor.stride())}",
)
def test_a_buffer_holds_what_it_is_given_as_it_lies(tensor):
    buffers = StaticBuffers(RecordingCapturer())
    given = [tensor, tensor + 1 if tensor.dtype != torch.bool else ~tensor]
    with torch.inference_mode():
        own = buffers.like(given)
    fill(own, given)
    for buffer, value in zip(own, given, strict=True):
        for held in (buffer.shaped, buffer.copied()):
            assert torch.equal(held, value) and held.stride() == value.stride()
    assert buffers.like(given)[1].flat is own[1].flat and own[0].flat is not own[1].flat
    assert buffers.nbytes == sum(buffer.flat.nbytes for buffer in own)
    del own, buffer, held
    assert buffers.nbytes == 0


@pytest.mark.parametrize("has_graphs", [False, True])
def test_what_is_saved_captures_where_it_is_loaded(has_graphs, stand_in, monkeypatch):
    monkeypatch.setattr(savable, "cuda_capturer", lambda device: stand_in)
    model = adding_dit(1.0, 2.0, 4.0)
    run(compile_toy(model, **NEVER, cuda_graphs=has_graphs), toy_inputs(90.0))
    driver, _ = _driver_and_state(model)
    data = SavableModel.serialize_compile_artifacts(driver)
    loaded = SavableModel.deserialize_compile_artifacts(data)
    assert (loaded.graphed is not None) is has_graphs


def test_ranks_that_share_a_sample_have_none(stand_in):
    """A capture doesn't wait for the others."""
    model, inputs = adding_dit(1.0, 2.0, 4.0), toy_inputs(90.0)
    compiled = with_graphs(model)
    run(compiled, inputs)
    driver, _ = _driver_and_state(model)
    shared = replace(
        driver.compiled, trunk=replace(driver.compiled.trunk, groups=RankGroups(("ring",)))
    )
    stand_in.recordings.clear()
    driver.graphed = GraphedRunner(shared, driver.segments, stand_in)
    torch.testing.assert_close(run(compiled, inputs), run(model, inputs))
    assert stand_in.recordings == []
    assert graph_lines(model) == (f"CUDA graphs are off: {stage_graphs.RANKS}",)
