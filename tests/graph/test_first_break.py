"""What `explain` says of a graph that breaks, before anybody compiles: where, why, and the smallest
change that removes the break."""

import inspect
import linecache

import pytest
import torch
from torch import Tensor, nn

import dit_cachegraph as dc
from dit_cachegraph.explain import Explanation
from dit_cachegraph.graph.find.first_break import GraphBreak
from support.toy_dits import GatedBlock, ToyDiT, toy_inputs
from zoo.entries import ENTRIES
from zoo.entry import Inputs


class Breaking(ToyDiT):
    """Breaks between two blocks."""

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        for block in self.blocks:
            h = block(self.between(h), temb)
        return h

    def between(self, h: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return h


class Branching(Breaking):
    def between(self, h: Tensor) -> Tensor:
        return h / 2 if h.sum() > 1e9 else h


class Reading(Breaking):
    def between(self, h: Tensor) -> Tensor:
        return h * h.amax().item()


class ReadingAndBreaking(Reading):
    def between(self, h: Tensor) -> Tensor:
        h = super().between(h)
        torch._dynamo.graph_break()
        return h


class Whole(Breaking):
    def between(self, h: Tensor) -> Tensor:
        return h


def explained(make: type[ToyDiT]) -> Explanation:
    torch.manual_seed(0)
    return dc.explain(make([GatedBlock() for _ in range(3)]), **toy_inputs(90.0))


def line_of(found: GraphBreak) -> str:
    """The line of this file that a break is at."""
    file, _, number = found.place.rpartition(":")
    assert __file__.endswith(file)
    return linecache.getline(__file__, int(number)).strip()


SET = "set `torch._dynamo.config.capture_scalar_outputs = True`"
REMOVE = "remove this call"


@pytest.mark.parametrize(
    ("make", "line", "reason", "change"),
    [
        (Breaking, "torch._dynamo.graph_break()", "Call to `torch._dynamo.graph_break()`", REMOVE),
        (Branching, "return h / 2 if h.sum() > 1e9 else h", "ata-dependent branching", "`torch.wh"),
        (Reading, "return h * h.amax().item()", "Tensor.item()", SET),
    ],
)
def test_place_reason_and_change(make: type[ToyDiT], line: str, reason: str, change: str) -> None:
    explanation = explained(make)
    found = explanation.first_break
    assert found is not None
    assert line_of(found) == line
    assert reason in found.reason
    assert change in found.change
    assert str(explanation).splitlines()[0].endswith(f" graphs: it breaks {found}")


def test_a_setting_of_dynamo_says_what_is_left_after_it() -> None:
    alone, with_another = explained(Reading).first_break, explained(ReadingAndBreaking).first_break
    assert alone is not None and with_another is not None
    assert alone.then is None
    assert str(alone).endswith(f"{SET}, which makes it one graph, as does `fullgraph=True`")
    assert with_another.then is not None
    assert line_of(with_another.then) == "torch._dynamo.graph_break()"
    assert f"{SET}; then it breaks at {with_another.then.place}: " in str(with_another)


def test_a_whole_graph_has_no_break() -> None:
    explanation = explained(Whole)
    assert explanation.first_break is None
    assert len(explanation.graphs) == 1


def called(name: str) -> tuple[nn.Module, Inputs]:
    entry = next(entry for entry in ENTRIES if entry.name == name)
    model = entry.build()
    return model, next(entry.steps(model, [0.9]))


@pytest.mark.parametrize(
    ("name", "line", "change"),
    [
        ("hunyuan_video15", "is_t2v = torch.all(image_embeds == 0)", "`torch.where`"),
        pytest.param(
            "hidream",
            "tokens_per_expert = flat_expert_indices.bincount()",
            "capture_dynamic_output_shape_ops = True",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_model_of_diffusers_that_is_not_cached(name: str, line: str, change: str) -> None:
    model, inputs = called(name)
    explanation = dc.explain(model, **inputs)
    assert all(graph.refusals for graph in explanation.graphs)
    found = explanation.first_break
    assert found is not None
    source = inspect.getsourcefile(type(model))
    assert source is not None and source.endswith("/" + found.place.partition(":")[0])
    number = int(found.place.partition(":")[2])
    assert line in "".join(linecache.getline(source, number + i) for i in (-1, 0))
    assert change in found.change
