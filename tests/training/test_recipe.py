"""Recipes: the files that come along, changes from the command line, and keys and values that can't be."""

from __future__ import annotations

from typing import Any

import pytest
from tests.training.tiny import SIZE, recipe

from ropewalk.errors import ArgumentError
from ropewalk.training.config import (
    SIZES,
    build_recipe,
    build_task,
    parse_changes,
    read_recipe,
    recipe_names,
    trainable,
)
from ropewalk.training.presets import check_names

CONTENT = {"model": {"hidden": 16, "heads": 2, "layers": 1}, "steps": 10, "batch": 4, "learning_rate": 1e-3}


def test_every_recipe_that_comes_along_is_whole_and_has_its_task() -> None:
    assert set(recipe_names()) == set(trainable())
    for name in recipe_names():
        for size in SIZES:
            found = read_recipe(name, size)
            assert (found.weight_decay, found.clip, found.final) == (0.01, 1.0, 0.1), (name, size)
            needs_data = name in ("chorales", "midi", "genome")
            check_names(found.encodings)
            task = build_task(found, "somewhere" if needs_data else None)
            assert task.name == name and set(found.fields) <= set(task.to_dict())


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("indexing", (512, 8, 8, 64, 2e-4, 100_000)),
        ("chorales", (256, 8, 6, 4, 6e-4, 3_000)),
        ("midi", (384, 8, 6, 16, 6e-4, 60_000)),
        ("genome", (1024, 16, 16, 64, 2.5e-4, 100_000)),
        ("language", (768, 12, 12, 64, 6e-4, 100_000)),
    ],
)
def test_paper_recipes_have_the_papers_sizes(name: str, sizes: tuple[float, ...]) -> None:
    r = read_recipe(name, "paper")
    assert (r.model.hidden, r.model.heads, r.model.layers, r.batch, r.learning_rate, r.steps) == sizes


def test_the_papers_language_models_have_the_numbers_they_are_called_by() -> None:
    for changes, millions in (
        ({}, 124),
        ({"model.hidden": 1024, "model.heads": 16, "model.layers": 16}, 253),
        ({"model.hidden": 1280, "model.heads": 20, "model.layers": 36}, 774),
    ):
        m = read_recipe("language", "paper", changes).model
        counted = m.layers * (4 * m.hidden**2 + 3 * m.hidden * m.mlp) + 50_257 * m.hidden
        assert m.tied and abs(counted / 1e6 - millions) < 2


def test_changes_reach_their_section() -> None:
    words = ["model.layers=4", "steps=1000", "learning_rate=2e-4", "task.letters=12", "test=null", "precision=bfloat16"]
    found = read_recipe("indexing", "small", parse_changes(words))
    assert (found.model.layers, found.steps, found.learning_rate) == (4, 1000, 2e-4)
    assert (found.fields["letters"], found.test, found.precision) == (12, None, "bfloat16")
    assert read_recipe("indexing").model.layers == 3  # the file's own values stay


def test_sizes_that_a_recipe_leaves_out_follow_from_others() -> None:
    assert (SIZE.key_heads, SIZE.head_dim, SIZE.mlp) == (2, 8, 48)
    assert recipe(steps=1000, warmup=0.1).warmup_steps == 100
    assert recipe(warmup=3).warmup_steps == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"step": 3}, "steps"),
        ({"model.depth": 3}, "recipe='model.depth'"),
        ({"modle.layers": 3}, "did you mean model"),
        ({"model": 3}, "model.KEY"),
        ({"steps": 0}, "steps=0"),
        ({"steps": "many"}, "steps='many'"),
        ({"steps": True}, "steps=True"),
        ({"batch": 2.5}, "batch=2.5"),
        ({"batch": None}, "batch=None"),
        ({"learning_rate": 0}, "learning_rate=0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"weight_decay": -1}, "weight_decay=-1"),
        ({"warmup": 10}, "less than steps=10"),
        ({"warmup": 1.5}, "warmup=1.5"),
        ({"final": 2.0}, "final=2.0"),
        ({"precision": "float8"}, "did you mean float32"),
        ({"log_every": 3, "evaluate_every": 10}, "multiple of log_every=3"),
        ({"model.hidden": 15}, "multiple of model.heads=2"),
        ({"model.heads": 4, "model.kv_heads": 3}, "divide model.heads=4"),
        ({"model.dropout": 1.0}, "model.dropout=1.0"),
        ({"encodings": 3}, "encodings=3"),
        ({"encodings": []}, "[rope, pope]"),
        ({"model.initial": 0}, "model.initial=0"),
        ({"model.tied": "yes"}, "true or false"),
    ],
)
def test_wrong_keys_and_values_are_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError) as error:
        build_recipe("tiny", "small", CONTENT, changes)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_recipe_may_say_what_it_compares_and_runs_dont_depend_on_it() -> None:
    plain, other = build_recipe("tiny", "small", CONTENT), build_recipe("tiny", "small", CONTENT, {"encodings": "nope"})
    assert (plain.encodings, other.encodings) == (("rope", "pope"), ("nope",))
    assert plain.identity() == other.identity()


def test_what_dropout_drops_hangs_on_how_the_work_is_cut_up() -> None:
    for dropout, is_same in ((0.0, True), (0.2, False)):
        one, cut = (
            build_recipe("tiny", "small", CONTENT, {"model.dropout": dropout, "accumulation": n}) for n in (1, 2)
        )
        assert (one.identity() == cut.identity()) is is_same


def test_a_key_without_a_value_is_missed() -> None:
    with pytest.raises(ArgumentError, match="'steps': this key is missing"):
        build_recipe("tiny", "small", {k: v for k, v in CONTENT.items() if k != "steps"})
    with pytest.raises(ArgumentError, match=r"model\.heads"):
        build_recipe("tiny", "small", CONTENT | {"model": {"hidden": 16, "layers": 1}})


@pytest.mark.parametrize("word", ["steps", "=3", "steps=[1"])
def test_a_change_that_is_none_is_refused(word: str) -> None:
    with pytest.raises(ArgumentError, match="set="):
        parse_changes([word])


def test_unknown_tasks_and_sizes_get_the_nearest() -> None:
    with pytest.raises(ArgumentError, match="did you mean indexing"):
        read_recipe("indexng")
    with pytest.raises(ArgumentError, match="did you mean small"):
        read_recipe("indexing", "smal")


@pytest.mark.parametrize(
    ("name", "changes", "data", "tokenizer", "said"),
    [
        ("chorales", {}, None, None, "--data"),
        ("indexing", {}, "file", None, "makes its own examples"),
        ("indexing", {}, None, "gpt2", "tokens of its own"),
        ("indexing", {"task.leters": 3}, None, None, "task.letters"),
    ],
)
def test_a_task_takes_what_it_has_a_use_for(
    name: str, changes: dict[str, Any], data: str | None, tokenizer: str | None, said: str
) -> None:
    with pytest.raises(ArgumentError, match=said):
        build_task(read_recipe(name, "small", changes), data, tokenizer)
    assert build_task(read_recipe("language"), "a.txt", "folder").to_dict()["tokenizer"] == "folder"
