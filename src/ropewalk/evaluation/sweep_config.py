"""What a sweep's YAML file says, every key and value checked before anything is loaded or written."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ropewalk.analysis.head_scores import ORDERS, find_score
from ropewalk.analysis.head_statistics import INDICATORS
from ropewalk.data.text import DEMO
from ropewalk.encodings.dope import READINGS, SCOPES, SIDES, VIEWS
from ropewalk.errors import ArgumentError, unknown_name
from ropewalk.evaluation.config_values import as_list, field_names, number, section, text, whole
from ropewalk.evaluation.halves import WINDOWS, WINDOWS_OPTIONS, check_windows
from ropewalk.evaluation.remaps import REMAPS, is_remap_name, parsed_remap
from ropewalk.io import one_line_errors
from ropewalk.scaling import rules
from ropewalk.tasks.base import REPORT_FIRST
from ropewalk.tasks.registry import reading_tasks
from ropewalk.validation import check_distinct

PLAIN = "plain"


@dataclass(frozen=True)
class ModelEntry:
    """A model, as `load_model` takes it."""

    name: str
    revision: str | None = None
    dtype: str = "auto"


@dataclass(frozen=True)
class PlanEntry:
    """One plan: `plain`, a length rule or a remap, either with DoPE on top (`dope` says how), or a saved plan's folder.

    `rule` None is the model's own rotation; `factor` None is target / training length. `remap` is what `named_remap`
    takes.
    """

    rule: str | None = None
    factor: float | None = None
    dope: DoPEEntry | None = None
    remap: str | None = None
    saved: str | None = None
    name: str | None = None

    @property
    def is_rule(self) -> bool:
        """Whether it is among those of which the best is picked: a rule alone, or a remap, as in `extend`."""
        return self.dope is None and (self.remap is not None or self.rule is not None)

    @property
    def title(self) -> str:
        """What an error calls it."""
        on_top = "" if self.dope is None else f" + DoPE {self.dope.mode}"
        return self.name or self.saved or f"{self.remap or self.rule or PLAIN}{on_top}"


@dataclass(frozen=True)
class DoPEEntry:
    """DoPE with heads chosen by a score; fields as `Statistics.select` and `DoPE` have them."""

    mode: str = "all"
    reading: str | None = None
    score: str = "truncated_entropy"
    r: int | None = None
    indicator: str = "key"
    order: str | None = None
    heads: int = 3
    scope: str = "query_head"
    apply_to: str = "both"
    view: str = "both"
    seed: int = 42
    sigma: float = 1.0


@dataclass(frozen=True)
class TaskEntry:
    """A reading task by name with its plain options, or `perplexity` over windows of a `text`, `way` and `stride`."""

    name: str
    options: Mapping[str, Any]
    label: str


@dataclass(frozen=True)
class SearchEntry:
    """What is picked on prompts of its own: the best rule, and of `trials` DoPE plans drawn from `space` the best.

    prompts: how many prompts each candidate is measured on. space: what Optuna may choose from, by name.
    """

    prompts: int = 1
    trials: int = 0
    seed: int = 0
    space: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class SweepConfig:
    """Models x plans x tasks x lengths x seeds, with `prompts` prompts each."""

    models: tuple[ModelEntry, ...]
    plans: tuple[PlanEntry, ...]
    tasks: tuple[TaskEntry, ...]
    lengths: tuple[int, ...]
    seeds: tuple[int, ...] = (0,)
    prompts: int = 1
    calibration: str = DEMO
    original_length: int | None = None
    search: SearchEntry = SearchEntry()


def read_config(path: Path) -> SweepConfig:
    """The config in a YAML file; raises ArgumentError for what can't be read and for unknown keys and values."""
    import yaml

    try:
        with one_line_errors(path, "read", "config"):
            content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArgumentError("config", str(path), f"isn't YAML ({reason})") from error
    return build_config(content)


def build_config(content: Any) -> SweepConfig:
    """The config from a YAML file's content."""
    data = section(content, "config", field_names(SweepConfig))
    for name in ("models", "plans", "tasks", "lengths"):
        if data.get(name) in (None, [], {}, ""):
            raise ArgumentError(name, data.get(name), "is missing; a sweep needs models, plans, tasks and lengths")
    plans = [plan for i, entry in enumerate(as_list(data["plans"], "plans")) for plan in _plans(entry, f"plans[{i}]")]
    tasks = tuple(_task(entry, f"tasks[{i}]") for i, entry in enumerate(as_list(data["tasks"], "tasks")))
    check_distinct("tasks", [task.label for task in tasks], "give one of them another `label`")
    given = {name: data[name] for name in ("prompts", "calibration", "original_length") if name in data}
    config = SweepConfig(
        models=tuple(_model(entry, f"models[{i}]") for i, entry in enumerate(as_list(data["models"], "models"))),
        plans=tuple(plans),
        tasks=tasks,
        lengths=tuple(whole(n, f"lengths[{i}]") for i, n in enumerate(as_list(data["lengths"], "lengths"))),
        seeds=tuple(whole(n, f"seeds[{i}]", 0) for i, n in enumerate(as_list(data.get("seeds", [0]), "seeds"))),
        search=_search(data.get("search") or {}),
        **given,
    )
    for task in tasks:
        if task.name == WINDOWS:
            check_windows(task.options, config.lengths)
    whole(config.prompts, "prompts")
    text(config.calibration, "calibration")
    if config.original_length is not None:
        whole(config.original_length, "original_length")
    check_distinct("models", [model.name for model in config.models], "give each model once")
    check_distinct("lengths", config.lengths, "give each length once")
    check_distinct("seeds", config.seeds, "give each seed once")
    return config


def _model(entry: Any, where: str) -> ModelEntry:
    data = {"name": entry} if isinstance(entry, str) else section(entry, where, field_names(ModelEntry))
    for name, value in data.items():
        text(value, f"{where}.{name}")
    if not data.get("name"):
        raise ArgumentError(f"{where}.name", data.get("name"), "give a model's name, folder or .gguf file")
    return ModelEntry(**data)


def _plans(entry: Any, where: str) -> list[PlanEntry]:
    """The plans of an entry: more than one where it has lists of factors, heads and so on."""
    if isinstance(entry, str) and is_remap_name(entry):
        return [PlanEntry(remap=_remap(entry, where))]
    if isinstance(entry, str):
        return [PlanEntry(rule=_rule(entry, where, *REMAPS, "{rule: ...}", "{dope: ...}", "{plan: ...}"))]
    data = section(entry, where, ("rule", "factor", "remap", "dope", "plan", "name"))
    if "plan" in data:
        section(entry, where, ("plan", "name"))
        return [PlanEntry(saved=text(data["plan"], f"{where}.plan"), name=data.get("name"))]
    if not {"rule", "remap", "dope"} & set(data):
        raise ArgumentError(
            where, entry, f"give {PLAIN}, a rule's or remap's name, or one of the keys rule, remap, dope and plan"
        )
    if "remap" in data:
        section(entry, where, ("remap", "dope", "name"))
    chosen = [_rule(name, f"{where}.rule") for name in as_list(data.get("rule"), f"{where}.rule")]
    factors = [
        None if f is None else number(f, f"{where}.factor") for f in as_list(data.get("factor"), f"{where}.factor")
    ]
    dopes = _dopes(data["dope"], f"{where}.dope") if "dope" in data else [None]
    remaps = [_remap(name, f"{where}.remap") for name in as_list(data.get("remap"), f"{where}.remap")]
    found = [PlanEntry(*choice) for choice in itertools.product(chosen, factors, dopes, remaps)]
    if data.get("name") is not None:
        if len(found) > 1:
            raise ArgumentError(f"{where}.name", data["name"], f"stands for {len(found)} plans; leave it out")
        found = [dataclasses.replace(found[0], name=text(data["name"], f"{where}.name"))]
    return found


def _remap(name: Any, where: str) -> str | None:
    """A remap by name, perhaps with its sizes; None for none."""
    if name is None:
        return None
    try:
        parsed_remap(text(name, where))
    except ArgumentError as error:
        raise ArgumentError(where, name, error.remedy) from error
    return str(name)


def _dopes(content: Any, where: str) -> list[DoPEEntry | None]:
    """DoPE entries, one for each choice from the lists in it."""
    data = section(content, where, field_names(DoPEEntry))
    choices = [[(name, value) for value in as_list(held, f"{where}.{name}")] for name, held in data.items()]
    return [dope_entry(dict(choice), where) for choice in itertools.product(*choices)]


def dope_entry(data: Mapping[str, Any], where: str = "dope") -> DoPEEntry:
    """One DoPE entry, its values checked."""
    for name in ("mode", "reading", "score", "indicator", "order", "scope", "apply_to", "view"):
        if data.get(name) is not None:
            text(data[name], f"{where}.{name}")
    entry = DoPEEntry(**data)
    known = {"mode": READINGS, "indicator": INDICATORS, "scope": SCOPES, "apply_to": SIDES, "view": VIEWS}
    for name, names in known.items():
        if getattr(entry, name) not in names:
            raise unknown_name(f"{where}.{name}", getattr(entry, name), names)
    if entry.reading is not None and entry.reading not in READINGS[entry.mode]:
        raise unknown_name(f"{where}.reading", entry.reading, READINGS[entry.mode])
    if entry.order is not None and entry.order not in ORDERS:
        raise unknown_name(f"{where}.order", entry.order, ORDERS)
    if entry.score == "truncated_entropy" and entry.r is None:
        entry = dataclasses.replace(entry, r=32)
    find_score(entry.score).check_r(entry.score, entry.r)
    for name in ("heads", "seed", *(["r"] if entry.r is not None else [])):
        whole(getattr(entry, name), f"{where}.{name}", 0 if name == "seed" else 1)
    number(entry.sigma, f"{where}.sigma")
    return entry


def _task(entry: Any, where: str) -> TaskEntry:
    data = {"task": entry} if isinstance(entry, str) else dict(section(entry, where, None))
    name = data.pop("task", None)
    known = {kind: tuple(held.options) for kind, held in reading_tasks().items()} | {WINDOWS: WINDOWS_OPTIONS}
    if not isinstance(name, str) or name not in known:
        raise unknown_name(f"{where}.task", str(name), known)
    label = data.pop("label", None)
    for option in data:
        if option not in known[name]:
            raise unknown_name(f"{where}.{option}", option, [*known[name], "label"])
    variant = data.get("setting", data.get("way"))
    if label is not None:
        text(label, f"{where}.label")
    return TaskEntry(name, data, label or (f"{name} ({variant})" if isinstance(variant, str) else name))


def _search(content: Any) -> SearchEntry:
    data = section(content, "search", field_names(SearchEntry))
    space = section(data.get("space") or {}, "search.space", (*field_names(DoPEEntry), "rule", "factor"))
    choices: dict[str, tuple[Any, ...]] = {}
    for name, held in space.items():
        choices[name] = tuple(_choice(name, value) for value in as_list(held, f"search.space.{name}"))
    entry = SearchEntry(**{**data, "space": choices})
    whole(entry.prompts, "search.prompts")
    whole(entry.trials, "search.trials", 0)
    whole(entry.seed, "search.seed", 0)
    if entry.prompts > REPORT_FIRST:
        raise ArgumentError("search.prompts", entry.prompts, f"must be at most {REPORT_FIRST}: later ones are reported")
    return entry


def _choice(name: str, value: Any) -> Any:
    """A value that a search may choose, checked by itself."""
    where = f"search.space.{name}"
    if name == "rule":
        return _rule(value, where)
    if name == "factor":
        return number(value, where)
    if name == "r":
        return whole(value, where)
    if name == "reading":
        known = [reading for readings in READINGS.values() for reading in readings]
        if value not in known:
            raise unknown_name(where, value, known)
        return value
    needed = {"r": 1} if name == "score" and needs_r(text(value, where)) else {}
    dope_entry({name: value} | needed, "search.space")
    return value


def needs_r(score: str) -> bool:
    """Whether a score looks at the r largest eigenvalues."""
    return find_score(score).needs_r


def _rule(name: Any, where: str, *others: str) -> str | None:
    """A rule by name, None for plain; `others`: what else could stand there."""
    plain = str(name).removeprefix("resonance+")
    if name is None or name == PLAIN:
        return None
    by_name = [rule for rule in rules() if rule not in ("longrope", "given")]  # those need lists of numbers
    if plain not in by_name:
        raise unknown_name(where, name, [PLAIN, *by_name, *others])
    return str(name)
