"""What a training task is: sequences of tokens with labels, a split for each purpose, and the figure that judges it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from datasets import Dataset


_REGISTRY: dict[str, type[SequenceTask]] = {}


@dataclasses.dataclass(frozen=True)
class SequenceTask:
    """A task as a value: equal tasks have equal data, test set included.

    A subclass is a frozen dataclass that sets `name`, `summary` and `metric` and overrides `vocabulary_size`,
    `longest` and `dataset`. Its fields are plain numbers, texts or None.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    # `accuracy`: the share of sequences whose labelled tokens are all the likeliest ones; `nll`: nats a labelled token.
    metric: ClassVar[str] = "nll"
    # Which token fills up shorter sequences of a batch; it is never labelled.
    padding: ClassVar[int] = 0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__dict__.get("name"):
            _REGISTRY[cls.name] = cls

    @property
    def vocabulary_size(self) -> int:
        """How many different tokens there are; all ids are below it."""
        raise NotImplementedError

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence of any split."""
        raise NotImplementedError

    def dataset(self, split: str) -> Dataset:
        """A split, with the columns `input_ids` and `labels`, lists of equal length; cached in Arrow.

        A label stands at the place of the token it names, as transformers wants it (its models compare the prediction
        made one place before), or is NO_LABEL. Raises ArgumentError for data that can't be used.
        """
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict with the key `name`."""
        return {"name": self.name} | {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


def sequence_tasks() -> dict[str, type[SequenceTask]]:
    """The registry: every training task's class by its name."""
    return dict(_REGISTRY)
