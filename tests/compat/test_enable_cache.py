"""What `enable_cache` does to a transformer, and that `disable_cache` undoes all of it."""

import copy
import pickle

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import nn
from torch._dynamo.utils import counters

import dit_cachegraph as dc
from dit_cachegraph.compat import cached_forward
from migration.stand_ins import OwnTransformer, own_loop
from support.tiny_pipelines import FAST_PIPELINES

PIPELINES = {tiny.name: tiny for tiny in FAST_PIPELINES}
ALWAYS = {"residual_diff_threshold": 1.0, "max_warmup_steps": 2}
NUM_STEPS = 5


@pytest.fixture(autouse=True, scope="module")
def fresh_dynamo():
    """Instead of the one for each test: all tests here share the graphs of two models."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def attributes_of(model: nn.Module) -> list[tuple[str, dict[str, object]]]:
    """All attributes of all its modules, in their order."""
    return [(name, dict(module.__dict__)) for name, module in model.named_modules()]


def assert_same_attributes(model: nn.Module, before: list[tuple[str, dict[str, object]]]) -> None:
    for (name, now), (name_before, then) in zip(attributes_of(model), before, strict=True):
        assert (name, list(now)) == (name_before, list(then))
        assert all(now[key] is then[key] for key in then), name


def hits_of(model: object, num_steps: int = NUM_STEPS) -> list[bool]:
    return [step.hit for step in dc.summary(model).steps[-num_steps:]]


WARM_THEN_HITS = [False, False, True, True, True]


class TestRestoring:
    @pytest.mark.e2e
    def test_a_pipeline_is_as_it_was(self):
        tiny = PIPELINES["flux"]
        pipe = tiny.build()
        pipe.set_progress_bar_config(disable=True)
        plain = pipe(**tiny.arguments(0))[0]
        before, own, cls = (
            attributes_of(pipe.transformer),
            dict(pipe.__dict__),
            dict(vars(type(pipe))),
        )
        weights = {name: t.clone() for name, t in pipe.transformer.state_dict().items()}
        assert dc.enable_cache(pipe, **ALWAYS) is pipe
        assert not torch.equal(pipe(**tiny.arguments(0))[0], plain)
        assert hits_of(pipe, 10) == [False] * 2 + [True] * 8
        dc.disable_cache(pipe)
        assert_same_attributes(pipe.transformer, before)
        assert pipe.__dict__ == own and dict(vars(type(pipe))) == cls
        assert all(torch.equal(t, weights[n]) for n, t in pipe.transformer.state_dict().items())
        assert torch.equal(pipe(**tiny.arguments(0))[0], plain)
        assert len(dc.summary(pipe).steps) == 10

    def test_before_the_first_call_and_twice(self):
        model = OwnTransformer()
        before = attributes_of(model)
        dc.enable_cache(model)
        dc.enable_cache(model)
        dc.disable_cache(model)
        assert_same_attributes(model, before)
        dc.disable_cache(model)
        assert_same_attributes(model, before)

    def test_a_forward_of_the_instance(self):
        model = OwnTransformer()
        plain = own_loop(model, NUM_STEPS)
        model.forward = doubled = lambda *args: 2 * OwnTransformer.forward(model, *args)
        before = attributes_of(model)
        dc.enable_cache(model, **ALWAYS)
        assert not torch.equal(own_loop(model, NUM_STEPS), plain)
        dc.disable_cache(model)
        assert model.forward is doubled
        assert_same_attributes(model, before)

    def test_settings_of_configure_come_back(self):
        model = OwnTransformer()
        dc.configure(model, rule="even", every=3)
        dc.enable_cache(model, **ALWAYS)
        assert dc.strify(model) == "DBCache_F8B0_W2I1M0MC0_R1.0"
        dc.disable_cache(model)
        assert dc.strify(model) == "even_replay"

    def test_what_is_kept_is_dropped(self):
        model = OwnTransformer()
        dc.enable_cache(model, **ALWAYS)
        own_loop(model, NUM_STEPS)
        assert dc.summary(model).state_nbytes > 0
        dc.disable_cache(model)
        assert dc.summary(model).state_nbytes == 0


class TestOtherHooks:
    @pytest.fixture
    def model(self):
        return OwnTransformer()

    def test_hooks_that_were_there(self, model):
        plain = own_loop(model, NUM_STEPS)
        add_hook_to_module(model, ModelHook())
        before = attributes_of(model)
        dc.enable_cache(model, **ALWAYS)
        own_loop(model, NUM_STEPS)
        assert hits_of(model) == WARM_THEN_HITS
        dc.disable_cache(model)
        assert_same_attributes(model, before)
        remove_hook_from_module(model)
        assert torch.equal(own_loop(model, NUM_STEPS), plain)

    def test_hooks_that_came_after(self, model):
        plain, before = own_loop(model, NUM_STEPS), attributes_of(model)
        dc.enable_cache(model, **ALWAYS)
        add_hook_to_module(model, ModelHook())
        own_loop(model, NUM_STEPS)
        assert hits_of(model) == WARM_THEN_HITS
        # The hook has our forward inside, which can't be taken out of it: it hands calls on.
        dc.disable_cache(model)
        assert torch.equal(own_loop(model, NUM_STEPS), plain)
        assert len(dc.summary(model).steps) == NUM_STEPS
        dc.enable_cache(model, **ALWAYS)
        own_loop(model, NUM_STEPS)
        assert hits_of(model) == WARM_THEN_HITS
        remove_hook_from_module(model)
        dc.disable_cache(model)
        assert {name: list(own) for name, own in attributes_of(model)} == {
            name: list(own) for name, own in before
        }

    def test_forward_hooks(self, model):
        seen = []
        model.register_forward_hook(lambda *_: seen.append(True))
        dc.enable_cache(model, **ALWAYS)
        own_loop(model, NUM_STEPS)
        assert len(seen) == NUM_STEPS and hits_of(model) == WARM_THEN_HITS

    def test_forward_hooks_on_a_block(self, model):
        """Traced as by `torch.compile`, so that one which comes later waits for a reset; and what
        it does in Python, Dynamo does beside the graph, at each step."""
        seen = []
        dc.enable_cache(model, **ALWAYS)
        own_loop(model, NUM_STEPS)
        model.blocks[10].register_forward_hook(lambda *_: seen.append(True))
        own_loop(model, NUM_STEPS)
        assert not seen
        torch._dynamo.reset()
        own_loop(model, NUM_STEPS)
        assert len(seen) == NUM_STEPS and hits_of(model) == WARM_THEN_HITS


class TestCopies:
    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_a_copy_is_cached_by_itself(self, copied):
        model = OwnTransformer()
        dc.enable_cache(model, **ALWAYS)
        own_loop(model, NUM_STEPS)
        twin = copied(model)
        with torch.no_grad():
            twin.out.weight.zero_()
            twin.out.bias.zero_()
        start = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
        assert torch.equal(own_loop(twin, NUM_STEPS), start)
        assert hits_of(twin) == WARM_THEN_HITS
        dc.disable_cache(twin)
        assert "forward" not in twin.__dict__ and "forward" in model.__dict__
        assert not torch.equal(own_loop(model, NUM_STEPS), start)

    def test_settings_of_a_copy(self):
        model = OwnTransformer()
        dc.enable_cache(model, **ALWAYS)
        twin = copy.deepcopy(model)
        dc.configure(twin, max_warmup_steps=4)
        own_loop(twin, NUM_STEPS)
        assert hits_of(twin) == [False] * 4 + [True]


def test_called_again_it_replaces_all_settings():
    model = OwnTransformer()
    dc.enable_cache(model, **ALWAYS, max_cached_steps=1, enable_taylorseer=True)
    assert dc.strify(model) == "DBCache_F8B0_W2I1M1MC0_R1.0_T1O1"
    dc.enable_cache(model, max_warmup_steps=3)
    assert dc.strify(model) == "DBCache_F8B0_W3I1M0MC0_R0.08"


def test_configure_changes_single_settings():
    model = OwnTransformer()
    dc.enable_cache(model, **ALWAYS)
    dc.configure(model, max_warmup_steps=3)
    own_loop(model, NUM_STEPS)
    assert hits_of(model) == [False] * 3 + [True] * 2


def test_first_blocks_by_default():
    """8 of 12; in a model of 6 blocks what a quarter of them makes; as said where it is said."""
    model = OwnTransformer()
    dc.enable_cache(model, **ALWAYS)
    own_loop(model, 3)
    assert dc.summary(model).graphs[0].region == (8, 12)
    del model.blocks[6:]
    own_loop(model, 3)
    assert dc.summary(model).graphs[-1].region == (1, 6)
    dc.enable_cache(model, **ALWAYS, Fn_compute_blocks=3)
    assert dc.summary(model).graphs[-1].region == (3, 6)
    dc.enable_cache(model, **ALWAYS, Fn_compute_blocks=8)
    with pytest.raises(dc.InvalidConfig, match="Fn_compute_blocks=8 .* more than the 6 blocks"):
        own_loop(model, 1)


@pytest.mark.e2e
def test_a_controlnet_is_left_alone():
    tiny = PIPELINES["flux_controlnet"]
    pipe = tiny.build()
    pipe.set_progress_bar_config(disable=True)
    before = attributes_of(pipe.controlnet)
    dc.enable_cache(pipe, **ALWAYS)
    pipe(**tiny.arguments(0))
    assert_same_attributes(pipe.controlnet, before)
    assert hits_of(pipe, 10)[:2] == [False, False] and sum(hits_of(pipe, 10)) > 0


def test_explain_of_a_cached_model():
    model = OwnTransformer()
    plain = dc.explain(model, torch.zeros(2, 8, 16), torch.ones(2))
    dc.enable_cache(model, **ALWAYS)
    explained = dc.explain(model, torch.zeros(2, 8, 16), torch.ones(2))
    assert explained.graphs[0].block_lists == plain.graphs[0].block_lists
    assert explained.graphs[0].region == (8, 12)


class WithIds(OwnTransformer):
    def forward(self, hidden_states, timestep, ids):
        return super().forward(hidden_states, timestep)


class WithKinds(OwnTransformer):
    def forward(self, hidden_states, timestep, ids):
        return super().forward(hidden_states + len(ids), timestep)


@pytest.mark.skipif(not cached_forward._TAKES_A_LIMIT, reason="torch.compile takes none")
class TestKindsOfCalls:
    """A list of another length is another kind of call, as another adapter is."""

    @pytest.fixture
    def model(self, monkeypatch):
        monkeypatch.setattr(cached_forward, "NUM_KINDS_TRACED", 4)
        torch._dynamo.reset()
        with torch._dynamo.config.patch(recompile_limit=2):
            yield dc.enable_cache(WithKinds(), **ALWAYS)

    def call(self, model, num_ids: int, num_steps: int = NUM_STEPS) -> None:
        with torch.no_grad():
            for i in range(num_steps):
                model(torch.ones(2, 8, 16), torch.ones(2) - i / 8, ids=[0] * num_ids)

    def test_more_of_them_than_dynamo_allows_by_itself_are_cached(self, model):
        for num_ids in range(4):
            self.call(model, num_ids)
            assert hits_of(model) == WARM_THEN_HITS
            dc.check(model)

    def test_beyond_the_limit_it_is_said(self, model):
        for num_ids in range(5):
            self.call(model, num_ids, num_steps=1)
        with pytest.raises(dc.NotCached, match="4 times.*raise `torch._dynamo.config.recompile_l"):
            dc.check(model)
        with torch._dynamo.config.patch(recompile_limit=5):
            torch._dynamo.reset()
            for num_ids in range(5):
                self.call(model, num_ids, num_steps=1)
            dc.check(model)


class TestCompiled:
    def compiled_once(self) -> bool:
        return counters["stats"]["unique_graphs"] == 1 and not counters["recompile_limit"]

    @pytest.mark.parametrize("order", ["enable first", "compile first", "in place", "compile=True"])
    def test_any_order_compiles_the_segments_once(self, order):
        torch._dynamo.reset()
        counters.clear()
        model = OwnTransformer()
        if order == "compile first":
            model = torch.compile(model)
        dc.enable_cache(model, **ALWAYS, compile=order == "compile=True")
        if order == "enable first":
            model = torch.compile(model)
        elif order == "in place":
            model.compile()
        own_loop(model, NUM_STEPS)
        assert hits_of(model) == WARM_THEN_HITS
        (graph,) = dc.summary(model).graphs
        assert counters["inductor"] and graph.num_compiled == 3
        assert self.compiled_once()

    def test_after_dynamo_gave_up_on_our_forward(self):
        """It is one piece of code for all models, which argument lists of many lengths use up."""
        torch._dynamo.reset()
        with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=2):
            for lengths in (range(4), range(4, 7)):
                model = WithIds()
                dc.enable_cache(model, **ALWAYS)
                compiled = torch.compile(model)
                for i in lengths:
                    compiled(torch.ones(2, 8, 16), torch.ones(2) - i / 8, ids=[0] * i)
                assert model.forward.compiles

    def test_without_compiling_nothing_is_compiled(self):
        torch._dynamo.reset()
        counters.clear()
        model = OwnTransformer()
        dc.enable_cache(model, **ALWAYS)
        own_loop(model, NUM_STEPS)
        assert self.compiled_once() and not counters["inductor"] and not counters["aot_autograd"]

    def test_compiled_in_the_middle_of_an_image(self):
        torch._dynamo.reset()
        model = OwnTransformer()
        dc.enable_cache(model, **ALWAYS)
        compiled, latents = torch.compile(model), torch.ones(2, 8, 16)
        with torch.no_grad():
            for i in range(6):
                (model if i < 3 else compiled)(latents, torch.full((2,), 1 - i / 8))
        assert hits_of(model, 6) == [False, False, True, True, True, True]
        assert len(dc.summary(model).graphs) == 2

    def test_disabled_under_torch_compile(self):
        torch._dynamo.reset()
        model = OwnTransformer()
        plain = own_loop(model, NUM_STEPS)
        compiled = torch.compile(model, backend="eager")
        dc.enable_cache(compiled, **ALWAYS)
        dc.disable_cache(compiled)
        assert torch.equal(own_loop(compiled, NUM_STEPS), plain)
        assert "forward" not in model.__dict__ and dc.summary(model).steps == ()

    def test_fullgraph_is_refused_with_what_to_do(self):
        model = OwnTransformer()
        dc.enable_cache(model, **ALWAYS)
        compiled = torch.compile(model, fullgraph=True)
        with pytest.raises(Exception, match='backend="cachedit", fullgraph=True') as raised:
            own_loop(compiled, 1)
        assert type(raised.value).__module__.startswith("torch._dynamo")

    def test_blocks_that_were_compiled_one_by_one(self):
        torch._dynamo.reset()
        counters.clear()
        model = OwnTransformer()
        dc.enable_cache(model, **ALWAYS)
        for block in model.blocks:
            block.compile()
        own_loop(model, NUM_STEPS)
        assert hits_of(model) == WARM_THEN_HITS
        assert counters["inductor"] and self.compiled_once()
