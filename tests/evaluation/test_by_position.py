"""Nats a token by position."""

from __future__ import annotations

import pytest
import torch
from tests.evaluation.tiny_models import tiny
from tests.tasks.tokenizers import byte_tokenizer, story

from ropewalk.errors import ArgumentError
from ropewalk.evaluation.by_position import doubling_edges, loss_by_position
from ropewalk.tasks.haystack import draw_windows, text_of

TEXT = text_of(story(300), "story")


@torch.no_grad()
def test_each_bucket_is_the_mean_of_its_own_tokens() -> None:
    model = tiny("Llama")
    windows = draw_windows(TEXT, byte_tokenizer(), 90, 3)
    buckets = loss_by_position(model, windows, [0, 30, 60, 90])
    tokens = torch.tensor(windows)
    logits = model(tokens).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    losses = torch.cat([torch.full((3, 1), torch.nan), losses], dim=1)  # by position: the first has no loss
    for bucket in buckets:
        expected = losses[:, bucket.first : bucket.last].nanmean(dim=1)
        assert bucket.nll.mean == pytest.approx(float(expected.mean()), abs=1e-5)
        assert bucket.nll.n == 3 and bucket.nll.low < bucket.nll.mean < bucket.nll.high


def test_windows_are_exact_and_the_same_each_time() -> None:
    windows = draw_windows(TEXT, byte_tokenizer(), 64, 4)
    assert [len(window) for window in windows] == [64] * 4
    assert windows == draw_windows(TEXT, byte_tokenizer(), 64, 4)
    assert len({tuple(window) for window in windows}) == 4


def test_edges_by_multiples_of_the_training_length() -> None:
    assert doubling_edges(256, 3) == [0, 256, 512, 768]


@pytest.mark.parametrize("edges", [[0], [0, 20, 10], [0, 91], [-1, 10], [0, 1]])
def test_wrong_edges_are_refused(edges: list[int]) -> None:
    with pytest.raises(ArgumentError, match=r"^edges="):
        loss_by_position(tiny("Llama"), [[1] * 90], edges)


def test_windows_of_two_lengths_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"^windows="):
        loss_by_position(tiny("Llama"), [[1] * 90, [1] * 80], [0, 40])
