"""What names a model's cells: everything that its answers depend on, and nothing else."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data.tokenizers import byte_tokenizer
from tests.evaluation.sweeps import CONFIG, TEXT, LocalNeedles, filled, needles_folder
from tests.evaluation.tiny_models import tiny

from ropewalk.encodings.pope import PoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.evaluation import identity as content
from ropewalk.evaluation.candidates import Candidate
from ropewalk.evaluation.cells import Cells
from ropewalk.evaluation.grid import job_of
from ropewalk.evaluation.identity import differing, identity
from ropewalk.evaluation.local_engine import Local
from ropewalk.evaluation.plans import head_statistics
from ropewalk.evaluation.reader import Reader
from ropewalk.evaluation.sweep_config import build_config
from ropewalk.evaluation.sweep_run import run_sweep
from ropewalk.hub.loading import load_model
from ropewalk.patching import install


def one_weight(model: Any, tokenizer: Any) -> None:
    weight = model.model.embed_tokens.weight
    weight.data[501, 3] = -weight.data[501, 3]


def attention(model: Any, tokenizer: Any) -> None:
    model.set_attn_implementation("eager")


def another_template(model: Any, tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def another_token(model: Any, tokenizer: Any) -> None:
    tokenizer.add_tokens(["needle"])


def another_start(model: Any, tokenizer: Any) -> None:
    tokenizer.bos_token = tokenizer.convert_ids_to_tokens(65)


def epsilon(model: Any, tokenizer: Any) -> None:
    model.config.rms_norm_eps = 0.5


def learned(model: Any, tokenizer: Any) -> None:
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "position_encoding" in name).add_(0.5)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (one_weight, "weights"),
        (learned, "weights"),
        (epsilon, "config"),
        (another_template, "tokenizer"),
        (another_token, "tokenizer"),
        (another_start, "tokenizer"),
        (attention, "attention"),
    ],
)
def test_each_thing_that_decides_answers_is_told_apart_by_its_name(
    change: Callable[[Any, Any], None], where: str
) -> None:
    model, tokenizer = tiny("Llama"), copy.deepcopy(byte_tokenizer())
    install(model, PoPE(16, 2, bound="free"))
    before = identity(model, tokenizer)
    change(model, tokenizer)
    assert differing(before, identity(model, tokenizer)) == [where]


def test_the_window_and_the_dtype_are_told_apart() -> None:
    tokenizer = byte_tokenizer()
    wide, narrow = (identity(tiny("Mistral", sliding_window=window), tokenizer) for window in (200, 32))
    assert differing(wide, narrow) == ["config"]
    assert differing(wide, identity(tiny("Mistral", sliding_window=200).bfloat16(), tokenizer)) == ["weights", "dtype"]


def test_what_decides_no_answer_changes_nothing(tmp_path: Path) -> None:
    folder = needles_folder(tmp_path)
    wanted = identity(*load_model(str(folder)))
    assert len({value for value in wanted.values() if value}) == 5
    model, tokenizer = load_model(str(folder))
    tokenizer("another text", truncation=True, max_length=8)
    assert tokenizer.backend_tokenizer.truncation is not None
    assert identity(model, tokenizer) == wanted
    install(model, RoPE.from_model(model)).remove()
    model.save_pretrained(tmp_path / "elsewhere")
    tokenizer.save_pretrained(tmp_path / "elsewhere")
    assert identity(*load_model(str(tmp_path / "elsewhere"))) == wanted


def test_weights_that_are_elsewhere_have_no_hash() -> None:
    assert identity(tiny("Llama").to("meta"), byte_tokenizer())["weights"] is None


PARTS = ("name", "weights", "config", "tokenizer", "dtype", "attention")


def cell_keys(held: dict[str, str]) -> set[str]:
    config = build_config(CONFIG | {"models": "m", "tasks": [{"task": "lookup"}], "plans": ["plain"]})
    (unit,) = job_of(config, "m", held, 220).units([Candidate("plain", RoPE(16))], [1000])
    return set(unit.keys)


@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_it_names_the_cells(part: str) -> None:
    whole = dict.fromkeys(PARTS, "a")
    assert cell_keys(whole) == cell_keys(dict(whole)) and not cell_keys(whole) & cell_keys(whole | {part: "b"})


def test_another_way_to_get_answers_names_other_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cell_keys({})
    monkeypatch.setattr(content, "RESULTS", content.RESULTS + 1)
    assert not before & cell_keys({})


@pytest.mark.parametrize("part", PARTS[1:])
def test_head_statistics_are_measured_again_for_another_model(part: str, tmp_path: Path) -> None:
    needles = LocalNeedles(needles_folder(tmp_path), TEXT)
    with Cells(tmp_path / "out") as cells:
        target = needles.target(needles.config(CONFIG), cells)
        head_statistics(RoPE(16), target)
        head_statistics(RoPE(16), target)
        head_statistics(RoPE(16), dataclasses.replace(target, identity=needles.identity | {part: "other"}))
    assert len(list((tmp_path / "out" / "statistics").iterdir())) == 2


def test_a_folder_whose_tokenizer_or_config_changed_is_measured_again(tmp_path: Path) -> None:
    folder, out = needles_folder(tmp_path / "model"), tmp_path / "out"

    def swept() -> int:
        with Cells(out) as cells:
            config = build_config(filled(CONFIG | {"plans": ["plain"], "prompts": 1, "original_length": 128}, folder))
            run_sweep(config, cells, lambda found: Local(Reader(found.model, found.tokenizer), cells))
            return len(cells.cells)

    once = swept()
    assert swept() == once
    _, tokenizer = load_model(str(folder))
    another_template(None, tokenizer)
    tokenizer.save_pretrained(folder)
    assert swept() == 2 * once
    model, _ = load_model(str(folder))
    epsilon(model, None)
    model.config.save_pretrained(folder)
    assert swept() == 3 * once and swept() == 3 * once
