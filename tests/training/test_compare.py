"""Encodings side by side: all with the same data and weights, refusals before anything is written, two processes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.tiny import Echo, quick_collections, recipe
from torch import Tensor

from ropewalk.errors import ArgumentError
from ropewalk.training import compare as module
from ropewalk.training import runner as resumable
from ropewalk.training import runner as run
from ropewalk.training.batches import Collator
from ropewalk.training.compare import Comparison, check, compare
from ropewalk.training.config import ModelSize
from ropewalk.training.run_folder import RunFolder
from ropewalk.training.runner import Result

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with quick_collections():
        yield


def comparison(out: Path, names: tuple[str, ...] = ("rope", "alibi"), seeds: int = 2, **changes: Any) -> Comparison:
    return Comparison(recipe(**({"steps": 4, "log_every": 1} | changes)), Echo(), names, seeds, out)


def test_all_encodings_see_the_same_data_and_seeds_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    real = Collator.__call__

    def noted(self: Collator, rows: Any) -> dict[str, Tensor]:
        batch = real(self, rows)
        if len(rows.lengths) == 4:  # a training batch: all evaluated rows fit one
            seen.append(batch["input_ids"])
        return batch

    monkeypatch.setattr(Collator, "__call__", noted)
    reports: list[int] = []
    found = compare(comparison(tmp_path), use_cpu=True, done=lambda so_far: reports.append(len(so_far.results)))
    assert [(r.encoding, r.seed) for r in found.results] == [("rope", 0), ("alibi", 0), ("rope", 1), ("alibi", 1)]
    assert reports == [1, 2, 3, 4]
    runs = [seen[i : i + 4] for i in range(0, 16, 4)]
    assert len(seen) == 16
    assert all(torch.equal(a, b) for a, b in zip(runs[0] + runs[2], runs[1] + runs[3], strict=True))
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))
    first = [RunFolder.of(tmp_path, name, 0).curve()[0]["loss"] for name in ("rope", "alibi")]
    assert first[0] != first[1]
    assert found.mean("rope") == pytest.approx(sum(r.value or 0 for r in found.of("rope")) / 2)


def result(name: str, seed: int, value: float | None) -> Result:
    return Result(name, seed, "accuracy", value, {}, 4, 100, 0, 1.0, 0.01)


def test_a_mean_is_of_the_seeds_there_are_and_of_numbers_alone(tmp_path: Path) -> None:
    found = Comparison(recipe(), Echo(), ("rope", "pope", "nope"), 3, tmp_path)
    results = (result("rope", 1, 0.5), result("pope", 0, None), result("rope", 0, 0.25), result("pope", 1, 1.0))
    found = Comparison(found.recipe, found.task, found.names, 3, tmp_path, results)
    assert (found.mean("rope"), found.mean("pope"), found.mean("nope")) == (0.375, None, None)
    assert [r.seed for r in found.of("rope")] == [0, 1]
    data = found.to_dict()
    assert [(r["encoding"], r["seed"]) for r in data["results"]] == [("rope", 0), ("rope", 1), ("pope", 0), ("pope", 1)]
    assert data["means"] == {"rope": 0.375, "pope": None, "nope": None} and data["recipe"]["steps"] == 10


@pytest.mark.parametrize(
    ("names", "changes", "said"),
    [
        (("rope", "popee"), {}, "encoding='popee'"),
        (("rope", "learned"), {"model": ModelSize(16, 2, 2, positions=8)}, "model.positions=8"),
        (("alibi", "rope"), {"model": ModelSize(15, 5, 1)}, "head_dim=3"),
        (("rope",), {"batch": 6, "accumulation": 4}, "batch=6"),
        (("rope", "pope"), {"steps": 5}, "recipe.steps: 4 there"),
        (("rope", "drope"), {"steps": 4}, "drop_at"),
    ],
)
def test_what_cant_be_trained_is_refused_before_the_first_run(
    tmp_path: Path, names: tuple[str, ...], changes: dict[str, Any], said: str
) -> None:
    if changes == {"steps": 5}:  # a run of another recipe, of the encoding that would come last
        r = comparison(tmp_path).recipe
        run.train(r, run.prepared(Echo(), r), "pope", 0, tmp_path, use_cpu=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ArgumentError) as error:
        compare(comparison(tmp_path, names, **changes), use_cpu=True)
    assert said in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_first_process_reads_the_data_before_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that reads them, identities with the text's hash too: else each process would fetch a text for itself."""
    at: list[str] = []

    class State:
        is_main_process = True

        @contextlib.contextmanager
        def main_process_first(self) -> Iterator[None]:
            at.append("first")
            yield
            at.append("then")

    class Text(Echo):
        @property
        def sha256(self) -> str:
            at.append("read")
            return "beef"

    monkeypatch.setattr(module, "joined", lambda use_cpu: State())
    monkeypatch.setattr(module, "train", lambda *_: result("rope", 0, 0.5))
    compare(dataclasses.replace(comparison(tmp_path, ("rope",)), task=Text(), seeds=1), use_cpu=True)
    assert at[0] == "first" and at[-1] == "then" and "read" in at


def test_more_processes_than_gpus_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(ArgumentError, match="this machine has 2"):
        check(comparison(tmp_path))
    check(comparison(tmp_path), use_cpu=True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    check(comparison(tmp_path))
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ArgumentError, match="batch=4: must be a multiple of 3"):
        check(comparison(tmp_path))
    with pytest.raises(ArgumentError, match="seeds=0"):
        check(comparison(tmp_path, seeds=0))


def test_processes_that_would_each_train_alone_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumable, "started_processes", lambda: 2)
    with pytest.raises(ArgumentError, match="each of the 2 processes would train alone; add --cpu"):
        compare(comparison(tmp_path))
    assert not list(tmp_path.iterdir())


def test_data_that_have_changed_make_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = comparison(tmp_path, ("rope",), 1)
    assert "data_sha256" not in found.to_dict()
    for sha256 in ("a", "b"):
        monkeypatch.setattr(Echo, "sha256", sha256, raising=False)
        assert found.to_dict()["data_sha256"] == sha256
        if sha256 == "a":
            compare(found, use_cpu=True)
            continue
        with pytest.raises(ArgumentError, match="data_sha256: 'a' there, 'b' here"):
            check(found, use_cpu=True)


def test_who_waits_for_the_data_is_told_before_the_first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(module, "train", lambda *_: (told.append("run"), result("rope", 0, 0.5))[1])
    compare(comparison(tmp_path, ("rope",), 2), use_cpu=True, ready=lambda: told.append("ready"))
    assert told == ["ready", "run", "run"]


def test_files_that_are_left_out_are_in_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = comparison(tmp_path, ("rope",), 1)
    assert found.to_dict()["left_out"] == []
    monkeypatch.setattr(Echo, "problems", ("a.mid (no notes)", "b.mid (no notes)"), raising=False)
    assert found.to_dict()["left_out"] == ["a.mid (no notes)", "b.mid (no notes)"]


def test_a_stopped_comparison_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []
    real = module.train

    def stopping(r: Any, data: Any, name: str, *rest: Any) -> Result:
        if name == "alibi" and not trained.count("stop"):
            trained.append("stop")
            raise KeyboardInterrupt
        trained.append(name)
        return real(r, data, name, *rest)

    monkeypatch.setattr(module, "train", stopping)
    with pytest.raises(KeyboardInterrupt):
        compare(comparison(tmp_path, seeds=1), use_cpu=True)
    written = (tmp_path / "rope" / "seed-0" / "result.json").stat().st_mtime_ns
    found = compare(comparison(tmp_path, seeds=1), use_cpu=True)
    assert [r.encoding for r in found.results] == ["rope", "alibi"]
    assert (tmp_path / "rope" / "seed-0" / "result.json").stat().st_mtime_ns == written
