"""Length rules by name, and those that a transformers config describes."""

from __future__ import annotations

from typing import Any

from ropewalk.errors import ArgumentError, unknown_name
from ropewalk.scaling.base import Rule, rules
from ropewalk.scaling.methods import NTK, CoPE, DynamicNTK, Linear, Llama3, LongRoPE, NTKByParts, Resonance, YaRN
from ropewalk.validation import check_length


def rule_for(name: str, original_length: int, target_length: int, factor: float | None = None) -> Rule:
    """The rule of that name for stretching `original_length` to `target_length` (tokens).

    `factor` is target_length / original_length (at least 1) unless given; for dynamic_ntk it is 1 unless
    given, since that rule takes both lengths. Raises ArgumentError for an unknown name, for longrope and
    given, which need lists of numbers, and for a factor given to resonance or cope, which have none.
    """
    if name not in rules():
        raise unknown_name("rule", name, rules())
    check_length("original_length", original_length)
    check_length("target_length", target_length)
    if name in ("longrope", "given"):
        raise ArgumentError("rule", name, "needs lists of numbers; a name alone can't hold them")
    if name in ("resonance", "cope"):
        if factor is not None:
            raise ArgumentError("factor", factor, f"the rule {name} has no factor; leave it out")
        return Resonance() if name == "resonance" else CoPE(original_length=original_length)
    if name == "dynamic_ntk":
        return DynamicNTK(target_length, original_length, 1.0 if factor is None else factor)
    stretch = max(1.0, target_length / original_length) if factor is None else factor
    if name == "linear":
        return Linear(stretch)
    if name == "ntk":
        return NTK(stretch)
    by_length: dict[str, Any] = {"ntk_by_parts": NTKByParts, "yarn": YaRN, "llama3": Llama3}
    rule: Rule = by_length[name](stretch, original_length)
    return rule


def rule_from_hf(
    rope_parameters: dict[str, Any], max_position_embeddings: int, target_length: int | None = None
) -> Rule | None:
    """The rule that a transformers v5 `config.rope_parameters` describes; None for plain RoPE.

    `target_length` (tokens) sets the length of the two rules that depend on it, dynamic and longrope; None
    takes the original length, which is how such a model starts: its plain base, or its short list. Raises
    ArgumentError for a rope_type that no rule here computes (proportional, axial, unknown) and for a missing
    key.
    """
    if not isinstance(rope_parameters, dict):
        raise ArgumentError("rope_parameters", rope_parameters, "give the dict config.rope_parameters")
    check_length("max_position_embeddings", max_position_embeddings)
    if target_length is not None:
        check_length("target_length", target_length)
    kind = rope_parameters.get("rope_type", rope_parameters.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return Linear(_needed(rope_parameters, "factor"))
    if kind == "dynamic":
        length = max_position_embeddings
        return DynamicNTK(target_length or length, length, _needed(rope_parameters, "factor"))
    if kind not in ("yarn", "llama3", "longrope"):
        known = "default, linear, dynamic, yarn, llama3, longrope"
        raise ArgumentError("rope_type", kind, f"only {known} are rules; read other frequencies as Given")
    original = rope_parameters.get("original_max_position_embeddings") or max_position_embeddings
    if kind == "llama3":
        low, high = _needed(rope_parameters, "low_freq_factor"), _needed(rope_parameters, "high_freq_factor")
        return Llama3(_needed(rope_parameters, "factor"), original, low, high)
    if kind == "yarn":
        return _yarn_from_hf(rope_parameters, max_position_embeddings, original)
    return _longrope_from_hf(rope_parameters, max_position_embeddings, original, target_length)


def _yarn_from_hf(parameters: dict[str, Any], max_length: int, original: int) -> YaRN:
    factor = parameters.get("factor")
    is_paired = parameters.get("mscale") and parameters.get("mscale_all_dim")
    return YaRN(
        factor=max_length / original if factor is None else factor,
        original_length=original,
        beta_fast=parameters.get("beta_fast") or 32.0,
        beta_slow=parameters.get("beta_slow") or 1.0,
        attention_factor=parameters.get("attention_factor"),
        mscale=parameters["mscale"] if is_paired else None,
        mscale_all_dim=parameters["mscale_all_dim"] if is_paired else None,
        truncate=bool(parameters.get("truncate", True)),
    )


def _longrope_from_hf(parameters: dict[str, Any], max_length: int, original: int, target: int | None) -> LongRoPE:
    factor = parameters.get("factor")
    return LongRoPE(
        short_factor=_needed(parameters, "short_factor"),
        long_factor=_needed(parameters, "long_factor"),
        original_length=original,
        target_length=target or original,
        attention_factor=parameters.get("attention_factor"),
        # the scale follows the model's own longest length, whichever list serves this target
        factor=max_length / original if factor is None else factor,
    )


def _needed(parameters: dict[str, Any], key: str) -> Any:
    if parameters.get(key) is None:
        remedy = f"rope_type {parameters.get('rope_type')!r} needs it"
        raise ArgumentError(f"rope_parameters[{key!r}]", None, remedy)
    return parameters[key]
