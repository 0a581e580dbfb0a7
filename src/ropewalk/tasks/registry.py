"""The reading tasks by name, built from plain values such as a configuration file holds."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ropewalk.data.qa_problems import Problems, read_problems
from ropewalk.data.text import DEMO, Text, read_text
from ropewalk.errors import ArgumentError, unknown_name
from ropewalk.tasks.base import PromptTask
from ropewalk.tasks.lookup import LookupTask
from ropewalk.tasks.many_shot import ManyShotTask
from ropewalk.tasks.needle import NeedleTask
from ropewalk.tasks.tracking import TrackingTask

_KINDS_OF_VALUES = {bool: "true or false", int: "a whole number", str: "a text"}


@dataclass(frozen=True)
class ReadingKind:
    """A reading task by name: what it asks in a line, its options with their defaults, and those it can't do without.

    `build` makes the task from length, seed and all options.
    """

    summary: str
    options: Mapping[str, Any]
    build: Callable[[int, int, dict[str, Any]], PromptTask]
    required: tuple[str, ...] = ()


def reading_tasks() -> dict[str, ReadingKind]:
    """The registry: every reading task by its name."""
    return dict(_KINDS)


def reading_task(name: str, length: int, seed: int, options: Mapping[str, Any]) -> PromptTask:
    """The reading task of that name whose prompts have `length` tokens, answer included.

    `options` are plain: numbers, texts, lists, true and false; what isn't given has its default. A text or questions
    are named by their source (`read_text`, `read_problems`), which is read at once. Raises ArgumentError for an
    unknown name or option, with the nearest known ones, and for values that can't be used.
    """
    if name not in _KINDS:
        raise unknown_name("task", name, _KINDS)
    kind = _KINDS[name]
    for option in options:
        if option not in kind.options:
            raise unknown_name(f"option of {name}", option, kind.options)
    for option in kind.required:
        if not options.get(option):
            raise ArgumentError(option, options.get(option), f"the task {name} needs it; give a source")
    for argument, value in (("length", length), ("seed", seed)):
        _check_kind(argument, value, int)
    for option, value in options.items():
        default = kind.options[option]
        if option != "depths" and not (value is None and default is None):
            _check_kind(option, value, str if default is None else type(default))
    return kind.build(length, seed, {**kind.options, **options})


def _check_kind(argument: str, value: Any, kind: type) -> None:
    if type(value) is not kind:
        raise ArgumentError(argument, value, f"must be {_KINDS_OF_VALUES[kind]}")


def _fields(task: type, *but: str) -> dict[str, Any]:
    """A task's fields with their defaults, without those that are given otherwise."""
    fields = dataclasses.fields(task)
    return {f.name: f.default for f in fields if f.name not in ("length", "seed", *but)}


def _needle(length: int, seed: int, options: dict[str, Any]) -> PromptTask:
    return NeedleTask(_text(options.pop("text")), length, seed=seed, **options)


def _many_shot(length: int, seed: int, options: dict[str, Any]) -> PromptTask:
    source = [options.pop(name) for name in ("questions", "question_field", "answer_field")]
    return ManyShotTask(_problems(*source), length, seed=seed, **options)


def _lookup(length: int, seed: int, options: dict[str, Any]) -> PromptTask:
    return LookupTask(length, seed=seed, **options)


def _tracking(length: int, seed: int, options: dict[str, Any]) -> PromptTask:
    source = options.pop("text")
    return TrackingTask(length, text=None if source is None else _text(source), seed=seed, **options)


_KINDS = {
    "needle": ReadingKind(
        "find numbers hidden at set depths of a long text",
        {"text": DEMO} | _fields(NeedleTask, "text", "wording"),
        _needle,
    ),
    "many_shot": ReadingKind(
        "answer a problem after many worked examples, itself among them at set depths or left out",
        {"questions": "", "question_field": "", "answer_field": ""} | _fields(ManyShotTask, "problems", "seeds"),
        _many_shot,
        required=("questions",),
    ),
    "lookup": ReadingKind(
        "look up values by their keys in a list that fills the prompt", _fields(LookupTask), _lookup
    ),
    "tracking": ReadingKind(
        "follow numbers from variable to variable through a long text",
        _fields(TrackingTask),
        _tracking,
    ),
}  # fmt: skip


def _text(source: str) -> Text:
    return _read_text(source, _seen(source))


def _problems(source: str, question_field: str, answer_field: str) -> Problems:
    return _read_problems(source, question_field, answer_field, _seen(source))


# Tasks of many lengths and seeds share one copy of what they read, until its files change.
@functools.lru_cache(maxsize=4)
def _read_text(source: str, seen: tuple[Any, ...]) -> Text:
    return read_text(source)


@functools.lru_cache(maxsize=4)
def _read_problems(source: str, question_field: str, answer_field: str, seen: tuple[Any, ...]) -> Problems:
    return read_problems(source, question_field, answer_field)


def _seen(source: str) -> tuple[Any, ...]:
    """Names, sizes and times of a source's files; nothing where it is no place on disk."""
    try:
        place = Path(source)
        files = sorted(place.rglob("*")) if place.is_dir() else [place]
        return tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files)
    except (OSError, ValueError):
        return ()
