"""From what a sweep's config says of a plan to its encoding, for one model and length."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ropewalk.analysis.calibration_pass import measure
from ropewalk.analysis.head_statistics import Statistics
from ropewalk.data.text import Text, draw_window_with_start, start_of
from ropewalk.encodings.base import Encoding
from ropewalk.encodings.dope import DoPE
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.remap import Remap
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import ArgumentError, DamagedFileError, RopewalkError
from ropewalk.evaluation.as_saved import AsSaved
from ropewalk.evaluation.candidates import Candidate
from ropewalk.evaluation.cells import Cells
from ropewalk.evaluation.identity import content_hash, reference
from ropewalk.evaluation.remaps import check_serves, named_remap
from ropewalk.evaluation.sweep_config import PLAIN, DoPEEntry, PlanEntry, SweepConfig
from ropewalk.hub.fingerprint import ARCHITECTURE
from ropewalk.hub.plan import Plan
from ropewalk.io import one_line_errors
from ropewalk.scaling import Resonance, Rule, rule_for

STATISTICS = "statistics"
# Where in the calibration text the window begins, and how often to look whether another process has measured it.
_WINDOW, _POLL = 0.37, 0.5


@dataclass(frozen=True)
class Target:
    """A loaded model, to be made to read `length` tokens; `saved` is what `as_saved` tells of it, and
    `identity` what its answers depend on.

    text: what head statistics are measured on, None where no plan needs any. cells: the sweep's folder, where they are
    kept. calibrating: called before they are measured.
    """

    model: nn.Module
    tokenizer: Any
    saved: AsSaved
    identity: Mapping[str, str | None]
    original_length: int
    length: int
    text: Text | None
    cells: Cells
    calibrating: Callable[[], None] = lambda: None


def check_plans(config: SweepConfig, model: str, saved: AsSaved) -> None:
    """Refuse plans, and a search for some, that have no rotation to act on in a model."""
    if saved.rotation is not None:
        return
    remedy = f"{model} was saved with {saved.encoding.kind}, no RoPE that it could change; for this model give {PLAIN}"
    for entry in config.plans:
        if entry != PlanEntry(name=entry.name):
            raise ArgumentError("plans", entry.title, f"{remedy} alone")
    if config.search.trials:
        raise ArgumentError("search.trials", config.search.trials, f"{remedy} alone, and no search")


def build_plan(entry: PlanEntry, target: Target) -> Candidate:
    """The candidate that an entry means.

    Raises:
        ArgumentError: a rule, score or reading that the model can't have, or a plan that can't be read.
    """
    if entry.saved is not None:
        return _saved(entry, target)
    rule = _remapped(entry.remap, target) if entry.remap is not None else _ruled(entry, target)
    if entry.dope is None:
        return dataclasses.replace(rule, name=entry.name or rule.name)
    found = with_dope(rule, entry.dope, target)
    return dataclasses.replace(found, name=entry.name or found.name)


def with_dope(rule: Candidate, entry: DoPEEntry, target: Target) -> Candidate:
    """DoPE on top of a rule, its heads chosen by statistics of the model under that rule at the target's length."""
    rope = rule.encoding
    assert isinstance(rope, RoPE | Remap | PerLayer)
    statistics = head_statistics(rule.encoding, target)
    rank = None if entry.r is None else min(entry.r, statistics.head_dim)
    heads = min(entry.heads, len(statistics.layers) * statistics.num_heads)
    selection = statistics.select(
        entry.score, r=rank, indicator=entry.indicator, stage="post_ntk", heads=heads, order=entry.order
    )
    plan = DoPE(
        rope,
        selection,
        mode=entry.mode,
        reading=entry.reading,
        original_length=target.original_length,
        seed=entry.seed,
        sigma=entry.sigma,
        scope=entry.scope,
        apply_to=entry.apply_to,
        view=entry.view,
    )
    return Candidate(_dope_name(rule.name, entry, plan, rank), plan)


def head_statistics(rule: Encoding, target: Target) -> Statistics:
    """A model's head statistics under a rule at a length: measured once for a folder, by one process, and kept.

    A file's name is a hash of all that it depends on; one that can't be read is measured again.
    """
    assert target.text is not None
    depends_on = {
        "model": dict(target.identity),
        "length": target.length,
        "rule": rule.to_dict(),
        "text": target.text.fingerprint,
        "window": _WINDOW,
    }
    if start := start_of(target.tokenizer):
        depends_on["start"] = start
    kept = target.cells.folder / STATISTICS / f"{reference(depends_on)}.safetensors"
    claim = content_hash({"statistics": kept.name})
    while (found := _read(kept)) is None:
        if target.cells.claim([claim]):
            try:
                return _read(kept) or _measured(rule, target, kept)
            finally:
                target.cells.release([claim])
        time.sleep(_POLL)
    return found


def _read(kept: Path) -> Statistics | None:
    try:
        return Statistics.load(kept) if kept.is_file() else None
    except DamagedFileError:
        return None


def _measured(rule: Encoding, target: Target, kept: Path) -> Statistics:
    assert target.text is not None
    target.calibrating()
    ids = draw_window_with_start(target.text, target.tokenizer, target.length, _WINDOW)
    device = next(target.model.parameters()).device
    statistics = measure(target.model, torch.tensor([ids], device=device), rope=rule, stages=("post_ntk",))
    part = kept.with_suffix(".part")
    with one_line_errors(kept):
        kept.parent.mkdir(parents=True, exist_ok=True)
        statistics.save(part)
        part.replace(kept)
    return statistics


def _saved(entry: PlanEntry, target: Target) -> Candidate:
    plan = Plan.from_pretrained(str(entry.saved))
    about = target.saved.about
    differing = [name for name in ARCHITECTURE if plan.model[name] != about[name]]
    if differing:
        remedy = f"is for a model with another {', '.join(differing)} than {about['name']}; leave it out"
        raise ArgumentError("plan", entry.saved, remedy)
    return Candidate(entry.name or f"plan {Path(str(entry.saved)).name}", plan.encoding)


def _remapped(name: str, target: Target) -> Candidate:
    """A remap with the sizes that its name tells, or `extend` gives it; its name is the same at all lengths."""
    own, stretched = target.saved.to_stretch(target.model, target.original_length)
    encoding = named_remap(name, own, target.original_length, target.length, stretched)
    try:
        check_serves(target.model, encoding)
    except RopewalkError as error:
        raise ArgumentError("plans", name, f"{target.saved.about['name']} can't have it ({error})") from error
    return Candidate(name, encoding)


def _ruled(entry: PlanEntry, target: Target) -> Candidate:
    """The model's rotation with the entry's rule in the layers that it is for; plain: what the model was saved with."""
    if entry.rule is None and entry.factor is not None:
        raise ArgumentError("factor", entry.factor, f"{PLAIN} has no rule that could have a factor; name a rule")
    if target.saved.rotation is None:
        return Candidate(PLAIN, target.saved.encoding)
    own, stretched = target.saved.to_stretch(target.model, target.original_length)
    if entry.rule is None:
        return Candidate(PLAIN, own)
    rule = _rule(entry.rule, entry.factor, target)

    def changed(layer: int, rope: Encoding) -> Encoding:
        return dataclasses.replace(rope, rule=rule) if isinstance(rope, RoPE) and stretched(layer) else rope

    name = entry.rule if entry.factor is None else f"{entry.rule} x{entry.factor:g}"
    return Candidate(name, own.map(changed) if isinstance(own, PerLayer) else dataclasses.replace(own, rule=rule))


def _rule(name: str, factor: float | None, target: Target) -> Rule:
    plain = name.removeprefix("resonance+")
    rule = rule_for(plain, target.original_length, target.length, factor)
    return rule if plain == name else Resonance(rule)


def _dope_name(rule: str, entry: DoPEEntry, plan: DoPE, rank: int | None) -> str:
    """What distinguishes a plan from the others of a sweep; what stands at its default is left out."""
    score = f"{entry.score}{'' if rank is None else f'-{rank}'} {entry.indicator}"
    words = [score, *([entry.order] if entry.order is not None else [])]
    default = DoPEEntry()
    for name in ("scope", "apply_to", "view", "seed", "sigma"):
        value = getattr(entry, name)
        words += [] if value == getattr(default, name) else [f"{name} {value}"]
    count = len(plan.heads)
    return f"{rule} + DoPE {plan.mode}/{plan.reading}, {count} head{'s' * (count > 1)} ({', '.join(words)})"


def distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates, each encoding once; two of one name and different encodings are refused."""
    found: dict[str, Candidate] = {}
    for candidate in candidates:
        same = [c for c in found.values() if c.encoding == candidate.encoding]
        if candidate.name in found and not same:
            raise ArgumentError("plans", candidate.name, "two plans have this name; give one of them another `name`")
        if not same:
            found[candidate.name] = candidate
    return list(found.values())
