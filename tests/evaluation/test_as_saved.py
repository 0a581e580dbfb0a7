"""Models that were saved with an encoding: what a sweep takes off them, keeps on them and tells them apart by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data.tokenizers import byte_tokenizer
from tests.evaluation.sweeps import CONFIG, TEXT, filled, needles_folder
from tests.evaluation.tiny_models import tiny

from ropewalk.analysis.calibration_pass import measure
from ropewalk.data.text import draw_window
from ropewalk.encodings.absolute import Learned
from ropewalk.encodings.alibi import ALiBi
from ropewalk.encodings.base import Encoding
from ropewalk.encodings.dope import DoPE
from ropewalk.encodings.nope import NoPE
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.pope import PoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.encodings.self_extend import SelfExtend
from ropewalk.errors import ArgumentError
from ropewalk.evaluation.as_saved import AsSaved, as_saved
from ropewalk.evaluation.cells import Cell, Cells
from ropewalk.evaluation.grid import Windows, build_task
from ropewalk.evaluation.likelihood import token_nll
from ropewalk.evaluation.local_engine import Local
from ropewalk.evaluation.ray_engine import _Worker
from ropewalk.evaluation.reader import Reader
from ropewalk.evaluation.sweep_config import ModelEntry, build_config
from ropewalk.evaluation.sweep_run import Loaded, Outcome, report_indices, run_sweep
from ropewalk.hub.fingerprint import fingerprint
from ropewalk.hub.loading import load_model
from ropewalk.patching import handle_of, install
from ropewalk.scaling import NTK, YaRN

DOPE = {"rule": "ntk", "factor": 2.0, "dope": {"mode": "all", "heads": 2, "score": "band_entropy"}}
TASKS = [
    {"task": "needle", "text": "{folder}/text.txt", "depths": 2},
    {"task": "perplexity", "text": "{folder}/text.txt"},
]
PLANS = ["plain", {"rule": "ntk", "factor": 2.0}, DOPE]


def saved_with(place: Path, encoding: Encoding, change: Callable[[Any], None] = lambda _: None, **options: Any) -> Path:
    """The folder of `needles_folder`, its model saved with an encoding after `change` has been at it."""
    folder = needles_folder(place)
    model = tiny("Llama")
    install(model, encoding, **options)
    change(model)
    model.save_pretrained(folder)
    return folder


def swept(folder: Path, out: Path, **changed: Any) -> tuple[Outcome, dict[str, list[Any]]]:
    """What a sweep finds, and by plan what each of its cells holds but the seconds."""
    content = CONFIG | {"tasks": TASKS, "plans": PLANS, "prompts": 1, "original_length": 128} | changed
    config = build_config(filled(content, folder))
    with Cells(out) as cells:
        outcome = run_sweep(config, cells, lambda found: Local(Reader(found.model, found.tokenizer), cells))
        by_plan: dict[str, list[Any]] = {}
        for found in outcome.cells.values():
            for name, held in found.items():
                by_plan.setdefault(name, []).extend(_held(cells, cell) for cell in held)
    return outcome, by_plan


def _held(cells: Cells, cell: Cell) -> Any:
    return cell.prompt, cell.nll, cells.answers(cell)


def test_a_saved_rope_gives_what_the_same_weights_give_without(tmp_path: Path) -> None:
    bare = needles_folder(tmp_path / "bare")
    folder = saved_with(tmp_path / "saved", RoPE.from_model(tiny("Llama")))
    assert (folder / "model.safetensors").read_bytes() == (bare / "model.safetensors").read_bytes()
    wanted, found = (swept(place, tmp_path / f"out-{place.parent.name}")[1] for place in (bare, folder))
    assert len(found) == 3 and all(len(held) == 2 for held in found.values())
    assert found == wanted
    assert len({held[1][1] for held in found.values()}) == 3  # the plans differ


def test_rules_and_dope_act_on_the_rope_that_was_saved(tmp_path: Path) -> None:
    rope = RoPE(16, base=300.0, layout="interleaved")
    folder = saved_with(tmp_path, rope)
    swept(folder, tmp_path / "out")
    cells = Cells(tmp_path / "out")
    defined = [cells.definition("plan", cell.plan) for cell in cells.cells.values()]
    plans = {plan["name"]: Encoding.from_dict(plan["content"]) for plan in defined}
    ruled = RoPE(16, base=300.0, rule=NTK(2.0), layout="interleaved")
    (dope,) = [plan for plan in plans.values() if isinstance(plan, DoPE)]
    assert plans["plain"] == rope and plans["ntk x2"] == ruled and dope.rope == ruled
    # The heads are those of the rotation in force, in whose layout the pairs lie.
    model, tokenizer = load_model(str(folder))
    handle = handle_of(model)
    assert handle is not None
    handle.remove()
    ids = torch.tensor([draw_window(TEXT, tokenizer, 220, 0.37)])
    statistics = measure(model, ids, rope=ruled)
    assert statistics.layout == "interleaved"
    assert dope.heads == statistics.select("band_entropy", heads=2)


def test_plain_is_the_model_as_it_was_saved(tmp_path: Path) -> None:
    def learn(model: Any) -> None:
        torch.manual_seed(1)
        for path, parameter in model.named_parameters():
            if "position_encoding" in path:
                parameter.data.uniform_(-2.0, 0.0)

    folder = saved_with(tmp_path, PoPE(16, 2), learn)
    _, found = swept(folder, tmp_path / "out", plans=["plain"])
    model, tokenizer = load_model(str(folder))
    assert handle_of(model) is not None
    config = build_config(filled(CONFIG | {"tasks": TASKS}, folder))
    (first, *_), reader = report_indices(config), Reader(model, tokenizer)
    needles, windows = (build_task(entry, 220, 0, (0,)) for entry in config.tasks)
    assert isinstance(windows, Windows) and not isinstance(needles, Windows)
    prompt = needles.prompts(tokenizer, 1, first=first)[0]
    nll = float(token_nll(model, windows.ids(tokenizer, first)).double().mean())
    (by_needle, by_window) = found["plain"]
    assert by_needle[2] == reader.answers(prompt, "original")
    assert by_window[1] == nll


@pytest.mark.parametrize("encoding", [NoPE(), ALiBi(4), SelfExtend(RoPE(16), window=32)])
def test_other_encodings_are_measured_as_they_are(encoding: Encoding, tmp_path: Path) -> None:
    outcome, found = swept(saved_with(tmp_path, encoding), tmp_path / "out", plans=["plain"])
    assert list(found) == ["plain"] and len(found["plain"]) == 2
    assert outcome.picks[0].rule is None


@pytest.mark.parametrize(
    ("changed", "plan"),
    [
        ({"plans": ["plain", "yarn"]}, "yarn"),
        ({"plans": [DOPE]}, "ntk + DoPE all"),
        ({"plans": [{"dope": {"mode": "gaussian"}}]}, "plain + DoPE gaussian"),
        ({"plans": ["plain", "self_extend"]}, "self_extend"),
        ({"plans": [{"plan": "some/where"}]}, "some/where"),
        ({"plans": ["plain", {"rule": "ntk", "name": "mine"}]}, "mine"),
        ({"plans": ["plain"], "search": {"trials": 3}}, "search.trials"),
    ],
)
def test_a_model_without_rope_has_no_plan_but_plain(changed: dict[str, Any], plan: str, tmp_path: Path) -> None:
    folder = saved_with(tmp_path, PoPE(16, 2))
    with pytest.raises(ArgumentError) as caught:
        swept(folder, tmp_path / "out", **changed)
    said = str(caught.value)
    assert plan in said and str(folder) in said and "pope" in said and "\n" not in said
    assert not Cells(tmp_path / "out").cells and not (tmp_path / "out" / "statistics").exists()


def test_a_length_past_a_table_of_positions_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    folder = saved_with(tmp_path, Learned(64, 250))
    with pytest.raises(ArgumentError, match="has positions for 250 tokens, 251 are wanted"):
        swept(folder, tmp_path / "out", plans=["plain"], lengths=[220, 251])
    assert not Cells(tmp_path / "out").cells
    _, found = swept(folder, tmp_path / "out", plans=["plain"], lengths=[220, 250])
    assert len(found["plain"]) == 4


def test_an_encoding_for_long_inputs_alone_is_refused(tmp_path: Path) -> None:
    folder = saved_with(tmp_path, RoPE(16, rule=NTK(4.0)), when="long", original_length=128)
    with pytest.raises(ArgumentError, match="long inputs alone") as caught:
        swept(folder, tmp_path / "out", plans=["plain"])
    assert str(folder) in str(caught.value)


def about(encoding: Encoding | None, value: float = 0.0) -> AsSaved:
    model = tiny("Llama")
    if encoding is not None:
        install(model, encoding)
        for path, parameter in model.named_parameters():
            if "position_encoding" in path:
                parameter.data.fill_(value)
    found = as_saved(model, "there")
    assert (handle_of(model) is None) == (found.rotation is not None)
    return found


def test_fingerprints_tell_encodings_and_what_they_learned_apart() -> None:
    encodings = [RoPE(16, rule=YaRN(2.0, 256)), RoPE(16, 500.0), NoPE(), PoPE(16, 2), ALiBi(4)]
    prints = [about(encoding).about["fingerprint"] for encoding in (None, *encodings)]
    prints.append(about(PoPE(16, 2), value=-1.0).about["fingerprint"])
    assert len(set(prints)) == len(prints) and prints[0] == fingerprint(tiny("Llama"))
    # A model of the same weights that turns by the same RoPE is the same model.
    for same in (RoPE.from_model(tiny("Llama")), RoPE(16)):
        assert about(same).about["fingerprint"] == prints[0]


def test_what_a_model_turns_by() -> None:
    assert about(None).rotation == RoPE.from_model(tiny("Llama"))
    rope = RoPE(16, 500.0)
    layers = PerLayer(tuple((layer, rope) for layer in range(4)))
    assert about(rope).rotation == rope and about(layers).rotation == layers
    pope = about(PoPE(16, 2))
    assert pope.rotation is None and pope.encoding == PoPE(16, 2)


def test_workers_of_a_cluster_take_models_as_a_sweep_does(tmp_path: Path) -> None:
    folder = saved_with(tmp_path, RoPE(16, 500.0))
    seen: list[Loaded] = []
    content = CONFIG | {"plans": ["plain"], "prompts": 1, "original_length": 128}
    with Cells(tmp_path / "out") as cells:

        def engine_of(found: Loaded) -> Local:
            seen.append(found)
            return Local(Reader(found.model, found.tokenizer), cells)

        run_sweep(build_config(filled(content, folder)), cells, engine_of)
    worker = _Worker(ModelEntry(str(folder)), seen[0].identity, torch.get_num_threads())
    assert handle_of(worker._reader.model) is None


def test_layers_with_a_window_keep_the_rotation_that_was_saved() -> None:
    model = tiny("Mistral", sliding_window=32)
    model.config.layer_types = ["sliding_attention", "full_attention"] * 2
    rope = RoPE(16, 500.0)
    install(model, rope)
    own, stretched = as_saved(model, "there").to_stretch(model, 256)
    assert own == PerLayer(tuple((layer, rope) for layer in range(4)))
    assert [stretched(layer) for layer in range(4)] == [False, True] * 2


def test_the_tokenizer_is_beside_the_model(tmp_path: Path) -> None:
    folder = saved_with(tmp_path, NoPE())
    assert load_model(str(folder))[1].encode("abc") == byte_tokenizer().encode("abc")
