from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ropewalk.encodings.dope import READINGS
from ropewalk.errors import ArgumentError
from ropewalk.evaluation.sweep_config import (
    DoPEEntry,
    ModelEntry,
    PlanEntry,
    build_config,
    read_config,
)
from ropewalk.tasks.base import REPORT_FIRST

LEAST: dict[str, Any] = {"models": "smollm2", "plans": "plain", "tasks": "needle", "lengths": 300}


def build(**changed: Any) -> Any:
    return build_config(LEAST | changed)


def test_the_least_config_and_its_defaults() -> None:
    config = build()
    assert config.models == (ModelEntry("smollm2"),) and config.plans == (PlanEntry(),)
    assert [task.name for task in config.tasks] == ["needle"] and config.lengths == (300,)
    assert config.seeds == (0,) and config.prompts == 1 and config.calibration == "kjv"
    assert config.search.trials == 0 and config.search.prompts == 1


def test_lists_in_a_plan_stand_for_a_plan_each() -> None:
    config = build(
        plans=[
            "plain",
            {"rule": ["yarn", "resonance+ntk"], "factor": [1.5, 2]},
            {"rule": "ntk", "dope": {"mode": list(READINGS), "heads": [1, 3]}},
            {"dope": {"score": "band_entropy"}},
            {"plan": "some/folder", "name": "ours"},
        ]
    )
    rules = [(plan.rule, plan.factor) for plan in config.plans if plan.dope is None and plan.saved is None]
    assert rules[1:] == [("yarn", 1.5), ("yarn", 2.0), ("resonance+ntk", 1.5), ("resonance+ntk", 2.0)]
    dopes = [plan.dope for plan in config.plans if plan.rule == "ntk" and plan.dope]
    assert [(dope.mode, dope.heads, dope.r) for dope in dopes] == [
        (mode, heads, 32) for mode in READINGS for heads in (1, 3)
    ]
    assert config.plans[-2] == PlanEntry(dope=DoPEEntry(score="band_entropy"))
    assert config.plans[-1] == PlanEntry(saved="some/folder", name="ours")


def test_remaps_stand_by_their_names_and_count_as_rules() -> None:
    config = build(plans=["plain", "self_extend", "yarn", "rerope", {"rule": "ntk", "dope": {}}, "dual_chunk"])
    assert [plan.remap for plan in config.plans] == [None, "self_extend", None, "rerope", None, "dual_chunk"]
    assert [plan.is_rule for plan in config.plans] == [False, True, True, True, False, True]


def test_tasks_have_labels_that_tell_them_apart() -> None:
    config = build(tasks=["needle", {"task": "needle", "setting": "noisy"}, {"task": "perplexity", "label": "books"}])
    assert [task.label for task in config.tasks] == ["needle", "needle (noisy)", "books"]
    assert config.tasks[1].options == {"setting": "noisy"}
    ways = build(tasks=["perplexity", {"task": "perplexity", "way": "sliding", "stride": 30}])
    assert [task.label for task in ways.tasks] == ["perplexity", "perplexity (sliding)"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"lenghts": 3}, "lengths"),
        ({"models": []}, "models"),
        ({"plans": None}, "plans"),
        ({"models": [{"name": "a", "revison": "b"}]}, "revision"),
        ({"models": [3]}, "models[0]"),
        ({"models": ["a", "a"]}, "models"),
        ({"plans": ["yarm"]}, "yarn"),
        ({"plans": ["self_extent"]}, "self_extend"),
        ({"plans": [{"remap": "self_extent"}]}, "plans[0].remap='self_extent': did you mean self_extend"),
        ({"plans": [{"rule": "rerope"}]}, "plans[0].rule"),
        ({"plans": [{"rule": "yarn", "fator": 2}]}, "factor"),
        ({"plans": [{"factor": 2}]}, "rule, remap, dope and plan"),
        ({"plans": [{"rule": "longrope"}]}, "plans[0].rule"),
        ({"plans": [{"rule": "yarn", "factor": 0}]}, "plans[0].factor"),
        ({"plans": [{"rule": "yarn", "factor": "2x"}]}, "plans[0].factor"),
        ({"plans": [{"plan": "x", "rule": "yarn"}]}, "plans[0]"),
        ({"plans": [{"rule": ["yarn", "ntk"], "name": "both"}]}, "stands for 2 plans"),
        ({"plans": [{"dope": {"mod": "all"}}]}, "mode"),
        ({"plans": [{"dope": {"mode": "some"}}]}, "plans[0].dope.mode"),
        ({"plans": [{"dope": {"mode": "all", "reading": "drop"}}]}, "reading"),
        ({"plans": [{"dope": {"score": "entropy"}}]}, "matrix_entropy"),
        ({"plans": [{"dope": {"score": "band_entropy", "r": 4}}]}, "r=4"),
        ({"plans": [{"dope": {"score": "truncated_effective_rank"}}]}, "r=None"),
        ({"plans": [{"dope": {"heads": 0}}]}, "heads"),
        ({"plans": [{"dope": {"heads": True}}]}, "heads"),
        ({"plans": [{"dope": {"order": "up"}}]}, "ascending"),
        ({"plans": [{"dope": {"sigma": -1}}]}, "sigma"),
        ({"tasks": ["nedle"]}, "needle"),
        ({"tasks": [{"task": "needle", "deths": 3}]}, "depths"),
        ({"tasks": [{"text": "kjv"}]}, "tasks[0].task"),
        ({"tasks": ["needle", "needle"]}, "label"),
        ({"lengths": [0]}, "lengths[0]"),
        ({"lengths": [300, 300]}, "twice"),
        ({"seeds": [-1]}, "seeds[0]"),
        ({"prompts": 0}, "prompts"),
        ({"prompts": "3"}, "prompts"),
        ({"calibration": 3}, "calibration"),
        ({"original_length": 0}, "original_length"),
        ({"search": {"tials": 3}}, "trials"),
        ({"search": {"prompts": REPORT_FIRST + 1}}, "reported"),
        ({"search": {"space": {"mode": ["none"]}}}, "mode"),
        ({"search": {"space": {"score": ["truncated_entropi"]}}}, "truncated_entropy"),
        ({"search": {"space": {"rule": ["yarm"]}}}, "yarn"),
        ({"search": {"space": {"depth": [1]}}}, "search.space"),
        ({"search": [1]}, "search"),
        ({"seeds": []}, "seeds=[]: is empty"),
        ({"plans": ["longrope"]}, "plans[0]"),
        ({"plans": [{"rule": [], "name": "x"}]}, "plans[0].rule=[]: is empty"),
        ({"plans": [{"dope": {"heads": []}}]}, "plans[0].dope.heads=[]: is empty"),
        ({"plans": [{"dope": False}]}, "plans[0].dope=False"),
        ({"plans": [{"dope": {"mode": {"a": 1}}}]}, "plans[0].dope.mode"),
        ({"tasks": [{"task": "needle", "label": ["a"]}]}, "tasks[0].label"),
        ({"search": {"space": {"mode": []}}}, "search.space.mode=[]: is empty"),
        ({"search": {"space": {"score": [["x"]]}}}, "search.space.score"),
        ({"search": {"space": {"reading": ["typo"]}}}, "search.space.reading"),
        ({"search": {"space": {"r": [0]}}}, "search.space.r=0"),
        ({"tasks": [{"task": "perplexity", "way": "slide"}]}, "way='slide': did you mean sliding?"),
        ({"tasks": [{"task": "perplexity", "stride": 30}]}, "stride=30: is for the sliding way"),
        (
            {"tasks": [{"task": "perplexity", "way": "sliding", "stride": 300}]},
            "stride=300: give a whole number, 1 to",
        ),
        ({"tasks": [{"task": "perplexity", "way": "sliding", "stride": "half"}]}, "stride='half'"),
        ({"tasks": [{"task": "perplexity", "text": 3}]}, "text=3: must be a text"),
        ({"tasks": ["perplexity"], "lengths": [300, 1]}, "lengths=1"),
    ],
)
def test_what_cannot_be_is_refused_by_name_in_one_line(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        build(**changed)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_rules_may_be_named_alike_everywhere() -> None:
    assert build(plans=["resonance+yarn"]).plans == build(plans=[{"rule": "resonance+yarn"}]).plans
    assert build(search={"space": {"rule": ["plain", "yarn"]}}).search.space["rule"] == (None, "yarn")


@pytest.mark.parametrize("content", [b"models: [", b"\xff\xfe", b"- a\n- b\n", b"", b"!!python/object:os.system {}"])
def test_a_file_that_is_no_config_is_one_line(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    with pytest.raises(ArgumentError, match="config=") as caught:
        read_config(file)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="No such file"):
        read_config(tmp_path / "nowhere.yaml")
    with pytest.raises(ArgumentError, match="read here"):
        read_config(tmp_path)
