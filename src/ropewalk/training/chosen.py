"""The task that a recipe names, out of the registry, with a user's data and tokenizer."""

from __future__ import annotations

import dataclasses

from ropewalk.errors import ArgumentError, unknown_name
from ropewalk.tasks import SequenceTask, sequence_tasks
from ropewalk.training.recipe import Recipe, recipe_names

# What tasks call the place of their data.
_PLACES = ("path", "text", "folder")


def trainable() -> dict[str, type[SequenceTask]]:
    """Every task that has a recipe, by name."""
    known = sequence_tasks()
    return {name: known[name] for name in recipe_names() if name in known}


def build_task(recipe: Recipe, data: str | None = None, tokenizer: str | None = None) -> SequenceTask:
    """The task of a recipe.

    Args:
        recipe: names the task and its fields.
        data: where its data are, for tasks that read some; None: as the recipe or the task says.
        tokenizer: for tasks that take one; None: as the recipe or the task says.

    Raises:
        ArgumentError: an unknown task or field; data or a tokenizer for a task that takes none; data that it needs.
    """
    kinds = trainable()
    if recipe.task not in kinds:
        raise unknown_name("task", recipe.task, kinds)
    kind = kinds[recipe.task]
    known = {field.name: field for field in dataclasses.fields(kind)}
    fields = dict(recipe.fields)
    place = next((name for name in _PLACES if name in known), None)
    if data is not None:
        if place is None:
            raise ArgumentError("data", data, f"{recipe.task} makes its own examples; leave this out")
        fields[place] = data
    if tokenizer is not None:
        if "tokenizer" not in known:
            raise ArgumentError("tokenizer", tokenizer, f"{recipe.task} has tokens of its own; leave this out")
        fields["tokenizer"] = tokenizer
    for name in fields:
        if name not in known:
            raise unknown_name("recipe", f"task.{name}", [f"task.{field}" for field in known])
    for name, field in known.items():
        if name not in fields and field.default is dataclasses.MISSING:
            if name == place:
                raise ArgumentError("data", None, f"{recipe.task} needs data: name its {name} with --data")
            raise ArgumentError("recipe", f"task.{name}", "this key is missing")
    return kind(**fields)
