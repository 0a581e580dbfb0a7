"""Perplexity of held-out text at 1, 2, ... times the training length, for models, length rules and plans."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ropewalk.data.corpus import Corpus
from ropewalk.data.text import Text, read_text, start_of
from ropewalk.data.windows import WHOLE, Books
from ropewalk.errors import ArgumentError
from ropewalk.evaluation.arms import Arm
from ropewalk.evaluation.comparison import Against, Lead, against_first, lead
from ropewalk.evaluation.evaluated_model import Subject, Subjects
from ropewalk.evaluation.likelihood import FULL, Reading, bounded
from ropewalk.evaluation.missing import records_of
from ropewalk.evaluation.records import Store
from ropewalk.evaluation.statistics import Estimate, mean_interval


@dataclasses.dataclass(frozen=True)
class Windows:
    """The token ids of all windows, what each begins with, and the share of tokens that the tokenizer doesn't know."""

    ids: list[list[int]]
    start: list[int]
    unknown: float

    @property
    def fingerprint(self) -> str:
        """Which tokens they are, 16 hex digits."""
        return hashlib.sha256(repr((self.start, self.ids)).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Point:
    """What a model makes of the text at one length, in nats a token; windows are the independent units.

    Args:
        length: in tokens.
        nll: of the tokens judged at this length.
        whole: of all tokens of a text of this length; None where contexts slide.
        growth: how much `nll` is above that at the first length, on the same windows.
        against: how much `nll` is above the first arm's, on the same windows; None for that arm.
    """

    length: int
    nll: Estimate
    whole: Estimate | None
    growth: Estimate
    against: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-ready."""
        held = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {k: v.to_dict() if isinstance(v, Estimate) else v for k, v in held.items()}


@dataclasses.dataclass(frozen=True)
class Curve:
    """An arm's points, shortest length first, and the nats a token of each window at the furthest length."""

    arm: Arm
    points: tuple[Point, ...]
    furthest: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """All but the windows, which are in the records; JSON-ready."""
        return self.arm.to_dict() | {"points": [point.to_dict() for point in self.points]}


@dataclasses.dataclass(frozen=True)
class Study:
    """All that a report tells.

    Args:
        books: the windows.
        reading: how they were read.
        unknown: the share of their tokens that the tokenizer doesn't know, 0 to 1.
        trained: names of the models that were trained on the text.
        curves: one an arm.
    """

    books: Books
    reading: Reading
    unknown: float
    trained: tuple[str, ...]
    curves: tuple[Curve, ...]

    @property
    def against(self) -> dict[str, Against]:
        """How each other arm differs from the first at the furthest length."""
        return against_first({curve.arm.name: curve.furthest for curve in self.curves})

    @property
    def lead(self) -> Lead | None:
        """Which arm is the lowest at the furthest length, and how it differs from the next; None for one arm."""
        return lead({curve.arm.name: curve.furthest for curve in self.curves})

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-ready."""
        lead = self.lead
        return {
            "books": self.books.to_dict(),
            "reading": self.reading.to_dict(),
            "unknown": self.unknown,
            "trained": list(self.trained),
            "arms": [curve.to_dict() for curve in self.curves],
            "furthest": {
                "against_first": {arm: found.to_dict() for arm, found in self.against.items()},
                "lead": None if lead is None else lead.to_dict(),
            },
        }


def training_length(subjects: Sequence[Subject]) -> int:
    """The length that all models were trained on; ArgumentError where they differ or don't tell."""
    lengths = {subject.training_length for subject in subjects}
    found = lengths.pop() if len(lengths) == 1 else None
    if found is None:
        told = ", ".join(f"{s.name} {s.training_length or 'unknown'}" for s in subjects)
        raise ArgumentError("training_length", None, f"the models were trained on different lengths ({told}); name one")
    return found


def held_out(source: str, subjects: Sequence[Subject], part: str = "") -> tuple[Text | Corpus, str, list[Subject]]:
    """(text, part of it to read, the models that were trained on the text).

    Where a model was trained on this very text, the text is what that model's task read of it, and the part its test
    part unless another is named; otherwise the text is read whole.

    Raises:
        ArgumentError: no such text; one that has changed since a model was trained on it; models that were trained on
            different stretches of it.
    """
    text = read_text(source)
    trained = {s.name: t for s in subjects if (t := _trained_on(s, text)) is not None}
    if not trained:
        return text, part or WHOLE, []
    first, *others = trained.items()
    for name, other in others:
        if other.fingerprint != first[1].fingerprint:
            remedy = f"{first[0]} and {name} were trained on different stretches of it; compare them on another text"
            raise ArgumentError("text", source, remedy)
    return first[1], part or "test", [s for s in subjects if s.name in trained]


def windows_of(books: Books, subjects: Sequence[Subject]) -> Windows:
    """The windows in the tokens of the models, which must be the same for all of them.

    Raises:
        ArgumentError: a text that is too short, tokens that a model doesn't know, or models with different tokens.
    """
    found: Windows | None = None
    for subject in subjects:
        ids, start = books.draw(subject.tokenizer), start_of(subject.tokenizer)
        drawn = Windows(ids, start, subject.check_tokens([[*start, *one] for one in ids], "text", books.text.name))
        if found is not None and drawn.fingerprint != found.fingerprint:
            remedy = f"has other tokens than {subjects[0].name}; compare models that share a tokenizer"
            raise ArgumentError("model", subject.source, remedy)
        found = drawn
    assert found is not None
    return found


def measure(
    arms: Sequence[Arm],
    subjects: Subjects,
    reading: Reading,
    windows: Windows,
    store: Store,
    on_start: Callable[[str], None] = lambda _: None,
    on_done: Callable[[str], None] = lambda _: None,
) -> list[Curve]:
    """Read every window with every arm; what is in the store is not read again. Callbacks as in `records_of`."""

    def read(model: Any, arm: Arm, number: int) -> dict[str, Any]:
        began = time.monotonic()
        nats = bounded(torch.tensor(reading.nats(model, windows.ids[number], windows.start))).tolist()
        seconds = round(time.monotonic() - began, 2)
        return {"kind": "perplexity", "arm": arm.name, "window": number, "nats": nats, "seconds": seconds}

    units = [(str(number), number) for number in range(len(windows.ids))]
    records = records_of(arms, units, subjects, store, read, on_start, on_done)
    return curves(arms, reading, {arm.name: [record["nats"] for record in found] for arm, found in records})


def curves(arms: Sequence[Arm], reading: Reading, nats: Mapping[str, Sequence[Sequence[float]]]) -> list[Curve]:
    """The points of each arm from {name: for each window the nats a token at each length}."""
    first = nats[arms[0].name]
    found = []
    for arm in arms:
        own = nats[arm.name]
        points = []
        for place, length in enumerate(reading.lengths):
            at = [window[place] for window in own]
            growth = [window[place] - window[0] for window in own]
            against = [window[place] - base[place] for window, base in zip(own, first, strict=True)]
            whole = [_so_far(reading, window, place) for window in own] if reading.way == FULL else None
            points.append(
                Point(
                    length,
                    _mean(at),
                    None if whole is None else _mean(whole),
                    _mean(growth),
                    None if arm is arms[0] else _mean(against),
                )
            )
        found.append(Curve(arm, tuple(points), tuple(window[-1] for window in own)))
    return found


def _so_far(reading: Reading, nats: Sequence[float], place: int) -> float:
    """The mean over all tokens of a text that ends where a length does."""
    judged = [reading.judged(length) for length in reading.lengths[: place + 1]]
    return sum(n * mean for n, mean in zip(judged, nats, strict=False)) / sum(judged)


def _mean(values: Sequence[float]) -> Estimate:
    return mean_interval(values, range(len(values)))


def _trained_on(subject: Subject, text: Text) -> Text | Corpus | None:
    """What a model was trained on, validated with and tested on, if that is this text as far as both go."""
    task = subject.trained_on
    if task is None:
        return None
    if subject.trained_text == text.fingerprint:
        return text
    if task.text != text.name and task.text.startswith("hf:"):
        return None  # a data set is read from the network: other names are taken for other texts
    try:
        read = task.corpus
    except ArgumentError:
        return None  # its file is gone
    if not text.text.startswith(read.read(end=len(text.text))):
        return None  # neither is the beginning of the other
    if subject.trained_text not in (None, read.fingerprint):
        remedy = f"has changed since {subject.name} was trained on it; bring that text back, or give another"
        raise ArgumentError("text", text.name, remedy)
    return read
