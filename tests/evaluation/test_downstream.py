"""Minimal pairs and last words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.evaluation.tiny_models import tiny
from tests.tasks.tokenizers import byte_tokenizer, word_tokenizer

from ropewalk.errors import ArgumentError
from ropewalk.evaluation.downstream import last_words, pair_accuracy
from ropewalk.tasks.pairs import Pair, Passage, read_pairs, read_passages

SENTENCES = ["the cats sleep here", "the cats sleeps here", "a dog", "a dog that runs far away", "one", "two two"]
PAIRS = [Pair("short" if i % 2 else "long", SENTENCES[i], SENTENCES[i - 1]) for i in range(len(SENTENCES))]


@torch.no_grad()
def alone(model: torch.nn.Module, tokenizer, sentence: str) -> float:
    ids = tokenizer(sentence, add_special_tokens=False)["input_ids"]
    ids = ids if tokenizer.bos_token_id is None else [tokenizer.bos_token_id, *ids]
    logits = model(torch.tensor([ids])).logits[0, :-1]
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum"))


@pytest.mark.parametrize("tokenizer", [byte_tokenizer(), word_tokenizer()], ids=["bytes", "words"])
def test_the_likelier_sentence_counts(tokenizer) -> None:
    model = tiny("Llama")
    if tokenizer.bos_token_id is None and any(len(tokenizer(s)["input_ids"]) < 2 for s in SENTENCES):
        pytest.skip("a single token has nothing before it")
    found = pair_accuracy(model, tokenizer, PAIRS)
    right = [alone(model, tokenizer, pair.good) < alone(model, tokenizer, pair.bad) for pair in PAIRS]
    assert 0 < sum(right) < len(right)
    assert found["all"].mean == pytest.approx(sum(right) / len(right))
    assert found["short"].mean == pytest.approx(sum(right[1::2]) / 3) and found["long"].n == 3
    assert found["all"].low < found["all"].mean < found["all"].high


def test_pairs_swapped_are_lost() -> None:
    model, tokenizer = tiny("Llama"), byte_tokenizer()
    swapped = [Pair(pair.test_set, pair.bad, pair.good) for pair in PAIRS]
    first, second = pair_accuracy(model, tokenizer, PAIRS), pair_accuracy(model, tokenizer, swapped)
    assert first["all"].mean == pytest.approx(1 - second["all"].mean)


def test_last_words() -> None:
    model, tokenizer = tiny("Llama"), byte_tokenizer()
    passages = [Passage("the cats sleep", "here"), Passage("a dog that runs far", "away")]
    found = last_words(model, tokenizer, passages)
    expected = []
    for passage in passages:
        whole, context = f"{passage.context} {passage.word}", passage.context
        size = len(tokenizer(whole)["input_ids"]) - len(tokenizer(context)["input_ids"])
        expected.append((alone(model, tokenizer, whole) - alone(model, tokenizer, context)) / size)
    assert found.nll.mean == pytest.approx(sum(expected) / 2, rel=1e-4)
    assert found.exact.mean == 0.0 and found.exact.n == 2


def test_files(tmp_path: Path) -> None:
    line = {"sentence_good": "a b", "sentence_bad": "b a", "UID": "x"}
    (tmp_path / "one.jsonl").write_text(json.dumps(line) + "\n\n" + json.dumps(line) + "\n")
    (tmp_path / "two.jsonl").write_text(json.dumps(line) + "\n")
    assert [pair.test_set for pair in read_pairs(tmp_path)] == ["one", "one", "two"]
    assert read_pairs(tmp_path / "two.jsonl") == [Pair("two", "a b", "b a")]
    (tmp_path / "words.jsonl").write_text(json.dumps({"text": "he went  home \n"}) + "\n")
    assert read_passages(tmp_path / "words.jsonl") == [Passage("he went", "home")]


@pytest.mark.parametrize("text", ["not json", "[1]", "{}", '{"sentence_good": "a", "sentence_bad": 3}', ""])
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.jsonl").write_text(text)
    for read in (read_pairs, read_passages):
        with pytest.raises(ArgumentError) as caught:
            read(tmp_path / "x.jsonl")
        assert "\n" not in str(caught.value) and "x.jsonl" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="no such file"):
        read_pairs(tmp_path / "gone.jsonl")
