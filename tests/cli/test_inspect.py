"""A look at a model's heads from the command line, on a tiny model: with and without a plan, and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.data.tokenizers import byte_tokenizer, story
from tests.evaluation.tiny_models import tiny
from tests.patching import contents
from transformers import GPT2Config, GPT2LMHeadModel

import ropewalk
from ropewalk.analysis import inspect as inspect_module
from ropewalk.analysis.attention_rows import FIRST_QUERY
from ropewalk.analysis.inspect import Inspection
from ropewalk.cli.app import INTERRUPTED, OK, USER_ERROR, main
from ropewalk.encodings.absolute import Learned
from ropewalk.encodings.alibi import ALiBi
from ropewalk.encodings.pope import PoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.hub.plan import Plan
from ropewalk.patching import install
from ropewalk.report import head_figures
from ropewalk.scaling import NTK
from ropewalk.tasks.needle_kinds import KINDS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 256 tokens, others with other encodings, a text, plans for it and for another."""
    place = tmp_path_factory.mktemp("model")
    model = tiny("Llama")
    model.save_pretrained(place)
    Plan.of(model, RoPE(16, rule=NTK(3.0)), 512).save_pretrained(place / "plan")
    Plan.of(tiny("Llama", num_hidden_layers=2), RoPE(16), 512).save_pretrained(place / "other")
    for name, encoding in (("pope", PoPE(16, 2)), ("alibi", ALiBi(4)), ("learned", Learned(64, 250))):
        changed = tiny("Llama")
        install(changed, encoding)
        contents.learn(changed)
        changed.save_pretrained(place / name)
        byte_tokenizer().save_pretrained(place / name)
    GPT2LMHeadModel(GPT2Config(vocab_size=600, n_positions=256, n_embd=32, n_layer=1, n_head=2)).save_pretrained(
        place / "gpt2"
    )
    byte_tokenizer().save_pretrained(place / "gpt2")
    byte_tokenizer().save_pretrained(place)
    (place / "text.txt").write_text(story(200), encoding="utf-8")
    return place


def run(folder: Path, out: Path, model: str = "", **options: str) -> int:
    given = {"text": str(folder / "text.txt"), "out": str(out)} | options
    return main(["inspect", str(folder / model), *(f"--{name}={value}" for name, value in given.items())])


def test_inspect_writes_record_json_pictures_and_page(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, tmp_path, plan=str(folder / "plan")) == OK
    printed = capsys.readouterr().out
    found = Inspection.load(tmp_path / "inspect.safetensors")
    read = json.loads((tmp_path / "inspect.json").read_text())
    # The whole prompt, answer and all, has the training length.
    assert 240 < len(found["tokens"]) < 256 and read["task"]["length"] == 256
    assert read["queries"] == len(found["tokens"]) - FIRST_QUERY
    assert read["text"]["name"].endswith("text.txt") and read["versions"]["torch"] == torch.__version__
    begin, end = read["needle"]
    said = byte_tokenizer().decode(found["tokens"][begin:end])
    assert any(said.startswith(f" {kind.answer_prefix}") for kind in KINDS)
    assert 0.4 < begin / len(found["tokens"]) < 0.6
    assert "needle.after" in found and read["command"].startswith("ropewalk inspect")
    top = max(read["heads"], key=lambda head: head["largest"])
    assert f"{top['layer']}.{top['head']}" in printed and "ten heads" in printed and "of 16 heads" in printed
    text = byte_tokenizer().decode([int(found["tokens"][top["largest_at"]])])
    assert read["token_texts"][str(top["largest_at"])] == text
    assert (tmp_path / "report.html").read_text().count("<h2") == 8
    assert (tmp_path / "needle.svg").exists() and (tmp_path / "usage.png").exists()


def test_a_saved_model_with_pope_is_looked_at_as_it_learned(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_figures, "_PICTURES", {"delta": head_figures.delta})  # the others take their time
    assert run(folder, tmp_path, "pope", queries="20", length="200") == OK
    found = Inspection.load(tmp_path / "inspect.safetensors")
    learned = [p for name, p in ropewalk.load(folder / "pope").named_parameters() if name.endswith("delta")]
    torch.testing.assert_close(found["delta"], torch.stack(learned).detach())
    assert found.about["queries"] == 20 and found.about["encoding"]["kind"] == "pope"
    assert (tmp_path / "delta.svg").exists()


def test_a_saved_model_with_a_bias_is_looked_at_without_bands(folder: Path, tmp_path: Path) -> None:
    assert run(folder, tmp_path, "alibi", queries="20", length="200") == OK
    found = Inspection.load(tmp_path / "inspect.safetensors")
    assert not found.has_bands and found.about["encoding"]["kind"] == "alibi"
    heads = json.loads((tmp_path / "inspect.json").read_text())["heads"]
    assert len(heads) == 16 and not any(name.startswith("band_entropy") for name in heads[0])
    assert "spectral_norm_key" in heads[0] and heads[0]["needle_before"] > 0
    assert {path.stem for path in tmp_path.glob("*.svg")} == {"sinks", "scores", "low_rank", "needle"}
    page = (tmp_path / "report.html").read_text()
    assert "Shares of the eigenvalues" in page
    assert not any(word in page for word in ("Frequency usage", "cone bound", "band entropy"))


def test_a_stopped_run_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect_module._Layers, "stacked", stop)
    assert run(folder, tmp_path) == INTERRUPTED
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("", {"plan": "{folder}/other"}, "num_layers"),
        ("", {"plan": "{folder}/nowhere"}, "nowhere"),
        ("pope", {"plan": "{folder}/plan"}, "remove"),
        ("gpt2", {"length": "300"}, "gpt2 has positions for 256 tokens, 300 are wanted"),
        ("learned", {"length": "251"}, "learned has positions for 250 tokens, 251 are wanted"),
        ("learned", {}, "length=256: "),
        ("nothing", {}, "nothing"),
        ("", {"length": "20"}, "length"),
        ("", {"length": "90000"}, "tokens"),
        ("", {"queries": "-1"}, "queries"),
        ("", {"text": "nowhere.txt"}, "nowhere.txt"),
    ],
)
def test_bad_input_is_one_line_and_exit_2_and_nothing_written(
    folder: Path, tmp_path: Path, model: str, options: dict[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = {name: value.replace("{folder}", str(folder)) for name, value in options.items()}
    assert run(folder, tmp_path, model, **filled) == USER_ERROR
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_refused_first(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert run(folder, tmp_path / "file" / "out", "nothing") == USER_ERROR
    assert "out=" in capsys.readouterr().err
