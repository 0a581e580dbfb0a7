"""DroPE in training: when positions go, the learning rate after, resuming, repeated runs, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.patching import families
from transformers import Trainer, TrainerCallback, TrainingArguments

from ropewalk.encodings.nope import NoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import ArgumentError
from ropewalk.patching import handle_of, install
from ropewalk.training.drope import DropPositions, DropSchedule

STEPS, DROP = 10, 6
PEAK = 1e-3


class Watcher(TrainerCallback):
    """What each step was trained with: (learning rate, whether positions were gone)."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[float, bool]] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        handle = handle_of(kwargs["model"])
        gone = handle is not None and handle.encoding == NoPE()
        self.seen[state.global_step] = (kwargs["optimizer"].param_groups[0]["lr"], gone)


def trainer(
    model: Any, folder: Path, callbacks: list[TrainerCallback], **changes: Any
) -> tuple[Trainer, dict[int, tuple[float, bool]]]:
    rows = families.tokens(2 * STEPS, 12)
    arguments: dict[str, Any] = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "learning_rate": PEAK,
        "lr_scheduler_type": "linear",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
    } | changes
    watcher = Watcher()
    made = Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **arguments),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        callbacks=[*callbacks, watcher],
    )
    return made, watcher.seen


@pytest.fixture
def model() -> Any:
    return families.build("llama").train()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(families.tokens(1, 12)).logits
    return found


class TestRun:
    @pytest.mark.parametrize("drop_at", [DROP, DROP / STEPS])
    def test_positions_go_and_the_learning_rate_starts_anew(self, model: Any, tmp_path: Path, drop_at: float) -> None:
        schedule = DropSchedule(drop_at, learning_rate=4e-4, warmup=1, final=0.5)
        run, seen = trainer(model, tmp_path, [schedule.callback()])
        run.train()
        assert [gone for _, gone in seen.values()] == [False] * DROP + [True] * (STEPS - DROP)
        rates = [rate for rate, _ in seen.values()]
        assert rates[:DROP] == pytest.approx([PEAK * (1 - n / STEPS) for n in range(DROP)])
        assert rates[DROP:] == pytest.approx([2e-4, 4e-4, 3e-4, 2e-4])
        logged = [entry["learning_rate"] for entry in run.state.log_history if "learning_rate" in entry]
        assert logged == pytest.approx(rates)

    def test_the_model_ends_as_nope_and_the_handle_frees_it(self, model: Any, tmp_path: Path) -> None:
        callback = DropSchedule(DROP).callback()
        trainer(model, tmp_path, [callback])[0].train()
        dropped = logits(model)
        assert callback.handle is not None and handle_of(model) is callback.handle
        callback.handle.remove()
        rotated = logits(model)
        assert (rotated - dropped).abs().max() > 1e-3
        install(model, NoPE())
        assert torch.equal(logits(model), dropped)

    def test_from_the_start_for_a_trained_model(self, model: Any, tmp_path: Path) -> None:
        run, seen = trainer(model, tmp_path, [DropSchedule(0, warmup=0, final=1.0).callback()])
        run.train()
        assert all(gone for _, gone in seen.values())
        assert [rate for rate, _ in seen.values()] == pytest.approx([PEAK] * STEPS)

    def test_an_installed_encoding_makes_way(self, model: Any, tmp_path: Path) -> None:
        slow = RoPE(8, base=500.0)
        install(model, slow)
        callback = DropSchedule(DROP).callback()
        run, seen = trainer(model, tmp_path, [callback])
        run.train()
        assert seen[STEPS - 1][1] and not seen[0][1]
        # A second run on the same model starts with the positions that the first one had.
        run, seen = trainer(model, tmp_path, [callback])
        stop = StopAt(2)
        run.add_callback(stop)
        run.train()
        assert [gone for _, gone in seen.values()] == [False, False]
        present = handle_of(model)
        assert present is not None and present.encoding == slow

    def test_a_model_without_positions_stays_so(self, model: Any, tmp_path: Path) -> None:
        mine = install(model, NoPE())
        trainer(model, tmp_path, [DropSchedule(DROP).callback()])[0].train()
        assert handle_of(model) is mine


class StopAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


RESUMED = DropSchedule(DROP, learning_rate=5e-4, warmup=2)


@pytest.fixture(scope="module")
def in_one_go(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[int, tuple[float, bool]]]:
    """The trained model of an uninterrupted run, and what its steps saw."""
    model = families.build("llama").train()
    run, seen = trainer(model, tmp_path_factory.mktemp("whole"), [RESUMED.callback()])
    run.train()
    return model, seen


@pytest.mark.parametrize("stop", [4, DROP, 8], ids=["before", "at the drop", "past it"])
def test_a_resumed_run_is_the_run_in_one_go(in_one_go: Any, tmp_path: Path, stop: int) -> None:
    whole_model, expected = in_one_go
    settings = {"save_strategy": "steps", "save_steps": stop}
    first, _ = trainer(families.build("llama").train(), tmp_path, [RESUMED.callback(), StopAt(stop)], **settings)
    first.train()
    model = families.build("llama", seed=5).train()  # its weights come from the checkpoint
    resumed, seen = trainer(model, tmp_path, [RESUMED.callback()], **{**settings, "save_strategy": "no"})
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    assert set(seen) == set(range(stop, STEPS))
    for step, (rate, gone) in seen.items():
        assert (pytest.approx(rate), gone) == expected[step]
    torch.testing.assert_close(logits(model), logits(whole_model), atol=1e-5, rtol=1e-5)


class TestRate:
    @given(
        total=st.integers(2, 200),
        drop=st.floats(0, 0.9),
        warmup=st.one_of(st.integers(0, 20), st.floats(0, 0.9)),
        final=st.floats(0, 1),
    )
    def test_it_rises_then_falls_within_its_bounds(self, total: int, drop: float, warmup: Any, final: float) -> None:
        schedule = DropSchedule(drop, warmup=warmup, final=final)
        if round(drop * total) >= total:
            return
        start = schedule.drop_step(total)
        rates = [schedule.rate(step, total) for step in range(start, total)]
        assert all(0 <= rate <= 1 + 1e-12 for rate in rates)
        top = rates.index(max(rates))
        assert rates[: top + 1] == sorted(rates[: top + 1])
        assert all(a >= b - 1e-12 for a, b in zip(rates[top:], rates[top + 1 :], strict=False))

    def test_spelled_out(self) -> None:
        schedule = DropSchedule(10, warmup=3, final=0.0)
        rates = [schedule.rate(step, 18) for step in range(10, 18)]
        assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.853553, 0.5, 0.146447, 0.0], abs=1e-6)
        assert schedule.rate(30, 18) == pytest.approx(0.0)  # the Trainer asks once past the end


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"drop_at": -1}, "drop_at"),
        ({"drop_at": 1.0}, "drop_at"),
        ({"drop_at": True}, "drop_at"),
        ({"drop_at": "half"}, "drop_at"),
        ({"drop_at": 5, "learning_rate": 0.0}, "learning_rate"),
        ({"drop_at": 5, "warmup": 1.5}, "warmup"),
        ({"drop_at": 5, "final": 1.1}, "final"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{argument}=") as caught:
        DropSchedule(**arguments)
    assert "\n" not in str(caught.value)


def test_a_drop_after_the_end_is_refused_before_training(model: Any, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"^drop_at=10: the run has 10 steps"):
        trainer(model, tmp_path, [DropPositions(DropSchedule(STEPS))])[0].train()


def test_a_schedule_that_cant_be_restarted_is_refused(model: Any, tmp_path: Path) -> None:
    run, seen = trainer(model, tmp_path, [DropSchedule(DROP).callback()])
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK)
    run.optimizer, run.lr_scheduler = optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 3)
    with pytest.raises(ArgumentError, match=r"^lr_scheduler='StepLR'"):
        run.train()
    assert not seen and handle_of(model) is None
