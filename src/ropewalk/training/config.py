"""The course of a training run: its steps, batches and learning rates, and when it is looked at."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ropewalk.errors import ArgumentError, unknown_name
from ropewalk.training.tasks import SequenceTask, sequence_tasks

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
