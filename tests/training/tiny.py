"""A task of seconds for the tests of training, say a sequence's first token again at its end; and a tiny text model."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset

from ropewalk.data.char_tokenizer import CHARACTERS
from ropewalk.data.dataset_cache import NO_LABEL
from ropewalk.patching.handle import handle_of
from ropewalk.training.config import ModelSize, Recipe
from ropewalk.training.models import build_model, shape, spelling
from ropewalk.training.presets import named
from ropewalk.training.tasks.base import SequenceTask
from ropewalk.training.tasks.language import Language

SIZE = ModelSize(hidden=16, heads=2, layers=2)


@dataclasses.dataclass(frozen=True)
class Echo(SequenceTask):
    """`rows` random sequences of 4 to 8 tokens and the first of them once more, which alone is labelled."""

    name: ClassVar[str] = "tiny-echo"
    summary: ClassVar[str] = "the first token again"
    metric: ClassVar[str] = "accuracy"

    rows: int = 48

    @property
    def vocabulary_size(self) -> int:
        return 12

    @property
    def longest(self) -> int:
        return 9

    def dataset(self, split: str) -> Dataset:
        random = np.random.default_rng(len(split))
        drawn = [random.integers(1, 12, random.integers(4, 9)).tolist() for _ in range(self.rows)]
        ids = [row + row[:1] for row in drawn]
        labels = [[NO_LABEL] * (len(row) - 1) + row[-1:] for row in ids]
        return Dataset.from_dict({"input_ids": ids, "labels": labels})


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "model": SIZE,
        "steps": 10,
        "batch": 4,
        "learning_rate": 1e-2,
        "log_every": 2,
        "evaluate_every": 4,
    }
    return Recipe(task="tiny-echo", size="small", **(values | changes))


def text_file(folder: Path, words: int = 2000) -> Path:
    """A text of made words, some often and some rarely, so that there is something to learn."""
    random = np.random.default_rng(0)
    known = ["".join(random.choice(list("abcdefgh"), random.integers(2, 6))) for _ in range(12)]
    drawn = random.choice(known, words, p=np.arange(12, 0, -1) / 78)
    path = folder / "text.txt"
    path.write_text("".join(f"{word}{'. ' if i % 9 == 8 else ' '}" for i, word in enumerate(drawn)))
    return path


def text_model(folder: Path, text: Path, length: int = 16, name: str = "", size: ModelSize = SIZE) -> Path:
    """A folder with an untrained model of a text's characters and their tokenizer; with an encoding if one is named."""
    task = Language(str(text), CHARACTERS, length)
    model = build_model(size, task.vocabulary_size, length, named(name or "rope", shape(size, length)), 0)
    handle = handle_of(model)
    if not name and handle is not None:
        handle.remove()
    model.save_pretrained(folder)
    spelling(task).save_pretrained(folder)
    return folder


def losses(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A curve's points without the times."""
    return [{k: v for k, v in p.items() if k not in ("seconds", "stepping", "waiting")} for p in curve]


@contextlib.contextmanager
def quick_collections() -> Iterator[None]:
    """Each run starts with a full garbage collection, which takes a second on all that was imported: set that aside."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
