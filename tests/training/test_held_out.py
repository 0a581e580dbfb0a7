"""Held-out text: the same windows before and after, as far as text and model reach, and what was won back."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset
from tests.patching import families

from ropewalk.training.batches import Rows
from ropewalk.training.held_out import HeldOut, recovered, windows

L = 4


def rows(count: int) -> Rows:
    ids = [[i * L + j for j in range(L)] for i in range(count)]
    return Rows(Dataset.from_dict({"input_ids": ids, "labels": ids}))


def test_windows_are_whole_follow_the_text_and_are_spread_over_it() -> None:
    found = windows(rows(16), L, tokens=4 * L)
    assert found.furthest == 4 and found.far == (tuple(range(4 * L)),)
    assert [window[0] // L for window in found.near] == [0, 4, 8, 12] and found.count == 5
    assert all(window == tuple(range(window[0], window[0] + L)) for window in found.near)


@pytest.mark.parametrize(
    ("count", "reach", "furthest"), [(3, 1e9, 2), (1, 1e9, 1), (16, 15, 2), (16, 16, 4), (16, 3, 1)]
)
def test_the_furthest_is_what_text_and_model_reach(count: int, reach: float, furthest: int) -> None:
    found = windows(rows(count), L, 1000, reach)
    assert found.furthest == furthest and len(found.near) == count
    assert bool(found.far) == (furthest > 1) and all(len(window) == furthest * L for window in found.far)


def test_reading_gives_the_losses_before_each_multiple() -> None:
    model = families.build("llama").train()
    told: list[int] = []
    test = windows(rows(8), L, 1000)
    found = test.read(model, told.append)
    assert model.training and told == list(range(1, 11))
    assert {k: len(v) for k, v in found.items()} == {1: 8, 2: 2, 4: 2}
    ids = torch.tensor([test.far[1]])
    with torch.no_grad():
        nats = -model.eval()(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    for k in (2, 4):
        assert found[k][1] == pytest.approx(nats[(k - 1) * L - 1 : k * L - 1].mean().item(), abs=1e-5)
    near = torch.tensor([test.near[3]])
    with torch.no_grad():
        expected = model(near, labels=near).loss.item()
    assert found[1][3] == pytest.approx(expected, abs=1e-5)


def held(*values: float | None) -> HeldOut:
    return HeldOut(2.0, {1: values})


def test_means_have_intervals_and_differences_are_paired() -> None:
    one, other = held(1.0, 2.0, 3.0), held(1.5, 2.5, 3.5)
    mean, difference = one.at(1), other.against(one, 1)
    assert mean is not None and mean.mean == 2.0 and mean.low < 1.5
    assert difference is not None and (difference.mean, difference.low) == (0.5, 0.5)
    assert one.at(2) is None and held(1.0, None).at(1) is None
    assert held(1.0, None).against(held(1.0, 2.0), 1) is None and one.against(held(1.0), 1) is None
    data = json.loads(json.dumps(one.to_dict()))
    assert HeldOut.from_dict(data) == one and data["test"]["1"]["mean"] == 2.0


def test_what_was_won_back_is_a_share_of_what_the_swap_cost() -> None:
    assert recovered(held(3.0), held(9.0), held(4.5)) == 0.75
    assert recovered(held(3.0), held(9.0), held(2.4)) == pytest.approx(1.1)
    assert recovered(held(3.0), held(3.005), held(2.0)) is None
    assert recovered(held(3.0), held(9.0), held(None)) is None
