"""Models with length rules and plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data.tokenizers import byte_tokenizer, story
from tests.evaluation.runs import LENGTH, make_run
from tests.evaluation.tiny_models import tiny

from ropewalk.encodings.nope import NoPE
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import ArgumentError, MismatchedModelError
from ropewalk.evaluation.arms import Arm, arms, split_rules
from ropewalk.evaluation.evaluated_model import Subjects
from ropewalk.hub.plan import Plan
from ropewalk.patching import handle_of, installed
from ropewalk.scaling import NTK, Linear, YaRN
from ropewalk.training.tasks.language import Language

TOKENS = torch.arange(40)[None] * 7 % 15 + 1


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of RoPE and NoPE, two Llamas, a Gemma with windows, plans for the second Llama and one for none."""
    place = tmp_path_factory.mktemp("models")
    (place / "text.txt").write_text(story(300))
    task = Language(str(place / "text.txt"), length=LENGTH)
    make_run(place, "rope", RoPE(16), task)
    make_run(place, "nope", NoPE(), task)
    for name, model in (("llama", tiny("Llama")), ("gemma", tiny("Gemma2")), ("other", tiny("Llama"))):
        if name == "other":
            with torch.no_grad():
                model.lm_head.weight.mul_(2.0)
            for folder, rule in (("plan", NTK(3.0)), ("saved/plan", NTK(5.0)), ("linear", Linear(2.0))):
                Plan.of(model, RoPE(16, rule=rule), 512).save_pretrained(place / folder)
        model.save_pretrained(place / name)
        byte_tokenizer().save_pretrained(place / name)
    Plan.of(tiny("Llama", num_hidden_layers=2), RoPE(16), 512).save_pretrained(place / "stray")
    return place


def opened(place: Path, *names: str) -> Subjects:
    return Subjects([str(place / name) for name in names])


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(TOKENS).logits


def test_each_model_comes_plain_then_with_each_rule(place: Path) -> None:
    found = arms(opened(place, "rope/seed-0", "nope/seed-0").all, ("yarn", "ntk", "dynamic_ntk", "cope"), 32, 128)
    names = ["rope, seed 0", *(f"rope, seed 0 + {n}" for n in ("yarn x4", "ntk x4", "dynamic_ntk", "cope"))]
    assert [arm.name for arm in found] == [*names, "nope, seed 0"]
    assert [arm.encoding for arm in found[:3]] == [None, RoPE(16, rule=YaRN(4.0, 32)), RoPE(16, rule=NTK(4.0))]
    assert len({arm.identity for arm in found}) == 6
    (_, half) = arms(opened(place, "rope/seed-0").all, ("linear",), 32, 128, factor=2.0)
    assert half.encoding == RoPE(16, rule=Linear(2.0)) and half.name.endswith("linear x2")


def test_layers_with_windows_keep_their_rotation(place: Path) -> None:
    (_, ruled) = arms(opened(place, "gemma").all, ("ntk",), 256, 1024)
    assert isinstance(ruled.encoding, PerLayer)
    assert [e.rule for _, e in ruled.encoding.layers] == [None, NTK(4.0), None, NTK(4.0)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["rope/seed-0", "llama"])
def test_an_arm_is_the_model_with_its_encoding_and_leaves_it_as_it_was(place: Path, name: str) -> None:
    subjects = opened(place, name)
    plain, ruled = arms(subjects.all, ("ntk",), 32, 128)
    model = subjects.model(plain.subject)
    before = logits(model)
    with plain.ready(model):
        assert torch.equal(logits(model), before)
    with ruled.ready(model):
        inside = logits(model)
    assert not torch.allclose(inside, before, atol=1e-3)
    assert torch.equal(logits(model), before) and (handle_of(model) is None) == (name == "llama")
    if name == "llama":
        with installed(model, RoPE(16, rule=NTK(4.0))):
            assert torch.equal(logits(model), inside)
    with pytest.raises(KeyError), ruled.ready(model):
        raise KeyError
    assert torch.equal(logits(model), before)


def test_a_plan_is_for_the_model_that_it_was_made_for(place: Path) -> None:
    subjects = opened(place, "llama", "other")
    found = arms(subjects.all, plans=[str(place / "plan")])
    assert [arm.name for arm in found] == ["llama", "other", "other + plan plan"]
    with found[2].ready(subjects.model(found[2].subject)) as model:
        inside = logits(model)
    with installed(model, RoPE(16, rule=NTK(3.0))):
        assert torch.equal(logits(model), inside)  # at a length that fits the training length too


def test_several_plans_come_in_their_order_each_for_its_model(place: Path) -> None:
    plans = [str(place / "plan"), str(place / "saved" / "plan"), str(place / "linear")]
    subjects = opened(place, "llama", "other")
    found = arms(subjects.all, ("ntk",), 256, 512, plans=plans)
    # Folders of one name are told apart by what the user called them.
    wanted = ["ntk x2", f"plan {plans[0]}", f"plan {plans[1]}", "plan linear"]
    assert [arm.name for arm in found] == ["llama", "llama + ntk x2", "other", *(f"other + {n}" for n in wanted)]
    assert [arm.encoding.rule for arm in found[4:]] == [NTK(3.0), NTK(5.0), Linear(2.0)]  # type: ignore[union-attr]
    with pytest.raises(ArgumentError, match=r"^plan='[^']*linear/?': is given twice"):
        arms(subjects.all, plans=[plans[2], plans[0], plans[2] + "/"])
    with pytest.raises(MismatchedModelError, match=r"stray: the plan is for none"):
        arms(subjects.all, plans=[plans[0], str(place / "stray")])


def test_a_plan_of_the_same_shape_is_taken_with_a_warning(place: Path) -> None:
    subjects = opened(place, "llama")
    (_, planned) = arms(subjects.all, plans=[str(place / "plan")])
    with pytest.warns(UserWarning, match="other weights"), planned.ready(subjects.model(planned.subject)):
        pass


def test_a_plan_for_none_of_the_models_is_refused(place: Path) -> None:
    for names in (["llama", "other"], ["nope/seed-0"]):
        with pytest.raises(MismatchedModelError, match="for none of the models given"):
            arms(opened(place, *names).all, plans=[str(place / "stray")])


def test_wrong_rules_are_refused(place: Path) -> None:
    rope, nope = opened(place, "rope/seed-0").all, opened(place, "nope/seed-0").all
    with pytest.raises(ArgumentError, match="did you mean yarn"):
        arms(rope, ("yran",), 32, 64)
    with pytest.raises(ArgumentError, match=r"^rules='yarn,ntk': no model here turns by RoPE \(nope, seed 0\)"):
        arms(nope, ("yarn", "ntk"), 32, 64)
    with pytest.raises(ArgumentError, match="factor"):
        arms(rope, ("cope",), 32, 64, factor=2.0)


def test_rules_are_split_at_commas() -> None:
    assert split_rules(" yarn, ntk,") == ("yarn", "ntk") and split_rules("") == ()
    with pytest.raises(ArgumentError, match=r"^rules='ntk': is given twice"):
        split_rules("ntk,yarn,ntk")


def test_to_dict_says_model_and_encoding(place: Path) -> None:
    plain, ruled = arms(opened(place, "llama").all, ("ntk",), 32, 128)
    assert plain.to_dict()["encoding"] is None and plain.to_dict()["model"]["model_type"] == "llama"
    assert ruled.to_dict()["encoding"] == RoPE(16, rule=NTK(4.0), rotary_dim=16).to_dict()
    assert isinstance(ruled, Arm) and ruled.to_dict()["source"] == str(place / "llama")
