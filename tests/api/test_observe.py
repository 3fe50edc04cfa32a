"""What whoever observes is told, of steps and of requests; what is counted beside that."""

import logging
import sys
import warnings
from collections import Counter
from dataclasses import replace

import pytest
import torch

import dit_cachegraph as dc
from support.toy_dits import gated_dit, toy_inputs
from support.toy_images import NUM_STEPS, compile_reading, denoise
from support.toy_runs import compile_toy, run, toy_steps


@pytest.fixture
def model():
    torch._dynamo.reset()
    return compile_reading()


def draw(model, seed=0, num_steps=NUM_STEPS):
    (*_, last) = denoise(model, seed, num_steps=num_steps)
    return last


def split(records):
    steps = [record for record in records if isinstance(record, dc.StepRecord)]
    return steps, [record for record in records if isinstance(record, dc.RequestRecord)]


def without_error(step):
    """As it is told, before what is measured has come from the device."""
    is_by_error = step.observed_error is not None
    return replace(step, observed_error=None, sample=None if is_by_error else step.sample)


def test_records_add_up_to_the_summary(model):
    """Named and unnamed images of several settings."""
    records = []
    with dc.observe(records.append):
        draw(model)
        for key, settings in (("a", {}), ("b", {"enabled": False}), ("c", {"preset": "fast"})):
            handle = dc.request(key, **settings)
            with handle:
                draw(model, ord(key))
            handle.end()
    steps, requests = split(records)
    report = dc.summary(model)
    assert [record.step for record in steps] == list(map(without_error, report.steps))
    assert sum(record.step.hit for record in steps) == report.num_hits >= 2
    assert sum(not record.step.hit for record in steps) == report.num_computed
    assert sum(record.num_blocks for record in steps) == report.num_blocks
    assert sum(record.num_blocks_run for record in steps) == report.num_blocks_run
    assert {record.model for record in steps} == {"ReadingDiT"}
    assert [record.report.key for record in requests] == ["a", "b", "c"]
    first = [record for record in steps if record.step.request == "#1"]
    assert first[0].state_nbytes > 0 and steps[-1].state_nbytes == report.state_nbytes == 0


def test_a_request_is_told_once_with_what_its_handle_reports(model):
    records = []
    with dc.observe(records.append):
        handle = dc.request("a")
        with handle:
            under_way = denoise(model)
            for _ in range(4):
                next(under_way)
        held = dc.summary(model).state_nbytes
        handle.end()
        handle.end()
        dc.request("without steps").end()
    steps, (request, other) = split(records)
    assert request.report == handle.report
    assert request.report.steps == tuple(record.step for record in steps)
    assert request.report.share_of_work == sum(r.num_blocks_run for r in steps) / (4 * 4)
    assert request.freed_nbytes == held > 0
    assert request.report.seconds == pytest.approx(sum(record.seconds for record in steps))
    assert 0 < request.report.seconds < request.seconds
    assert (other.report.steps, other.freed_nbytes) == ((), 0)


def test_nothing_is_told_after_the_end(model):
    first, second = [], []
    handle = dc.observe(first.append)
    with dc.observe(second.append):
        draw(model, num_steps=2)
    draw(model, 1, num_steps=2)
    handle.stop()
    handle.stop()
    draw(model, 2, num_steps=2)
    assert (len(first), len(second)) == (4, 2)


def test_what_cant_be_called_is_refused():
    with pytest.raises(TypeError, match="a function of one record; got 'requests.jsonl'"):
        dc.observe("requests.jsonl")


def test_where_nobody_observes_no_record_is_made(model):
    """And where somebody does, a step calls nine functions more at most, of some 400."""

    def counted():
        names = Counter()

        def note(frame, event, arg):
            names[frame.f_code.co_name] += event == "call"

        sys.setprofile(note)
        try:
            draw(model, num_steps=3)
        finally:
            sys.setprofile(None)
        return names

    draw(model, 1)
    unobserved = counted()
    assert unobserved["_step_record"] == 0
    with dc.observe(lambda record: None):
        observed = counted()
    assert observed["_step_record"] == 3
    assert 0 < observed.total() - unobserved.total() <= 9 * 3


class Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)


@pytest.fixture
def lines():
    handler, logger = Lines(), logging.getLogger("dit_cachegraph")
    logger.addHandler(handler)
    yield handler.records
    logger.removeHandler(handler)


def test_a_callback_that_raises_is_said_once_and_harms_nobody(model, lines):
    told = []

    def fail(record):
        raise KeyError("of the callback")

    expected = draw(model)
    with dc.observe(fail), dc.observe(told.append):
        torch.testing.assert_close(draw(model), expected, rtol=0, atol=0)
    (line,) = [r for r in lines if "which observes the cache" in r.getMessage()]
    assert "raised at a StepRecord" in line.getMessage() and line.exc_info[0] is KeyError
    assert len(told) == NUM_STEPS


def test_an_interrupt_of_the_callback_comes_through(model):
    def interrupt(record):
        raise KeyboardInterrupt

    with dc.observe(interrupt), pytest.raises(KeyboardInterrupt):
        draw(model)


def test_an_error_that_is_observed_is_not_waited_for(model):
    dc.configure(model, observe_error=True)
    records = []
    with dc.observe(records.append):
        draw(model)
    assert {record.step.observed_error for record in records} == {None}
    assert any(step.observed_error is not None for step in dc.summary(model).steps)


def test_evictions_and_expiries_are_counted(model):
    def begun(key):
        steps = denoise(model, key)
        with dc.request(key):
            next(steps)
        return steps

    kept = [begun(0), begun(1)]
    nbytes = dc.summary(model).state_nbytes
    assert (dc.summary(model).num_evicted, dc.summary(model).num_expired) == (0, 0)
    dc.configure(model, max_state_bytes=nbytes)
    kept.append(begun(2))
    assert (dc.summary(model).num_evicted, dc.summary(model).num_expired) == (1, 0)
    dc.configure(model, max_state_bytes=None, max_idle_seconds=0)
    kept.append(begun(3))
    assert (dc.summary(model).num_evicted, dc.summary(model).num_expired) == (1, 2)


def test_graphs_are_counted_once_a_model(model):
    draw(model)
    draw(model, 1)
    assert dc.summary(model).num_compiles == 1
    torch._dynamo.reset()
    draw(model, 2)
    assert dc.summary(model).num_compiles == 2
    assert dc.summary(model).to_dict()["num_compiles"] == 2


def test_calls_outside_the_cache_are_counted():
    """Refused, and run by Dynamo without us; not those that are cached."""
    torch._dynamo.reset()
    inputs = toy_steps([90.0, 60.0, 30.0])
    refused, cached = compile_toy(gated_dit(1)), compile_toy(gated_dit(4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dc.NotCachedWarning)
        for step in inputs:
            run(refused, step)
            run(cached, step)
    assert (dc.summary(refused).num_outside, dc.summary(cached).num_outside) == (3, 0)
    with torch.compiler.set_stance("force_eager"):
        run(cached, toy_inputs(10.0))
    assert dc.summary(cached).num_outside == 1
    run(cached, toy_inputs(10.0))
    assert dc.summary(cached).num_outside == 1
