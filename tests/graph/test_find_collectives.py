"""Groups in whose blocks ranks wait for each other: found whatever calls them, and told from what
stands around the blocks. A group whose other ranks are made up is enough to trace them."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, fx, nn
from torch.distributed import _functional_collectives as funcol
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.testing._internal.distributed.fake_pg import FakeStore

import dit_cachegraph as dc
from dit_cachegraph.backend import cut_graph
from dit_cachegraph.config import resolve, split_options
from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.graph.cut.segment_graph import Cut
from dit_cachegraph.plan import Uncacheable
from support.toy_dits import (
    DIM,
    ToyDiT,
    WritingBlock,
    gated_dit,
    toy_inputs,
    writing_dit,
)
from support.toy_runs import NUM_WATCHED, assert_refused, run, toy_steps


@pytest.fixture(autouse=True)
def two_ranks() -> Iterator[None]:
    """The first of two ranks; the other answers whatever comes."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()
    torch._dynamo.reset()


@torch.library.custom_op("toy_ranks::all_reduce", mutates_args=())
def reduce_by_name(x: Tensor, group_name: str) -> Tensor:
    return x.clone()


@reduce_by_name.register_fake
def _(x: Tensor, group_name: str) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("toy_ranks::quantise", mutates_args=())
def in_groups(x: Tensor, group: int) -> Tensor:
    return x.clone()


@in_groups.register_fake
def _(x: Tensor, group: int) -> Tensor:
    return torch.empty_like(x)


def functional(h: Tensor, y: Tensor) -> Tensor:
    return h + funcol.all_reduce(y, "avg", dist.group.WORLD)


def in_place(h: Tensor, y: Tensor) -> Tensor:
    y = y.clone()
    dist.all_reduce(y)
    return h + y


def by_name(h: Tensor, y: Tensor) -> Tensor:
    return h + reduce_by_name(y, dist.group.WORLD.group_name)


def by_another_name(h: Tensor, y: Tensor) -> Tensor:
    return h + reduce_by_name(y, "tp:0")


def by_a_number(h: Tensor, y: Tensor) -> Tensor:
    return h + in_groups(y, 128)


class AroundDiT(ToyDiT):
    """Gathers before and after its blocks, and nowhere else."""

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        h = funcol.all_reduce(h, "avg", dist.group.WORLD)
        return funcol.all_reduce(super().trunk(h, temb, e), "avg", dist.group.WORLD)


class MlpBlock(nn.Module):
    """h -> h + down(up(h)) * temb."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.up, self.down = nn.Linear(DIM, 2 * DIM), nn.Linear(2 * DIM, DIM)

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        return h + self.down(torch.relu(self.up(self.norm(h)))) * temb


def tensor_parallel(plan: dict[str, object]) -> ToyDiT:
    torch.manual_seed(0)
    model = ToyDiT([MlpBlock() for _ in range(4)])
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    for block in model.blocks:
        parallelize_module(block, mesh, plan)
    return model


def cut_of(model: nn.Module, process_group: str | None = None) -> Cut | Uncacheable:
    found = []

    def backend(gm: fx.GraphModule, _: object) -> Callable[..., object]:
        found.append(cut_graph(gm, process_group))
        return gm.forward

    with torch.no_grad():
        torch.compile(model, backend=backend, fullgraph=True)(**toy_inputs(90.0))
    return found[0]


def groups_of(model: nn.Module, process_group: str | None = None) -> tuple[str, ...]:
    cut = cut_of(model, process_group)
    assert isinstance(cut, Cut), cut
    assert cut.trunk.num_blocks == 4
    return cut.trunk.groups.names


@pytest.mark.parametrize("write", [functional, in_place, by_name], ids=lambda f: f.__name__)
def test_the_group_of_a_collective_is_found(write: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert groups_of(writing_dit(write)) == (dist.group.WORLD.group_name,)


def test_the_report_says_who_decides_together() -> None:
    said = str(dc.explain(writing_dit(functional), **toy_inputs(90.0)))
    assert f"the ranks of process group {dist.group.WORLD.group_name!r} decide as one" in said
    assert "decide as one" not in str(dc.explain(gated_dit(4), **toy_inputs(90.0)))


def test_the_group_of_a_mesh_is_found() -> None:
    model = tensor_parallel({"up": ColwiseParallel(), "down": RowwiseParallel()})
    assert groups_of(model) == (init_device_mesh("cpu", (2,)).get_group(0).group_name,)


def test_weights_that_are_spread_leave_each_rank_all_tokens() -> None:
    cut = cut_of(tensor_parallel({"up": ColwiseParallel(), "down": RowwiseParallel()}))
    assert isinstance(cut, Cut)
    assert cut.trunk.groups.names and not cut.trunk.groups.of_tokens


@pytest.mark.parametrize("named", [None, "by the caller"])
def test_a_collective_of_the_code_may_be_over_tokens(named: str | None) -> None:
    group = dist.group.WORLD.group_name
    model = writing_dit(functional) if named is None else gated_dit(4)
    cut = cut_of(model, None if named is None else group)
    assert isinstance(cut, Cut)
    assert cut.trunk.groups.of_tokens == cut.trunk.groups.names == (group,)


def test_two_groups_are_both_found() -> None:
    other = dist.new_group([0, 1])

    def write(h: Tensor, y: Tensor) -> Tensor:
        return functional(h, funcol.all_reduce(y, "avg", other))

    assert groups_of(writing_dit(write)) == (other.group_name, dist.group.WORLD.group_name)


def test_a_group_that_nobody_knows_is_refused_by_its_name() -> None:
    model = writing_dit(by_another_name)
    assert_refused(model, r"blocks\.0 waits for other ranks \(`all_reduce.*knows no 'tp:0'")
    group = dist.group.WORLD.group_name
    assert groups_of(model, process_group=group) == (group,), "unless the caller says it"


def test_what_the_caller_says_holds_where_no_collective_is_seen() -> None:
    group = dist.new_group([0, 1]).group_name
    assert groups_of(gated_dit(4), process_group=group) == (group,)
    assert groups_of(writing_dit(functional), process_group=group) == (group,)


def test_the_option_takes_a_group_or_its_name() -> None:
    group = dist.new_group([0, 1])
    for given in (group, group.group_name):
        compile_options, settings = split_options({"process_group": given, "enabled": False})
        assert compile_options.group_name == group.group_name
        assert settings == {"enabled": False}
    assert split_options({})[0].group_name is None
    for wrong, sentence in ((3, "must be a group of torch.distributed"), ("nobody", "knows no")):
        with pytest.raises(InvalidConfig, match=sentence):
            split_options({"process_group": wrong})
    with pytest.raises(InvalidConfig, match="process_group is decided when the model is compiled"):
        resolve({"process_group": group})


def test_a_number_of_that_name_is_no_group() -> None:
    assert groups_of(writing_dit(by_a_number)) == ()


def test_what_waits_around_the_blocks_binds_nobody() -> None:
    assert groups_of(AroundDiT([WritingBlock(torch.add) for _ in range(4)])) == ()


def test_a_group_of_one_waits_for_nobody() -> None:
    alone = dist.new_group([0])

    def write(h: Tensor, y: Tensor) -> Tensor:
        return h + funcol.all_reduce(y, "avg", alone)

    assert groups_of(writing_dit(write)) == ()


def test_blocks_compiled_one_by_one_are_refused() -> None:
    model = writing_dit(functional)
    for block in model.blocks:
        block.compile(backend="cachedit", options={"inner_backend": "eager"})
    with pytest.warns(dc.NotCachedWarning, match="compile the whole model"):
        for inputs in toy_steps([90.0 - i for i in range(NUM_WATCHED + 4)]):
            run(model, inputs)
    assert dc.summary(model).num_hits == 0
