"""One measurement from the command line, on a tiny model: plain, with a plan, resumed, and bad input."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.data.tokenizers import byte_tokenizer, story
from tests.evaluation.tiny_models import tiny
from transformers import GPT2Config, GPT2LMHeadModel

from ropewalk.cli.app import OK, USER_ERROR, main
from ropewalk.encodings.absolute import Learned
from ropewalk.encodings.rope import RoPE
from ropewalk.evaluation.reader import Reader
from ropewalk.evaluation.records import read_records
from ropewalk.evaluation.statistics import Answer
from ropewalk.hub.plan import Plan
from ropewalk.patching import install
from ropewalk.scaling import NTK


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 256 tokens, a text, a plan for the model, one for another and a damaged one."""
    place = tmp_path_factory.mktemp("model")
    model = tiny("Llama")
    model.save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    (place / "text.txt").write_text(story(200), encoding="utf-8")
    Plan.of(model, RoPE(16, rule=NTK(3.0)), 512).save_pretrained(place / "plan")
    Plan.of(tiny("Llama", num_hidden_layers=2), RoPE(16), 512).save_pretrained(place / "other")
    Plan.of(model, RoPE(16), 512).save_pretrained(place / "damaged")
    damaged = place / "damaged" / "plan.json"
    damaged.write_text(damaged.read_text()[:-40])
    return place


def run(folder: Path, **options: str) -> int:
    given = {"text": str(folder / "text.txt"), "depths": "3"} | options
    return main(["needle", str(folder), *(f"--{name}={value}" for name, value in given.items())])


def answers(path: Path) -> list[Answer]:
    return [Answer.from_dict(a) for r in read_records(path)[1] for a in r["answers"]]


def test_needles_are_measured_kept_and_shown(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(folder, prompts="2", out=str(tmp_path / "a.jsonl")) == OK
    printed = capsys.readouterr().out
    found = answers(tmp_path / "a.jsonl")
    assert len(found) == 6 and len({a.prompt for a in found}) == 2
    assert all(a.prompt.split("/")[3] == "256" and a.expected in printed for a in found)
    assert "right: " in printed and "answer NLL: " in printed and "without a plan" in printed
    assert run(folder, prompts="2", plan=str(folder / "plan"), out=str(tmp_path / "b.jsonl")) == OK
    assert "with a plan" in capsys.readouterr().out
    planned = answers(tmp_path / "b.jsonl")
    assert [a.expected for a in planned] == [a.expected for a in found]
    # Also at the training length: asked for by hand, a plan applies whatever its own `when` says.
    assert all(one.nll != other.nll for one, other in zip(planned, found, strict=True))
    calls: list[int] = []
    real = Reader.answers
    monkeypatch.setattr(Reader, "answers", lambda *args: (calls.append(1), real(*args))[1])
    assert run(folder, prompts="3", out=str(tmp_path / "a.jsonl")) == OK
    assert len(calls) == 1 and answers(tmp_path / "a.jsonl")[:6] == found
    kept = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "a.jsonl").write_text(kept.replace('{"key"', '{"key', 1))
    capsys.readouterr()
    assert run(folder, prompts="3", out=str(tmp_path / "a.jsonl")) == OK
    assert len(calls) == 2 and f"{tmp_path}/a.jsonl: line 2 is damaged and skipped" in capsys.readouterr().out


def test_what_a_model_says_is_shown_as_it_is(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Answer("p", "original", 0.5, "k", "1", 0.5, False, " [/INST] [bold]loud")
    monkeypatch.setattr(Reader, "answers", lambda *_: [said])
    assert run(folder) == OK
    assert "[/INST] [bold]loud" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"plan": "{folder}/other"}, "num_layers"),
        ({"plan": "{folder}/damaged"}, "plan.json"),
        ({"plan": "{folder}/nowhere"}, "nowhere"),
        ({"prompts": "0"}, "number"),
        ({"length": "20"}, "length"),
        ({"length": "90000"}, "tokens"),
        ({"setting": "loud"}, "setting"),
        ({"protocol": "many"}, "protocol"),
        ({"text": "nowhere.txt"}, "nowhere.txt"),
    ],
)
def test_bad_input_is_one_line_and_exit_2_and_nothing_written(
    folder: Path, tmp_path: Path, options: dict[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = {name: value.replace("{folder}", str(folder)) for name, value in options.items()}
    assert run(folder, out=str(tmp_path / "a.jsonl"), **filled) == USER_ERROR
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error
    assert not list(tmp_path.iterdir())


def test_a_model_whose_positions_end_is_asked_up_to_there(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=600, n_positions=256, n_embd=32, n_layer=1, n_head=2))
    learned = tiny("Llama")
    install(learned, Learned(64, 250))
    for name, model, longest in (("gpt2", gpt2, 256), ("learned", learned, 250)):
        model.save_pretrained(tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)
        capsys.readouterr()  # transformers shows a bar when it saves
        given = {"text": str(folder / "text.txt"), "depths": "3", "out": str(tmp_path / f"{name}.jsonl")}
        words = [str(tmp_path / name), *(f"--{option}={value}" for option, value in given.items())]
        assert main(["needle", *words, f"--length={longest + 1}"]) == USER_ERROR
        error = capsys.readouterr().err.strip()
        assert f"length={longest + 1}: {tmp_path / name} has positions for {longest} tokens" in error
        assert "\n" not in error and not (tmp_path / f"{name}.jsonl").exists()
        assert main(["needle", *words, f"--length={longest}"]) == OK
    # The length that is taken where none is given is named too.
    assert main(["needle", str(tmp_path / "learned"), f"--text={folder / 'text.txt'}"]) == USER_ERROR
    assert "length=256: " in capsys.readouterr().err
