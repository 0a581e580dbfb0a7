"""The length rules as values: JSON, names, refusals, and reading transformers' dicts."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from ropewalk import scaling as f
from ropewalk.errors import ArgumentError

EVERY_RULE = [
    f.Linear(2.0),
    f.NTK(3.5),
    f.DynamicNTK(8192, 2048),
    f.DynamicNTK(8192, 2048, factor=2.0),
    f.NTKByParts(4.0, 2048),
    f.YaRN(4.0, 2048),
    f.YaRN(40.0, 4096, mscale=1.0, mscale_all_dim=0.707, truncate=False),
    f.Llama3(8.0, 8192),
    f.LongRoPE((1.0,) * 32, tuple(1.0 + c for c in range(32)), 2048, 8192),
    f.Resonance(),
    f.Resonance(f.YaRN(4.0, 2048)),
    f.CoPE(original_length=2048),
    f.CoPE(clipped=5, rule=f.NTK(2.0)),
    f.Given(tuple(0.9**c for c in range(32)), 1.1),
]


class TestEveryRule:
    @pytest.mark.parametrize("rule", EVERY_RULE, ids=repr)
    def test_schedules_are_real_numbers_inside_an_empty_model(self, rule: f.Rule) -> None:
        expected = rule.schedule(64, 1e4).frequencies
        with torch.device("meta"):
            assert torch.equal(rule.schedule(64, 1e4).frequencies, expected)

    @pytest.mark.parametrize("rule", EVERY_RULE, ids=repr)
    def test_round_trip(self, rule: f.Rule) -> None:
        again = f.Rule.from_dict(json.loads(json.dumps(rule.to_dict())))
        assert again == rule and hash(again) == hash(rule) and type(again) is type(rule)
        assert torch.equal(again.schedule(64, 1e4).frequencies, rule.schedule(64, 1e4).frequencies)

    def test_every_registered_rule_is_tested_and_says_what_it_does(self) -> None:
        assert {rule.name for rule in EVERY_RULE} == set(f.rules())
        assert all(cls.summary and cls.__doc__ for cls in f.rules().values())

    @pytest.mark.parametrize(
        ("data", "text"),
        [
            ({"name": "yran", "factor": 2.0}, "did you mean yarn"),
            ({}, "choose from"),
            ({"name": "linear", "facto": 2.0}, "did you mean factor"),
            ({"name": "linear"}, "needs this field"),
            ({"name": "resonance", "rule": {"name": "lineal", "factor": 2.0}}, "did you mean linear"),
            ("linear", "give a dict"),
            ({"name": "linear", "factor": "two"}, "finite number of at least 1"),
        ],
    )
    def test_refusals(self, data: Any, text: str) -> None:
        with pytest.raises(ArgumentError, match=text):
            f.Rule.from_dict(data)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        *[(lambda v=v: f.Linear(v), "factor") for v in (0, 0.99, -1, NAN, INF, None, True, "2")],
        *[(lambda v=v: f.NTK(v), "factor") for v in (0.5, NAN, None)],
        *[(lambda v=v: f.DynamicNTK(v, 2048), "target_length") for v in (0, -5, 2.5, None, True)],
        (lambda: f.DynamicNTK(2048, 0), "original_length"),
        (lambda: f.DynamicNTK(2048, 2048, 0.5), "factor"),
        (lambda: f.NTKByParts(2.0, 2048, beta_fast=1.0, beta_slow=1.0), "beta_fast"),
        (lambda: f.NTKByParts(2.0, 2048, beta_slow=0), "beta_slow"),
        (lambda: f.YaRN(2.0, 2048, beta_fast=1.0, beta_slow=2.0), "beta_fast"),
        (lambda: f.YaRN(0.5, 2048), "factor"),
        (lambda: f.YaRN(2.0, 2048, attention_factor=0), "attention_factor"),
        (lambda: f.YaRN(2.0, 2048, mscale=-1.0), "mscale"),
        (lambda: f.YaRN(2.0, 2048, truncate=1), "truncate"),
        (lambda: f.Llama3(8.0, 8192, 4.0, 4.0), "high_freq_factor"),
        (lambda: f.Llama3(8.0, 8192, 0.0), "low_freq_factor"),
        (lambda: f.LongRoPE((), (1.0,), 4096, 8192), "short_factor"),
        (lambda: f.LongRoPE((1.0,), (0.0,), 4096, 8192), r"long_factor\[0\]"),
        (lambda: f.LongRoPE(1.0, (1.0,), 4096, 8192), "short_factor"),
        (lambda: f.LongRoPE((1.0,), (1.0,), 1, 8192), "original_length"),
        (lambda: f.Resonance("yarn"), "rule"),
        (lambda: f.CoPE(), "clipped"),
        (lambda: f.CoPE(2048, 5), "clipped"),
        (lambda: f.CoPE(clipped=-1), "clipped"),
        (lambda: f.CoPE(original_length=0), "original_length"),
        (lambda: f.Given((1.0, NAN)), r"frequencies\[1\]"),
        (lambda: f.Given((1.0,), 0.0), "attention_scale"),
        (lambda: f.Given((1.0, 0.5)).schedule(8, 1e4), r"len\(frequencies\)"),
        (lambda: f.LongRoPE((1.0,) * 4, (1.0,) * 3, 64, 32).schedule(8, 1e4), r"len\(long_factor\)"),
        (lambda: f.NTK(2.0).schedule(2, 1e4), "rotary_dim"),
        (lambda: f.Linear(2.0).schedule(7, 1e4), "rotary_dim"),
        (lambda: f.Given((1.0, 0.5)).schedule(4, 1.0), "base"),
        *[(lambda v=v: f.default_schedule(8, v), "base") for v in (1, 0.5, NAN, INF, "1e4")],
    ],
)
def test_wrong_arguments_are_named(make: Any, argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{argument}=") as caught:
        make()
    assert "\n" not in str(caught.value)


class TestByName:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("linear", f.Linear(4.0)),
            ("ntk", f.NTK(4.0)),
            ("dynamic_ntk", f.DynamicNTK(8192, 2048)),
            ("ntk_by_parts", f.NTKByParts(4.0, 2048)),
            ("yarn", f.YaRN(4.0, 2048)),
            ("llama3", f.Llama3(4.0, 2048)),
            ("resonance", f.Resonance()),
            ("cope", f.CoPE(original_length=2048)),
        ],
    )
    def test_the_factor_is_the_ratio_of_lengths(self, name: str, expected: f.Rule) -> None:
        assert f.rule_for(name, 2048, 8192) == expected

    def test_a_shorter_target_asks_for_no_stretch(self) -> None:
        assert f.rule_for("yarn", 2048, 512) == f.YaRN(1.0, 2048)

    @pytest.mark.parametrize("name", ["linear", "ntk", "dynamic_ntk", "ntk_by_parts", "yarn", "llama3"])
    def test_a_factor_given_is_taken(self, name: str) -> None:
        assert f.rule_for(name, 2048, 8192, factor=2.5).factor == 2.5  # type: ignore[attr-defined]

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (("longrope", 2048, 8192), "needs lists of numbers"),
            (("given", 2048, 8192), "needs lists of numbers"),
            (("resonance", 2048, 8192, 2.0), "has no factor"),
            (("cope", 2048, 8192, 2.0), "has no factor"),
            (("yern", 2048, 8192), "did you mean yarn"),
            (("yarn", 0, 8192), "original_length=0"),
            (("yarn", 2048, None), "target_length=None"),
            (("yarn", 2048, 8192, 0.5), "factor=0.5"),
        ],
    )
    def test_refusals(self, arguments: tuple[Any, ...], text: str) -> None:
        with pytest.raises(ArgumentError, match=text):
            f.rule_for(*arguments)


class TestFromTransformers:
    def test_plain(self) -> None:
        assert f.rule_from_hf({"rope_type": "default", "rope_theta": 1e4}, 2048) is None
        assert f.rule_from_hf({"rope_theta": 1e4}, 2048) is None

    @pytest.mark.parametrize("kind", ["proportional", "axial", "su"])
    def test_kinds_without_a_rule_are_refused(self, kind: str) -> None:
        with pytest.raises(ArgumentError, match=f"rope_type='{kind}'.*Given"):
            f.rule_from_hf({"rope_type": kind, "factor": 2.0}, 2048)

    def test_a_missing_key_is_named(self) -> None:
        with pytest.raises(ArgumentError, match=r"rope_parameters\['high_freq_factor'\]"):
            f.rule_from_hf({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}, 2048)

    def test_yarn_without_a_factor_takes_the_ratio(self) -> None:
        parameters = {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 1024}
        assert f.rule_from_hf(parameters, 4096) == f.YaRN(4.0, 1024)

    def test_dynamic_starts_unchanged(self) -> None:
        assert f.rule_from_hf({"rope_type": "dynamic", "factor": 2.0}, 2048) == f.DynamicNTK(2048, 2048, 2.0)
