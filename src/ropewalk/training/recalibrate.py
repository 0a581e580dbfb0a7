"""Another encoding, or another length, for a model that is trained already: swap, then train on for a short while."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from ropewalk.encodings.base import Encoding
from ropewalk.evaluation.subjects import run_of
from ropewalk.hf.fingerprint import describe
from ropewalk.hf.loading import load_model
from ropewalk.hf.reach import reach
from ropewalk.training.course import Course
from ropewalk.training.data import Collator
from ropewalk.training.figures import finite
from ropewalk.training.folder import RunFolder
from ropewalk.training.held_out import HeldOut, recovered, windows
from ropewalk.training.models import sizes
from ropewalk.training.recalibration import Outcome, Recalibration
from ropewalk.training.resumable import Run, finished, joined
from ropewalk.training.run import Data, data_facts, prepared
from ropewalk.training.swap import check_fit, encoding_for, swap
from ropewalk.training.trainer import Curve, SequenceTrainer, Watch, check_processes, started_processes


def recalibrate(
    wanted: Recalibration,
    out: Path,
    watch: Watch | None = None,
    use_cpu: bool = False,
    callbacks: tuple[TrainerCallback, ...] = (),
) -> Outcome:
    """Swap a trained model's encoding and train it on, or go on where an earlier call was stopped.

    The model is measured on held-out text as it is, right after the swap, and at the end. All processes of a
    distributed run call this.

    Args:
        wanted: what is asked for.
        out: the run's folder.
        watch: who is told of the progress.
        use_cpu: whether to leave GPUs alone.
        callbacks: further callbacks for the Trainer.

    Raises:
        ArgumentError: the model or the text can't be used, the encoding doesn't fit, or the folder holds another run.
    """
    course = wanted.course(started_processes())
    check_processes(course, use_cpu)
    state = joined(use_cpu)
    model, tokenizer = load_model(_place(wanted.model), dtype="float32", device="cpu")
    encoding = encoding_for(model, wanted.encoding, wanted.length, wanted.factor)
    check_fit(model, encoding)
    with _as_folder(tokenizer, out, state) as folder, state.main_process_first():
        data = prepared(wanted.task(folder), course)
    run = _Recalibration(wanted, course, model, tokenizer, encoding, data, RunFolder(out), callbacks)
    return Outcome.from_dict(finished(run, watch, use_cpu))


class _Recalibration(Run):
    """A trained model with another encoding."""

    def __init__(
        self,
        wanted: Recalibration,
        course: Course,
        model: Any,
        tokenizer: Any,
        encoding: Encoding | None,
        data: Data,
        folder: RunFolder,
        callbacks: tuple[TrainerCallback, ...],
    ):
        about = _identity(wanted, course, describe(model), encoding, data)
        super().__init__(f"{wanted.encoding}, seed {wanted.seed}", folder, about, course, wanted.seed, "nll")
        self._wanted, self._model, self._tokenizer, self._encoding = wanted, model, tokenizer, encoding
        self._data, self._callbacks = data, callbacks
        self._start = folder.start()
        self._sizes: dict[str, int] = {}

    def build(self, args: TrainingArguments, watch: Watch | None) -> SequenceTrainer:
        self._model.config.use_cache = False  # while it trains: a cache of each batch would be made for nothing
        rows = self._data.rows
        trainer = SequenceTrainer(
            self._model,
            self.course,
            rows,
            Collator(self._data.task.padding, self._model.get_input_embeddings().num_embeddings),
            args=args,
            eval_dataset=rows["validation"],
            callbacks=list(self._callbacks),
        )
        before = None if self._start else self._held_out(trainer, "as it is", watch)
        swap(self._model, self._encoding, self.seed)
        self._sizes = sizes(self._model)
        if before is not None:
            swapped = before if self._encoding is None else self._held_out(trainer, "after the swap", watch)
            self._start = {"as_it_was": before.to_dict(), "after_swap": swapped.to_dict()}
        return trainer

    def begun(self) -> None:
        assert self._start is not None
        self.folder.keep_start(self._start)

    def judge(self, trainer: SequenceTrainer, curve: Curve, watch: Watch | None) -> dict[str, Any]:
        assert self._start is not None
        seconds, steps = round(curve.seconds, 3), trainer.state.global_step
        before, changed = (HeldOut.from_dict(self._start[name]) for name in ("as_it_was", "after_swap"))
        after = self._held_out(trainer, "at the end", watch)
        found = Outcome(
            encoding=self._wanted.encoding,
            seed=self.seed,
            steps=steps,
            tokens=steps * self.course.batch * self._wanted.length,
            **self._sizes,
            as_it_was=before,
            after_swap=changed,
            after=after,
            recovered=recovered(before, changed, after),
            seconds=seconds,
            waiting=round(trainer.clock.share, 5),
            diverged=curve.diverged,
            read_before=_read_before(self._wanted, self.about.get("data_sha256")),
        )
        mean = after.at(1)
        return found.to_dict() | {"value": None if mean is None else mean.mean}

    def tokenizer(self) -> Any:
        return self._tokenizer

    def _held_out(self, trainer: SequenceTrainer, when: str, watch: Watch | None) -> HeldOut:
        """On the validation part and on windows of the test part, as far as the encoding of now reaches.

        All processes read the same windows, as sharded models want it.
        """
        model: Any = trainer.model
        model.to(trainer.args.device)
        test = windows(
            self._data.rows["test"], self._wanted.length, self._wanted.held_out, reach(self._model) or math.inf
        )
        if watch is not None:
            watch.began(f"{self.name}, {when}", 0, test.count)
        validation = trainer.figures("validation").nll
        found = test.read(model, lambda done: None if watch is None else watch.moved(done, None, None))
        return HeldOut(finite(validation), found)


def _identity(
    wanted: Recalibration, course: Course, about: dict[str, Any], encoding: Encoding | None, data: Data
) -> dict[str, Any]:
    """What makes a run this one and no other, JSON-ready."""
    return {
        "name": f"{wanted.encoding}, recalibrated",
        "seed": wanted.seed,
        "model": {name: about[name] for name in ("name", "revision", "fingerprint")},
        "encoding": None if encoding is None else encoding.to_dict(),
        "task": wanted.task(wanted.model).to_dict(),
        **data_facts(data.task),
        "held_out": wanted.held_out,
        "course": course.identity(),
    }


def _read_before(wanted: Recalibration, text: str | None) -> bool:
    """Whether the model is from a run that cut this text elsewhere, and may have trained on what is held out now."""
    folder = Path(_place(wanted.model)).expanduser()
    run = run_of(folder) if folder.is_dir() else None
    return run is not None and run.task.text == wanted.text and run.text != text


def _place(model: str) -> str:
    """A run's folder stands for the model in it."""
    folder = Path(model).expanduser()
    inner = folder / "model"
    return str(inner) if (inner / "config.json").is_file() and not (folder / "config.json").is_file() else model


@contextlib.contextmanager
def _as_folder(tokenizer: Any, out: Path, state: Any) -> Iterator[str]:
    """A tokenizer as a folder, which is what a task takes, for the length of a with block.

    The name is always the same: the tokens are cached under it, and a run that goes on finds them.
    """
    folder, was_there = out / ".ropewalk-tokenizer", out.is_dir()
    if state.is_main_process:
        tokenizer.save_pretrained(folder)
    state.wait_for_everyone()
    try:
        yield str(folder)
    finally:
        state.wait_for_everyone()
        if state.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)
            if not was_there:
                with contextlib.suppress(OSError):
                    out.rmdir()
