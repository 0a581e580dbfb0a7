"""Hugging Face's Trainer, told what is particular here: one data order, own figures, a curve, waiting measured."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from ropewalk.errors import ArgumentError
from ropewalk.patching.content_attention import is_own
from ropewalk.training.batches import Clock, Collator, Order, Rows
from ropewalk.training.config import Course
from ropewalk.training.metrics import Figures, figures_of, finite, measure
from ropewalk.training.run_folder import RunFolder


class Watch(Protocol):
    """Who is told how a run goes on; called in the first process alone."""

    def began(self, run: str, step: int, steps: int) -> None:
        """A run begins, or goes on after `step` of its `steps`."""

    def moved(self, step: int, loss: float | None, metric: float | None) -> None:
        """A step is done; the latest loss and metric known."""

    def ended(self, run: str, metric: float | None, seconds: float) -> None:
        """A run is finished, or was before: the metric on the test set, if it is a number."""


class SequenceTrainer(Trainer):  # type: ignore[misc, unused-ignore]
    """The Trainer of one run.

    Its data order comes from the seed alone; encodings' own parameters have no weight decay; evaluation gives
    `Figures` without keeping logits; nothing is pickled beside the checkpoints' states of optimizer and generators.
    """

    def __init__(self, model: Any, course: Course, rows: dict[str, Rows], collator: Collator, **kwargs: Any):
        collate: Any = collator  # it takes rows as `Rows` hands out many
        super().__init__(model=model, train_dataset=rows["train"], data_collator=collate, **kwargs)
        self.remove_callback(PrinterCallback)
        if course.checkpointing:
            _compute_again(model)
        self.course, self.rows, self.collator = course, rows, collator
        self.clock = Clock()
        self.validation: Figures | None = None

    def figures(self, split: str) -> Figures:
        """The figures on a split; the same in all processes."""
        share = (self.args.process_index, self.args.world_size)
        size = self.course.evaluation_batch
        model: Any = self.model
        total = measure(model, self.rows[split], self.collator, size, self.args.device, share)
        if self.args.world_size > 1:
            torch.distributed.all_reduce(total)
        return figures_of(total)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """What the Trainer calls every so many steps."""
        self.validation = self.figures("validation")
        found = {f"eval_{name}": float(value) for name, value in dataclasses.asdict(self.validation).items()}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return Order(len(self.rows["train"]), self.course.steps * self.course.batch, self.args.seed)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], *args: Any, **kwargs: Any) -> Any:
        """The batches of a step; how long they take is measured."""
        self.clock.begin_step()
        return super().get_batch_samples(self.clock.timed(epoch_iterator), *args, **kwargs)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Matrices of the model; a phase or a position isn't simpler when it is nearer to 0."""
        return [name for name in super().get_decay_parameter_names(model) if not is_own(name)]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's, with a group for what an encoding learns itself where that has a rate of its own."""
        made = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if made and self.course.own_rate != 1:
            _set_apart(optimizer, self.model if model is None else model, self.course.own_rate)
        return optimizer

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:  # a pickle of the arguments, which nothing reads
            (Path(output_dir or str(self.args.output_dir)) / "training_args.bin").unlink(missing_ok=True)


def _set_apart(optimizer: torch.optim.Optimizer, model: Any, rate: float) -> None:
    """Give the parameters of encodings a group of their own, at so many times the learning rate."""
    own = [p for name, p in model.named_parameters() if is_own(name) and p.requires_grad]
    apart = {id(p) for p in own}
    for group in list(optimizer.param_groups):
        moved = [p for p in group["params"] if id(p) in apart]
        if moved:
            group["params"] = [p for p in group["params"] if id(p) not in apart]
            optimizer.add_param_group({**group, "params": moved, "lr": group["lr"] * rate})


class Curve(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Writes the curve, and tells the watch; a run that has diverged is stopped.

    Args:
        trainer: whose run it is.
        folder: where the curve goes.
        metric: the task's.
        step: the one after which the run goes on; 0 for a new one.
        before: seconds that the run has taken before it was resumed.
        watch: who is told; None: nobody.
    """

    def __init__(
        self, trainer: SequenceTrainer, folder: RunFolder, metric: str, step: int, before: float, watch: Watch | None
    ):
        self._trainer, self._folder, self._metric, self._watch = trainer, folder, metric, watch
        self._began = time.monotonic() - before
        self._point: dict[str, Any] = {}
        self._loss: float | None = None
        self._value: float | None = None
        self._board = _board(folder.path, step) if trainer.is_world_process_zero() else None
        self.diverged: int | None = None

    @property
    def seconds(self) -> float:
        """What the run has taken so far, evaluation and checkpoints included."""
        return time.monotonic() - self._began

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The last step is always logged and evaluated."""
        self._trainer.clock.end_step()
        if state.global_step >= state.max_steps:
            control.should_log = control.should_evaluate = True
        if self._watch is not None and state.is_world_process_zero:
            self._watch.moved(state.global_step, self._loss, self._value)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """A point of the loss; it waits for its evaluation when there is one."""
        if not logs or "loss" not in logs:
            return
        self._loss = float(logs["loss"])
        if not math.isfinite(self._loss):
            self.diverged = state.global_step
            control.should_training_stop = True
            control.should_evaluate = True
        self._point = {"step": state.global_step, "loss": finite(self._loss), "learning_rate": logs["learning_rate"]}
        if not control.should_evaluate:
            self._write(state)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The point with its figures on validation data."""
        found = self._trainer.validation
        assert found is not None
        self._value = found.metric(self._metric)
        figures = ("nll", "token_accuracy", "sequence_accuracy")
        self._point |= {"step": state.global_step, "metric": finite(self._value)}
        self._point |= {name: finite(getattr(found, name)) for name in figures}
        self._write(state)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Nothing more will come."""
        if self._board is not None:
            self._board.close()

    def _write(self, state: TrainerState) -> None:
        clock = self._trainer.clock
        times = {"seconds": self.seconds, "stepping": clock.stepping, "waiting": clock.waiting}
        if state.is_world_process_zero:
            self._folder.add_point(self._point | {name: round(value, 6) for name, value in times.items()})
        if self._board is not None:
            for name, value in self._point.items():
                if name != "step" and value is not None:
                    self._board.add_scalar(name, value, state.global_step)
            self._board.flush()  # it would keep points for two minutes, and a kill would lose them
        self._point = {}


def started_processes() -> int:
    """How many processes were started together, as torchrun and accelerate tell each of them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_processes(course: Course, use_cpu: bool) -> None:
    """Refuse more processes on a machine than it has GPUs, and a batch that they can't share."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    gpus = 0 if use_cpu else torch.cuda.device_count()
    if 0 < gpus < here:
        remedy = f"this machine has {gpus}; start as many processes, or train on the CPU"
        raise ArgumentError("processes a machine, one a GPU", here, remedy)
    parts = started_processes() * course.accumulation
    if course.batch % parts:
        remedy = f"must be a multiple of {parts}, the processes times accumulation={course.accumulation}"
        raise ArgumentError("batch", course.batch, remedy)


def arguments(course: Course, folder: Path, seed: int, use_cpu: bool) -> TrainingArguments:
    """The Trainer's arguments of a run; refuses a batch that can't be cut into equal parts."""
    is_mixed = course.precision == "bfloat16" and not use_cpu and torch.cuda.is_available()
    made: Any = TrainingArguments(
        output_dir=str(folder),
        max_steps=course.steps,
        gradient_accumulation_steps=course.accumulation,
        learning_rate=course.learning_rate,
        warmup_steps=course.warmup_steps,
        weight_decay=course.weight_decay,
        max_grad_norm=course.clip,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": course.final},
        optim="adamw_torch_fused",
        logging_steps=course.log_every,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=course.evaluate_every,
        save_strategy="steps",
        save_steps=course.evaluate_every,
        save_total_limit=2,
        seed=seed,
        bf16=is_mixed,
        use_cpu=use_cpu,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=not use_cpu and torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
    )
    parts = made.world_size * course.accumulation
    if course.batch % parts:
        remedy = f"must be a multiple of {parts}: {made.world_size} processes times accumulation={course.accumulation}"
        raise ArgumentError("batch", course.batch, remedy)
    made.per_device_train_batch_size = course.batch // parts
    # One process uses one GPU: several would be DataParallel, which copies modules and not what is installed in them.
    made._n_gpu = min(made.n_gpu, 1)
    return made  # type: ignore[no-any-return]


def _compute_again(model: Any) -> None:
    """Layers are computed again in the backward pass; newer versions of transformers have another name for it."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _board(folder: Path, step: int) -> Any:
    """TensorBoard's writer, when it is installed; points after a step, which will come again, are shown no more."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
