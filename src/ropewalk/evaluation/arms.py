"""What a comparison measures: each model as it is, with length rules in place of its own, and with a plan."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ropewalk.encodings.base import Encoding
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import ArgumentError, MismatchedModelError
from ropewalk.evaluation.evaluated_model import Subject
from ropewalk.evaluation.remaps import is_remap_name, named_remap
from ropewalk.hub.fingerprint import ARCHITECTURE
from ropewalk.hub.plan import Plan
from ropewalk.patching import handle_of, install, installed
from ropewalk.scaling import DynamicNTK, Rule, rule_for


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of a table: a subject as it is, or with another encoding, which may come from a plan."""

    name: str
    subject: Subject
    encoding: Encoding | None = None
    plan: Plan | None = None

    @property
    def identity(self) -> str:
        """What is measured, whatever it is called: weights and encoding, 16 hex digits."""
        encoding = self.encoding or self.subject.encoding
        held = [
            dict(self.subject.identity),
            None if encoding is None else encoding.to_dict(),
        ]
        return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()[:16]

    @contextlib.contextmanager
    def ready(self, model: Any) -> Iterator[Any]:
        """The subject's model with the arm's encoding for the length of a with block."""
        if self.encoding is None:
            yield model
            return
        handle, own = handle_of(model), self.subject.encoding
        if handle is not None:
            handle.remove()
        try:
            with self.plan.installed(model, when="always") if self.plan else installed(model, self.encoding):
                yield model
        finally:
            if own is not None:  # a RoPE, which learned nothing: no other has a rotation to replace
                install(model, own)

    def to_dict(self) -> dict[str, Any]:
        """What a summary says of it, JSON-ready."""
        encoding = self.encoding or self.subject.encoding
        return {
            "name": self.name,
            "source": self.subject.source,
            "model": self.subject.about,
            "encoding": None if encoding is None else encoding.to_dict(),
        }


def arms(
    subjects: Sequence[Subject],
    rules: Sequence[str] = (),
    training_length: int = 0,
    target_length: int = 0,
    factor: float | None = None,
    plans: Sequence[str] = (),
) -> list[Arm]:
    """For each model in turn: as it is, then with each length rule, then with each plan that is for that model.

    Models that don't turn by RoPE get no rules. A plan is for the model whose weights it was made for, else for the
    first of the same shape.

    Args:
        subjects: the models.
        rules: names of length rules, and of remaps as `named_remap` takes them.
        training_length, target_length: in tokens, what the rules are told.
        factor: of the rules; None: target_length / training_length.
        plans: folders or hub ids of saved plans.

    Raises:
        ArgumentError: an unknown rule, rules where no model turns by RoPE, a rule or plan that can't be had, a plan
            given twice.
        MismatchedModelError: a plan for none of the models.
    """
    made = {
        name: None if is_remap_name(name) else rule_for(name, training_length, target_length, factor) for name in rules
    }
    if made and all(subject.rotation is None for subject in subjects):
        names = ", ".join(subject.name for subject in subjects)
        remedy = f"no model here turns by RoPE ({names}); leave the rules out"
        raise ArgumentError("rules", ",".join(rules), remedy)
    saved = [(name, Plan.from_pretrained(source), source) for source, name in _plan_names(plans).items()]
    planned = [(name, plan, _subject_of(plan, source, subjects)) for name, plan, source in saved]
    found = []
    for subject in subjects:
        found.append(Arm(subject.name, subject))
        if subject.rotation is not None:
            for name, rule in made.items():
                if rule is None:
                    encoding = _remapped(subject, name, training_length, target_length)
                    found.append(Arm(f"{subject.name} + {name}", subject, encoding))
                else:
                    found.append(Arm(f"{subject.name} + {_rule_name(name, rule)}", subject, _ruled(subject, rule)))
        for name, plan, owner in planned:
            if owner is subject:
                found.append(Arm(f"{subject.name} + plan {name}", subject, plan.encoding, plan))
    return found


def split_rules(text: str) -> tuple[str, ...]:
    """`yarn,ntk` as names, in their order; refuses one given twice."""
    names = [word.strip() for word in text.split(",") if word.strip()]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ArgumentError("rules", name, "is given twice; give each rule once")
    return tuple(names)


def _plan_names(plans: Sequence[str]) -> dict[str, str]:
    """{source: what tables call it}: a folder's own name, or the source where two folders share that."""
    places = [Path(source).resolve() if Path(source).is_dir() else Path(source) for source in plans]
    for number, (source, place) in enumerate(zip(plans, places, strict=True)):
        if place in places[:number]:
            raise ArgumentError("plan", source, "is given twice; give each plan once")
    names = [place.name if place.is_dir() else source for source, place in zip(plans, places, strict=True)]
    return {s: name if names.count(name) == 1 else s for s, name in zip(plans, names, strict=True)}


def _subject_of(plan: Plan, source: str, subjects: Sequence[Subject]) -> Subject:
    turning = [subject for subject in subjects if subject.rotation is not None]
    for subject in turning:
        if subject.about["fingerprint"] == plan.model["fingerprint"]:
            return subject
    for subject in turning:
        if all(subject.about[name] == plan.model[name] for name in ARCHITECTURE):
            return subject
    shape = ", ".join(f"{name} {plan.model[name]}" for name in ARCHITECTURE)
    raise MismatchedModelError(f"{source}: the plan is for none of the models given ({shape})")


def _rule_name(name: str, rule: Rule) -> str:
    factor = None if isinstance(rule, DynamicNTK) else getattr(rule, "factor", None)
    return name if factor is None else f"{name} x{factor:g}"


def _ruled(subject: Subject, rule: Rule) -> Encoding:
    """The subject's rotation with the rule in the layers that it is for."""
    own, stretched = subject.rotation, subject.stretched
    if isinstance(own, PerLayer):
        return own.map(_changed(rule, stretched))
    assert own is not None
    return dataclasses.replace(own, rule=rule)


def _remapped(subject: Subject, name: str, training_length: int, target_length: int) -> Encoding:
    """The subject's rotation under a remap in the layers that it is for."""
    assert subject.rotation is not None
    return named_remap(name, subject.rotation, training_length, target_length, subject.stretched)


def _changed(rule: Rule, stretched: Callable[[int], bool]) -> Callable[[int, Encoding], Encoding]:
    def changed(layer: int, rope: Encoding) -> Encoding:
        return dataclasses.replace(rope, rule=rule) if isinstance(rope, RoPE) and stretched(layer) else rope

    return changed
