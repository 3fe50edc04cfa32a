"""Under which weights something was kept: the very objects, unwritten, and all of them alive."""

import sys
from collections.abc import Callable

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor

from dit_cachegraph.plan import ArgumentRoles
from dit_cachegraph.runtime.weights import Weights, WeightsReader


def reader(
    num_weights: int, *, are_frozen: bool = False, wrapped: tuple[int, ...] = ()
) -> WeightsReader:
    """Of a call whose first arguments are weights, and whose last one is a number of a module."""
    roles = ArgumentRoles(
        trunk_parameters=tuple(range(num_weights)), trunk_numbers=(num_weights,), latents=(),
        timesteps=(), conditioning=(), host_timesteps=(), sampled_latents=(),
        num_latent_dims=None, embeds_timestep=False, wrapped_parameters=wrapped,
    )  # fmt: skip
    return WeightsReader(roles, are_frozen=are_frozen)


def arguments(num_weights: int) -> list[object]:
    return [*(torch.zeros(2) for _ in range(num_weights)), torch.tensor(3.0)]


def write(values: list[object]) -> None:
    values[1].add_(1)


def replace_weight(values: list[object]) -> None:
    values[1] = torch.zeros(2)


def swap(values: list[object]) -> None:
    values[0], values[1] = values[1], values[0]


def scale(values: list[object]) -> None:
    values[-1] = torch.tensor(4.0)


CHANGES = [write, replace_weight, swap, scale]


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_is_seen(change):
    values, read = arguments(3), reader(3).read
    note = read(values).note()
    assert read(values).are_those_of(note)
    change(values)
    assert not read(values).are_those_of(note)


def quantised(num_weights: int) -> list[object]:
    """The first weight holds another one, and tensors."""
    inner = TwoTensor(torch.zeros(2), torch.zeros(2))
    return [TwoTensor(inner, inner), *arguments(num_weights)[1:]]


def write_inside(values: list[object]) -> None:
    values[0].a.b.add_(1)


@pytest.mark.parametrize("change", [*CHANGES, write_inside])
def test_a_change_inside_of_a_weight_is_seen(change):
    values, read = quantised(3), reader(3, wrapped=(0,)).read
    note, version = read(values).note(), values[0]._version
    assert read(values).are_those_of(note)
    change(values)
    assert not read(values).are_those_of(note)
    assert change is swap or values[0]._version == version, "which the weight doesn't tell"


def test_a_weight_that_is_moved_is_the_same():
    values, read = quantised(3), reader(3, wrapped=(0,)).read
    note = read(values).note()
    values[0].b = values[0].b.clone()
    assert read(values).are_those_of(note)


@pytest.mark.parametrize("change", CHANGES)
def test_of_frozen_weights_the_numbers_alone_are_seen(change):
    values, read = arguments(3), reader(3, are_frozen=True).read
    note = read(values).note()
    change(values)
    assert read(values).are_those_of(note) is (change is not scale)


def test_a_weight_that_died_leaves_its_place_to_no_other():
    kept, dying = torch.zeros(2), torch.zeros(2)
    note = Weights((kept, dying), 0, (), (kept, dying)).note()
    heir = torch.zeros(2)
    # As if the new one lay where the other did.
    note = note._replace(ids=(id(kept), id(heir)))
    assert Weights((kept, heir), 0, (), (kept, heir)).are_those_of(note)
    del dying
    assert not Weights((kept, heir), 0, (), (kept, heir)).are_those_of(note)


def test_no_python_runs_for_each_weight():
    def num_calls(num_weights: int) -> int:
        values, read = arguments(num_weights), reader(num_weights).read
        note = read(values).note()
        return _num_python_calls(lambda: read(values).are_those_of(note))

    assert num_calls(4) == num_calls(400)


def _num_python_calls(function: Callable[[], object]) -> int:
    """How many functions of Python ran: those of C are told as others."""
    calls = []
    sys.setprofile(lambda frame, event, _: calls.append(frame) if event == "call" else None)
    try:
        function()
    finally:
        sys.setprofile(None)
    return len(calls)
