"""Minimal pairs and last words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data.tokenizers import byte_tokenizer, story, word_tokenizer
from tests.evaluation.runs import LENGTH, make_run
from tests.evaluation.tiny_models import tiny

from ropewalk.data.minimal_pairs import Pair, Passage
from ropewalk.encodings.absolute import Learned
from ropewalk.errors import ArgumentError
from ropewalk.evaluation import downstream
from ropewalk.evaluation.arms import arms
from ropewalk.evaluation.downstream import Found, blocks, check, measure
from ropewalk.evaluation.evaluated_model import Subjects
from ropewalk.evaluation.records import Store, read_records
from ropewalk.training.tasks.language import Language

SENTENCES = ["The rope turns", "The rope spins long", "The lane", "The hook walks long", "rope", "yarn hemp yarn"]
PAIRS = [Pair("short" if i % 2 else "long", SENTENCES[i], SENTENCES[i - 1]) for i in range(len(SENTENCES))]
PASSAGES = [Passage("The long rope", "spins"), Passage("The hook walks long", "lane")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llamas with a tokenizer of bytes and one of words, and a run that learned a table of positions."""
    place = tmp_path_factory.mktemp("models")
    for name, tokenizer in (("bytes", byte_tokenizer()), ("words", word_tokenizer())):
        tiny("Llama").save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    (place / "text.txt").write_text(story(300))
    make_run(place, "learned", Learned(32, LENGTH), Language(str(place / "text.txt"), length=LENGTH))
    return place


@torch.no_grad()
def nats(model: Any, tokenizer: Any, sentence: str) -> torch.Tensor:
    """Of each token after the start token, or after nothing."""
    start = tokenizer.bos_token_id
    ids = [start, *tokenizer(sentence, add_special_tokens=False)["input_ids"]]
    logits = model(torch.tensor([ids])).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")


def measured(
    place: Path, name: str, out: Path, pairs: Sequence[Pair] = (), passages: Sequence[Passage] = ()
) -> tuple[Found, list[str]]:
    """What was found, and the arms of which something was measured."""
    subjects = Subjects([str(place / name)])
    rows, work = arms(subjects.all), blocks(pairs, passages)
    check(rows, work)
    begun: list[str] = []
    done: list[str] = []
    with Store(out / "r.jsonl", {}) as store:
        (found,) = measure(rows, subjects, work, store, begun.append, done.append)
    assert len(done) == len(work)
    return found, begun


@pytest.mark.parametrize("most", [1, 600 * 20, 1 << 25])
@pytest.mark.parametrize("name", ["bytes", "words"])
def test_the_likelier_sentence_counts(
    place: Path, name: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downstream, "MOST_LOGITS", most)
    found, _ = measured(place, name, tmp_path, PAIRS)
    tokenizer = byte_tokenizer() if name == "bytes" else word_tokenizer()
    model = tiny("Llama")
    wanted = {s: float(nats(model, tokenizer, s).sum()) for s in SENTENCES}
    right = {pair: wanted[pair.good] < wanted[pair.bad] for pair in PAIRS}
    assert 0 < sum(right.values()) < len(right)
    assert [a.prompt for a in found.pairs] == ["long/0", "long/1", "long/2", "short/0", "short/1", "short/2"]
    for answer, pair in zip(found.pairs, [*PAIRS[::2], *PAIRS[1::2]], strict=True):
        assert (answer.setting, answer.expected, answer.is_exact) == (pair.test_set, pair.good, right[pair])
        assert answer.generated == (pair.good if right[pair] else pair.bad)
        assert answer.nll == pytest.approx(wanted[pair.good], rel=1e-4)
    assert found.passages == ()


def test_last_words(place: Path, tmp_path: Path) -> None:
    found, _ = measured(place, "bytes", tmp_path, passages=PASSAGES)
    model, tokenizer = tiny("Llama"), byte_tokenizer()
    for answer, passage in zip(found.passages, PASSAGES, strict=True):
        losses = nats(model, tokenizer, f"{passage.context} {passage.word}")
        size = len(losses) - len(nats(model, tokenizer, passage.context))
        assert answer.nll == pytest.approx(float(losses[-size:].mean()), rel=1e-4)
        assert answer.expected == passage.word and not answer.is_exact
    (record,) = read_records(tmp_path / "r.jsonl")[1]
    assert [item["context"] for item in record["items"]] == [p.context for p in PASSAGES]


def test_a_word_that_is_greedily_generated_is_right(place: Path, tmp_path: Path) -> None:
    tokenizer, model = word_tokenizer(), tiny("Llama")

    @torch.no_grad()
    def likeliest(context: str) -> str:
        ids = [1, *tokenizer(context, add_special_tokens=False)["input_ids"]]
        return str(tokenizer.decode([int(model(torch.tensor([ids])).logits[0, -1].argmax())]))

    words = ["rope", "yarn", "hemp", "tar", "spins", "walks", "long", "lane", "wheel", "hook", "turns"]
    contexts = [f"The {one} {other}" for one in words for other in words]
    context, word = next((c, w) for c in contexts if (w := likeliest(c)) in words)
    wrong = "rope" if word != "rope" else "yarn"
    found, _ = measured(place, "words", tmp_path, passages=[Passage(context, word), Passage(context, wrong)])
    assert [(a.is_exact, a.generated) for a in found.passages] == [(True, word), (False, word)]


@pytest.mark.parametrize(
    ("said", "answer"), [("rope yarn 3", "rope"), ("1 yarn 3", "1 yarn"), ("1 2 yarn", "1 2 yarn"), ("1 2 3", "1 2 3")]
)
def test_an_answer_ends_at_its_first_wrong_token(said: str, answer: str) -> None:
    tokenizer = word_tokenizer()
    expected, found = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("123", said))
    losses = torch.tensor([1.0, 2.0, 3.0])
    item = downstream._last_word(tokenizer, Passage("a", "123"), losses, torch.tensor(found), expected)
    assert item == {"context": "a", "word": "123", "answer": answer, "is_exact": said == "1 2 3", "nll": 2.0}


def test_what_is_measured_is_not_measured_again(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downstream, "BLOCK", 2)
    made = blocks(PAIRS[:5], PASSAGES)
    assert [(block.kind, [number for number, _ in block.items]) for block in made] == [
        ("pairs", [0, 1]),
        ("pairs", [2]),
        ("pairs", [0, 1]),
        ("words", [0, 1]),
    ]
    assert len({block.identity for block in made}) == 4
    of_one_set = blocks([pair for pair in PAIRS if pair.test_set == "short"], [])
    assert {block.identity for block in of_one_set} <= {block.identity for block in blocks(PAIRS, [])}
    first, begun = measured(place, "bytes", tmp_path, PAIRS)
    assert begun == ["bytes"]
    again, begun = measured(place, "bytes", tmp_path, PAIRS)
    assert begun == [] and again.pairs == first.pairs
    more, begun = measured(place, "bytes", tmp_path, PAIRS, PASSAGES)
    assert begun == ["bytes"] and more.pairs == first.pairs and len(more.passages) == 2
    assert len(read_records(tmp_path / "r.jsonl")[1]) == 5


def test_two_test_sets_of_the_same_pairs_are_both_told(place: Path, tmp_path: Path) -> None:
    twice = [Pair(name, "The rope turns", "The lane") for name in ("one", "two")]
    found, _ = measured(place, "bytes", tmp_path, twice)
    assert [a.setting for a in found.pairs] == ["one", "two"] and found.pairs[0].nll == found.pairs[1].nll


def test_batches_hold_as_many_tokens_as_asked_for() -> None:
    lengths = [5, 1, 9, 2, 2, 30]
    found = list(downstream._batches(lengths, 10))
    assert found == [[1, 3, 4], [0], [2], [5]]
    assert list(downstream._batches(lengths, 1000)) == [[1, 3, 4, 0, 2, 5]]


def test_a_line_s_end_stands_before_a_text_where_there_is_no_start_token() -> None:
    tokenizer = byte_tokenizer()
    assert downstream._start(word_tokenizer()) == [1] and downstream._start(tokenizer) == [1]

    class Bare:
        bos_token_id, unk_token_id = None, 0

        def __init__(self, known: str):
            self.known = known

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [self.known.find(character) + 1 for character in text]}

    assert downstream._start(Bare("ab\n")) == [3] and downstream._start(Bare("ab")) == []


def test_what_a_model_cant_read_is_refused_before_anything_is_measured(place: Path) -> None:
    (bytes_arm,) = arms(Subjects([str(place / "bytes")]).all)
    (words_arm,) = arms(Subjects([str(place / "words")]).all)
    (learned_arm,) = arms(Subjects([str(place / "learned" / "seed-0")]).all)
    long = Pair("x", "The rope turns " * 10, "the rope")
    with pytest.raises(ArgumentError, match="learned, seed 0 has positions for 32 tokens"):
        check([learned_arm], blocks([long], []))
    with pytest.raises(ArgumentError, match="unknown to learned, seed 0"):
        check([learned_arm], blocks([Pair("x", "ЖЖ", "ЩЩЩ")], []))
    with pytest.raises(ArgumentError, match="has no token to predict"):
        check([bytes_arm], blocks([Pair("x", "", "the")], []))
    with pytest.raises(ArgumentError, match=r"passage 1: .*its last word can't be told"):
        check([words_arm], blocks([], [Passage("The rope", "")]))
    assert check([learned_arm], blocks([Pair("x", "The rope", "rope.")], [])) == {"learned, seed 0": 0.0}
