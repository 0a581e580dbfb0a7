"""`ropewalk downstream` on models that were never trained: tables, going on, and bad input in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.data.tokenizers import byte_tokenizer, story
from tests.evaluation.runs import LENGTH, make_run
from tests.evaluation.tiny_models import tiny

from ropewalk.cli.app import OK, USER_ERROR, main
from ropewalk.encodings.rope import RoPE
from ropewalk.evaluation import downstream
from ropewalk.hub.plan import Plan
from ropewalk.scaling import NTK, Linear
from ropewalk.training.tasks.language import Language


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with a tokenizer, a plan for it, a run, two test sets, and passages."""
    place = tmp_path_factory.mktemp("models")
    model = tiny("Llama")
    model.save_pretrained(place / "llama")
    byte_tokenizer().save_pretrained(place / "llama")
    Plan.of(model, RoPE(16, rule=NTK(3.0)), 512).save_pretrained(place / "plan")
    Plan.of(model, RoPE(16, rule=Linear(4.0)), 512).save_pretrained(place / "other" / "plan")
    (place / "text.txt").write_text(story(300))
    make_run(place, "rope", RoPE(16), Language(str(place / "text.txt"), length=LENGTH))
    (place / "pairs").mkdir()
    sentences = story(12).replace("\n", " ").split(". ")
    for number, name in enumerate(("one", "two")):
        lines = [
            {
                "sentence_good": good,
                "sentence_bad": " ".join(reversed(good.split())),
                "linguistics_term": f"order {number}",
            }
            for good in sentences
        ]
        (place / "pairs" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (place / "words.txt").write_text("\n".join(sentences))
    return place


def run(place: Path, *models: str, out: Path, **options: str) -> int:
    """Values may hold `{place}`; one for each `|` of `plan`."""
    given = {"out": str(out)} | {name: value.replace("{place}", str(place)) for name, value in options.items()}
    words = [
        word
        for name, value in given.items()
        for one in value.split("|")
        for word in (f"--{name.replace('_', '-')}", one)
    ]
    return main(["downstream", *(str(place / model) for model in models), *words])


def test_models_and_a_plan_are_measured_compared_and_kept(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"pairs": "{place}/pairs", "words": "{place}/words.txt", "plan": "{place}/plan", "limit": "5"}
    out = tmp_path / "o"
    assert run(place, "llama", "rope/seed-0", out=out, **given) == OK
    captured = capsys.readouterr()
    assert captured.err == "" and "all pairs: the good sentence is the likelier one:" in captured.out
    assert {p.name for p in out.iterdir()} == {
        "results.jsonl",
        "summary.md",
        "summary.json",
        "downstream.png",
        "report.html",
    }
    found = json.loads((out / "summary.json").read_text())
    names = ["llama", "llama + plan plan", "rope, seed 0"]
    assert [arm["name"] for arm in found["arms"]] == names and all(name in captured.out for name in names)
    told = {group["name"]: group["models"]["llama"]["right"]["n"] for group in found["groups"]}
    assert told == {"all pairs": 10, "last words": 5, "order 0": 5, "order 1": 5, "one": 5, "two": 5}
    assert f"downstream {place}/llama {place}/rope/seed-0 --out" in found["command"]
    before = (out / "results.jsonl").read_text()
    calls: list[int] = []
    real = downstream._judge
    monkeypatch.setattr(downstream, "_judge", lambda *args: (calls.append(1), real(*args))[1])
    assert run(place, "rope/seed-0", "llama", out=out, **given) == OK
    assert calls == [] and (out / "results.jsonl").read_text() == before
    assert run(place, "llama", out=out, words="{place}/words.txt") == OK
    assert len(calls) == 1 and (out / "results.jsonl").read_text().startswith(before)
    (out / "results.jsonl").write_text(before.replace('"key"', '"kay"', 1))
    capsys.readouterr()
    assert run(place, "llama", "rope/seed-0", out=out, **given) == OK
    assert len(calls) == 2 and f"{out}/results.jsonl: line 2 is damaged and skipped" in capsys.readouterr().out


def test_plans_and_rules_are_compared_with_one_correction(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"pairs": "{place}/pairs", "plan": "{place}/plan|{place}/other/plan", "rules": "yarn,dynamic_ntk"}
    assert run(place, "llama", out=tmp_path / "o", furthest="4", **given) == OK
    found = json.loads((tmp_path / "o" / "summary.json").read_text())
    plans = [f"llama + plan {place}/{name}" for name in ("plan", "other/plan")]
    assert [arm["name"] for arm in found["arms"]] == ["llama", "llama + yarn x4", "llama + dynamic_ntk", *plans]
    # Rules are told what `ropewalk perplexity --furthest 4` tells them.
    rules = [arm["encoding"]["rule"] for arm in found["arms"][1:3]]
    assert (rules[0]["factor"], rules[0]["original_length"], rules[1]["target_length"]) == (4.0, 256, 1024)
    # Also a text that fits the training length is read with the plan: asked for by hand, it applies to all.
    assert found["arms"][4]["encoding"]["rule"]["factor"] == 4.0
    models = found["groups"][0]["models"]
    answers = {name: (held["right"]["mean"], held["nll"]["mean"]) for name, held in models.items()}
    assert len({nll for _, nll in answers.values()}) == 5
    tests = [held["against"] for held in models.values() if held["against"]]
    likeliest = min(tests, key=lambda one: one["p"])
    assert likeliest["p"] < 1 and likeliest["p_holm"] == min(1.0, 4 * likeliest["p"])
    said = f"--plan {place}/plan --plan {place}/other/plan --rules yarn,dynamic_ntk"
    assert said in found["command"] and "yarn x4" in capsys.readouterr().out
    calls: list[int] = []
    monkeypatch.setattr(downstream, "_judge", lambda *_: calls.append(1))
    again = {"pairs": "{place}/pairs", "rules": "yarn", "factor": "4", "training_length": "256", "furthest": "2"}
    assert run(place, "llama", out=tmp_path / "o", **again) == OK and calls == []


@pytest.mark.parametrize(
    ("models", "options", "said"),
    [
        (("llama",), {}, "give a file or folder of minimal pairs"),
        (("llama",), {"pairs": "{place}/nowhere"}, "no such file"),
        (("llama",), {"pairs": "{place}/text.txt"}, "isn't JSON"),
        (("llama",), {"words": "{place}/pairs/one.jsonl"}, "should hold a text of two words or more"),
        (("llama",), {"pairs": "{place}/pairs", "limit": "-1"}, "limit=-1"),
        (("rope/seed-0",), {"pairs": "{place}/pairs", "plan": "{place}/plan"}, "for none of the models given"),
        (("llama",), {"pairs": "{place}/pairs", "plan": "{place}/plan|{place}/plan"}, "is given twice"),
        (("llama",), {"pairs": "{place}/pairs", "rules": "yran"}, "did you mean yarn"),
        (("llama",), {"pairs": "{place}/pairs", "rules": "cope", "factor": "2"}, "has no factor"),
        (("llama",), {"pairs": "{place}/pairs", "rules": "ntk", "furthest": "0"}, "furthest=0"),
        (
            ("llama", "rope/seed-0"),
            {"pairs": "{place}/pairs", "rules": "ntk"},
            "different lengths (llama 256",
        ),
        (("nowhere",), {"pairs": "{place}/pairs"}, "nowhere"),
        (("llama", "llama"), {"pairs": "{place}/pairs"}, "is given twice"),
    ],
)
def test_bad_input_is_one_line_and_exit_2_and_nothing_written(
    place: Path,
    tmp_path: Path,
    models: tuple[str, ...],
    options: dict[str, str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(place, *models, out=tmp_path / "o", **options) == USER_ERROR
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error
    assert not (tmp_path / "o").exists()
