"""Several processes: the losses of one, in whole copies of a model (DDP) and in shards of it (FSDP)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.training.tiny import losses, text_file, text_model

import ropewalk
from ropewalk.training.held_out import HeldOut
from ropewalk.training.run_folder import RunFolder

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NAMES = ("rope", "pope-uniform")
# What `accelerate launch` sets for a configuration with FSDP.
SHARDED = {
    "ACCELERATE_TORCH_DEVICE": "cpu",
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",  # which a run has to set aside
}


def processes(count: int, out: Path, *words: str, sharded: bool = False) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    command += [str(ROOT / "tests" / "training" / "two_processes.py"), str(out), *words]
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if sharded:
        command, settings = [*command, "--sharded"], settings | SHARDED
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("sharded FSDP") == (count if sharded else 0)
    return done.stdout


def assert_equal_runs(one: RunFolder, other: RunFolder) -> None:
    expected, found = losses(one.curve()), losses(other.curve())
    assert len(expected) == len(found) > 0
    for before, after in zip(expected, found, strict=True):
        assert after == pytest.approx(before, abs=1e-4)


def test_two_processes_give_the_losses_of_one(tmp_path: Path) -> None:
    processes(1, tmp_path / "one", "evaluation_batch=5")
    processes(2, tmp_path / "two", "evaluation_batch=5")
    processes(2, tmp_path / "parts", "evaluation_batch=5", "accumulation=2")
    processes(2, tmp_path / "shards", "evaluation_batch=5", sharded=True)
    for name in NAMES:
        one = RunFolder.of(tmp_path / "one", name, 0)
        expected = one.result()
        assert expected is not None and len(one.curve()) == 5
        for out in ("two", "parts", "shards"):
            other = RunFolder.of(tmp_path / out, name, 0)
            assert_equal_runs(one, other)
            found = other.result()
            assert found is not None and found["test"] == pytest.approx(expected["test"], abs=1e-4)
            assert found["test"]["sequences"] == 48
            assert (found["parameters"], found["own_parameters"]) == (
                expected["parameters"],
                expected["own_parameters"],
            )
            assert ropewalk.load(other.model).num_parameters() == expected["parameters"]


def test_two_processes_recalibrate_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROPEWALK_CACHE", str(tmp_path / "cache"))
    text = text_file(tmp_path)
    model = text_model(tmp_path / "model", text)
    for count, out in ((1, "one"), (2, "two"), (2, "shards")):
        processes(count, tmp_path / out, "--recalibrate", str(model), str(text), sharded=out == "shards")
    one = RunFolder(tmp_path / "one")
    expected = one.result()
    assert expected is not None
    for out in ("two", "shards"):
        other = RunFolder(tmp_path / out)
        assert_equal_runs(one, other)
        found = other.result()
        assert found is not None and found["own_parameters"] == expected["own_parameters"] > 0
        for name in ("as_it_was", "after_swap", "after"):
            mine, theirs = (HeldOut.from_dict(result[name]) for result in (expected, found))
            assert mine.validation == pytest.approx(theirs.validation, abs=1e-4)
            for multiple, means in mine.windows.items():
                assert means == pytest.approx(theirs.windows[multiple], abs=1e-4)
        assert {p.name for p in other.path.iterdir()} == {p.name for p in one.path.iterdir()}
