"""DroPE in training: positions dropped near the end, then a short recalibration (Gelberg et al., arXiv 2512.12167)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ropewalk.encodings.base import Encoding
from ropewalk.encodings.nope import NoPE
from ropewalk.errors import ArgumentError
from ropewalk.patching.handle import Handle, handle_of
from ropewalk.patching.install import install
from ropewalk.validation import check_positive, is_finite_number


@dataclasses.dataclass(frozen=True)
class DropSchedule:
    """When positions are dropped, and the learning rate of the recalibration that follows.

    Recalibration is the rest of the run, at the same length: the learning rate warms up once more, to
    `learning_rate`, and falls along half a cosine to `final` times that at the run's last step. The paper drops at
    14,000 of 16,000 steps (3e-4 before, 1e-3 after), or takes a trained model and recalibrates it on 0.5 to 5% of the
    tokens that it was trained on. Warm-up and decay here are this file's own defaults.

    The paper also normalises queries and keys (QKNorm) while it recalibrates for long at 1e-3, where training
    diverges without. That is another architecture and left out here: a model without it needs a smaller rate, such as
    the paper's 3e-4.

    Args:
        drop_at: the step after which there are no positions, an integer (0: from the start, for a trained model), or a
            fraction under 1 of all steps, a float. A run resumed with another number of steps needs an integer.
        learning_rate: the peak after the drop (of the parameter group with the largest rate; others keep their
            ratio to it); None: the peak of the run's own schedule.
        warmup: steps of the new warm-up, an integer, or their fraction of the recalibration, a float.
        final: learning rate at the last step, as a fraction of the peak, 0 to 1.
    """

    drop_at: int | float
    learning_rate: float | None = None
    warmup: int | float = 0.05
    final: float = 0.1

    def __post_init__(self) -> None:
        _check_steps("drop_at", self.drop_at)
        _check_steps("warmup", self.warmup)
        if self.learning_rate is not None:
            check_positive("learning_rate", self.learning_rate)
        if not is_finite_number(self.final) or not 0 <= self.final <= 1:
            raise ArgumentError("final", self.final, "give a fraction of the peak, 0 to 1")

    def drop_step(self, total_steps: int) -> int:
        """How many of `total_steps` are trained with positions; refuses a schedule that leaves none without."""
        step = self.drop_at if isinstance(self.drop_at, int) else round(self.drop_at * total_steps)
        if step >= total_steps:
            raise ArgumentError("drop_at", self.drop_at, f"the run has {total_steps} steps: drop before its last one")
        return step

    def rate(self, step: int, total_steps: int) -> float:
        """The learning rate of a step after the drop, counted from the run's start at 0, as a fraction of the peak."""
        start = self.drop_step(total_steps)
        length, done = total_steps - start, max(step - start, 0)
        warmup = self.warmup if isinstance(self.warmup, int) else round(self.warmup * length)
        if done < warmup:
            return (done + 1) / (warmup + 1)
        progress = min((done - warmup) / max(length - 1 - warmup, 1), 1.0)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2

    def callback(self) -> DropPositions:
        """The callback that does it: `Trainer(..., callbacks=[schedule.callback()])`."""
        return DropPositions(self)


class DropPositions(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Takes the positions out of a model in training when its schedule says so, and restarts the learning rate.

    At the drop an installed encoding is removed and NoPE installed in its place; a model's own rotation is replaced
    in the same way. Nothing is kept in checkpoints: step and schedule say what holds, so a run resumed past the drop
    goes on without positions and with the same learning rates. After training the model stays without positions in
    memory, but `save_pretrained` writes the model as it would without: who loads it installs NoPE, or DroPE for longer
    texts, again.

    Needs one of the Trainer's schedules made of a function of the step, as nearly all are (not
    reduce_lr_on_plateau).
    """

    def __init__(self, schedule: DropSchedule):
        self.schedule = schedule
        self.handle: Handle | None = None  # of the NoPE installed at the drop
        self._before: Encoding | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse what can't work; past the drop, drop at once; before it, undo the drop of an earlier run."""
        step = self.schedule.drop_step(state.max_steps)
        _lambda_schedule(kwargs["lr_scheduler"])
        if state.global_step < step:
            self._restore(kwargs["model"])
        else:
            self._drop(state, kwargs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Drop after the step that the schedule names."""
        if state.global_step == self.schedule.drop_step(state.max_steps):
            self._drop(state, kwargs)

    def _drop(self, state: TrainerState, kwargs: dict[str, Any]) -> None:
        model: nn.Module = kwargs["model"]
        present = handle_of(model)
        if present is None or present.encoding != NoPE():
            if present is not None:
                self._before = present.encoding
                present.remove()
            self.handle = install(model, NoPE())
        _restart(_lambda_schedule(kwargs["lr_scheduler"]), self.schedule, state.max_steps)

    def _restore(self, model: nn.Module) -> None:
        if self.handle is None or handle_of(model) is not self.handle:
            return
        self.handle.remove()
        self.handle = None
        if self._before is not None:
            install(model, self._before)
            self._before = None


def _restart(scheduler: LambdaLR, schedule: DropSchedule, total_steps: int) -> None:
    """Give a Trainer's schedule other learning rates from its present step on."""
    bases = [float(base) for base in scheduler.base_lrs]
    stretch = 1.0 if schedule.learning_rate is None else schedule.learning_rate / max(bases)

    # A plain function, not an object: a checkpoint of the scheduler then holds nothing of ours.
    def factor(step: int) -> float:
        return stretch * schedule.rate(step, total_steps)

    scheduler.lr_lambdas = [factor] * len(bases)
    rates: list[Any] = [base * factor(scheduler.last_epoch) for base in bases]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates


def _lambda_schedule(scheduler: Any) -> LambdaLR:
    """The schedule itself, out of accelerate's wrapper."""
    inner = getattr(scheduler, "scheduler", scheduler)
    if not isinstance(inner, LambdaLR):
        remedy = "its learning rate can't be restarted; take a schedule such as linear, cosine or constant"
        raise ArgumentError("lr_scheduler", type(inner).__name__, remedy)
    return inner


def _check_steps(argument: str, value: Any) -> None:
    is_steps = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    is_fraction = isinstance(value, float) and is_finite_number(value) and 0 <= value < 1
    if not is_steps and not is_fraction:
        raise ArgumentError(argument, value, "give a number of steps, an integer, or a fraction under 1, a float")
