"""A run's folder: whose run it is, its curve, its checkpoints and its result."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ropewalk.errors import ArgumentError, DamagedFileError
from ropewalk.io import lock, one_line_errors, write_atomically

_CHECKPOINT = "checkpoint-"


class RunFolder:
    """The folder of one run, and what is in it:

    - run.json: whose run it is, written at the start; a folder of another run is refused by it;
    - start.json: what was measured before the first step, where something was;
    - curve.jsonl: a line for each logged step;
    - checkpoint-STEP: to go on from, until the run is finished;
    - model: the trained model, for `ropewalk.load`, with its tokenizer where it has one;
    - result.json: what came out, written last.
    """

    def __init__(self, path: Path):
        self.path = path
        self.curve_file = self.path / "curve.jsonl"
        self.model = self.path / "model"

    @classmethod
    def of(cls, out: Path, encoding: str, seed: int) -> RunFolder:
        """The folder of one run of a comparison: OUT/ENCODING/seed-N."""
        return cls(out / encoding / f"seed-{seed}")

    def check(self, identity: dict[str, Any]) -> None:
        """Refuse a folder that holds another run, naming the first thing that differs; writes nothing."""
        found = self.about()
        if found is None:
            if self.path.is_dir() and any(not file.name.startswith(".") for file in self.path.iterdir()):
                raise ArgumentError("out", str(self.path), "it holds files but no run.json; choose another folder")
            return
        difference = _difference(found, json.loads(json.dumps(identity)))
        if difference:
            remedy = f"it holds another run ({difference}); choose another folder"
            raise ArgumentError("out", str(self.path), remedy)

    def about(self) -> dict[str, Any] | None:
        """Whose folder it is, if it has been begun."""
        return _read_json(self.path / "run.json")

    def begin(self, identity: dict[str, Any]) -> None:
        """Say whose folder it is."""
        if not (self.path / "run.json").is_file():
            write_atomically(self.path / "run.json", json.dumps(identity, indent=2) + "\n")

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """While it is written to: ArgumentError when another process does so. A process's end, or kill, frees it."""
        place = self.path / ".lock"
        with one_line_errors(place):
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            lock(descriptor, self.path)
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # Windows removes no open file
                    place.unlink()
        finally:
            os.close(descriptor)

    def start(self) -> dict[str, Any] | None:
        """What was measured before the first step, if it was."""
        return _read_json(self.path / "start.json")

    def keep_start(self, found: dict[str, Any]) -> None:
        """Write what was measured before the first step, if it isn't there."""
        if self.start() is None:
            write_atomically(self.path / "start.json", json.dumps(found, indent=2) + "\n")

    def result(self) -> dict[str, Any] | None:
        """What came out, if the run is finished."""
        return _read_json(self.path / "result.json")

    def finish(self, result: dict[str, Any]) -> None:
        """Write the result; the checkpoints have served their purpose."""
        write_atomically(self.path / "result.json", json.dumps(result, indent=2) + "\n")
        for checkpoint in self._checkpoints():
            shutil.rmtree(checkpoint, ignore_errors=True)

    def last_checkpoint(self) -> tuple[Path, int] | None:
        """The latest checkpoint that was written to its end, and its step; None without one.

        The trainer's state is the last file of a checkpoint, so one without it was cut off.
        """
        for checkpoint in sorted(self._checkpoints(), key=_step, reverse=True):
            try:
                state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if state.get("global_step") == _step(checkpoint):
                return checkpoint, _step(checkpoint)
        return None

    def cut_curve(self, step: int) -> list[dict[str, Any]]:
        """The curve's points up to a step; later ones, which are to be trained again, are taken out of the file."""
        points = [point for point in self.curve() if point["step"] <= step]
        if self.curve_file.is_file():
            write_atomically(self.curve_file, "".join(json.dumps(point) + "\n" for point in points))
        return points

    def curve(self) -> list[dict[str, Any]]:
        """The curve's points so far; a last line that was cut off is left out."""
        return read_curve(self.curve_file)

    def add_point(self, point: dict[str, Any]) -> None:
        """Put a point at the curve's end."""
        with one_line_errors(self.curve_file), self.curve_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(point) + "\n")

    def _checkpoints(self) -> list[Path]:
        return [p for p in self.path.glob(f"{_CHECKPOINT}*") if p.is_dir() and p.name[len(_CHECKPOINT) :].isdigit()]


def read_curve(path: Path) -> list[dict[str, Any]]:
    """The points in a curve.jsonl, without a last line that was cut off; none when there is no file."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise DamagedFileError(f"{path}: a line is damaged ({error}); remove the run's folder to train again") from None


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedFileError(f"{path}: isn't JSON ({error}); remove the run's folder to train again") from None
    if not isinstance(found, dict):
        raise DamagedFileError(f"{path}: holds no dict; remove the run's folder to train again")
    return found


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name[len(_CHECKPOINT) :])


def _difference(found: Any, wanted: Any, name: str = "") -> str:
    """The first place where two JSON values differ, such as `recipe.steps: 100 there, 200 here`; empty when none."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in [*wanted, *(key for key in found if key not in wanted)]:
            inner = _difference(found.get(key), wanted.get(key), f"{name}.{key}" if name else key)
            if inner:
                return inner
        return ""
    return "" if found == wanted else f"{name}: {found!r} there, {wanted!r} here"
