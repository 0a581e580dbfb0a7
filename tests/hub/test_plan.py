"""Plans: saved and read back the same, refused when damaged, installed on their own model only."""

from __future__ import annotations

import copy
import importlib.resources
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HFValidationError
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig

import ropewalk
from ropewalk.encodings.base import Encoding
from ropewalk.encodings.dope import DoPE
from ropewalk.encodings.nope import NoPE
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import ArgumentError, DamagedFileError, MismatchedModelError, RopewalkError
from ropewalk.heads import HeadSelection
from ropewalk.hub.model_card import plan_card
from ropewalk.hub.plan import Plan
from ropewalk.patching.handle import handle_of
from ropewalk.patching.install import install
from ropewalk.scaling import NTK, Given, LongRoPE, Resonance, YaRN

ROPE = RoPE(16, rule=NTK(2.0))
ENCODINGS: list[Encoding] = [
    ROPE,
    RoPE(16, 500000.0, YaRN(4.0, 128), "interleaved", 8),
    RoPE(16, rule=Given(tuple((torch.rand(8) + 0.1).tolist()), 1.1)),
    RoPE(16, rule=LongRoPE((1.0,) * 8, (4.0,) * 8, original_length=128, target_length=256)),
    RoPE(16, rule=Resonance(NTK(2.0))),
    NoPE(),
    DoPE(ROPE, HeadSelection([(3, 1), (0, 5)]), mode="gaussian", seed=7, original_length=128),
    PerLayer(tuple((layer, ROPE if layer % 2 else RoPE(16)) for layer in range(4))),
    DoPE(PerLayer(((0, ROPE), (1, RoPE(16)))), HeadSelection([(0, 5)]), original_length=128),
]


@pytest.fixture
def plan(tiny_llama: LlamaForCausalLM) -> Plan:
    heads = HeadSelection([(3, 1), (0, 5)])
    evidence = {"nll": {"plain": 2.2, "plan": 0.24}, "interval": (0.1, 0.3), "prompts": 40}
    return Plan.of(tiny_llama, DoPE(ROPE, heads, original_length=128), 256, evidence=evidence)


def logits(model: LlamaForCausalLM, tokens: int) -> torch.Tensor:
    ids = torch.arange(tokens)[None] * 7 % 250
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda encoding: type(encoding).__name__)
def test_round_trip(tiny_llama: LlamaForCausalLM, encoding: Encoding, tmp_path: Path) -> None:
    plan = Plan.of(tiny_llama, encoding, 256, when="always", evidence={"pairs": ((1, 2.5), (3, 0.1))})
    plan.save_pretrained(tmp_path / "a" / "b")
    assert Plan.from_pretrained(tmp_path / "a" / "b") == plan
    assert ropewalk.from_pretrained(str(tmp_path / "a" / "b")) == plan
    assert os.listdir(tmp_path / "a" / "b") == ["plan.json"]


def test_a_fresh_process_knows_every_kind_of_encoding() -> None:
    """Names of `import ropewalk` load late, so nothing else need have imported an encoding's file."""
    known = "import ropewalk.hub.plan, ropewalk.encodings.base as base; print(*base.encodings())"
    path = os.pathsep.join(filter(None, sys.path))
    run = subprocess.run(
        [sys.executable, "-c", known], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    files = importlib.resources.files("ropewalk.encodings").iterdir()
    texts = [file.read_text() for file in files if file.name.endswith(".py")]
    written = {kind for text in texts for kind in re.findall(r'^    kind: ClassVar\[str\] = "(\w+)"', text, re.M)}
    assert written >= {"rope", "nope", "dope", "per_layer"}
    assert set(run.stdout.split()) == written


def test_the_file_says_everything(plan: Plan, tmp_path: Path) -> None:
    plan.save_pretrained(tmp_path)
    text = (tmp_path / "plan.json").read_text()
    content = json.loads(text)
    assert (content["format"], content["format_version"]) == ("ropewalk.plan", 1)
    assert (content["original_length"], content["target_length"], content["when"]) == (128, 256, "long")
    assert content["encoding"]["rope"]["rule"] == {"name": "ntk", "factor": 2.0}
    assert content["encoding"]["heads"] == [[0, 5], [3, 1]]
    assert (content["encoding"]["mode"], content["encoding"]["seed"]) == ("all", 42)
    assert content["model"]["num_layers"] == 4 and len(content["model"]["fingerprint"]) == 64
    assert content["torch_version"] == torch.__version__ and content["ropewalk_version"]
    assert text.startswith('{\n  "format"') and text.endswith("}\n")


def test_a_saved_plan_replaces_an_older_one(plan: Plan, tmp_path: Path) -> None:
    for target in (256, 512):
        newer = Plan(plan.encoding, plan.model, 128, target)
        newer.save_pretrained(tmp_path)
    assert Plan.from_pretrained(tmp_path).target_length == 512
    assert os.listdir(tmp_path) == ["plan.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_crash_while_saving_leaves_the_old_plan(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    plan.save_pretrained(tmp_path)
    monkeypatch.setattr(os, step, full)
    with pytest.raises(ArgumentError, match="No space left") as caught:
        Plan(plan.encoding, plan.model, 128, 512).save_pretrained(tmp_path)
    assert str(tmp_path / "plan.json") in str(caught.value) and "\n" not in str(caught.value)
    assert Plan.from_pretrained(tmp_path) == plan and os.listdir(tmp_path) == ["plan.json"]


def test_an_unwritable_folder(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match=r"file.*can't write here") as caught:
        plan.save_pretrained(tmp_path / "file" / "folder")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.pop("encoding"), "lacks encoding"),
        (lambda c: c.update(colour="red"), "unknown colour"),
        (lambda c: c.update(format="ropewalk.records"), "isn't a plan"),
        (lambda c: c.update(format_version=2), "update ropewalk"),
        (lambda c: c.update(format_version="1"), "format_version '1'"),
        (lambda c: c.update(target_length="256"), "target_length='256'"),
        (lambda c: c.update(target_length=True), "target_length=True"),
        (lambda c: c.update(target_length=64), "shorter than the training length"),
        (lambda c: c.update(when="lnog"), "did you mean long"),
        (lambda c: c.update(when=[]), "when=[]"),
        (lambda c: c.update(evidence=[]), "evidence=[]"),
        (lambda c: c.update(evidence={"nll": float("nan")}), "isn't plain JSON"),
        (lambda c: c.update(torch_version=2.6), "torch_version=2.6"),
        (lambda c: c.update(model=None), "model=None"),
        (lambda c: c["model"].pop("num_layers"), "model='num_layers': is missing"),
        (lambda c: c["model"].update(colour="red"), "model='colour': is unknown"),
        (lambda c: c["model"].update(num_layers="4"), "model['num_layers']='4'"),
        (lambda c: c["model"].update(num_layers=True), "model['num_layers']=True"),
        (lambda c: c.update(encoding="dope"), "encoding='dope'"),
        (lambda c: c.update(encoding={}), "kind=''"),
        (lambda c: c["encoding"].update(kind="dop"), "did you mean dope"),
        (lambda c: c["encoding"].update(kind=[]), "kind"),
        (lambda c: c["encoding"].update(colour="red"), "colour='red'"),
        (lambda c: c["encoding"].pop("rope"), "rope"),
        (lambda c: c["encoding"].update(heads=[[0]]), "pairs=[0]"),
        (lambda c: c["encoding"].update(mode=3), "mode=3"),
        (lambda c: c["encoding"].update(sigma="1"), "sigma='1'"),
        (lambda c: c["encoding"]["rope"].update(rule={"name": "ntk"}), "factor"),
    ],
)
def test_a_damaged_plan(plan: Plan, tmp_path: Path, change: Any, said: str) -> None:
    plan.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "plan.json").read_text())
    change(content)
    (tmp_path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(DamagedFileError) as caught:
        Plan.from_pretrained(tmp_path)
    assert said in str(caught.value) and str(tmp_path / "plan.json") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [TypeError, AttributeError, KeyError, RecursionError, OverflowError])
def test_an_encoding_that_fails_in_its_own_way(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(_: Any) -> None:
        raise error("two\nlines")

    plan.save_pretrained(tmp_path)
    monkeypatch.setattr(Encoding, "from_dict", fail)
    with pytest.raises(DamagedFileError, match=r"plan\.json: no encoding can be made of it") as caught:
        Plan.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b'{"format": "rope', b"[1]", b"\xff\xfe", b"[" * 100_000, b"null"])
def test_a_file_of_something_else(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"plan\.json: isn't") as caught:
        Plan.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_plan_cut_short(plan: Plan, tmp_path: Path) -> None:
    plan.save_pretrained(tmp_path)
    whole = (tmp_path / "plan.json").read_bytes()
    for length in range(0, len(whole) - 1, 25):  # the last byte is only the end of a line
        (tmp_path / "plan.json").write_bytes(whole[:length])
        with pytest.raises(DamagedFileError):
            Plan.from_pretrained(tmp_path)


def test_no_plan_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place, said in [
        (tmp_path, "holds no plan.json"),
        (tmp_path / "missing", "no such folder"),
        (tmp_path / "file", "give the folder"),
        ("./missing", "no such folder"),
        ("", "holds no plan.json"),
        ("nobody/nothing", "can't be had from the Hugging Face Hub"),
    ]:
        with pytest.raises(ArgumentError, match=said) as caught:
            Plan.from_pretrained(place)
        assert "\n" not in str(caught.value)


def test_a_plan_from_the_hub(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def download(repo_id: str, filename: str, **options: Any) -> str:
        asked.append((repo_id, filename, options))
        return str(tmp_path / filename)

    plan.save_pretrained(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert Plan.from_pretrained("someone/plan", revision="v1", token="t") == plan
    assert asked == [("someone/plan", "plan.json", {"revision": "v1", "token": "t"})]


class FakeHub:
    """Stands for HfApi: notes what it is asked and keeps the uploaded files."""

    def __init__(self, token: str | None = None):
        self.calls: list[Any] = [("token", token)]
        self.files: dict[str, str] = {}

    def __call__(self, token: str | None = None) -> FakeHub:
        self.calls.append(("token", token))
        return self

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        self.calls.append(("create_repo", repo_id, options))
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def create_branch(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create_branch", repo_id, options))

    def upload_folder(self, repo_id: str, folder_path: str, revision: str | None, commit_message: str) -> None:
        self.calls.append(("upload_folder", repo_id, revision))
        self.files = {file.name: file.read_text() for file in Path(folder_path).iterdir()}


def test_a_plan_to_the_hub(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub()
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    plan.push_to_hub("plan", private=True, token="t", revision="v1")
    assert hub.calls[1:] == [
        ("token", "t"),
        ("create_repo", "plan", {"private": True, "exist_ok": True}),
        ("create_branch", "me/plan", {"branch": "v1", "exist_ok": True}),
        ("upload_folder", "me/plan", "v1"),
    ]
    plan.save_pretrained(tmp_path)
    assert hub.files == {"plan.json": (tmp_path / "plan.json").read_text(), "README.md": plan_card(plan, "me/plan")}


def test_saving_can_push(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub()
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    plan.save_pretrained(tmp_path / "mine", push_to_hub=True)
    plan.save_pretrained(tmp_path / "mine", push_to_hub=True, repo_id="other")
    assert [call[1] for call in hub.calls if call[0] == "upload_folder"] == ["me/mine", "me/other"]
    assert Plan.from_pretrained(tmp_path / "mine") == plan


@pytest.mark.parametrize("error", [ConnectionError("no\nroute"), HFValidationError("bad id"), RuntimeError()])
def test_a_hub_that_refuses(plan: Plan, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(FakeHub, "upload_folder", refuse)
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub())
    with pytest.raises(ArgumentError, match="can't be uploaded") as caught:
        plan.push_to_hub("plan")
    assert "\n" not in str(caught.value)


def test_install_switches_the_plan_on_and_off(plan: Plan, tiny_llama: LlamaForCausalLM) -> None:
    short, long = logits(tiny_llama, 100), logits(tiny_llama, 140)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with plan.installed(tiny_llama) as model:
            assert model is tiny_llama
            assert torch.allclose(logits(tiny_llama, 100), short, atol=1e-5)  # fits the training length
            assert not torch.allclose(logits(tiny_llama, 140), long, atol=1e-3)
        with plan.installed(tiny_llama, when="always"):
            assert not torch.allclose(logits(tiny_llama, 100), short, atol=1e-3)
        handle = plan.install(tiny_llama, strict=True)
    assert handle.encoding == plan.encoding
    handle.remove()
    assert torch.equal(logits(tiny_llama, 140), long)


def test_the_plans_own_training_length_decides(plan: Plan, tiny_llama: LlamaForCausalLM) -> None:
    before = logits(tiny_llama, 100)
    with Plan.of(tiny_llama, plan.encoding, 256, original_length=64).installed(tiny_llama):
        assert not torch.allclose(logits(tiny_llama, 100), before, atol=1e-3)


def test_installed_is_undone_after_an_exception(plan: Plan, tiny_llama: LlamaForCausalLM) -> None:
    before = logits(tiny_llama, 140)
    with pytest.raises(KeyError), plan.installed(tiny_llama):
        raise KeyError
    assert torch.equal(logits(tiny_llama, 140), before)


def test_a_rope_that_the_model_was_saved_with_makes_room(plan: Plan, tiny_llama: LlamaForCausalLM) -> None:
    with plan.installed(tiny_llama):
        expected = logits(tiny_llama, 200)
    plain = logits(tiny_llama, 200)
    install(tiny_llama, RoPE(16))  # as `ropewalk train` saves it
    with plan.installed(tiny_llama):
        assert torch.equal(logits(tiny_llama, 200), expected)
    assert torch.equal(logits(tiny_llama, 200), plain)
    assert handle_of(tiny_llama).encoding == RoPE(16)  # what save_pretrained writes is what it was
    handle = plan.install(tiny_llama)
    assert torch.equal(logits(tiny_llama, 200), expected)
    handle.remove()
    assert handle_of(tiny_llama) is None and torch.equal(logits(tiny_llama, 200), plain)


@pytest.mark.parametrize("encoding", [RoPE(16, base=5000.0), NoPE()])
def test_another_encoding_that_the_model_was_saved_with_makes_no_room(
    encoding: Encoding, plan: Plan, tiny_llama: LlamaForCausalLM
) -> None:
    install(tiny_llama, encoding)
    with pytest.raises(ArgumentError, match="has an encoding installed"):
        plan.install(tiny_llama)
    assert handle_of(tiny_llama).encoding == encoding


def test_another_architecture_is_refused(plan: Plan) -> None:
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    other = LlamaForCausalLM(config).eval()
    with pytest.raises(MismatchedModelError) as caught:
        plan.install(other)
    assert "num_layers: plan 4, model 3" in str(caught.value)
    assert "num_heads: plan 6, model 4" in str(caught.value)
    assert "num_kv_heads" not in str(caught.value) and "\n" not in str(caught.value)
    assert "forward" not in other.model.layers[0].self_attn.__dict__


def test_other_weights_are_warned_of_or_refused(plan: Plan, tiny_llama: LlamaForCausalLM) -> None:
    tuned = copy.deepcopy(tiny_llama)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.mul_(1.01)
    with pytest.warns(UserWarning, match="other weights") as warned, plan.installed(tuned):
        pass
    assert len(warned) == 1 and "\n" not in str(warned[0].message)
    with pytest.raises(MismatchedModelError, match="other weights"):
        plan.install(tuned, strict=True)
    assert "forward" not in tuned.model.layers[0].self_attn.__dict__


def test_weights_that_cannot_be_compared_are_not_taken_for_the_same(plan: Plan, tiny_llama: LlamaForCausalLM) -> None:
    blind = Plan(plan.encoding, plan.model | {"fingerprint": None}, 128, 256)
    with torch.device("meta"):
        empty = LlamaForCausalLM(tiny_llama.config)
    for compared, model in [(blind, tiny_llama), (plan, empty), (blind, empty)]:
        with pytest.raises(MismatchedModelError, match="other weights"):
            compared.install(model, strict=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"target_length": 64}, "target_length=64"),
        ({"target_length": 0}, "target_length=0"),
        ({"original_length": -1}, "original_length=-1"),
        ({"when": "short"}, "when='short'"),
        ({"encoding": "rope"}, "encoding='rope'"),
        ({"evidence": {"x": object()}}, "plain JSON"),
        ({"evidence": {"x": float("inf")}}, "plain JSON"),
    ],
)
def test_bad_arguments(tiny_llama: LlamaForCausalLM, arguments: dict[str, Any], said: str) -> None:
    given = {"encoding": ROPE, "target_length": 256} | arguments
    with pytest.raises(RopewalkError) as caught:
        Plan.of(tiny_llama, **given)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_bad_when_is_refused_on_install(plan: Plan, tiny_llama: LlamaForCausalLM) -> None:
    with pytest.raises(ArgumentError, match="did you mean always"):
        plan.install(tiny_llama, when="alwyas")


def test_a_config_without_a_training_length() -> None:
    bare = torch.nn.Linear(2, 2)
    bare.config = PretrainedConfig()
    with pytest.raises(ArgumentError, match="original_length"):
        Plan.of(bare, ROPE, 256)
    assert Plan.of(bare, ROPE, 256, original_length=128).original_length == 128


def test_a_plan_keeps_its_own_copies(plan: Plan) -> None:
    described, evidence = dict(plan.model), {"prompts": 40}
    made = Plan(plan.encoding, described, 128, 256, evidence=evidence)
    described.clear()
    evidence.clear()
    assert made.model == plan.model and made.evidence == {"prompts": 40}


def test_summary(plan: Plan, tiny_llama: LlamaForCausalLM) -> None:
    text = plan.summary()
    for part in (
        "llama, 4 layers",
        "256 tokens",
        "128",
        "all (nope)",
        "0.5, 3.1",
        "ntk",
        "2.2",
        "prompts: 40",
    ):
        assert part in text
    assert len(text.splitlines()) == 8
    for encoding in ENCODINGS:
        made = Plan.of(tiny_llama, encoding, 256, when="always").summary()
        assert "installed: always" in made and max(map(len, made.splitlines())) < 160
