"""ropewalk: positional encodings for Transformers, and repairs of trained ones that read too short.

Names are loaded when they are first used, so that `import ropewalk` and `ropewalk --help` stay quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ropewalk.analysis.calibration_pass import measure as measure
    from ropewalk.analysis.head_statistics import Statistics as Statistics
    from ropewalk.analysis.inspect import Inspection as Inspection
    from ropewalk.analysis.inspect import inspect as inspect
    from ropewalk.attention.attend import attend as attend
    from ropewalk.encodings.absolute import Learned as Learned
    from ropewalk.encodings.absolute import Sinusoidal as Sinusoidal
    from ropewalk.encodings.alibi import ALiBi as ALiBi
    from ropewalk.encodings.dape import DAPE as DAPE
    from ropewalk.encodings.dape_v2 import DAPEv2 as DAPEv2
    from ropewalk.encodings.dope import DoPE as DoPE
    from ropewalk.encodings.drope import DroPE as DroPE
    from ropewalk.encodings.dual_chunk import DualChunk as DualChunk
    from ropewalk.encodings.fire import FIRE as FIRE
    from ropewalk.encodings.kerple import KERPLE as KERPLE
    from ropewalk.encodings.nope import NoPE as NoPE
    from ropewalk.encodings.per_layer import PerLayer as PerLayer
    from ropewalk.encodings.pope import PoPE as PoPE
    from ropewalk.encodings.rerope import ReRoPE as ReRoPE
    from ropewalk.encodings.rope import RoPE as RoPE
    from ropewalk.encodings.rope_plus_plus import RoPEPlusPlus as RoPEPlusPlus
    from ropewalk.encodings.self_extend import SelfExtend as SelfExtend
    from ropewalk.encodings.t5 import T5Bias as T5Bias
    from ropewalk.encodings.xpos import XPos as XPos
    from ropewalk.heads import HeadSelection as HeadSelection
    from ropewalk.hub.loading import load as load
    from ropewalk.hub.loading import load_model as load_model
    from ropewalk.hub.plan import Plan as Plan
    from ropewalk.patching.install import install as install
    from ropewalk.patching.install import installed as installed
    from ropewalk.scaling import NTK as NTK
    from ropewalk.scaling import CoPE as CoPE
    from ropewalk.scaling import DynamicNTK as DynamicNTK
    from ropewalk.scaling import Given as Given
    from ropewalk.scaling import Linear as Linear
    from ropewalk.scaling import Llama3 as Llama3
    from ropewalk.scaling import LongRoPE as LongRoPE
    from ropewalk.scaling import NTKByParts as NTKByParts
    from ropewalk.scaling import Resonance as Resonance
    from ropewalk.scaling import YaRN as YaRN
    from ropewalk.training.drope import DropSchedule as DropSchedule

__version__ = "0.1.0"

_HOMES = {
    "RoPE": "encodings.rope",
    "DoPE": "encodings.dope",
    "NoPE": "encodings.nope",
    "PerLayer": "encodings.per_layer",
    "PoPE": "encodings.pope",
    "attend": "attention.attend",
    "HeadSelection": "heads",
    "Statistics": "analysis.head_statistics",
    "measure": "analysis.calibration_pass",
    "Inspection": "analysis.inspect",
    "inspect": "analysis.inspect",
    "install": "patching.install",
    "installed": "patching.install",
    "Plan": "hub.plan",
    "load": "hub.loading",
    "load_model": "hub.loading",
    "ALiBi": "encodings.alibi",
    "SelfExtend": "encodings.self_extend",
    "ReRoPE": "encodings.rerope",
    "DualChunk": "encodings.dual_chunk",
    "Sinusoidal": "encodings.absolute",
    "Learned": "encodings.absolute",
    "DroPE": "encodings.drope",
    "DropSchedule": "training.drope",
    "DAPE": "encodings.dape",
    "DAPEv2": "encodings.dape_v2",
    "XPos": "encodings.xpos",
    "RoPEPlusPlus": "encodings.rope_plus_plus",
    "T5Bias": "encodings.t5",
    "KERPLE": "encodings.kerple",
    "FIRE": "encodings.fire",
} | dict.fromkeys(
    (
        "Linear",
        "NTK",
        "DynamicNTK",
        "NTKByParts",
        "YaRN",
        "Llama3",
        "LongRoPE",
        "Resonance",
        "CoPE",
        "Given",
    ),
    "scaling",
)

__all__ = [*_HOMES, "from_pretrained"]


def from_pretrained(name: str, revision: str | None = None, token: str | None = None) -> Plan:
    """The plan in a local folder or in a Hugging Face repository; `plan.install(model)` switches it on."""
    from ropewalk.hub.plan import Plan

    return Plan.from_pretrained(name, revision=revision, token=token)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ropewalk' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ropewalk.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
