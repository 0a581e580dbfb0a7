"""The course of a training run: its steps, batches and learning rates, and when it is looked at."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from ropewalk.errors import ArgumentError, unknown_name

PRECISIONS = ("float32", "bfloat16")
# What may change when a run goes on: how the work is cut up.
_CUT = ("accumulation", "evaluation_batch", "checkpointing")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Course:
    """How a model is trained, whatever it learns.

    Args:
        steps: optimizer steps.
        batch: sequences a step, over all processes.
        learning_rate: the peak.
        warmup: steps of the linear warm-up, an integer, or their fraction of all steps, a float under 1.
        own_rate: the learning rate of an encoding's own parameters, as a multiple of the model's. PoPE's delta, an
            angle, has to go further than weights do: AdamW moves it by the rate a step at the most.
        weight_decay: AdamW's, on matrices; norms and the encodings' own parameters have none.
        clip: the largest norm of the gradient.
        final: the learning rate at the end of the cosine, as a fraction of the peak.
        accumulation: parts that a process cuts its share of a batch into, one after the other, to save memory.
        checkpointing: whether each layer is computed again in the backward pass instead of kept, to save memory.
        precision: `float32`, or `bfloat16` for mixed precision on a GPU (a CPU takes float32 all the same).
        log_every: steps between two points of the loss curve.
        evaluate_every: steps between two evaluations on validation data, each with a checkpoint; a multiple of
            `log_every`, so that a resumed curve has the same points.
        evaluation_batch: sequences that are evaluated at once, in one process.
        validation: sequences of the validation split that are evaluated during training; None: all.
        test: sequences of the test split that are evaluated at the end; None: all.
    """

    steps: int
    batch: int
    learning_rate: float
    warmup: int | float = 0.02
    own_rate: float = 1.0
    weight_decay: float = 0.01
    clip: float = 1.0
    final: float = 0.1
    accumulation: int = 1
    checkpointing: bool = False
    precision: str = "float32"
    log_every: int = 50
    evaluate_every: int = 500
    evaluation_batch: int = 64
    validation: int | None = 1000
    test: int | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if isinstance(self.warmup, float) and self.warmup >= 1:
            raise ArgumentError("warmup", self.warmup, "give steps, an integer, or a fraction under 1")
        if self.warmup_steps >= self.steps:
            raise ArgumentError("warmup", self.warmup, f"must be less than steps={self.steps}")
        if self.final > 1:
            raise ArgumentError("final", self.final, "give a fraction of the peak, 0 to 1")
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        if self.evaluate_every % self.log_every:
            remedy = f"must be a multiple of log_every={self.log_every}"
            raise ArgumentError("evaluate_every", self.evaluate_every, remedy)

    @property
    def warmup_steps(self) -> int:
        """The warm-up in steps."""
        return self.warmup if isinstance(self.warmup, int) else round(self.warmup * self.steps)

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-ready."""
        return dataclasses.asdict(self)

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to go on: all but how the work is cut up."""
        return {name: value for name, value in self.to_dict().items() if name not in _CUT}

    def described(self) -> str:
        """The schedule in a line, for a person."""
        precision = self.precision if self.precision == "float32" else f"{self.precision} where there is a GPU"
        own = "" if self.own_rate == 1 else f" ({self.own_rate:g} times that for the encoding's own parameters)"
        return (
            f"AdamW, learning rate {self.learning_rate:g}{own} after {self.warmup_steps:,} steps of warm-up, cosine to "
            f"{self.final:g} of it, weight decay {self.weight_decay:g}, clipping at {self.clip:g}, {precision}"
        )


def check_types(value: Any, prefix: str = "") -> None:
    """Refuse fields of another kind than annotated: integers from 1 on, real numbers from 0 on (some: over 0).

    `prefix` stands before a field's name in the error; fields of no plain kind are passed over.
    """
    for name, hint in typing.get_type_hints(type(value)).items():
        if typing.get_origin(hint) in (dict, tuple):
            continue
        found = getattr(value, name)
        remedy = _wrong(name, found, typing.get_args(hint) or (hint,))
        if remedy:
            raise ArgumentError(prefix + name, found, remedy)


def _wrong(name: str, found: Any, kinds: tuple[Any, ...]) -> str:
    """What would be right, or nothing when it is."""
    if found is None and type(None) in kinds:
        return ""
    if bool in kinds:
        return "" if isinstance(found, bool) else "give true or false"
    is_number = isinstance(found, (int, float)) and not isinstance(found, bool)
    if float in kinds:
        least = "over 0" if name in ("learning_rate", "clip", "initial") else "of 0 or more"
        is_right = is_number and found < float("inf") and (found > 0 if least == "over 0" else found >= 0)
        return "" if is_right else f"give a number {least}"
    if int in kinds:
        first = 0 if name == "seed" else 1
        return "" if is_number and isinstance(found, int) and found >= first else f"give an integer of {first} or more"
    if str in kinds:
        return "" if isinstance(found, str) else "give a word"
    return ""
