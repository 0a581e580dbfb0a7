"""Records of arms: those that are kept are taken, the others measured and kept, one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from ropewalk.evaluation.arms import Arm
from ropewalk.evaluation.evaluated_model import Subjects
from ropewalk.evaluation.records import Store

Unit = TypeVar("Unit")


def records_of(
    arms: Sequence[Arm],
    units: Sequence[tuple[str, Unit]],
    subjects: Subjects,
    store: Store,
    measure: Callable[[Any, Arm, Unit], dict[str, Any]],
    on_start: Callable[[str], None] = lambda _: None,
    on_done: Callable[[str], None] = lambda _: None,
) -> Iterator[tuple[Arm, list[dict[str, Any]]]]:
    """Each arm with a record for each unit of work, in their order.

    Args:
        units: what is measured for every arm, each with a name that says all that its record depends on but the arm.
        measure: the record of a unit, from the model with the arm's encoding installed.
        on_start: called with an arm's name when its first unit is measured.
        on_done: called with an arm's name after each unit, also one that was in the store.
    """
    known = {record["key"]: record for record in store.records()}
    for arm in arms:
        keys = [f"{arm.identity}/{name}" for name, _ in units]
        missing = {key: unit for key, (_, unit) in zip(keys, units, strict=True) if key not in known}
        for _ in range(len(units) - len(missing)):
            on_done(arm.name)
        if missing:
            on_start(arm.name)
            with arm.ready(subjects.model(arm.subject)) as model:
                for key, unit in missing.items():
                    known[key] = {"key": key, **measure(model, arm, unit)}
                    store.append(known[key])
                    on_done(arm.name)
        yield arm, [known[key] for key in keys]
