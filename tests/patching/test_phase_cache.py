"""Tables of all keys: those that the module itself makes for the same positions, however the keys came to be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.encodings.base import RotaryModule, Tables
from ropewalk.encodings.nope import NoPE
from ropewalk.encodings.pope import PoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.encodings.xpos import XPos
from ropewalk.errors import ArgumentError
from ropewalk.patching.phase_cache import MOST_ROOM, KeyTables
from ropewalk.scaling import YaRN

CONFIGS = (PoPE(8, 2), RoPE(8, rule=YaRN(4.0, 64)), RoPE(8, layout="interleaved", rotary_dim=4))


def same(module: RotaryModule, found: Tables, positions: torch.Tensor, dtype: torch.dtype) -> None:
    expected = module.tables(positions, dtype)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours.expand_as(theirs), theirs)


@given(st.data())
def test_any_positions_one_after_the_other(data):
    """Growing, cropped, left-padded, shuffled, with gaps: one KeyTables asked for all of them in turn."""
    module = data.draw(st.sampled_from(CONFIGS)).module()
    tables = KeyTables()
    for _ in range(data.draw(st.integers(1, 5))):
        rows, count = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 40))
        kind = data.draw(st.sampled_from(["run", "apart", "padded", "any"]))
        start = data.draw(st.sampled_from([0, 1, 300, 5000]))
        positions = torch.arange(start, start + count).repeat(rows, 1)
        if kind == "apart":  # each row a run, from a start of its own
            positions = positions + torch.arange(rows)[:, None] * 2
        if kind == "padded":
            left = torch.tensor(data.draw(st.lists(st.integers(0, count), min_size=rows, max_size=rows)))
            positions = (torch.arange(count)[None] - left[:, None]).clamp(min=0)
        if kind == "any":
            numbers = data.draw(st.lists(st.integers(0, 3000), min_size=rows * count, max_size=rows * count))
            positions = torch.tensor(numbers).view(rows, count)
        dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
        for _ in range(2):  # the second layer's answer is the first one's
            same(module, tables.of(module, positions, dtype), positions, dtype)


def test_an_encoding_without_tables_has_none_for_any_positions():
    tables, module = KeyTables(), NoPE().module()
    for positions in (torch.arange(5)[None], torch.tensor([[0, 0, 1], [0, 1, 2]]), torch.arange(3000)[None]):
        same(module, tables.of(module, positions, torch.float32), positions, torch.float32)


@pytest.mark.parametrize("encoding", [XPos(16), XPos(16, scale_base=4)])
def test_all_positions_that_an_encoding_reaches_are_served(encoding):
    """Room is made beyond the keys that are there, but not past the encoding's last position."""
    tables, module = KeyTables(), encoding.module()
    for count in (10, int(encoding.last_position * 0.6), int(encoding.last_position) + 1):
        positions = torch.arange(count)[None]
        same(module, tables.of(module, positions, torch.float32), positions, torch.float32)
    with pytest.raises(ArgumentError, match="positions"):
        tables.of(module, torch.arange(int(encoding.last_position) + 2)[None], torch.float32)


def test_a_growing_generation_makes_new_phases_seldom(monkeypatch):
    module, tables, made = PoPE(8, 2).module(), KeyTables(), []
    own = module.tables
    monkeypatch.setattr(module, "tables", lambda p, dtype: made.append(p.numel()) or own(p, dtype))
    for count in range(1, 2000):
        of_keys = torch.arange(count)[None]
        found = tables.of(module, of_keys, torch.float32)
        of_query = tables.of(module, of_keys[:, -1:], torch.float32)
        assert found[0].shape == (1, count, 8) and of_query[0].shape == (1, 1, 8)
    assert made == [256, 512, 1024, 2048]


def test_a_later_layer_gets_the_very_answer():
    module, tables = RoPE(8).module(), KeyTables()
    of_keys, of_queries = torch.tensor([[0, 0, 1, 2], [0, 1, 2, 3]]), torch.tensor([[2], [3]])
    first = [tables.of(module, positions, torch.float32) for positions in (of_queries, of_keys)]
    again = [tables.of(module, positions.clone(), torch.float32) for positions in (of_queries, of_keys)]
    assert all(a is b for a, b in zip(first, again, strict=True))
    changed = of_keys.clone()
    changed[0, 0] = 3
    same(module, tables.of(module, changed, torch.float32), changed, torch.float32)


def test_a_few_far_keys_make_no_table_of_all_before_them(monkeypatch):
    module, tables, made = RoPE(8).module(), KeyTables(), []
    own = module.tables
    monkeypatch.setattr(module, "tables", lambda p, dtype: made.append(p.numel()) or own(p, dtype))
    far = torch.tensor([[0, 1, 10**6]])
    found = tables.of(module, far, torch.float32)
    assert max(made) <= MOST_ROOM * 3 + 1024
    same(RoPE(8).module(), found, far, torch.float32)


def test_rows_that_start_apart():
    module, positions = RoPE(8).module(), torch.tensor([[0, 1, 2], [3, 4, 5]])
    same(module, KeyTables().of(module, positions, torch.float32), positions, torch.float32)


def test_no_keys_at_all():
    found = KeyTables().of(RoPE(8).module(), torch.zeros(1, 0, dtype=torch.long), torch.float32)
    assert found[0].shape[-2] == 0


@pytest.mark.parametrize("positions", [torch.arange(6)[None], torch.tensor([[0, 0, 1], [0, 1, 2]])])
def test_tables_made_in_inference_mode_can_be_trained_with(positions):
    module, tables = PoPE(8, 2).module(), KeyTables()
    with torch.inference_mode():
        tables.of(module, positions + 0, torch.float32)
    cos, sin = tables.of(module, positions, torch.float32)
    mu = torch.rand(*cos.shape, requires_grad=True)
    (mu * cos + mu * sin).sum().backward()
    assert mu.grad is not None
