"""Nats a token by position."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.data.tokenizers import byte_tokenizer, story
from tests.evaluation.tiny_models import tiny

from ropewalk.data.text import text_of
from ropewalk.data.windows import Books
from ropewalk.errors import ArgumentError
from ropewalk.evaluation.likelihood import Reading, multiples

TEXT = text_of(story(300), "story")


@torch.no_grad()
def losses_of(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    """By position: the first has none."""
    tokens = torch.tensor([ids])
    logits = model(tokens).logits[0, :-1]
    losses = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")
    return torch.cat([torch.tensor([torch.nan]), losses])


def test_full_each_bucket_is_the_mean_of_its_own_tokens() -> None:
    model, reading = tiny("Llama"), Reading(30, 3)
    assert (reading.window, reading.lengths, reading.longest) == (90, [30, 60, 90], 90)
    (window,) = Books(TEXT, 90, 1).draw(byte_tokenizer())
    losses = losses_of(model, window)
    wanted = [float(losses[first : first + 30].nanmean()) for first in (0, 30, 60)]
    assert reading.nats(model, window) == pytest.approx(wanted, abs=1e-5)
    assert [reading.judged(length) for length in reading.lengths] == [29, 30, 30]


def test_full_a_bucket_is_the_end_of_a_text_of_that_length() -> None:
    model = tiny("Llama")
    (window,) = Books(TEXT, 90, 1).draw(byte_tokenizer())
    assert Reading(30, 2).nats(model, window[:60])[1] == pytest.approx(Reading(30, 3).nats(model, window)[1], abs=1e-5)


@pytest.mark.parametrize(("stride", "moves"), [(None, 2), (10, 3), (29, 1)])
def test_sliding_judges_the_same_tokens_behind_every_context(stride: int | None, moves: int) -> None:
    model, reading = tiny("Llama"), Reading(30, 3, "sliding", stride)
    size = stride or 15
    assert reading.window == 90 + (moves - 1) * size and reading.stride == size
    (window,) = Books(TEXT, reading.window, 1).draw(byte_tokenizer())
    found = reading.nats(model, window)
    for context, nats in zip((30, 60, 90), found, strict=True):
        judged = []
        for end in range(90, reading.window + 1, size):
            judged.append(losses_of(model, window[end - context : end])[-size:])
        assert nats == pytest.approx(float(torch.cat(judged).mean()), abs=1e-5)
        assert reading.judged(context) == size * moves


@pytest.mark.parametrize("way", ["full", "sliding"])
def test_a_start_token_takes_the_place_of_one(way: str) -> None:
    model, reading = tiny("Llama"), Reading(30, 2, way)
    (window,) = Books(TEXT, reading.window, 1).draw(byte_tokenizer())
    found = reading.nats(model, window, [1])
    if way == "full":
        losses = losses_of(model, [1, *window[:59]])
        wanted = float(losses[30:].mean())
    else:
        ends = [losses_of(model, [1, *window[end - 59 : end]])[-15:] for end in (60, 75)]
        wanted = float(torch.cat(ends).mean())
    assert found[1] == pytest.approx(wanted, abs=1e-5)


def test_multiples_are_the_edges() -> None:
    assert multiples(256, 3) == [0, 256, 512, 768]


def test_to_dict_holds_the_stride_that_is_used() -> None:
    wanted = {"training_length": 30, "furthest": 2, "way": "sliding", "stride": 15}
    assert Reading(30, 2, "sliding").to_dict() == wanted and Reading(**wanted).to_dict() == wanted


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"training_length": 1}, "training_length=1"),
        ({"furthest": 0}, "furthest=0"),
        ({"furthest": 2.5}, r"furthest=2\.5"),
        ({"way": "slidin"}, "did you mean sliding"),
        ({"stride": 5}, "stride=5: is for the sliding way"),
        ({"way": "sliding", "stride": 30}, "stride=30"),
        ({"way": "sliding", "stride": 0}, "stride=0"),
    ],
)
def test_wrong_values_are_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        Reading(**({"training_length": 30} | changed))


def test_a_window_of_another_length_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"^window=80"):
        Reading(30, 3).nats(tiny("Llama"), [1] * 80)
