"""Model cards: the hub's own reader finds the figures, and no name can break the page."""

from __future__ import annotations

import ast
import re

import pytest
from huggingface_hub import ModelCard
from transformers import LlamaForCausalLM

from ropewalk.encodings.rope import RoPE
from ropewalk.hub.model_card import Figure, card, plan_card
from ropewalk.hub.plan import Plan
from ropewalk.scaling import YaRN

FIGURES = [
    Figure("plain", "needle, 512 tokens", "exact", 0.0, 0.0, 0.11, 3),
    Figure("plain", "needle, 512 tokens", "nll", 1.75432, 1.453, None, 3),
    Figure("yarn x2", "needle, 512 tokens", "exact", 0.25, 0.14, 0.44, 3),
]


def test_the_hub_reads_the_figures() -> None:
    data = ModelCard(card("A model", "What it is.", FIGURES, "owner/name")).data
    assert data.base_model == "owner/name"
    assert data.library_name == "ropewalk"
    found = [(r.dataset_name, r.metric_type, r.metric_value, r.metric_args) for r in data.eval_results]
    assert found == [
        ("needle, 512 tokens", "exact", 0.0, {"low": 0.0, "high": 0.11}),
        ("needle, 512 tokens", "nll", 1.7543, {"low": 1.453}),
        ("needle, 512 tokens", "exact", 0.25, {"low": 0.14, "high": 0.44}),
    ]
    assert "yarn x2" in data.eval_results[2].metric_name


def test_the_table_has_a_row_an_arm() -> None:
    lines = card("A model", "What it is.", FIGURES).splitlines()
    assert "| needle, 512 tokens | plain | 3 | 0.000 [0.000, 0.110] | 1.754 [1.453, –] |" in lines
    assert "| needle, 512 tokens | yarn x2 | 3 | 0.250 [0.140, 0.440] | – |" in lines


@pytest.mark.parametrize("base", [None, "/a/folder", "smollm2"])
def test_a_model_that_is_no_hub_repository_is_not_linked(base: str | None) -> None:
    assert ModelCard(card("A model", "What it is.", FIGURES, base)).data.base_model is None


def test_without_figures_there_is_no_table() -> None:
    text = card("A model", "What it is.", [])
    assert "|" not in text
    assert ModelCard(text).data.eval_results is None


def test_names_cannot_become_markup() -> None:
    text = card("<script>alert(1)</script>", "", [Figure("a | b <img>", "t", "exact", 1.0, 1.0, 1.0, 1)])
    body = text.split("---", 2)[2]
    assert "<script" not in body and "<img" not in body
    assert "a \\| b" in body
    assert ModelCard(text).data.model_name == "<script>alert(1)</script>"


def test_a_plan_says_how_to_switch_it_on(tiny_llama: LlamaForCausalLM) -> None:
    found = {"prompts": 3, "exact": {"mean": 0.5, "low": 0.2, "high": 0.8}, "nll": {"mean": 0.4, "low": 0.3, "high": 1}}
    evidence = {"yarn x2": found, "verdict": "It is better.", "note": {"anything": 1}}
    plan = Plan.of(tiny_llama, RoPE(16, rule=YaRN(2.0, 128)), 512, 128, evidence=evidence)
    text = plan_card(plan, "owner/it's")
    data = ModelCard(text).data
    assert [r.metric_value for r in data.eval_results] == [0.5, 0.4]
    assert {r.dataset_name for r in data.eval_results} == {"needle, 512 tokens"}
    assert "It is better." in text
    assert "yarn" in text
    block = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert block is not None
    calls = [node for node in ast.walk(ast.parse(block[1])) if isinstance(node, ast.Constant)]
    assert "owner/it's" in [node.value for node in calls]
