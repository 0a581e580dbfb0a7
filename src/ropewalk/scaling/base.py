"""What a length rule is: rotation frequencies as a value, and the registry that finds a rule by its name."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from ropewalk.errors import ArgumentError, unknown_name
from ropewalk.validation import check_base, check_rotary_dim

_RULES: dict[str, type[Rule]] = {}


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """How fast each channel pair turns, and by how much the rotated vectors are scaled.

    `frequencies` is (rotary_dim / 2,) float32 in radians per position, on the CPU; cos and sin are multiplied
    by `attention_scale`, so scores are multiplied by its square.
    """

    frequencies: Tensor
    attention_scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Rule:
    """A length rule as a value: turns a base into the frequencies that a longer context needs.

    A subclass is a frozen dataclass that sets `name` and `summary` and overrides `_schedule`.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__dict__.get("name"):
            _RULES[cls.name] = cls

    def schedule(self, rotary_dim: int, base: float) -> Schedule:
        """Frequencies (rotary_dim / 2,) float32 and attention scale for `rotary_dim` rotated channels.

        Raises ArgumentError when rotary_dim isn't a positive even integer, base isn't a finite number over 1,
        or the rule can't serve that many channels.
        """
        check_rotary_dim("rotary_dim", rotary_dim)
        check_base(base)
        return self._schedule(rotary_dim, base)

    def _schedule(self, rotary_dim: int, base: float) -> Schedule:
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict with the key `name`; `from_dict` reads it back."""
        return {"name": self.name} | {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Rule:
        """The rule that `to_dict` wrote; an unknown name or field is refused, with the nearest known ones."""
        if not isinstance(data, dict):
            raise ArgumentError("rule", data, "give a dict with the key 'name'")
        name = data.get("name", "")
        if name not in _RULES:
            raise unknown_name("rule", name, _RULES)
        target = _RULES[name]
        fields = {f.name: f for f in dataclasses.fields(target)}
        given = {key: value for key, value in data.items() if key != "name"}
        for key in given:
            if key not in fields:
                raise unknown_name(f"field of {name}", key, fields)
        for key, field in fields.items():
            if key not in given and field.default is dataclasses.MISSING:
                raise ArgumentError(key, None, f"the rule {name} needs this field")
        return target(**{key: _nested(value) for key, value in given.items()})


def rules() -> dict[str, type[Rule]]:
    """The registry: every length rule's class by its name."""
    return dict(_RULES)


def default_schedule(rotary_dim: int, base: float) -> Schedule:
    """theta_c = base^(-2c/r), c = 0 .. r/2 - 1, without a length rule (RoFormer, arXiv 2104.09864, eq. 15).

    Returns frequencies (rotary_dim / 2,) float32. Raises ArgumentError when rotary_dim isn't a positive even
    integer or base isn't a finite number over 1.
    """
    return Schedule(1.0 / wavelengths_in_radians(rotary_dim, base))


def wavelengths_in_radians(rotary_dim: int, base: float) -> Tensor:
    """base^(2c/r), c = 0 .. r/2 - 1: the positions one radian of turn takes, (rotary_dim / 2,) float32.

    Always on the CPU, also inside `with torch.device("meta")`, so that a model made empty still gets real
    numbers.
    """
    check_rotary_dim("rotary_dim", rotary_dim)
    check_base(base)
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device="cpu") / rotary_dim
    return torch.pow(base, exponents)


def _plain(value: Any) -> Any:
    if isinstance(value, Rule):
        return value.to_dict()
    return list(value) if isinstance(value, tuple) else value


def _nested(value: Any) -> Any:
    return Rule.from_dict(value) if isinstance(value, dict) else value
