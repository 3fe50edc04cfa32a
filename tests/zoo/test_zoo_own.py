"""Hand-written models in shapes that diffusers has none of; each beside a neighbour, nearly the
same, that must be refused."""

import pytest
import torch

from support.in_place import add_and_clamp, add_method, add_out, addcmul, iadd, iadd_to_slice
from zoo.checks import check
from zoo.entry import TOKENS, Draw, Entry, Experts, Inputs
from zoo.own_dits import (
    DictDiT,
    ExpertsDiT,
    FunctionsDiT,
    OwnDiT,
    PairDiT,
    ParallelDiT,
    PreNormDiT,
    RoutedDiT,
    RoutedExperts,
    TowersDiT,
    TwiceDiT,
    UShapedDiT,
)
from zoo.own_layers import (
    BesideDiT,
    CheckpointedDiT,
    ListOfDictsDiT,
    ListOfListsDiT,
    ReentrantDiT,
    TuplesDiT,
    ZippedDiT,
)
from zoo.own_writes import CountingDiT, SizesDiT, WritingDiT

ROUTED = Experts(RoutedExperts, "route", lambda tokens, picked: torch.empty_like(tokens))
NO_CHAIN = "no list of at least two blocks of which each feeds the next"

WRITING = (iadd, add_method, add_out, iadd_to_slice, addcmul, add_and_clamp)
WRITES = "writes in place (`add_` at own_dits.py:"
WRITES_ALSO = "writes in place (`add_` at own_writes.py:"


def text(draw: Draw) -> Inputs:
    return {"encoder_hidden_states": draw.text()}


def own(
    name: str,
    model: type[OwnDiT],
    *trunk: str,
    depth: int = 4,
    refusal: str | None = None,
    breaks: bool = False,
    experts: Experts | None = None,
    **config: object,
) -> Entry:
    config["is_sound"] = refusal is None
    return Entry(
        name,
        model,
        config,
        {"num_layers": depth},
        trunk,
        TOKENS,
        text,
        breaks=breaks,
        refusal=refusal,
        experts=experts,
    )


SOUND = (
    own("pre_norm", PreNormDiT, "blocks"),
    own("parallel", ParallelDiT, "blocks"),
    own("u_shaped", UShapedDiT, "down", "up"),
    own("experts", ExpertsDiT, "blocks"),
    own("routed", RoutedDiT, "blocks", experts=ROUTED),
    own("towers", TowersDiT, "image_blocks", "text_blocks"),
    own("twice", TwiceDiT, "blocks"),
    own("pair", PairDiT, "blocks", depth=2),
    own("dictionary", DictDiT, "blocks"),
    own("functions", FunctionsDiT, "weights"),
    own("list_of_lists", ListOfListsDiT, "layers"),
    own("list_of_dicts", ListOfDictsDiT, "layers"),
    own("zipped", ZippedDiT, "mlps"),
    own("tuples", TuplesDiT, "mlps"),
    own("checkpointed", CheckpointedDiT, "blocks"),
    own("reentrant", ReentrantDiT, "blocks"),
    own("beside_small_layers", BesideDiT, "blocks"),
    *(own(f"writes_by_{form.__name__}", WritingDiT, "blocks", write=form) for form in WRITING),
)
COUNTS = {"allow_unspec_int_on_nn_module": True, "assume_static_by_default": False}
# With what Dynamo has to be told of them.
TOLD = (
    (own("counter", CountingDiT, "blocks"), COUNTS),
    (own("sizes_as_a_tensor", SizesDiT, "blocks"), {"capture_scalar_outputs": True}),
)
REFUSED = (
    own("writes", PreNormDiT, "blocks", refusal=WRITES),
    own("side_by_side", ParallelDiT, "blocks", refusal=NO_CHAIN),
    own("widening", UShapedDiT, "down", refusal="hands on nothing that it was given"),
    own("picked_tokens", ExpertsDiT, "blocks", refusal="has a size that depends on data"),
    own("routed_in_pieces", RoutedDiT, "blocks", breaks=True, refusal="graph break"),
    own(
        "context_around",
        TowersDiT,
        "image_blocks",
        "text_blocks",
        refusal="a context manager around several blocks",
    ),
    own("once", TwiceDiT, "blocks", refusal=NO_CHAIN),
    own("unlike_pair", PairDiT, "blocks", depth=2, refusal=NO_CHAIN),
    own("unchained_dictionary", DictDiT, "blocks", refusal=NO_CHAIN),
    own(
        "unlike_functions",
        FunctionsDiT,
        "weights",
        depth=2,
        refusal="this graph calls no module of a list",
    ),
    own("unchained_lists", ListOfListsDiT, "layers", refusal=NO_CHAIN),
    own("unchained_dicts", ListOfDictsDiT, "layers", refusal=NO_CHAIN),
    own("unchained_zip", ZippedDiT, "mlps", refusal=NO_CHAIN),
    own("unchained_tuples", TuplesDiT, "mlps", refusal=NO_CHAIN),
    own("checkpointed_writes", CheckpointedDiT, "blocks", refusal=WRITES),
    own("reentrant_writes", ReentrantDiT, "blocks", refusal=WRITES),
    own("beside_functions", BesideDiT, "blocks", refusal="so they are not its trunk"),
    *(
        own(
            f"{form.__name__}_and_to_a_buffer",
            WritingDiT,
            "blocks",
            refusal=WRITES_ALSO,
            write=form,
        )
        for form in WRITING
    ),
    own("sizes_untold", SizesDiT, "blocks", breaks=True, refusal="graph break"),
)


@pytest.mark.parametrize("entry", SOUND, ids=str)
def test_own_models(entry: Entry) -> None:
    check(entry)


@pytest.mark.parametrize(("entry", "told"), TOLD, ids=str)
def test_numbers_that_dynamo_has_to_be_told_of(entry: Entry, told: dict[str, bool]) -> None:
    with torch._dynamo.config.patch(told):
        check(entry)


@pytest.mark.parametrize("entry", REFUSED, ids=str)
def test_their_neighbours_are_refused(entry: Entry) -> None:
    check(entry)
