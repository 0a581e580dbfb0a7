"""FIRE: the paper's function, position 0, what depends on the position and what doesn't, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference import fire as reference

from ropewalk.encodings.fire import FIRE, FIREModule
from ropewalk.errors import ArgumentError


def expected(module: FIREModule, query: int, key: int) -> torch.Tensor:
    """The bias (H,) of one query and one key, from the module's numbers as floats."""
    first = (module.first.weight[:, 0].tolist(), module.first.bias.tolist())
    second = (module.second.weight.tolist(), module.second.bias.tolist())
    c, threshold = abs(module.raw_c.item()), abs(module.raw_L.item()) * module.encoding.initial_L
    return torch.tensor(reference.bias(query, key, c, threshold, first, second))


@pytest.mark.parametrize(("raw_c", "raw_L"), [(None, None), (-0.7, -1.5), (30.0, 0.01)])
def test_the_papers_function(raw_c: float | None, raw_L: float | None) -> None:
    module = FIRE(3, hidden=8, initial_L=100).module()
    if raw_c is not None and raw_L is not None:
        with torch.no_grad():
            module.raw_c.fill_(raw_c)
            module.raw_L.fill_(raw_L)
    positions = torch.tensor([0, 1, 7, 99, 100, 101, 160, 5000])
    ours = module.bias(positions, positions)
    for n, query in enumerate(positions.tolist()):
        for m, key in enumerate(positions.tolist()):
            # keys after the query: as at distance 0
            torch.testing.assert_close(ours[:, n, m], expected(module, query, min(key, query)), rtol=1e-5, atol=1e-5)


@given(shift=st.integers(0, 80), start=st.integers(0, 80))
def test_up_to_the_threshold_distance_alone_counts(shift: int, start: int) -> None:
    module, positions = FIRE(2, initial_L=200).module(), torch.arange(40) + start
    torch.testing.assert_close(module.bias(positions + shift, positions + shift), module.bias(positions, positions))


@given(shift=st.integers(1, 5000), start=st.integers(200, 5000))
def test_past_the_threshold_the_position_counts_too(shift: int, start: int) -> None:
    module, far = FIRE(2, initial_L=200).module(), torch.tensor([start + shift])
    assert not module.is_relative
    with torch.no_grad():  # f(x) = x for head 0
        for parameter in (*module.first.parameters(), *module.second.parameters()):
            parameter.zero_()
        module.first.weight[0, 0] = module.second.weight[0, 0] = 1.0
    here = module.bias(torch.tensor([start]), torch.arange(start))[0, 0]
    there = module.bias(far, torch.arange(start) + shift)[0, 0]
    assert (there < here).all() and (here <= 1).all()
    # the same share of the way back to position 0: the input is 1 there for each query
    torch.testing.assert_close(module.bias(far, torch.tensor([0]))[0, 0, 0], torch.tensor(1.0))


@pytest.mark.parametrize("raw_L", [0.0, 1e-6, 1.0])
@pytest.mark.parametrize("raw_c", [0.0, 1e-30, 0.1, 1e6])
def test_no_division_by_zero(raw_L: float, raw_c: float) -> None:
    module = FIRE(2, initial_L=5).module()
    with torch.no_grad():
        module.raw_L.fill_(raw_L)
        module.raw_c.fill_(raw_c)
    assert module.c > 0
    bias = module.bias(torch.arange(3), torch.arange(3))
    bias.sum().backward()
    assert bias.isfinite().all()
    at_zero = bias[:, 0, 0]
    torch.testing.assert_close(at_zero, module.second(module.first.bias.relu()))
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


def test_positions_of_a_byte_do_not_wrap() -> None:
    module, positions = FIRE(2).module(), torch.arange(9)
    wide = module.bias(positions, positions)
    assert torch.equal(module.bias(positions.to(torch.uint8), positions.to(torch.uint8)), wide)


def test_starts() -> None:
    module = FIRE(2, hidden=5, initial_c=0.3, initial_L=77).module()
    torch.testing.assert_close(module.c, torch.tensor(0.3))
    assert module.threshold == 77 and module.num_heads == 2
    assert module.first.weight.shape == (5, 1) and module.second.weight.shape == (2, 5)


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"hidden": 0}, "hidden"),
        ({"hidden": 3.5}, "hidden"),
        ({"initial_c": 0.0}, "initial_c"),
        ({"initial_c": float("inf")}, "initial_c"),
        ({"initial_L": -1}, "initial_L"),
        ({"initial_L": "512"}, "initial_L"),
    ],
)
def test_wrong_configs_are_refused(arguments: dict[str, Any], argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{argument}=") as caught:
        FIRE(4, **arguments)
    assert "\n" not in str(caught.value)
