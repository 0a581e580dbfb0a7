"""Recipes: a task's data, model and schedule in a readable file, checked, with changes from the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ropewalk.errors import ArgumentError, unknown_name
from ropewalk.training.course import Course, check_types

RECIPES = Path(__file__).parent / "recipes"
SIZES = ("small", "paper")


@dataclasses.dataclass(frozen=True)
class ModelSize:
    """The sizes of a Llama-architecture model.

    Args:
        hidden: channels of a token's vector, a multiple of `heads`.
        heads: query heads.
        layers: decoder blocks.
        kv_heads: key/value heads, a divisor of `heads`; as many when None.
        intermediate: channels inside the gated MLP; when None 8/3 of `hidden`, up to a multiple of 8: as many weights
            as a plain MLP of 4 times `hidden`.
        dropout: probability, on the token vectors and on what each attention and MLP adds to them.
        attention_dropout: probability, on the attention weights. It makes a CPU keep all scores of a layer.
        tied: whether the output layer is the token embedding.
        positions: the positions that the model is made for, in tokens; the task's longest sequence when None. Only
            encodings with a table of positions end there.
        initial: standard deviation of the first weights, matrices and embeddings. transformers' 0.02 is made for wide
            models: at 1 / sqrt(hidden) a layer's outputs begin as large as its inputs.
    """

    hidden: int
    heads: int
    layers: int
    kv_heads: int | None = None
    intermediate: int | None = None
    dropout: float = 0.0
    attention_dropout: float = 0.0
    tied: bool = False
    positions: int | None = None
    initial: float = 0.02

    def __post_init__(self) -> None:
        check_types(self, "model.")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= (value := getattr(self, name)) < 1:
                raise ArgumentError(f"model.{name}", value, "give a probability from 0 to below 1")
        if self.hidden % self.heads:
            raise ArgumentError("model.hidden", self.hidden, f"must be a multiple of model.heads={self.heads}")
        if self.heads % self.key_heads:
            raise ArgumentError("model.kv_heads", self.key_heads, f"must divide model.heads={self.heads}")

    @property
    def key_heads(self) -> int:
        """Key/value heads, also when the recipe doesn't say."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def head_dim(self) -> int:
        """Channels a head."""
        return self.hidden // self.heads

    @property
    def mlp(self) -> int:
        """Channels inside the MLP, also when the recipe doesn't say."""
        return self.intermediate or -(-self.hidden // 3) * 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Course):
    """All that a run from scratch depends on, but for its encoding and seed; further arguments are `Course`'s.

    Args:
        task: the name of the task.
        size: which section of the file it came from.
        fields: arguments of the task's class.
        model: the model's sizes.
        encodings: what is compared unless somebody asks for others, by short name.
    """

    task: str
    size: str
    model: ModelSize
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    encodings: tuple[str, ...] = ("rope", "pope")

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to go on: not how the work is cut up, what it is called or compared with.

        What dropout drops hangs on how a step's sequences are cut up, so there that is a part of it.
        """
        found = {name: value for name, value in super().identity().items() if name not in ("size", "encodings")}
        drops = self.model.dropout > 0 or self.model.attention_dropout > 0
        return found | ({"accumulation": self.accumulation} if drops else {})


def recipe_names(folder: Path | None = None) -> tuple[str, ...]:
    """The tasks that have a recipe."""
    return tuple(sorted(file.stem for file in (folder or RECIPES).glob("*.yaml")))


def read_recipe(task: str, size: str = "small", changes: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of a task and size, with changes by dotted key, such as {"model.layers": 4, "steps": 1000}.

    Raises ArgumentError for an unknown task, size or key, and for a value that can't be.
    """
    if task not in recipe_names():
        raise unknown_name("task", task, recipe_names())
    content = _read_yaml(RECIPES / f"{task}.yaml")
    if size not in content:
        raise unknown_name("size", size, content)
    return build_recipe(task, size, content[size], changes)


def build_recipe(task: str, size: str, content: Any, changes: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe from the content of a file's section; errors name the key."""
    if not isinstance(content, dict):
        raise ArgumentError("recipe", content, "a section is a list of `key: value`")
    data: dict[str, Any] = {key: dict(value) if isinstance(value, dict) else value for key, value in content.items()}
    for key, value in (changes or {}).items():
        _change(data, key, value)
    model, fields = data.pop("model", {}), data.pop("task", {})
    if not isinstance(model, dict) or not isinstance(fields or {}, dict):
        raise ArgumentError("recipe", data, "model and task are sections of `key: value`")
    if "encodings" in data:
        data["encodings"] = _names(data["encodings"])
    known = [*(f.name for f in dataclasses.fields(Course)), "encodings"]
    _check_keys(data, known, [n for n in ("steps", "batch", "learning_rate") if n not in data], "")
    sizes = [f.name for f in dataclasses.fields(ModelSize)]
    _check_keys(model, sizes, [n for n in ("hidden", "heads", "layers") if n not in model], "model.")
    return Recipe(task=task, size=size, model=ModelSize(**model), fields=dict(fields or {}), **data)


def parse_changes(words: Sequence[str]) -> dict[str, Any]:
    """`model.layers=4` and the like as {key: value}, values read as YAML reads them (2e-4 is a number too)."""
    import yaml

    changes = {}
    for word in words:
        key, sign, text = word.partition("=")
        if not sign or not key.strip():
            raise ArgumentError("set", word, "give key=value, such as model.layers=4")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ArgumentError(
                "set", word, "the value can't be read; give a number, a word, true, false or null"
            ) from error
        changes[key.strip()] = _number(value)
    return changes


def _names(value: Any) -> tuple[str, ...]:
    """The names of a list, or of a word with commas."""
    words = value.split(",") if isinstance(value, str) else value
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise ArgumentError("encodings", value, "give a list of names, such as [rope, pope]")
    return tuple(word.strip() for word in words)


def _number(value: Any) -> Any:
    """YAML takes 2e-4, without a point, for text."""
    if isinstance(value, str):
        try:
            return float(value) if value[:1] in "+-.0123456789" else value
        except ValueError:
            return value
    return value


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    with path.open(encoding="utf-8") as file:
        content = yaml.safe_load(file)
    if not isinstance(content, dict):
        raise ArgumentError("recipe", path.name, f"it must have the sections {' and '.join(SIZES)}")
    return content


def _change(data: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        if section not in ("model", "task"):
            raise unknown_name("set", section, ("model", "task"))
        data = data.setdefault(section, {})
    if name in ("model", "task"):
        raise ArgumentError("set", key, f"name a key in it, such as {name}.KEY=VALUE")
    data[name] = value


def _check_keys(data: Mapping[str, Any], known: Sequence[str], missing: Sequence[str], prefix: str) -> None:
    for key in data:
        if key not in known:
            raise unknown_name("recipe", f"{prefix}{key}", [prefix + name for name in known])
    if missing:
        raise ArgumentError("recipe", f"{prefix}{missing[0]}", "this key is missing")
