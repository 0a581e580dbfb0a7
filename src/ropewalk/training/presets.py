"""Encodings by a short name, with the sizes that a model gives them: what `--encoding rope,pope` means."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from ropewalk.encodings.absolute import Learned, Sinusoidal
from ropewalk.encodings.alibi import ALiBi
from ropewalk.encodings.base import Encoding
from ropewalk.encodings.dape import DAPE
from ropewalk.encodings.dape_v2 import DAPEv2
from ropewalk.encodings.fire import FIRE
from ropewalk.encodings.kerple import KERPLE
from ropewalk.encodings.nope import NoPE
from ropewalk.encodings.pope import PoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.encodings.rope_plus_plus import RoPEPlusPlus
from ropewalk.encodings.t5 import T5Bias
from ropewalk.encodings.xpos import XPos
from ropewalk.errors import ArgumentError, unknown_name
from ropewalk.training.drope import DropSchedule


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes of a model that an encoding may need: channels, heads, and the longest sequence in tokens."""

    head_dim: int
    heads: int
    kv_heads: int
    hidden: int
    length: int


@dataclasses.dataclass(frozen=True)
class Named:
    """An encoding to train with: what is installed at the start, and when positions are dropped, if ever."""

    name: str
    encoding: Encoding
    drop: DropSchedule | None = None

    def to_dict(self) -> dict[str, object]:
        """What makes a run this encoding's and no other's, JSON-ready."""
        drop = None if self.drop is None else dataclasses.asdict(self.drop)
        return {"name": self.name, "encoding": self.encoding.to_dict(), "drop": drop}


# DroPE trains with RoPE and goes on without; its paper drops at 14,000 of 16,000 steps.
_DROPS = {"drope": DropSchedule(drop_at=0.875)}


def _pope(delta: str, bound: str) -> Callable[[Shape], Encoding]:
    return lambda s: PoPE(s.head_dim, s.kv_heads, delta=delta, bound=bound)


_MAKERS: dict[str, Callable[[Shape], Encoding]] = {
    "rope": lambda s: RoPE(s.head_dim),
    "pope": _pope("zero", "free"),
    "pope-clamp": _pope("zero", "clamp"),
    "pope-uniform": _pope("uniform", "free"),
    "pope-uniform-clamp": _pope("uniform", "clamp"),
    "pope-no-delta": _pope("none", "free"),
    "nope": lambda s: NoPE(),
    "alibi": lambda s: ALiBi(s.heads),
    "t5": lambda s: T5Bias(s.heads),
    "kerple": lambda s: KERPLE(s.heads),
    "fire": lambda s: FIRE(s.heads),
    "dape": lambda s: DAPE(s.heads, KERPLE(s.heads)),
    "dape_v2": lambda s: DAPEv2(s.heads, KERPLE(s.heads)),
    "xpos": lambda s: XPos(s.head_dim),
    "rope_plus_plus": lambda s: RoPEPlusPlus(RoPE(s.head_dim)),
    "sinusoidal": lambda s: Sinusoidal(s.hidden),
    "learned": lambda s: Learned(s.hidden, s.length),
    "drope": lambda s: RoPE(s.head_dim),
}

NAMES = tuple(_MAKERS)

# What sets a name apart from others of the same kind.
_APART = {
    "pope": "PoPE; its delta starts at 0 and is free",
    "pope-clamp": "PoPE; delta starts at 0 and stays within [-2 pi, 0]",
    "pope-uniform": "PoPE; delta starts anywhere in a turn and is free",
    "pope-uniform-clamp": "PoPE; delta starts anywhere in a turn and stays within [-2 pi, 0]",
    "pope-no-delta": "PoPE without delta",
    "drope": f"RoPE, dropped when {_DROPS['drope'].drop_at:.1%} of the steps are done",
}


def summaries() -> dict[str, str]:
    """One line on every name."""
    size = Shape(head_dim=8, heads=2, kv_heads=2, hidden=16, length=8)
    return {name: _APART.get(name) or make(size).summary for name, make in _MAKERS.items()}


def named(name: str, shape: Shape) -> Named:
    """The encoding of a short name for a model's sizes; an unknown name is refused with the nearest ones."""
    if name not in _MAKERS:
        raise unknown_name("encoding", name, _MAKERS)
    return Named(name, _MAKERS[name](shape), _DROPS.get(name))


def split_names(text: str) -> tuple[str, ...]:
    """`rope,pope` as names, in their order; refuses unknown, repeated and no names."""
    names = [word.strip() for word in text.split(",") if word.strip()]
    check_names(names)
    return tuple(names)


def check_names(names: Sequence[str]) -> None:
    """Refuse unknown names, a name given twice, and none at all."""
    if not names:
        raise ArgumentError("encoding", "", f"name at least one of {', '.join(sorted(_MAKERS))}")
    for number, name in enumerate(names):
        if name not in _MAKERS:
            raise unknown_name("encoding", name, _MAKERS)
        if name in names[:number]:
            raise ArgumentError("encoding", name, "it is named twice; name each encoding once")
