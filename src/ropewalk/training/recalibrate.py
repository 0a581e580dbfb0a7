"""Another encoding, or another length, for a model that is trained already: swap, then train on for a short while."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from ropewalk.data.text import AT_MOST, DEMO
from ropewalk.encodings.base import Encoding
from ropewalk.evaluation.evaluated_model import run_of
from ropewalk.hub.fingerprint import describe
from ropewalk.hub.loading import load_model
from ropewalk.patching.input_limits import reach
from ropewalk.training.batches import Collator
from ropewalk.training.config import Course, check_types
from ropewalk.training.held_out import HeldOut, recovered, windows
from ropewalk.training.metrics import finite
from ropewalk.training.models import sizes
from ropewalk.training.run_folder import RunFolder
from ropewalk.training.runner import Data, Run, data_facts, finished, joined, prepared
from ropewalk.training.swap import OWN, RULES, check_fit, check_name, encoding_for, swap
from ropewalk.training.tasks.language import Language
from ropewalk.training.trainer import Curve, SequenceTrainer, Watch, check_processes, started_processes

# DroPE's (arXiv 2512.12167) for models without QKNorm, and the PoPE paper's for fine-tuning with YaRN (2509.10534).
SWAP_RATE, OWN_RATE = 3e-4, 6e-5
# A step's sequences are computed in parts of at most so many tokens, and evaluated in such parts.
PART_TOKENS = 4096
HELD_OUT = 32_768
_POINTS, _EVALUATIONS = 100, 10


@dataclasses.dataclass(frozen=True)
class Recalibration:
    """What is asked for.

    Args:
        model: what `load_model` takes, or the folder of a run of `ropewalk train` or `recalibrate`.
        encoding: a name of `swap.SWAPS`: another encoding, `own`, or a length rule on the model's own rotation.
        steps: optimizer steps.
        length: tokens of each sequence.
        text: a source that `read_text` takes; 90 % of it is trained on.
        factor: of a length rule; None: `length` over the model's training length.
        batch: sequences a step.
        learning_rate: the peak; None: 6e-5 where the model keeps its rotation, 3e-4 otherwise.
        warmup: steps, an integer, or their fraction, a float under 1.
        seed: of data order and of what the encoding draws.
        characters: how many are read of the text at most.
        held_out: tokens of the test part that each of the three measurements reads at `length`, and as many past it;
            each of the evaluations between reads half as many of the validation part.
        checkpointing: whether each layer is computed again in the backward pass, to save memory.
    """

    model: str
    encoding: str
    steps: int
    length: int
    text: str = DEMO
    factor: float | None = None
    batch: int = 8
    learning_rate: float | None = None
    warmup: int | float = 0.05
    seed: int = 0
    characters: int = AT_MOST
    held_out: int = HELD_OUT
    checkpointing: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        check_name(self.encoding, self.factor)
        self.task(self.model)
        self.course()

    def course(self, processes: int = 1) -> Course:
        """Steps and learning rates, with about ten evaluations, for so many processes."""
        log_every = max(1, self.steps // _POINTS)
        kept = self.encoding == OWN or self.encoding in RULES
        rate = (OWN_RATE if kept else SWAP_RATE) if self.learning_rate is None else self.learning_rate
        return Course(
            steps=self.steps,
            batch=self.batch,
            learning_rate=rate,
            warmup=self.warmup,
            accumulation=_parts(self.batch // processes, self.length),
            checkpointing=self.checkpointing,
            precision="bfloat16",
            log_every=log_every,
            evaluate_every=log_every * max(1, _POINTS // _EVALUATIONS),
            evaluation_batch=max(1, PART_TOKENS // self.length),
            validation=max(1, self.held_out // 2 // self.length),
        )

    def task(self, tokenizer: str) -> Language:
        """The text in tokens of a tokenizer, named or in a folder."""
        return Language(self.text, tokenizer, self.length, self.characters)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came out.

    Args:
        encoding: as it was named.
        seed: of data order and of what the encoding drew.
        steps: the steps trained: fewer than asked for when it diverged.
        tokens: how many were trained on.
        parameters: numbers that the model learned; `own_parameters` of them the encoding's.
        as_it_was: the model before anything was done to it, on text that it is never trained on here.
        after_swap: with the new encoding, before any step.
        after: at the end.
        recovered: the share of what the swap cost that was won back; None when it cost nothing.
        seconds: of training, its evaluations included.
        waiting: the share of the steps' time that was spent waiting for data, 0 to 1.
        diverged: the step at which the loss was no longer a number, if it was.
        read_before: whether the model may have been trained before on what is held out here.
    """

    encoding: str
    seed: int
    steps: int
    tokens: int
    parameters: int
    own_parameters: int
    as_it_was: HeldOut
    after_swap: HeldOut
    after: HeldOut
    recovered: float | None
    seconds: float
    waiting: float
    diverged: int | None = None
    read_before: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {k: v.to_dict() if isinstance(v, HeldOut) else v for k, v in plain.items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Outcome:
        """Out of a result.json, whatever else is in it."""
        plain = {field.name: data[field.name] for field in dataclasses.fields(cls)}
        measured = {name: HeldOut.from_dict(plain[name]) for name in ("as_it_was", "after_swap", "after")}
        return cls(**(plain | measured))


def _parts(batch: int, length: int) -> int:
    """The fewest equal parts of a process's sequences that are small enough, of one sequence at the least."""
    return next((n for n in range(1, batch) if batch % n == 0 and batch // n * length <= PART_TOKENS), max(batch, 1))


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
