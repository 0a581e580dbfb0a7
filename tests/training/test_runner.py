"""One run: its curve and result, killed and resumed to the same numbers, finished ones only read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.training.tiny import SIZE, Echo, losses, quick_collections, recipe
from transformers import TrainerCallback

import ropewalk
from ropewalk.errors import ArgumentError
from ropewalk.patching.content_attention import is_own
from ropewalk.training import runner as resumable
from ropewalk.training import runner as run
from ropewalk.training.batches import Collator
from ropewalk.training.metrics import figures_of, measure
from ropewalk.training.run_folder import RunFolder
from ropewalk.training.runner import Result, prepared, train
from ropewalk.training.trainer import arguments

SHAKY = recipe(model=dataclasses.replace(SIZE, dropout=0.2, attention_dropout=0.1))


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with quick_collections():
        yield


class Killed(Exception):
    pass


class Kill(TrainerCallback):
    def __init__(self, step: int):
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self._step:
            raise Killed


class Notes:
    def __init__(self) -> None:
        self.began_at: list[tuple[str, int, int]] = []
        self.steps: list[int] = []
        self.last: tuple[float | None, float | None] = (None, None)
        self.ends: list[tuple[str, float | None]] = []

    def began(self, run: str, step: int, steps: int) -> None:
        self.began_at.append((run, step, steps))

    def moved(self, step: int, loss: float | None, metric: float | None) -> None:
        self.steps.append(step)
        self.last = (loss, metric)

    def ended(self, run: str, metric: float | None, seconds: float) -> None:
        self.ends.append((run, metric))


def trained(out: Path, name: str = "pope-uniform", r: Any = None, **options: Any) -> Result:
    r = r or recipe()
    return train(r, prepared(Echo(), r), name, 0, out, use_cpu=True, **options)


def curve(out: Path, name: str) -> list[dict[str, Any]]:
    return losses(RunFolder.of(out, name, 0).curve())


def weights(out: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(out / name / "seed-0" / "model" / "model.safetensors")


def plain(result: Result) -> Result:
    return dataclasses.replace(result, seconds=0.0, waiting=0.0)


def test_a_run_leaves_a_curve_a_model_and_a_result(tmp_path: Path) -> None:
    notes = Notes()
    result = trained(tmp_path, watch=notes)
    place = tmp_path / "pope-uniform" / "seed-0"
    assert {p.name for p in place.iterdir()} - {"tensorboard"} == {"run.json", "curve.jsonl", "result.json", "model"}
    points = RunFolder.of(tmp_path, "pope-uniform", 0).curve()
    assert [p["step"] for p in points] == [2, 4, 6, 8, 10]
    assert [p["step"] for p in points if "metric" in p] == [4, 8, 10]  # every 4 steps, and the last
    assert all(p["metric"] == p["sequence_accuracy"] for p in points if "metric" in p)
    assert 0 < points[0]["seconds"] < points[-1]["seconds"] and 1e-3 < points[-1]["learning_rate"] < 1.3e-3
    assert 0 < result.waiting < 1 and result.waiting == pytest.approx(
        points[-1]["waiting"] / points[-1]["stepping"], abs=1e-4
    )
    assert notes.began_at == [("pope-uniform, seed 0", 0, 10)] and notes.steps == list(range(1, 11))
    assert notes.last[0] == points[-2]["loss"] and notes.ends == [("pope-uniform, seed 0", result.value)]
    saved = json.loads((place / "result.json").read_text())
    assert Result.from_dict(saved) == result and saved["run"]["seed"] == 0 and "torch" in saved["versions"]


def board(folder: RunFolder, name: str) -> list[tuple[int, float]]:
    """What TensorBoard shows of a run: steps and values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder.path / "tensorboard"))
    events.Reload()
    return [(e.step, e.value) for e in events.Scalars(name)]


@pytest.mark.parametrize("killed", [(), (7,), (3, 7)])
def test_the_curve_goes_to_tensorboard_too_each_point_once(tmp_path: Path, killed: tuple[int, ...]) -> None:
    pytest.importorskip("tensorboard")
    for step in killed:
        with pytest.raises(Killed):
            trained(tmp_path, "rope", callbacks=(Kill(step),))
    trained(tmp_path, "rope")
    folder = RunFolder.of(tmp_path, "rope", 0)
    for name in ("loss", "metric", "learning_rate"):
        expected = [(p["step"], pytest.approx(p[name], rel=1e-6)) for p in folder.curve() if name in p]
        assert expected and board(folder, name) == expected


def test_a_point_is_on_tensorboard_at_once_whatever_ends_the_process(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    shown: list[list[int]] = []

    class Look(TrainerCallback):  # type: ignore[misc, unused-ignore]
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 6:
                shown.append([step for step, _ in board(RunFolder.of(tmp_path, "rope", 0), "loss")])

    trained(tmp_path, "rope", callbacks=(Look(),))
    assert shown == [[2, 4, 6]]


def test_the_saved_model_has_its_encoding_and_the_results_figures(tmp_path: Path) -> None:
    r = recipe()
    result = trained(tmp_path, r=r)
    model = ropewalk.load(tmp_path / "pope-uniform" / "seed-0" / "model")
    rows = prepared(Echo(), r).rows["test"]
    found = figures_of(measure(model, rows, Collator(0, 12), 7, torch.device("cpu")))
    assert found.nll == pytest.approx(result.test["nll"], abs=1e-5) and model.config.use_cache
    assert result.own_parameters == 2 * 2 * 8 and result.parameters == model.num_parameters()


@pytest.mark.parametrize(("name", "step"), [("pope-uniform", 7), ("drope", 9), ("learned", 10)])
def test_a_killed_run_goes_on_to_the_very_same_numbers(tmp_path: Path, name: str, step: int) -> None:
    whole = trained(tmp_path / "whole", name, SHAKY)
    with pytest.raises(Killed):
        trained(tmp_path / "cut", name, SHAKY, callbacks=(Kill(step),))
    place = tmp_path / "cut" / name / "seed-0"
    assert not (place / "result.json").exists()
    with (place / "curve.jsonl").open("a") as file:
        file.write('{"step": 1')  # a line that a kill cut off
    notes = Notes()
    assert plain(trained(tmp_path / "cut", name, SHAKY, watch=notes)) == plain(whole)
    assert notes.began_at[0][1] == 4 * ((step - 1) // 4) and notes.steps[0] == notes.began_at[0][1] + 1
    assert curve(tmp_path / "cut", name) == curve(tmp_path / "whole", name)
    expected, found = weights(tmp_path / "whole", name), weights(tmp_path / "cut", name)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_run_killed_after_its_last_step_only_writes_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(resumable, "_save_model", stop)
        trained(tmp_path / "cut", "drope")
    notes = Notes()
    assert plain(trained(tmp_path / "cut", "drope", watch=notes)) == plain(trained(tmp_path / "whole", "drope"))
    assert notes.steps == [] and curve(tmp_path / "cut", "drope") == curve(tmp_path / "whole", "drope")


def test_a_checkpoint_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        trained(tmp_path, callbacks=(Kill(9),))
    place = tmp_path / "pope-uniform" / "seed-0"
    assert {p.name for p in place.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-8"}
    assert not list(place.rglob("training_args.bin")) and list(place.rglob("model.safetensors"))
    (place / "checkpoint-8" / "trainer_state.json").write_text('{"global')
    notes = Notes()
    trained(tmp_path, watch=notes)
    assert notes.began_at[0][1] == 4 and not list(place.glob("checkpoint-*"))


def test_a_finished_run_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = trained(tmp_path)
    monkeypatch.setattr(run, "build_model", None)
    notes = Notes()
    assert trained(tmp_path, watch=notes) == result
    assert notes.ends == [("pope-uniform, seed 0", result.value)] and not notes.began_at


def test_a_run_that_another_process_is_training_is_refused_and_left_alone(tmp_path: Path) -> None:
    refused = []

    class Second(TrainerCallback):  # type: ignore[misc, unused-ignore]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            with pytest.raises(ArgumentError, match="another process is writing to it"):
                trained(tmp_path / "twice")
            refused.append(state.global_step)

    trained(tmp_path / "once")
    trained(tmp_path / "twice", callbacks=(Second(),))
    assert refused == list(range(1, 11))
    assert curve(tmp_path / "twice", "pope-uniform") == curve(tmp_path / "once", "pope-uniform")


def test_a_folder_of_another_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        trained(tmp_path, callbacks=(Kill(5),))
    place = tmp_path / "pope-uniform" / "seed-0"
    before = {p: p.stat().st_mtime_ns for p in place.rglob("*")}
    with pytest.raises(ArgumentError, match=r"recipe\.steps: 10 there, 12 here"):
        trained(tmp_path, r=recipe(steps=12))
    (tmp_path / "pope").mkdir()
    place.rename(tmp_path / "pope" / "seed-0")
    with pytest.raises(ArgumentError, match="name: 'pope-uniform' there"):
        trained(tmp_path, "pope")
    (tmp_path / "pope" / "seed-0").rename(place)
    assert {p: p.stat().st_mtime_ns for p in place.rglob("*")} == before
    (place / "run.json").unlink()
    with pytest.raises(ArgumentError, match=r"no run\.json"):
        trained(tmp_path)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    result = trained(tmp_path, "rope", recipe(learning_rate=1e30, clip=1e30))
    assert result.diverged is not None and result.steps == result.diverged < 10 and result.value is not None
    assert result.test["nll"] is None
    points = curve(tmp_path, "rope")
    assert points[-1]["loss"] is None and points[-1]["step"] == result.diverged


def test_batches_in_parts_give_the_same_run(tmp_path: Path) -> None:
    trained(tmp_path / "whole", "rope")
    trained(tmp_path / "parts", "rope", recipe(accumulation=2))
    for one, other in zip(curve(tmp_path / "whole", "rope"), curve(tmp_path / "parts", "rope"), strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_what_an_encoding_learns_may_have_a_rate_of_its_own(tmp_path: Path) -> None:
    class Rates(TrainerCallback):
        def __init__(self) -> None:
            self.ratios: list[float] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            named = {id(p): name for name, p in kwargs["model"].named_parameters()}
            rates: dict[bool, set[float]] = {True: set(), False: set()}
            for group in kwargs["optimizer"].param_groups:
                for parameter in group["params"]:
                    rates[is_own(named.pop(id(parameter)))].add(group["lr"])
            assert not named, "each parameter is in one group"
            (own,), (others,) = rates[True], rates[False]
            self.ratios.append(own / others)

    for rate in (1.0, 10.0):
        rates = Rates()
        trained(tmp_path / f"{rate}", r=recipe(own_rate=rate), callbacks=(rates,))
        assert rates.ratios == pytest.approx([rate] * 10)
    slow, fast = (curve(tmp_path / f"{rate}", "pope-uniform") for rate in (1.0, 10.0))
    assert slow != fast
    with pytest.raises(Killed):
        trained(tmp_path / "killed", r=recipe(own_rate=10.0), callbacks=(Kill(7),))
    trained(tmp_path / "killed", r=recipe(own_rate=10.0))
    assert curve(tmp_path / "killed", "pope-uniform") == fast
    # It is another run for what learns, and none for what doesn't.
    with pytest.raises(ArgumentError, match="own_rate"):
        trained(tmp_path / "killed", r=recipe(own_rate=2.0))
    trained(tmp_path / "plain", "rope")
    assert trained(tmp_path / "plain", "rope", recipe(own_rate=10.0)).steps == 10


def test_layers_are_computed_again_when_memory_is_short(tmp_path: Path) -> None:
    class Look(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            model = kwargs["model"]  # newer versions of transformers have another name for it
            seen = getattr(model, "is_activation_checkpointing", None)
            self.seen = model.is_gradient_checkpointing if seen is None else seen

    for again in (True, False):
        look = Look()
        trained(tmp_path / str(again), "pope", recipe(checkpointing=again), callbacks=(look,))
        assert look.seen == again
    assert curve(tmp_path / "True", "pope") == curve(tmp_path / "False", "pope")


def test_a_batch_that_cant_be_cut_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="batch=4: must be a multiple of 3"):
        arguments(recipe(accumulation=3), tmp_path, 0, use_cpu=True)
