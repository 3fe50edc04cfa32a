"""`keep_whole`: experts that are routed by data are one operator of the graph, cached and exact. It
is undone, it follows what becomes of the modules, and says what it can't keep."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

import dit_cachegraph as dc
from oracles.dbcache import EagerOracle
from support.tiny_models import finish
from zoo.entry import TOKENS, Draw
from zoo.own_dits import WIDTH, RoutedDiT, RoutedExperts

WARM_UP = 2


def as_its_tokens(tokens: Tensor, picked: Tensor | None = None) -> Tensor:
    return torch.empty_like(tokens)


@pytest.fixture
def kept() -> Iterator[object]:
    with dc.keep_whole(RoutedExperts, "route", fake=as_its_tokens) as handle:
        yield handle


def routed(depth: int = 4, seed: int = 0) -> RoutedDiT:
    return finish(RoutedDiT(depth), seed)


def steps(num_steps: int = 12) -> list[dict[str, Tensor]]:
    """Steps of an image of a batch of two, ever farther apart."""
    draw = Draw(nn.Identity(), seed=0)
    noise, picture, text = draw.normal(*TOKENS), draw.normal(*TOKENS), draw.text()
    return [
        {
            "hidden_states": torch.lerp(noise, picture, 0.002 * i * i),
            "timestep": torch.full([2], 950.0 - i * i),
            "encoder_hidden_states": text,
        }
        for i in range(num_steps)
    ]


def compiled_whole(model: nn.Module, inner: str = "eager", **settings: object) -> nn.Module:
    options = {"inner_backend": inner, "Fn_compute_blocks": 1, "max_warmup_steps": WARM_UP}
    options |= {"residual_diff_threshold": 0.0, **settings}
    return torch.compile(model, backend="cachedit", fullgraph=True, options=options)


@torch.no_grad()
@pytest.mark.parametrize(("threshold", "num_hits"), [(0.0, 0), (0.1, 4), (1.0, 10)])
def test_decisions_and_outputs_equal_the_oracle(
    kept: object, threshold: float, num_hits: int
) -> None:
    model = routed()
    settings = {"residual_diff_threshold": threshold, "max_warmup_steps": WARM_UP}
    compiled = compiled_whole(model, **settings)
    settings |= {"Fn_compute_blocks": 1, "image_stream": "h"}
    oracle = EagerOracle(model, ("blocks",), {"blocks": ("h",)}, **settings)
    for inputs in steps():
        expected = oracle.step(**inputs)
        torch.testing.assert_close(compiled(**inputs), expected.output)
        assert dc.summary(compiled).steps[-1].hit == expected.hit
    assert dc.summary(compiled).num_hits == num_hits


def test_without_it_the_graph_breaks() -> None:
    with torch.no_grad(), pytest.raises(TorchDynamoException):
        compiled_whole(routed())(**steps()[0])


@torch.no_grad()
def test_blocks_share_their_functions_at_any_depth(kept: object) -> None:
    for depth in (3, 6):
        torch._dynamo.reset()
        compiled = compiled_whole(routed(depth))
        compiled(**steps()[0])
        (graph,) = dc.summary(compiled).graphs
        assert (graph.num_blocks, graph.num_compiled) == (depth, 3)


@torch.no_grad()
def test_under_inductor(kept: object) -> None:
    model = routed()
    compiled = compiled_whole(model, "inductor")
    *first, last = steps(4)
    for inputs in first:
        torch.testing.assert_close(compiled(**inputs), model(**inputs))
    dc.configure(compiled, residual_diff_threshold=1.0)
    compiled(**last)
    assert dc.summary(compiled).num_hits == 1


class Scaled(nn.Module):
    """Sizes by data; `factor` is a number that Dynamo sees nothing of."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.factor = nn.Linear(WIDTH, WIDTH), 2.0

    def forward(self, x: Tensor) -> Tensor:
        return x + self.route(x, offset=None)

    def route(self, x: Tensor, offset: Tensor | None = None) -> Tensor:
        positive = x[x > 0].sum()
        scaled = self.factor * positive * self.linear(x)
        return scaled if offset is None else scaled + offset


def like_x(x: Tensor, offset: Tensor | None = None) -> Tensor:
    return torch.empty_like(x)


def compiled_plainly(model: nn.Module) -> nn.Module:
    torch._dynamo.reset()
    return torch.compile(model, backend="aot_eager", fullgraph=True)


def assert_equals_eager(compiled: nn.Module, model: nn.Module) -> None:
    x = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(compiled(x), model(x))


@torch.no_grad()
def test_what_is_changed_on_the_module_holds_at_once() -> None:
    model = nn.Sequential(Scaled(), Scaled())
    with dc.keep_whole(Scaled, "route", fake=like_x):
        compiled = compiled_plainly(model)
        assert_equals_eager(compiled, model)
        model[1].factor = 0.5
        assert_equals_eager(compiled, model)
        model[0].linear.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))
        assert_equals_eager(compiled, model)
        model[1].linear.load_state_dict(model[0].linear.state_dict())
        assert_equals_eager(compiled, model)


@torch.no_grad()
def test_models_of_one_class_are_told_apart() -> None:
    one, other = Scaled(), Scaled()
    other.factor = 3.0
    with dc.keep_whole(Scaled, "route", fake=like_x):
        compiled = [compiled_plainly(one), torch.compile(other, backend="eager", fullgraph=True)]
        for _ in range(2):
            assert_equals_eager(compiled[0], one)
            assert_equals_eager(compiled[1], other)


@torch.no_grad()
def test_classes_of_one_name_have_an_operator_each() -> None:
    class Other(Scaled):
        def route(self, x: Tensor, offset: Tensor | None = None) -> Tensor:
            return -super().route(x, offset)

    Other.__name__ = "Scaled"
    models = [Scaled(), Other()]
    with (
        dc.keep_whole(Scaled, "route", fake=like_x),
        dc.keep_whole(Other, "route", fake=like_x),
    ):
        compiled = [compiled_plainly(model) for model in models]
        for c, model in zip(compiled, models, strict=True):
            assert_equals_eager(c, model)


def test_with_gradients_on_it_is_what_it_was() -> None:
    model, x = Scaled(), torch.randn(2, WIDTH)
    with dc.keep_whole(Scaled, "route", fake=like_x):
        torch._dynamo.reset()
        (torch.compile(model, backend="eager")(x)).sum().backward()
    gradient, model.linear.weight.grad = model.linear.weight.grad, None
    model(x).sum().backward()
    torch.testing.assert_close(gradient, model.linear.weight.grad)


def test_undoing_it() -> None:
    class Heir(Scaled):
        pass

    route = Scaled.route
    handle = dc.keep_whole(Scaled, "route", fake=like_x)
    assert Scaled.route is not route
    assert Heir.route is Scaled.route
    handle.undo()
    handle.undo()
    assert Scaled.route is route
    with dc.keep_whole(Heir, "route", fake=like_x):
        assert Heir.route is not route
        assert Scaled.route is route
    assert "route" not in vars(Heir)


def test_it_gives_back_nothing_that_is_not_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = dc.keep_whole(Scaled, "route", fake=like_x)
    ours = Scaled.route
    monkeypatch.setattr(Scaled, "route", like_x)
    handle.undo()
    assert Scaled.route is like_x
    monkeypatch.undo()
    assert Scaled.route is ours
    handle.undo()


@torch.no_grad()
def test_keeping_it_twice_is_keeping_it_once() -> None:
    route, model = Scaled.route, Scaled()
    first = dc.keep_whole(Scaled, "route", fake=lambda x, offset: x.new_empty(1))
    assert dc.keep_whole(Scaled, "route", fake=like_x) is first
    assert_equals_eager(compiled_plainly(model), model)
    first.undo()
    assert Scaled.route is route


class Heir(Scaled):
    @property
    def size(self) -> int:
        return 3


BAD = [
    (nn.Linear(2, 2), "route", like_x, "cls must be a subclass of nn.Module, got Linear"),
    (dict, "get", like_x, "cls must be a subclass of nn.Module, got <class 'dict'>"),
    (Scaled, "rout", like_x, "Scaled has no such method: 'rout'"),
    (Heir, "size", like_x, "Heir has a property of that name: 'size'"),
    (Scaled, "route", None, "fake must be a function, got None"),
]


@pytest.mark.parametrize(("cls", "method", "fake", "sentence"), BAD)
def test_what_is_no_method_is_refused(
    cls: type[nn.Module], method: str, fake: Callable[..., Tensor], sentence: str
) -> None:
    with pytest.raises(dc.InvalidConfig, match=sentence):
        dc.keep_whole(cls, method, fake=fake)


def test_what_a_base_class_keeps_is_refused() -> None:
    with (
        dc.keep_whole(Scaled, "route", fake=like_x),
        pytest.raises(dc.InvalidConfig, match=r"Heir inherits Scaled\.route, which is kept whole"),
    ):
        dc.keep_whole(Heir, "route", fake=like_x)


def wider(x: Tensor, offset: Tensor | None = None) -> Tensor:
    return x.new_empty(1, 1, WIDTH)


def narrower(x: Tensor, offset: Tensor | None = None) -> Tensor:
    return torch.empty_like(x, dtype=torch.bfloat16)


class Writing(Scaled):
    def route(self, x: Tensor, offset: Tensor | None = None) -> Tensor:
        return x.mul_(2)


class Listing(Scaled):
    def route(self, x: Tensor, offset: Tensor | None = None) -> list[Tensor]:
        return [x]


class Counting(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return self.route(x, 2)


class Weightless(Scaled):
    def __init__(self) -> None:
        nn.Module.__init__(self)


SIZES = r"returns torch.float32 of \[2, 3, 16\], and its `fake` torch"
UNKEPT = [
    pytest.param(Scaled(), wider, rf"{SIZES}.float32 of \[1, 1, 16\]", id="sizes"),
    pytest.param(Scaled(), narrower, rf"{SIZES}.bfloat16 of \[2, 3, 16\]", id="dtype"),
    pytest.param(Scaled(), lambda x, offset: 3, "return one tensor, and not int", id="no_tensor"),
    pytest.param(Writing(), like_x, r"Writing\.route writes in place", id="write"),
    pytest.param(Listing(), like_x, "return one tensor, and not list", id="list"),
    pytest.param(Counting(), like_x, r"route was given int, and takes tensors alone", id="number"),
    pytest.param(Weightless(), like_x, "of a module that has no weights", id="weightless"),
]


@torch.no_grad()
@pytest.mark.parametrize(("model", "fake", "sentence"), UNKEPT)
def test_what_it_cannot_keep_it_says(
    model: nn.Module, fake: Callable[..., Tensor], sentence: str
) -> None:
    with dc.keep_whole(type(model), "route", fake=fake):
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="eager")
        with pytest.raises((dc.InvalidConfig, TorchDynamoException), match=sentence):
            compiled(torch.ones(2, 3, WIDTH))


@torch.no_grad()
def test_modules_that_nothing_tells_apart() -> None:
    one, other = Scaled(), Scaled()
    other.linear = one.linear
    x = torch.ones(2, 3, WIDTH)
    with dc.keep_whole(Scaled, "route", fake=like_x):
        with pytest.raises(TorchDynamoException, match="two modules with the very same weights"):
            compiled_plainly(nn.Sequential(one, other))(x)
        # A module that stands at two places is one.
        model = nn.Sequential(one, one)
        assert_equals_eager(compiled_plainly(model), model)


@torch.no_grad()
def test_weights_of_no_module() -> None:
    model, x = Scaled(), torch.ones(2, 3, WIDTH)
    others = {name: parameter.clone() for name, parameter in model.named_parameters()}

    def call(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, weights, (x,))

    with dc.keep_whole(Scaled, "route", fake=like_x):
        torch._dynamo.reset()
        with pytest.raises(dc.InvalidConfig, match="weights of no module that it knows"):
            torch.compile(call, backend="eager", fullgraph=True)(others)
