"""Any interleaving of requests decides and gives what each request does alone; and the explorer
that says so finds what it should, shown by rules that are broken on purpose."""

import itertools
import os
import random
import sys
from collections import Counter
from dataclasses import asdict, fields

import pytest
import torch
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

import dit_cachegraph.runtime.commit as commit
import dit_cachegraph.runtime.walk as walk
from dit_cachegraph import backend
from dit_cachegraph.cuda_graphs.static_buffers import Buffer
from dit_cachegraph.later import Later
from dit_cachegraph.policy.rules.dbcache import DBCache
from dit_cachegraph.requests import match
from dit_cachegraph.requests.track import Track
from dit_cachegraph.runtime.driver import CachedModel
from dit_cachegraph.runtime.look import Looker
from oracles.dbcache import EagerOracle
from support.explorer.asks import NUM_WORDS, Ask
from support.explorer.dit import DIM, ExploredDiT
from support.explorer.families import DBCACHE, ERROR_CONTROL, FAMILIES, STATIC_MASK
from support.explorer.lone_dbcache import DBCacheRules, LoneDBCache
from support.explorer.referee import Disagreement
from support.explorer.requests import Image, Request, condition
from support.explorer.state_explorer import StateExplorer
from support.recorded_graphs import RecordingCapturer

NUM_EVENTS = 16
TWO_PASSES = Ask(passes=("cond", "uncond"))
FROZEN = 2  # Seeds the hundred schedules of each family, the same at every run.


def explorer_seed():
    """The environment variable EXPLORER_SEED: a number, or "fresh" for one that is drawn. Without
    it, None: the same schedules at every run."""
    said = os.environ.get("EXPLORER_SEED")
    if said is None:
        return None
    number = random.SystemRandom().randrange(2**32) if said == "fresh" else int(said)
    sys.stdout.write(f"EXPLORER_SEED={number} draws these schedules again\n")
    return number


def explore(
    family,
    num_schedules,
    phases=(Phase.generate, Phase.shrink),
    before_each=None,
    number=None,
    **options,
):
    """Returns how many steps were hits or computed, and by which excuse. `number` seeds what is
    drawn, `options` are for `torch.compile`."""
    masters, tally = [ExploredDiT(seed) for seed in range(2)], Counter()

    def begin():
        if before_each is not None:
            before_each()
        return StateExplorer(masters, tally, family, options)

    run_state_machine_as_test(
        begin if number is None else seed(number)(begin),
        settings=settings(
            max_examples=num_schedules, stateful_step_count=NUM_EVENTS, phases=phases
        ),
    )
    return tally


def assert_says_much(tally, num_schedules):
    """Most calls have no excuse, and decide both ways."""
    assert tally["hit, no excuse"] > num_schedules
    assert tally["computed, no excuse"] > num_schedules
    without = tally["hit, no excuse"] + tally["computed, no excuse"]
    assert without > tally.total() / 2


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_a_hundred_schedules(family):
    assert_says_much(explore(family, 100, number=FROZEN), 100)


def follow(family, script, ask=TWO_PASSES):
    """One schedule, as it is written: what it tallies. `script` is given the explorer, after an
    image has begun."""
    tally = Counter()

    @settings(max_examples=1)
    @given(st.none())  # The explorer takes notes, which belong to an example.
    def run(_):
        explorer = StateExplorer([ExploredDiT(seed) for seed in range(2)], tally, family, {})
        explorer.start(ascends=False, rebuilds="text", settings={}, ask=ask)
        script(explorer)

    run()
    return tally


def one_more(explorer, skips=0):
    """Another image of the request, beside the one that is under way."""
    explorer.again(
        which=0, aborts=False, skips=skips, has_same_noise=False, has_other_guidance=False
    )


@pytest.mark.parametrize("order", [(0, 0, 1, 1, 0, 0), (0, 1, 1, 0, 0, 0)], ids=str)
def test_a_pass_that_may_be_of_another_image_says_nothing_of_its_companions(order):
    """Two images of one request in turn. The first one's cond is taken for the second one's next
    step, and computes; its uncond, with the same latents object, must not replay what the second
    one's uncond left, neither then nor later."""

    def script(explorer):
        one_more(explorer)
        explorer.turns(list(order))
        explorer.turns([0, 0, 0, 0])

    assert follow(STATIC_MASK, script)["hit, anything"] > 0


def test_an_image_that_stood_near_its_end_when_the_next_began_may_have_ended_there():
    """The next one may then be taken for ended at as many calls, and computes its last step."""

    def script(explorer):
        one_more(explorer, skips=1)
        one_more(explorer, skips=1)
        explorer.finish(which=0)
        explorer.reset(index=0)
        explorer.go_on(which=0, times=7)
        explorer.go_on(which=1, times=8)
        explorer.go_on(which=1, times=1)

    assert follow(DBCACHE, script)["computed, may compute"] == 1


def test_two_images_of_one_noise_that_both_go_on_after_the_end_that_was_told():
    """A call of the second may be taken for one more of the first: the very same latents, at the
    timestep where that stands."""

    def script(explorer):
        explorer.finish(which=0)
        explorer.begin(ask=Ask(pace="Heun", is_named=True, tells_steps="too few"))
        explorer.finish(which=0)
        explorer.again(
            which=1, aborts=False, skips=0, has_same_noise=True, has_other_guidance=False
        )
        explorer.finish(which=0)

    assert follow(DBCACHE, script)["hit, may compute"] == 1


def test_an_image_that_begins_anew_where_its_first_step_counted_as_anothers_second():
    """Its first step has the latents and the timestep of the last call."""

    def script(explorer):
        one_more(explorer)
        explorer.restart(which=0)
        explorer.turns(order=[0])
        explorer.again(
            which=0, aborts=True, skips=1, has_same_noise=False, has_other_guidance=False
        )
        explorer.turns(order=[0])
        explorer.restart(which=0)
        explorer.turns(order=[0])

    assert follow(DBCACHE, script, Ask())["computed, anything"] == 2


def test_an_image_that_was_dropped_near_its_end_says_nothing_of_the_next_ones_end():
    """Otherwise the next one's state would be freed where the first one was left."""

    def script(explorer):
        explorer.turns(order=[0] * 9)
        explorer.everyone_leaves()
        explorer.reset(index=0)
        explorer.begin(ask=Ask())
        explorer.finish(which=0)

    assert follow(ERROR_CONTROL, script)["computed, may compute"] == 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_two_thousand_schedules(family):
    assert_says_much(explore(family, 2000, number=explorer_seed()), 2000)


@pytest.fixture(scope="module")
def capturer():
    """What captures for all models that are explored over graphs: they share what was compiled."""
    with pytest.MonkeyPatch.context() as patch:
        one = RecordingCapturer()
        patch.setattr(backend, "cuda_capturer", lambda device: one)
        yield one


def explore_over_graphs(family, num_schedules, capturer, number):
    """The same with segments that are replayed; asserts that most are."""
    num_replays = []

    def count():
        num_replays.extend(recording.num_replays for recording in capturer.recordings)
        capturer.recordings.clear()

    count()
    num_replays.clear()
    tally = explore(family, num_schedules, before_each=count, number=number, cuda_graphs=True)
    count()
    # Every step that is decided has two runs or more; one that is excused may run whole, as one.
    num_decided = tally.total() - tally["computed, anything"] - tally["hit, anything"]
    assert sum(num_replays) > 2 * num_decided and sum(num_replays) > 2 * len(num_replays)
    return tally


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_schedules_over_cuda_graphs(family, capturer):
    tally = explore_over_graphs(family, 25, capturer, FROZEN)
    # What hypothesis draws hangs on the modules that are imported, whose constants it tries.
    assert tally["hit, no excuse"] > 3 and tally["computed, no excuse"] > 20


def test_a_value_that_stays_in_the_pool_is_found(capturer, monkeypatch):
    monkeypatch.setattr(Buffer, "copied", lambda buffer: buffer.shaped)
    with pytest.raises(Disagreement):
        explore(DBCACHE, 10, [Phase.generate], number=FROZEN, cuda_graphs=True)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_two_thousand_schedules_over_cuda_graphs(family, capturer):
    assert_says_much(explore_over_graphs(family, 2000, capturer, explorer_seed()), 2000)


def key_without_the_model(monkeypatch):
    """The models of a schedule share their requests: those of the first that is called."""
    whose, shared = CachedModel._model, {}

    def model(self, values):
        state = whose(self, values)
        state.requests = shared.setdefault("requests", state.requests)
        return state

    monkeypatch.setattr(CachedModel, "_model", model)
    return shared.clear


def no_check_of_the_region(monkeypatch):
    """What is kept is used for any region."""
    usable = Looker._usable

    def use(self, track, step):
        kept, reason = usable(self, track, step)
        return (track.state, None) if reason == "region changed" else (kept, reason)

    monkeypatch.setattr(Looker, "_usable", use)


def state_committed_early(monkeypatch):
    """A step is counted when it is decided on, before its blocks have run."""
    decide = walk.decide_region

    def decide_and_count(step, *others):
        decided = decide(step, *others)
        if step.match.track is not None:
            counted = step.history.after([decided.decision])
            step.match.track.history = Later.known(counted)
        return decided

    monkeypatch.setattr(walk, "decide_region", decide_and_count)


def repeated_first_timestep_as_heun(monkeypatch):
    """A second call at the first timestep is taken for a further step."""
    advance = match.advance

    def go_on(before, clock, *others):
        if before.num_calls == 1 and clock == before.last:
            before = before._replace(num_calls=2)
        return advance(before, clock, *others)

    monkeypatch.setattr(match, "advance", go_on)
    monkeypatch.setattr(match, "_is_at_the_first_timestep", lambda track, call: False)


def mask_read_a_step_late(monkeypatch):
    by_mask = DBCache._by_mask
    monkeypatch.setattr(
        DBCache, "_by_mask", lambda self, m, s, noise: by_mask(self, m, s - 1, noise)
    )


def companions_ignored(monkeypatch):
    """Each pass of guidance goes by itself."""
    monkeypatch.setattr(Track, "companions_at", lambda self, call: [])


def error_of_another_track(monkeypatch):
    """What a reuse would have missed is that of the call before, whosever that was."""
    measure, before = commit._error, {}

    def error_before(step, ranks):
        error, before["error"] = before.get("error"), measure(step, ranks)
        return before["error"] and error

    monkeypatch.setattr(commit, "_error", error_before)
    return before.clear


def _name(value):
    return getattr(value, "__name__", str(value))


FAULTS = [
    key_without_the_model,
    no_check_of_the_region,
    state_committed_early,
    repeated_first_timestep_as_heun,
]
# With the most schedules, and the number that draws some which find it soon where the usual ones
# take long. What is drawn depends on both.
FAULTS_OF = [
    (DBCACHE, key_without_the_model, 4000, None),
    pytest.param(DBCACHE, no_check_of_the_region, 4000, None, marks=pytest.mark.slow),
    (DBCACHE, state_committed_early, 150, 1),
    (DBCACHE, repeated_first_timestep_as_heun, 60, 9),
    (STATIC_MASK, mask_read_a_step_late, 4000, None),
    (ERROR_CONTROL, error_of_another_track, 4000, None),
    pytest.param(ERROR_CONTROL, companions_ignored, 4000, None, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("family", "fault", "num_schedules", "number"), FAULTS_OF, ids=_name)
def test_a_fault_is_found(family, fault, num_schedules, number, monkeypatch):
    before_each = fault(monkeypatch)
    with pytest.raises(Disagreement):
        explore(family, num_schedules, [Phase.generate], before_each, number)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("fault", FAULTS)
def test_the_schedule_that_is_printed_is_short(fault, monkeypatch):
    """It begins with `start`, and ends with the event that fails."""
    before_each = fault(monkeypatch)
    with pytest.raises(Disagreement) as caught:
        explore(DBCACHE, 1000, before_each=before_each)
    events = [
        line
        for line in "".join(caught.value.__notes__).split("\n")
        if " = state." in line or line.startswith("state.")
    ]
    assert 3 <= len(events) <= 7, events


def image_of(seed=1, **ask):
    """An image of a request of its own, which nothing else knows of."""
    texts = {"cond": condition(seed, (1, NUM_WORDS, DIM))}
    ids = condition(0, (24, DIM))
    request = Request("A", Ask(num_steps=10, **ask), texts, ids, torch.full((1,), 3.5))
    return Image("1", request, seed, ascends=False)


def all_inputs(image):
    return [image.inputs(call) for call in image.calls]


@given(DBCACHE.settings, st.sampled_from(["even", "Heun"]))
def test_alone_is_what_the_other_oracle_says(settings, pace):
    """Both are written from the rules, one for this model and one for any."""
    names = {f.name for f in fields(DBCacheRules)} - {"enabled"}
    settings = {name: value for name, value in settings.items() if name in names}
    model, lone, rules = ExploredDiT(0), LoneDBCache([]), DBCacheRules(**settings)
    options = {**asdict(rules), **settings}
    other = EagerOracle(model, ["blocks"], {"blocks": ("hidden_states",)}, **options)
    with torch.no_grad():
        for inputs in all_inputs(image_of(pace=pace)):
            verdict = lone.look(model, inputs, rules)
            expected = other.step(**inputs, return_dict=False)
            assert verdict.hit == expected.hit, (verdict, expected.reason)
            torch.testing.assert_close(lone.settle(verdict.hit, True), expected.output)


@torch.no_grad()
def test_the_residual_of_another_image_or_step_shows_in_the_output():
    model = ExploredDiT(0)
    residuals = [
        residual_of(model, inputs)
        for image in (image_of(seed=1), image_of(seed=2))
        for inputs in all_inputs(image)
    ]
    for one, other in itertools.combinations(residuals, 2):
        assert (one - other).norm() > 1e-2 * one.norm()


def residual_of(model, inputs):
    """What all blocks but the first add to the stream."""
    h, temb = model.enter(inputs["hidden_states"], inputs["timestep"], inputs["guidance"])
    text, position_ids = inputs["encoder_hidden_states"], inputs["position_ids"]
    h = first = model.blocks[0](h, temb, text, position_ids)
    for block in model.blocks[1:]:
        h = block(h, temb, text, position_ids)
    return h - first
