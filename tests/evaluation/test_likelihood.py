from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.data.tokenizers import byte_tokenizer, story
from tests.evaluation.tiny_models import tiny

from ropewalk.data.text import text_of
from ropewalk.encodings.rope import RoPE
from ropewalk.evaluation import likelihood
from ropewalk.evaluation.candidates import Candidate
from ropewalk.evaluation.likelihood import WORST_NLL, short_cost, short_lengths, token_nll
from ropewalk.evaluation.records import Store
from ropewalk.scaling import NTK

ARMS = [Candidate("plain", RoPE(16)), Candidate("rule", RoPE(16, rule=NTK(4.0)))]


@pytest.mark.parametrize("family", ["Llama", "Gemma2"])
@pytest.mark.parametrize("chunk", [7, 30, 1000])
def test_token_nll_is_that_of_one_full_forward(family: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "CHUNK_TOKENS", chunk)
    model = tiny(family)
    ids = (torch.arange(91) * 37 % 590 + 3).tolist()
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1]
    wanted = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
    torch.testing.assert_close(token_nll(model, ids), wanted, rtol=1e-5, atol=1e-5)


def test_what_overflowed_is_kept_as_the_worst_that_a_file_can_hold(tmp_path: Path) -> None:
    model, tokenizer, text = tiny("Llama"), byte_tokenizer(), text_of(story(200), "story")
    with torch.no_grad():
        model.model.embed_tokens.weight[tokenizer("a")["input_ids"][-1]] = torch.inf
    with Store(tmp_path / "r.jsonl", {}) as store:
        found = short_cost(model, tokenizer, text, 100, ARMS, store)
    assert all(0 < mean <= WORST_NLL for lengths in found.values() for mean, _, _ in lengths.values())


@pytest.mark.parametrize("newest", [1, 7, 29, 61, 90])
def test_the_newest_tokens_alone_can_be_judged(newest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "CHUNK_TOKENS", 30)
    model = tiny("Llama")
    ids = (torch.arange(91) * 37 % 590 + 3).tolist()
    sizes: list[int] = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[1]))
    found = token_nll(model, ids, newest)
    # Of a chunk in which nothing is judged, transformers still wants one token's logits.
    assert sum(sizes) <= newest + 2
    torch.testing.assert_close(found, token_nll(model, ids)[-newest:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("original", "wanted"), [(8192, {512: 8, 8192: 1}), (512, {512: 8}), (100, {100: 8}), (513, {512: 8, 513: 1})]
)
def test_lengths_never_exceed_the_training_length(original: int, wanted: dict[int, int]) -> None:
    assert short_lengths(original) == wanted


def test_short_cost_is_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, text = tiny("Llama"), byte_tokenizer(), text_of(story(200), "story")
    monkeypatch.setattr(likelihood, "SHORT_TOKENS", 64)
    calls: list[int] = []
    real = likelihood.token_nll
    monkeypatch.setattr(likelihood, "token_nll", lambda m, ids: (calls.append(len(ids)), real(m, ids))[1])
    with Store(tmp_path / "r.jsonl", {}) as store:
        found = short_cost(model, tokenizer, text, 100, ARMS, store)
        assert calls == 2 * ([64] * 8 + [100])
        assert short_cost(model, tokenizer, text, 100, ARMS, store) == found and len(calls) == 18
    assert list(found) == ["plain", "rule"] and list(found["plain"]) == [64, 100]
    mean, low, high = found["plain"][64]
    assert low < mean < high < float("inf")
    assert found["rule"][64][0] != mean
    assert found["plain"][100][1:] == (float("-inf"), float("inf"))
    assert not any("forward" in module.__dict__ for module in model.modules())
