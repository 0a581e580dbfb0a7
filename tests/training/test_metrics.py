"""Figures on a split against what all logits at once say, and cut over processes."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from tests.training.tiny import SIZE

from ropewalk.training.batches import Collator, Rows
from ropewalk.training.metrics import Figures, figures_of, measure
from ropewalk.training.models import build_model, shape
from ropewalk.training.presets import named

CPU = torch.device("cpu")
COLLATOR = Collator(0, 12)


def model() -> torch.nn.Module:
    return build_model(SIZE, 12, 9, named("pope", shape(SIZE, 9)), 0)


def rows() -> Rows:
    random = torch.Generator().manual_seed(1)
    ids = [torch.randint(1, 12, (n,), generator=random).tolist() for n in (3, 9, 5, 2, 7, 4, 1)]
    labels = [[-100 if i % 3 == 1 else t for i, t in enumerate(row)] for row in ids]
    labels[3] = [-100, -100]  # a sequence without a label counts for nothing
    return Rows(Dataset.from_dict({"input_ids": ids, "labels": labels}))


def all_at_once(network: torch.nn.Module, data: Rows) -> Figures:
    nats, right, whole, tokens, sequences = 0.0, 0, 0, 0, 0
    for ids, labels in (data[i] for i in range(len(data))):
        logits = network.eval()(torch.tensor(ids)[None]).logits[0].detach().double().log_softmax(-1)
        found = [(logits[i - 1], int(labels[i])) for i in range(1, len(ids)) if labels[i] != -100]
        hits = [int(chances.argmax()) == label for chances, label in found]
        nats -= sum(float(chances[label]) for chances, label in found)
        right, tokens = right + sum(hits), tokens + len(hits)
        whole, sequences = whole + (bool(hits) and all(hits)), sequences + bool(hits)
    return Figures(nats / tokens, right / tokens, whole / sequences, tokens, sequences)


@pytest.mark.parametrize("batch", [1, 3, 50])
def test_figures_are_those_of_all_logits_at_once(batch: int) -> None:
    network, data = model(), rows()
    found = figures_of(measure(network, data, COLLATOR, batch, CPU))
    expected = all_at_once(network, data)
    assert found.nll == pytest.approx(expected.nll, abs=1e-5)
    assert (found.token_accuracy, found.sequence_accuracy) == (expected.token_accuracy, expected.sequence_accuracy)
    assert (found.tokens, found.sequences) == (expected.tokens, expected.sequences) == (14, 5)


def test_a_model_that_knows_is_right() -> None:
    class Knows(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, logits_to_keep: torch.Tensor | int, use_cache: bool) -> object:
            after = torch.nn.functional.one_hot(input_ids.roll(-1, 1), 12).float() * 50
            return type(
                "Output", (), {"logits": after if isinstance(logits_to_keep, int) else after[:, logits_to_keep]}
            )

    found = figures_of(measure(Knows(), rows(), COLLATOR, 3, CPU))
    assert found.token_accuracy == found.sequence_accuracy == 1.0 and found.nll < 1e-6
    assert found.metric("accuracy") == 1.0 and found.metric("nll") == found.nll


@pytest.mark.parametrize("processes", [2, 3, 10])
def test_shares_of_processes_add_up_and_take_as_many_passes(processes: int) -> None:
    network, data = model(), rows()
    passes: list[int] = []
    network.register_forward_hook(lambda *_: passes.append(1))
    whole = measure(network, data, COLLATOR, 2, CPU)
    passes.clear()
    parts, counts = [], []
    for process in range(processes):
        parts.append(measure(network, data, COLLATOR, 2, CPU, (process, processes)))
        counts.append(len(passes))
        passes.clear()
    assert torch.allclose(sum(parts), whole, rtol=1e-6) and len(set(counts)) == 1


def test_training_goes_on_as_it_was() -> None:
    network = model().train()
    measure(network, rows(), COLLATOR, 4, CPU)
    assert network.training and all(p.grad is None for p in network.parameters())
