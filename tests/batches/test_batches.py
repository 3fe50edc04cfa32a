"""A batch with a request for each sample: what runs, for whom, and whose state it is; what is
refused, and what runs whole."""

import contextlib

import pytest
import torch
from torch._dynamo import register_backend
from torch._dynamo.utils import counters

import dit_cachegraph as dc
from dit_cachegraph.graph.cut.find_samples import FIXED
from dit_cachegraph.retention import by_name
from support.batch_jobs import stacked
from support.toy_dits import DIM, NUM_TOKENS, GatedBlock, ReadingDiT, ToyDiT, toy_inputs
from support.toy_runs import NUM_WATCHED, compile_toy

ALWAYS = {"residual_diff_threshold": 1.0}  # Reuses all steps but the first.
NEVER = {"residual_diff_threshold": 0.0}
ran_with: list[int] = []  # The batch of each segment that ran, in order.


@register_backend
def noting_batches(gm, _):
    """Runs a segment as it is, and notes how many samples it ran for."""

    def run(*inputs):
        streams = [v for v in inputs if isinstance(v, torch.Tensor) and v.dim() == 3]
        ran_with.append(max(len(v) for v in streams if v.shape[1:] == (NUM_TOKENS, DIM)))
        return gm(*inputs)

    return run


@pytest.fixture(autouse=True)
def from_nothing():
    torch._dynamo.reset()
    ran_with.clear()


def reading_dit():
    torch.manual_seed(0)
    return ReadingDiT([GatedBlock() for _ in range(4)]).eval()


def make(model=None, *, is_free=True, **settings):
    """A compiled model, whose batch is free from the first call on."""
    model = compile_toy(model or reading_dit(), inner_backend="noting_batches", **settings)
    if is_free:
        inputs = stacked([job(90)[0], job(91)[0]])
        for value in inputs.values():
            torch._dynamo.mark_dynamic(value, 0)
        with torch.no_grad():
            model(**inputs)
        dc.reset(model)
        ran_with.clear()
    return model


def job(seed, num_steps=6, text_seed=None):
    """The inputs of each step of one sample."""
    first, last = toy_inputs(0.0, seed=seed, batch=1), toy_inputs(0.0, seed=50 + seed, batch=1)
    text = toy_inputs(0.0, seed=seed if text_seed is None else text_seed, batch=1)
    return [
        {
            "hidden_states": torch.lerp(first["hidden_states"], last["hidden_states"], i / 20),
            "timestep": torch.full((1,), 90.0 - 9 * i),
            "encoder_hidden_states": text["encoder_hidden_states"],
        }
        for i in range(num_steps)
    ]


@torch.no_grad()
def call(model, handles, steps):
    """One step of each, in one batch; its rows."""
    with dc.requests(handles):
        return model(**stacked(steps)).split(1)


@torch.no_grad()
def call_plainly(model, steps):
    return model(**stacked(steps))


@torch.no_grad()
def draw_alone(model, steps, **settings):
    """The outputs and decisions of a job that shares no batch."""
    handle, outputs = dc.request(object(), **settings), []
    for inputs in steps:
        with handle:
            outputs.append(model(**inputs))
    decided = hits(handle)
    handle.end()
    return outputs, decided


def hits(handle):
    return [step.hit for step in handle.report.steps]


def last_reason(handle):
    return handle.report.steps[-1].reason


def assert_goes_on(model, handle, step, expected):
    """A batch of this request and a new one reuses what the request has."""
    rows = call(model, [dc.request(object()), handle], [job(7)[0], step])
    torch.testing.assert_close(rows[1], expected)
    assert hits(handle)[-1], last_reason(handle)


def test_those_that_compute_run_in_a_batch_of_their_own():
    model = make()
    handles = [dc.request(i, **(NEVER if i in (1, 3) else ALWAYS)) for i in range(5)]
    jobs = [job(i) for i in range(5)]
    call(model, handles, [steps[0] for steps in jobs])
    assert ran_with == [5] * 6
    ran_with.clear()
    rows = call(model, handles, [steps[1] for steps in jobs])
    # The first block is what is compared, and the text of all of them is read.
    assert ran_with == [5, 5, 2, 2, 2, 5]
    assert [hits(handle) for handle in handles] == [[False, i not in (1, 3)] for i in range(5)]
    for i, steps in enumerate(jobs):
        outputs, _ = draw_alone(model, steps[:2], **(NEVER if i in (1, 3) else ALWAYS))
        torch.testing.assert_close(rows[i], outputs[1])


def test_one_that_computes_is_run_twice_where_the_code_needs_two():
    """Dynamo's graph for a free batch is for two or more."""
    model = make()
    handles = [dc.request(0, **NEVER), dc.request(1, **ALWAYS), dc.request(2, **ALWAYS)]
    jobs = [job(i) for i in range(3)]
    call(model, handles, [steps[0] for steps in jobs])
    ran_with.clear()
    rows = call(model, handles, [steps[1] for steps in jobs])
    assert ran_with == [3, 3, 2, 2, 2, 3]
    torch.testing.assert_close(rows[0], draw_alone(model, jobs[0][:2], **NEVER)[0][1])


def test_regions_of_other_settings_run_each_for_their_own():
    model = make()
    settings = [{**ALWAYS, "Fn_compute_blocks": n, "Bn_compute_blocks": 4 - n} for n in (1, 2, 3)]
    settings += [{"enabled": False}, {"rule": "dbprune", "residual_diff_threshold": 0.5}]
    jobs = [job(i) for i in range(len(settings))]
    handles = [dc.request(i, **given) for i, given in enumerate(settings)]
    rows = [call(model, handles, steps) for steps in zip(*jobs, strict=True)]
    for i, given in enumerate(settings):
        outputs, decided = draw_alone(model, jobs[i], **given)
        assert hits(handles[i]) == decided
        for row, expected in zip([each[i] for each in rows], outputs, strict=True):
            torch.testing.assert_close(row, expected)


def test_nothing_is_compiled_for_other_numbers_of_samples():
    model = make()
    call(model, [dc.request("one")], [job(0)[0]])
    num_graphs = counters["stats"]["unique_graphs"]
    for num in (2, 5, 3, 8, 4, 7):
        handles = [dc.request((num, i), **(NEVER if i % 3 else ALWAYS)) for i in range(num)]
        for n in range(3):
            call(model, handles, [job(i)[n] for i in range(num)])
    assert counters["stats"]["unique_graphs"] == num_graphs


def test_a_batch_of_a_fixed_size_runs_whole_as_soon_as_one_must():
    model = make(is_free=False, max_continuous_cached_steps=2, **ALWAYS)
    late, early = dc.request("late"), dc.request("early")
    others = [dc.request(i) for i in range(2)]
    steps = job(0), job(1), job(2)
    for n in range(2):  # `late` begins when the others have a step behind them.
        newer = [late, steps[2][n - 1]] if n else [dc.request("stands in"), job(8)[0]]
        call(model, [early, others[0], newer[0]], [steps[0][n], steps[1][n], newer[1]])
    assert hits(early) == [False, False]
    assert last_reason(early) == f"computed with late: {FIXED}"
    assert last_reason(late) == "new image"
    ran_with.clear()
    call(model, [early, others[0], late], [steps[0][2], steps[1][2], steps[2][1]])
    assert [hits(h)[-1] for h in (early, others[0], late)] == [True, True, True]
    assert ran_with == [3, 3, 3]  # prologue, the block that is compared, epilogue


def test_a_batch_of_a_fixed_size_computes_where_settings_ask_for_other_regions():
    model = make(is_free=False, **ALWAYS)
    handles = [dc.request(0), dc.request(1, Fn_compute_blocks=2)]
    for n in range(2):
        rows = call(model, handles, [job(0)[n], job(1)[n]])
    assert hits(handles[0]) == hits(handles[1]) == [False, False]
    assert "ask for other regions" in last_reason(handles[0])
    torch.testing.assert_close(rows[0], draw_alone(model, job(0)[:2], **NEVER)[0][1])


class LastFirst(ToyDiT):
    """Tokens of all samples lie in one dimension between its blocks."""

    def trunk(self, h, temb, e):
        h, temb = h.flatten(0, 1), temb.expand(-1, NUM_TOKENS, -1).flatten(0, 1)
        for block in self.blocks:
            h = block(h, temb)
        return h.reshape(-1, NUM_TOKENS, DIM)


def test_samples_that_can_not_be_told_apart_run_whole_and_leave_nothing():
    model = compile_toy(LastFirst([GatedBlock() for _ in range(3)]).eval(), **ALWAYS)
    handles = [dc.request(i) for i in range(2)]
    for n in range(2):
        rows = call(model, handles, [job(0)[n], job(1)[n]])
    for i, handle in enumerate(handles):
        assert hits(handle) == [False, False]
        assert last_reason(handle).startswith("runs whole: its blocks hand on")
        torch.testing.assert_close(rows[i], draw_alone(model, job(i)[1:2])[0][0])
    assert dc.summary(model).state_nbytes == 0


def test_blocks_that_are_compiled_one_by_one_run_whole():
    model = reading_dit()
    for block in model.blocks:
        block.compile(backend="cachedit", options={"inner_backend": "eager", **ALWAYS})
    handles = [dc.request(i) for i in range(2)]
    for n in range(NUM_WATCHED + 2):
        rows = call(model, handles, [job(i, 9)[n] for i in range(2)])
    assert len(handles[0].report.steps) == 2
    assert set(hits(handles[0])) == {False}
    assert "compiled one by one" in last_reason(handles[1])
    with torch.no_grad():
        torch.testing.assert_close(rows[1], reading_dit()(**job(1, 9)[n]))


@pytest.mark.parametrize("keeps", [True, False], ids=["old batches live on", "old batches die"])
def test_a_sample_moves_to_any_slot_of_any_batch(keeps):
    model, kept = make(**ALWAYS), []
    handles, jobs = [dc.request(i) for i in range(3)], [job(i) for i in range(3)]
    for n, order in enumerate([(0, 1, 2), (2, 0, 1), (1, 0), (0, 2, 1)]):
        batch = stacked([jobs[i][min(n, 5)] for i in order])
        kept += [batch] if keeps else []
        with dc.requests([handles[i] for i in order]), torch.no_grad():
            model(**batch)
    assert hits(handles[0]) == hits(handles[1]) == [False, True, True, True]
    assert hits(handles[2]) == [False, True, True]


def test_a_buffer_that_is_written_anew_at_each_step():
    model, handles = make(**ALWAYS), [dc.request(i) for i in range(3)]
    jobs = [job(i) for i in range(3)]
    buffers = {name: value.clone() for name, value in stacked([s[0] for s in jobs]).items()}
    for n, order in enumerate([(0, 1, 2), (2, 0, 1), (0, 1, 2)]):
        for name, value in stacked([jobs[i][n] for i in order]).items():
            buffers[name].copy_(value)
        with dc.requests([handles[i] for i in order]), torch.no_grad():
            model(**buffers)
    assert [hits(handle) for handle in handles] == [[False, True, True]] * 3


def test_a_request_goes_on_alone_and_comes_back():
    model, handle, steps = make(**ALWAYS), dc.request("a"), job(0)
    expected, _ = draw_alone(model, steps)
    call(model, [handle, dc.request("b")], [steps[0], job(1)[0]])
    with handle, torch.no_grad():
        model(**steps[1])
    assert_goes_on(model, handle, steps[2], expected[2])
    rows = call(model, [handle], [steps[3]])
    torch.testing.assert_close(rows[0], expected[3])
    assert hits(handle) == [False, True, True, True]


def test_one_that_is_replaced_by_its_like_computes():
    """The same prompt, noise and step, in the same slot."""
    model, a, b = make(**ALWAYS), dc.request("a"), dc.request("b")
    for n in range(2):
        call(model, [a, b], [job(0)[n], job(1)[n]])
    replaced = dc.request("c")
    call(model, [a, replaced], [job(0)[2], job(1)[2]])
    assert hits(a) == [False, True, True]
    assert hits(replaced) == [False]
    assert last_reason(replaced) == "new image"
    assert_goes_on(model, b, job(1)[2], draw_alone(model, job(1))[0][2])


@pytest.mark.parametrize("is_same_text", [True, False])
def test_passes_of_guidance_in_two_calls(is_same_text):
    """Also where both have the same text: they are called with the same latents."""
    model, handles = make(**ALWAYS), [dc.request(i) for i in range(2)]
    for n in range(4):
        latents = torch.cat([job(i)[n]["hidden_states"] for i in range(2)])
        for of_pass in range(2):
            texts = [job(i, text_seed=20 + (0 if is_same_text else of_pass))[n] for i in range(2)]
            batch = {**stacked(texts), "hidden_states": latents}
            with dc.requests(handles), torch.no_grad():
                model(**batch)
    assert [hits(handle) for handle in handles] == [[False] * 2 + [True] * 6] * 2


def test_per_sample_is_what_a_batch_of_requests_does_anyway():
    model, handles = make(**ALWAYS), [dc.request(i) for i in range(2)]
    dc.configure(model, batch_rule="per_sample")
    for n in range(2):
        call(model, handles, [job(i)[n] for i in range(2)])
    assert [hits(handle) for handle in handles] == [[False, True]] * 2
    assert [handle.report.steps[1].sample for handle in handles] == [None, None]
    with pytest.raises(dc.InvalidConfig, match="a batch of 2 was called without a handle"):
        call_plainly(model, [job(i)[2] for i in range(2)])
    with dc.request("both"), pytest.raises(dc.InvalidConfig, match="without a handle"):
        call_plainly(model, [job(i)[2] for i in range(2)])


def test_a_call_that_fails_leaves_the_state_of_the_step_before():
    model, handles = make(**ALWAYS), [dc.request(i) for i in range(2)]
    call(model, handles, [job(i)[0] for i in range(2)])
    broken = {**stacked([job(i)[1] for i in range(2)]), "timestep": torch.ones(3)}
    with dc.requests(handles), torch.no_grad(), contextlib.suppress(RuntimeError):
        model(**broken)
    call(model, handles, [job(i)[1] for i in range(2)])
    assert [hits(handle) for handle in handles] == [[False, True]] * 2


def test_a_handle_that_ends_under_way_leaves_nothing():
    model, a, b = make(**ALWAYS), dc.request("a"), dc.request("b")
    call(model, [a, b], [job(0)[0], job(1)[0]])
    batch = dc.requests([a, b])
    with batch, torch.no_grad():
        assert a.end().nbytes > 0
        model(**stacked([job(0)[1], job(1)[1]]))
    assert last_reason(a) == "disabled"
    assert hits(b) == [False, True]
    assert b.end().nbytes > 0
    assert dc.summary(model).state_nbytes == 0


def test_requests_that_are_given_up_are_forgotten(monkeypatch):
    monkeypatch.setattr(by_name, "MAX_ROWS", 4)
    model = make(**ALWAYS)
    for n in range(3):
        call(model, [dc.request((n, i)) for i in range(2)], [job(i)[0] for i in range(2)])
    assert dc.reset(model, (0, 0)).num_tracks == 0
    assert dc.reset(model, (1, 0)).num_tracks == 1
    assert dc.reset(model).num_tracks == 3
    assert dc.summary(model).state_nbytes == 0


def test_what_one_sample_shows_of_the_schedule_the_others_know():
    """Each step of a batch begins before any has ended."""
    model = make(**ALWAYS)
    a, b = dc.request("a"), dc.request("b")
    rising = [[{**s, "timestep": 90.0 - s["timestep"]} for s in job(i)] for i in range(3)]
    for n in range(2):
        call(model, [a], [rising[0][n]])
    call(model, [a, b], [rising[0][2], rising[1][0]])
    call(model, [a, b], [rising[0][3], rising[1][1]])
    assert last_reason(b).startswith("hit")


def test_a_bound_batch_runs_in_an_executor_and_a_generator():
    model, handles = make(**ALWAYS), [dc.request(i) for i in range(2)]

    def stream():
        with dc.requests(handles):
            for n in range(3):
                with torch.no_grad():
                    yield model(**stacked([job(i)[n] for i in range(2)]))

    steps = stream()
    next(steps)
    call(model, [dc.request("between")], [job(5)[0]])
    list(steps)
    step = dc.requests(handles).bind(lambda n: call(model, [dc.request(n)], [job(0)[n]]))
    with pytest.raises(dc.InvalidConfig, match="inside of the batch"):
        step(3)
    assert [hits(handle) for handle in handles] == [[False, True, True]] * 2


def test_a_handle_inside_of_a_batch_holds():
    model, a, b = make(**ALWAYS), dc.request("a"), dc.request("b")
    with dc.requests([a, b]), a, torch.no_grad():
        model(**job(0)[0])
    assert (len(a.report.steps), len(b.report.steps)) == (1, 0)


class TestRefused:
    def test_a_number_that_is_not_the_batch(self):
        model, handles = make(), [dc.request(i) for i in range(3)]
        with pytest.raises(dc.InvalidConfig, match=r"3 handles were given.*a batch of 2: give one"):
            call(model, handles, [job(0)[0], job(1)[0]])
        assert [handle.report.steps for handle in handles] == [()] * 3

    def test_one_handle_for_a_batch(self):
        with pytest.raises(dc.InvalidConfig, match="1 handles were given"):
            call(make(), [dc.request("a")], [job(0)[0], job(1)[0]])

    @pytest.mark.parametrize("is_other_handle", [True, False])
    def test_a_request_twice(self, is_other_handle):
        a = dc.request("a")
        with pytest.raises(dc.InvalidConfig, match="'a' stands for 2 samples: give each"):
            dc.requests([a, dc.request("b"), dc.request("a") if is_other_handle else a])

    def test_none_at_all(self):
        with pytest.raises(dc.InvalidConfig, match="no handle was given"):
            dc.requests([])

    def test_keys_in_the_place_of_handles(self):
        with pytest.raises(TypeError, match=r"what request\(key\) returns.*got str"):
            dc.requests(["a", "b"])

    def test_one_that_has_ended(self):
        a, b = dc.request("a"), dc.request("b")
        batch = dc.requests([a, b])
        b.end()
        with pytest.raises(dc.InvalidConfig, match="'b' has ended: leave its sample out"):
            dc.requests([a, b])
        with pytest.raises(dc.InvalidConfig, match="'b' has ended"), batch:
            pass

    def test_a_batch_inside_of_another(self):
        inner, outer = dc.requests([dc.request("a")]), dc.requests([dc.request("b")])
        with pytest.raises(dc.InvalidConfig, match=r"inside of the batch \[b\]"), outer, inner:
            pass
        with inner:  # And both can be entered again.
            pass
