"""Queries that all see the same first keys, in whatever order they see the others."""

from __future__ import annotations

import pytest
import torch
from tests.attention.test_contiguous import FORMS, causal, formed
from torch import Tensor

from ropewalk.attention import contiguous as module
from ropewalk.attention.contiguous import runs, shared_prefix
from ropewalk.attention.mask import Visible


@pytest.fixture(autouse=True)
def _short_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_PREFIX", 4)


def packed(form: str = "bool") -> tuple[Visible, Tensor, Tensor]:
    """Six keys for all at positions 7 on, then three short questions, each at 13 on and blind to the others."""
    owners = torch.tensor([0, 0, 1, 1, 1, 2])
    seen = causal(6, 12)[0, 0]
    seen[:, 6:] &= owners[:, None] == owners
    own = torch.tensor([13, 14, 13, 14, 15, 13])[None]
    of_keys = torch.cat([torch.arange(7, 13)[None], own], dim=1)
    return Visible(6, 12, causal=False, mask=formed(seen[None, None], form)), own, of_keys


@pytest.mark.parametrize("form", FORMS)
def test_packed_questions(form: str) -> None:
    visible, of_queries, of_keys = packed(form)
    assert runs(visible, of_queries, of_keys, 1) is None
    found = shared_prefix(visible, of_queries, of_keys)
    assert found is not None
    assert (found.keys, found.position) == (6, 7)
    assert found.queries == ((0, 2, 13), (2, 5, 13), (5, 6, 13))
    assert torch.equal(found.seen, packed()[0].mask[0, 0])  # type: ignore[index]


def test_the_prefix_ends_where_a_query_sees_less() -> None:
    visible, of_queries, of_keys = packed()
    assert visible.mask is not None
    visible.mask[0, 0, 3, 4] = False
    found = shared_prefix(visible, of_queries, of_keys)
    assert found is not None and found.keys == 4
    visible.mask[0, 0, 0, 3] = False  # 3 keys are too few
    assert shared_prefix(visible, of_queries, of_keys) is None


def test_the_prefix_ends_where_positions_jump() -> None:
    visible, of_queries, of_keys = packed()
    of_keys[0, 5] += 1
    found = shared_prefix(visible, of_queries, of_keys)
    assert found is not None and found.keys == 5


def test_no_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    visible, of_queries, of_keys = packed("lowest")
    assert visible.mask is not None
    assert shared_prefix(Visible(6, 12), of_queries, of_keys) is None
    assert shared_prefix(visible, of_queries - 2, of_keys) is None  # a query before the prefix ends
    assert shared_prefix(visible, of_queries.expand(2, -1), of_keys) is None
    assert shared_prefix(visible, of_queries, of_keys.expand(2, -1)) is None
    for shape in ((2, 1, 6, 12), (1, 2, 6, 12)):
        many = Visible(6, 12, causal=False, mask=visible.mask.expand(shape))
        assert shared_prefix(many, of_queries, of_keys) is None
    changed = Visible(6, 12, causal=False, mask=visible.mask + torch.eye(6, 12))
    assert shared_prefix(changed, of_queries, of_keys) is None
    monkeypatch.setattr(module, "_ROWS", 1)  # more queries than four blocks
    assert shared_prefix(visible, of_queries, of_keys) is None
