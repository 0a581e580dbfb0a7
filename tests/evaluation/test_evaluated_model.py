"""Models as a command line names them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.data.tokenizers import byte_tokenizer, story
from tests.evaluation.runs import LENGTH, make_run
from tests.evaluation.tiny_models import tiny
from transformers import GPT2Config, GPT2LMHeadModel

from ropewalk.data.char_tokenizer import TokenizedText
from ropewalk.encodings.absolute import Learned
from ropewalk.encodings.nope import NoPE
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.pope import PoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.encodings.xpos import XPos
from ropewalk.errors import ArgumentError, DamagedFileError
from ropewalk.evaluation.evaluated_model import Subject, Subjects
from ropewalk.evaluation.identity import differing
from ropewalk.patching import install
from ropewalk.training.tasks.language import Language


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Language:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(story(300))
    return Language(str(path), length=LENGTH)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of 256 tokens with a tokenizer."""
    tiny("Llama").save_pretrained(tmp_path / "llama")
    byte_tokenizer().save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def only(source: object) -> Subject:
    (subject,) = Subjects([str(source)]).all
    return subject


def test_a_model_with_a_tokenizer(folder: Path) -> None:
    subject = only(folder)
    assert (subject.name, subject.training_length, subject.longest, subject.vocabulary) == ("llama", 256, None, 600)
    assert subject.trained_on is None and subject.encoding is None
    assert subject.rotation == RoPE(16, rotary_dim=16) and subject.stretched(0)
    assert subject.tokenizer("The rope")["input_ids"] == byte_tokenizer()("The rope")["input_ids"]


def test_a_run_has_its_tasks_tokens(task: Language, tmp_path: Path) -> None:
    run = make_run(tmp_path, "rope", RoPE(16), task, data_sha256="abc")
    for place in (run, run / "model"):
        subject = only(place)
        assert (
            subject.name == "rope, seed 0"
            and subject.trained_on == TokenizedText(task.text, task.tokenizer, task.length)
            and subject.trained_text == "abc"
        )
        assert subject.training_length == LENGTH and subject.rotation == RoPE(16) == subject.encoding
        assert subject.vocabulary == len(subject.tokenizer) == task.vocabulary_size
        assert subject.tokenizer.decode(subject.tokenizer("The")["input_ids"]) == "The"


def test_a_run_with_a_tokenizer_beside_it_has_that_one(task: Language, tmp_path: Path) -> None:
    run = make_run(tmp_path, "rope", RoPE(16), task)
    byte_tokenizer().save_pretrained(run / "model")
    subject = only(run)
    assert subject.tokenizer("The")["input_ids"] == byte_tokenizer()("The")[
        "input_ids"
    ] and subject.trained_on == TokenizedText(task.text, task.tokenizer, task.length)


def test_one_model_at_a_time_is_in_memory_and_equal_names_get_their_folders(task: Language, tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", "rope", RoPE(16), task)
    second = make_run(tmp_path / "b", "rope", RoPE(16), task)
    subjects = Subjects([str(first), str(second)])
    assert [s.name for s in subjects.all] == [str(first), str(second)]
    model = subjects.model(subjects.all[0])
    assert subjects.model(subjects.all[0]) is model
    other = subjects.model(subjects.all[1])
    assert other is not model and not other.training
    assert torch.equal(other.lm_head.weight, model.lm_head.weight)


def test_encodings_tell_whether_they_turn_and_where_they_end(task: Language, tmp_path: Path) -> None:
    each = PerLayer(((0, RoPE(16)), (1, RoPE(16, base=500.0))))
    encodings = {
        "nope": (NoPE(), None, None),
        "pope": (PoPE(16, 2), None, None),
        "learned": (Learned(32, LENGTH), None, LENGTH),
        "xpos": (XPos(16), None, XPos(16).last_position + 1),
        "layers": (each, each, None),
    }
    for name, (encoding, rotation, longest) in encodings.items():
        subject = only(make_run(tmp_path, name, encoding, task))
        assert (subject.rotation, subject.longest, subject.encoding) == (rotation, longest, encoding)


def test_what_an_encoding_learned_tells_models_apart(task: Language, tmp_path: Path) -> None:
    run = make_run(tmp_path, "pope", PoPE(16, 2, bound="free"), task)
    before = only(run)
    model = Subjects([str(run)]).model(before)
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "position_encoding" in n).add_(0.5)
    model.save_pretrained(run / "model")
    after = only(run)
    assert after.about["fingerprint"] == before.about["fingerprint"] and differing(before.identity, after.identity) == [
        "weights"
    ]


def test_a_models_own_table_of_positions_ends(tmp_path: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=600, n_positions=64, n_embd=32, n_layer=1, n_head=2))
    model.save_pretrained(tmp_path / "gpt2")
    byte_tokenizer().save_pretrained(tmp_path / "gpt2")
    subject = only(tmp_path / "gpt2")
    assert subject.longest == 64 and subject.rotation is None
    subject.check_length("furthest", 2, 64)
    with pytest.raises(ArgumentError, match=r"^furthest=3: gpt2 has positions for 64 tokens, 96 are wanted"):
        subject.check_length("furthest", 3, 96)


def test_tokens_that_a_model_cant_take_are_refused(folder: Path) -> None:
    subject = only(folder)
    unknown = subject.tokenizer.unk_token_id
    assert subject.check_tokens([[3, 599], [4]], "text", "story") == 0.0
    assert subject.check_tokens([[3] * 100, [unknown, *[4] * 99]], "text", "story") == 0.005
    with pytest.raises(ArgumentError, match=r"^text='story': spelled with the token 600, but llama knows 0 to 599"):
        subject.check_tokens([[3, 600]], "text", "story")
    with pytest.raises(ArgumentError, match=r"^text='story': 50\.0% of its tokens are unknown to llama"):
        subject.check_tokens([[3, unknown]], "text", "story")


def test_models_given_twice_or_not_at_all_are_refused(folder: Path) -> None:
    for sources in ([], [str(folder), str(folder)]):
        with pytest.raises(ArgumentError, match=r"^model="):
            Subjects(sources)


def test_a_folder_whose_tokens_nobody_knows_is_refused(tmp_path: Path) -> None:
    tiny("Llama").save_pretrained(tmp_path / "bare")
    with pytest.raises(ArgumentError, match="has no tokenizer"):
        only(tmp_path / "bare")


def test_a_training_text_that_is_gone_or_another_is_named(task: Language, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    shutil.copy(task.text, path)
    run = make_run(tmp_path, "rope", RoPE(16), Language(str(path), length=LENGTH))
    path.write_text("another one entirely, " * 50)
    with pytest.raises(ArgumentError, match="isn't what it was"):
        only(run)
    path.unlink()
    with pytest.raises(ArgumentError, match=r"its tokens are those of its training data.*text\.txt"):
        only(run)


def test_other_tasks_and_damaged_runs_are_refused(task: Language, tmp_path: Path) -> None:
    run = make_run(tmp_path, "rope", RoPE(16), task)
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(about | {"task": {"name": "genome", "path": "x"}}))
    with pytest.raises(ArgumentError, match="the task genome, whose tokens aren't text"):
        only(run)
    for text in ("{", "[]", json.dumps(about | {"task": {"name": "language", "colour": "red"}})):
        (run / "run.json").write_text(text)
        with pytest.raises(DamagedFileError, match=r"run\.json") as caught:
            only(run)
        assert "\n" not in str(caught.value)


def test_an_encoding_for_long_inputs_alone_is_refused(folder: Path) -> None:
    model = tiny("Llama")
    install(model, RoPE(16, base=500.0), when="long")
    model.save_pretrained(folder)
    with pytest.raises(ArgumentError, match="when='always'"):
        only(folder)
