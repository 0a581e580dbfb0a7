"""What a reading task is: prompts of a known length, read once, and questions whose answers are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ropewalk.errors import ArgumentError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The depth of an answer that stands nowhere in the text.
NOWHERE = -1.0
# Prompts that choose (a rule, a plan) are counted from 0, those that judge from here: none does both. A task whose
# source can run out, such as problems, takes the former from one half of it and the latter from the other.
REPORT_FIRST = 1000


def halved(index: int) -> tuple[int, int]:
    """(the half of a source that prompt `index` takes, its number there): 0 chooses, 1 judges."""
    return (0, index) if index < REPORT_FIRST else (1, index - REPORT_FIRST)


@dataclass(frozen=True)
class Question:
    """One question about a prompt: `ids` follow what was read, `answer_ids` (the value) follow those.

    `key` names the question within its prompt. `depth` is where in the text the answer stands, 0 to 1; `needle_span`,
    [start, end), is where it is in the tokens read. An answer that stands nowhere has depth NOWHERE, -1, and (0, 0).
    """

    ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    key: str
    value: str
    depth: float
    needle_span: tuple[int, int]


@dataclass(frozen=True)
class Prompt:
    """A text (a haystack, examples), fed once, and the questions about it, each fed right after it.

    len(haystack_ids) + len(ids) + len(answer_ids) is the task's length for the longest question, never more.
    """

    id: str
    haystack_ids: tuple[int, ...]
    questions: tuple[Question, ...]


class PromptTask(Protocol):
    """A task whose prompts a model reads and answers, as a frozen value: equal tasks have equal prompts.

    `setting` is the variant that answers are filed under, such as `original` or `noisy`.
    """

    @property
    def setting(self) -> str: ...

    def prompts(self, tokenizer: PreTrainedTokenizerBase, number: int, first: int = 0) -> list[Prompt]:
        """Prompts first .. first + number - 1. Prompt i depends on (task, i, tokenizer) alone."""
        ...

    def prompt_id(self, index: int) -> str:
        """The name of prompt `index`, another for every task and index."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """All that its prompts depend on, JSON-ready; of a text its name and fingerprint."""
        ...


def prompt_indices(number: int, first: int) -> range:
    """first .. first + number - 1; raises ArgumentError for fewer than one, or a first one below 0."""
    if number < 1:
        raise ArgumentError("number", number, "must be at least 1 prompt")
    if first < 0:
        raise ArgumentError("first", first, "must be at least 0")
    return range(first, first + number)
