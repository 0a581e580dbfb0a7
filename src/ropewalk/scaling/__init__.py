"""RoPE's frequencies and length rules (RoPE scaling): by class, by name, and from a transformers config."""

from ropewalk.scaling.base import Rule, Schedule, default_schedule, rules
from ropewalk.scaling.from_config import rule_for, rule_from_hf
from ropewalk.scaling.methods import (
    NTK,
    CoPE,
    DynamicNTK,
    Given,
    Linear,
    Llama3,
    LongRoPE,
    NTKByParts,
    Resonance,
    YaRN,
)

__all__ = [
    "NTK",
    "CoPE",
    "DynamicNTK",
    "Given",
    "Linear",
    "Llama3",
    "LongRoPE",
    "NTKByParts",
    "Resonance",
    "Rule",
    "Schedule",
    "YaRN",
    "default_schedule",
    "rule_for",
    "rule_from_hf",
    "rules",
]
