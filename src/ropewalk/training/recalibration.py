"""A recalibration as values: what is asked for, and what came out."""

from __future__ import annotations

import dataclasses
from typing import Any

from ropewalk.tasks.haystack import AT_MOST, DEMO
from ropewalk.tasks.language import Language
from ropewalk.training.course import Course, check_types
from ropewalk.training.held_out import HeldOut
from ropewalk.training.swap import OWN, RULES, check_name

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
