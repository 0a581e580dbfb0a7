"""lm-evaluation-harness on one of its task files with local data: a model by itself, and with a plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.data.tokenizers import byte_tokenizer
from tests.evaluation.tiny_models import tiny

from ropewalk.cli.app import OK, USER_ERROR, main
from ropewalk.encodings.nope import NoPE
from ropewalk.hub.plan import Plan

pytest.importorskip("lm_eval", reason="needs the extra `harness`")

_TASK = """
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 256 tokens, a task of four questions, and a plan that takes positions out."""
    place = tmp_path_factory.mktemp("harness")
    model = tiny("Llama")
    model.save_pretrained(place / "model")
    byte_tokenizer().save_pretrained(place / "model")
    Plan.of(model, NoPE(), 512, when="always").save_pretrained(place / "plan")
    lines = [
        {"question": f"{thing} {'is of the colour ' * 3}", "choices": [" red", " blue", " green"], "answer": n % 3}
        for n, thing in enumerate(["A rose", "The sea", "A leaf", "A ripe cherry"])
    ]
    (place / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (place / "tasks").mkdir()
    (place / "tasks" / "colours.yaml").write_text(_TASK.replace("DATA", str(place / "data.jsonl")), encoding="utf-8")
    return place


def evaluated(folder: Path, name: str, model_args: str) -> tuple[dict[str, Any], list[float]]:
    """What the harness wrote: its results, and the log-likelihood of every choice of every question."""
    out = folder / name
    words = ["run", "--model", "ropewalk", "--model_args", f"pretrained={folder / 'model'},{model_args}"]
    words += ["--tasks", "colours", "--include_path", str(folder / "tasks"), "--batch_size", "1"]
    assert main(["lm-eval", *words, "--output_path", str(out), "--log_samples"]) == OK
    (results,) = out.rglob("results_*.json")
    (samples,) = out.rglob("samples_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    return json.loads(results.read_text(encoding="utf-8")), [
        float(choice[0][0]) for row in sorted(rows, key=lambda row: row["doc_id"]) for choice in row["resps"]
    ]


def test_a_plan_is_used_and_told(folder: Path) -> None:
    plain, plain_nats = evaluated(folder, "plain", "dtype=float32")
    planned, planned_nats = evaluated(folder, "planned", f"plan={folder / 'plan'}")
    assert len(plain_nats) == len(planned_nats) == 12
    assert max(abs(a - b) for a, b in zip(plain_nats, planned_nats, strict=True)) > 1e-3
    assert 0 <= planned["results"]["colours"]["acc,none"] <= 1
    assert planned["config"]["plan"]["encoding"] == NoPE().to_dict()
    assert planned["config"]["plan"]["when"] == "always"
    assert "plan" not in plain["config"]
    assert plain["config"]["model_fingerprint"] == planned["config"]["model_fingerprint"]


def test_when_long_leaves_short_prompts_as_they_are(folder: Path) -> None:
    _, plain = evaluated(folder, "short-plain", "dtype=float32")
    _, long = evaluated(folder, "long", f"plan={folder / 'plan'},when=long")
    assert plain == long


def test_a_wrong_plan_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "--model", "ropewalk", "--tasks", "colours", "--include_path", str(folder / "tasks")]
    code = main(["lm-eval", *words, "--model_args", f"pretrained={folder / 'model'},plan={folder / 'nowhere'}"])
    assert code == USER_ERROR
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: ")


def test_help_is_the_harness_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lm-eval", "run", "--help"]) == OK
    assert "--model_args" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("plna=somewhere", "did you mean plan"), ("max_lenght=64", "did you mean max_length"), ("when_=long", "when")],
)
def test_an_unknown_model_argument_is_refused_with_the_near_one(
    folder: Path, wrong: str, near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "--model", "ropewalk", "--model_args", f"pretrained={folder / 'model'},{wrong}"]
    words += ["--tasks", "colours", "--include_path", str(folder / "tasks")]
    assert main(["lm-eval", *words]) == USER_ERROR
    assert near in capsys.readouterr().err


def test_a_tokenizer_by_name_takes_the_place_of_the_model_s_own(folder: Path, tmp_path: Path) -> None:
    from ropewalk.errors import ArgumentError
    from ropewalk.evaluation.lm_eval import PlannedLM

    other = byte_tokenizer()
    other.add_tokens(["<another>"])
    other.save_pretrained(tmp_path)
    assert "<another>" in PlannedLM(str(folder / "model"), tokenizer=str(tmp_path)).tokenizer.get_vocab()
    assert "<another>" not in PlannedLM(str(folder / "model")).tokenizer.get_vocab()
    with pytest.raises(ArgumentError, match="can't be loaded"):
        PlannedLM(str(folder / "model"), tokenizer=str(tmp_path / "nowhere"))
