"""Any schedule of batches decides and draws each sample as it is alone: samples join and leave at
any step, in any slot, are given up and replaced, each at its own step and with its own settings."""

import pytest
import torch
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from torch._dynamo.utils import counters

import dit_cachegraph as dc
from support.batch_jobs import EMBEDDED, SETTINGS, Recipe, Studio
from support.tiny_models import FLUX, WAN, TinyModel

MAX_JOBS = 4
NUM_EVENTS = 18
RECIPES = st.builds(
    Recipe,
    prompt=st.integers(0, 1),
    seed=st.integers(0, 1),
    num_steps=st.sampled_from([5, 6]),
    settings=st.integers(0, len(SETTINGS) - 1),
)


class Batches(RuleBasedStateMachine):
    """A server that draws jobs in batches, by whatever schedule."""

    def __init__(self, studio: Studio, within: float) -> None:
        super().__init__()
        self.studio, self.within, self.jobs = studio, within, []

    @precondition(lambda self: len(self.jobs) < MAX_JOBS)
    @rule(recipe=RECIPES)
    def join(self, recipe):
        self.jobs.append(self.studio.begin(recipe))

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def step(self, data):
        order = data.draw(st.permutations(range(len(self.jobs))))
        num = data.draw(st.integers(1, len(self.jobs)))
        stepped = [self.jobs[i] for i in order[:num]]
        self.studio.step(stepped)
        for job in stepped:
            self.studio.assert_as_alone(job, within=self.within)
            if job.is_done:
                job.handle.end()
        self.jobs = [job for job in self.jobs if not job.is_done]

    @precondition(lambda self: self.jobs)
    @rule(which=st.integers(0, MAX_JOBS - 1), ends=st.booleans())
    def cancel(self, which, ends):
        job = self.jobs.pop(which % len(self.jobs))
        if ends:
            job.handle.end()

    @precondition(lambda self: self.jobs)
    @rule(which=st.integers(0, MAX_JOBS - 1))
    def replace(self, which):
        """By a request of the same prompt from the same noise."""
        place = which % len(self.jobs)
        recipe = self.jobs[place].recipe
        self.jobs[place].handle.end()
        self.jobs[place] = self.studio.begin(recipe)

    def teardown(self):
        for job in self.jobs:
            job.handle.end()


def explore(tiny: TinyModel, num_schedules: int, *, inner="eager", within=1e-5, number=1):
    """Returns how many steps were hits and how many computed. `number` seeds what is drawn."""
    torch._dynamo.reset()
    model = tiny.build(4)
    model.compile(backend="cachedit", options={"inner_backend": inner})
    studio = Studio(tiny, model)
    studio.warm()
    compiled = counters["stats"]["unique_graphs"]
    before = dc.summary(model)
    run_state_machine_as_test(
        seed(number)(lambda: Batches(studio, within)),
        settings=settings(
            max_examples=num_schedules,
            stateful_step_count=NUM_EVENTS,
            phases=(Phase.generate, Phase.shrink),
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert counters["stats"]["unique_graphs"] == compiled
    dc.reset(model)
    report = dc.summary(model)
    assert report.state_nbytes == 0
    return report.num_hits - before.num_hits, report.num_computed - before.num_computed


@pytest.mark.e2e
@pytest.mark.parametrize(
    "tiny", [EMBEDDED, pytest.param(WAN, marks=pytest.mark.slow)], ids=lambda tiny: tiny.name
)
def test_a_hundred_schedules(tiny):
    num_hits, num_computed = explore(tiny, 100)
    assert num_hits > 100
    assert num_computed > 100


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize("number", range(11, 16))
@pytest.mark.parametrize("tiny", [EMBEDDED, WAN], ids=lambda tiny: tiny.name)
def test_a_thousand_schedules_by_two_hundred(tiny, number):
    explore(tiny, 200, number=number)


@pytest.mark.slow
@pytest.mark.e2e
def test_schedules_under_inductor():
    explore(FLUX, 10, inner="inductor", within=1e-4)


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize("number", range(21, 26))
@pytest.mark.parametrize("tiny", [EMBEDDED, WAN], ids=lambda tiny: tiny.name)
def test_two_hundred_schedules_under_inductor_by_forty(tiny, number):
    explore(tiny, 40, inner="inductor", within=1e-4, number=number)
