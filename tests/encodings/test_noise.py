"""The Gaussian noise: its statistics, and that it depends on its coordinates and nothing else."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference.dope import hashed_normal

from ropewalk.encodings.dope import gaussian

GOLDEN = [
    [[0.657163, 1.537531, -0.327273], [-0.082963, 0.347598, 0.356973], [-0.70645, -1.914006, -1.6001]],
    [[0.049148, -0.000547, 0.597538], [0.279451, -0.761222, -1.928367], [-1.264728, -0.389491, -0.102736]],
]


def draws(seed: int = 42, stream: int = 0, layer: int = 3, heads=(0, 1, 5), tokens: int = 2000, channels: int = 32):
    """(heads, tokens, channels) float64."""
    return gaussian(seed, stream, layer, list(heads), torch.arange(tokens), channels).double()


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def test_moments_are_those_of_the_standard_normal_distribution():
    x = draws().flatten()
    error = 1.0 / math.sqrt(x.numel())  # 192000 draws
    assert abs(x.mean()) < 4 * error
    assert abs(x.var() - 1) < 4 * math.sqrt(2) * error
    assert abs((x**3).mean()) < 4 * math.sqrt(15) * error
    assert abs((x**4).mean() - 3) < 4 * math.sqrt(96) * error
    for bound, share in ((1.0, 0.682689), (2.0, 0.954500), (3.0, 0.997300)):
        seen = (x.abs() < bound).double().mean()
        assert abs(seen - share) < 4 * error * math.sqrt(share * (1 - share))
    assert x.abs().max() < 6


def test_every_channel_and_every_head_is_standard_normal_by_itself():
    x = draws(tokens=4000)
    assert (x.mean(1).abs() < 5 / math.sqrt(4000)).all()
    assert ((x.var(1) - 1).abs() < 5 * math.sqrt(2 / 4000)).all()


@pytest.mark.parametrize("lag", [1, 2, 16])
def test_neighbours_are_uncorrelated(lag):
    x = draws()
    pairs = {
        "positions": (x[:, lag:], x[:, :-lag]),
        "channels": (x[..., lag:], x[..., :-lag]),
        "squares of positions": (x[:, lag:] ** 2, x[:, :-lag] ** 2),
        "squares of channels": (x[..., lag:] ** 2, x[..., :-lag] ** 2),
    }
    for name, (a, b) in pairs.items():
        assert abs(correlation(a, b)) < 4.5 / math.sqrt(a.numel()), name


def test_heads_seeds_streams_and_layers_are_uncorrelated():
    x = draws()
    others = {
        "head": (x[0], x[1]),
        "seed": (x, draws(seed=43)),
        "high seed bits": (x, draws(seed=42 + 2**32)),
        "stream": (x, draws(stream=1)),
        "layer": (x, draws(layer=4)),
        "seed against stream": (draws(seed=0, stream=1), draws(seed=1, stream=0)),
        "layer against head": (draws(layer=1, heads=[2]), draws(layer=2, heads=[1])),
    }
    for name, (a, b) in others.items():
        assert abs(correlation(a, b)) < 4.5 / math.sqrt(a.numel()), name


def test_golden_values_never_change():
    """Saved plans name a seed; these numbers, from the plain Python version, must stay what they are."""
    x = gaussian(42, 0, 3, [0, 7], torch.tensor([0, 1, 100000]), 3)
    golden = torch.tensor(GOLDEN)
    torch.testing.assert_close(x, golden, atol=2e-6, rtol=0)


@given(
    seed=st.integers(0, 2**64 - 1),
    stream=st.integers(0, 2),
    layer=st.integers(0, 200),
    head=st.integers(0, 500),
    position=st.integers(0, 2**31 - 1),
    channel=st.integers(0, 255),
)
def test_equals_the_plain_python_version(seed, stream, layer, head, position, channel):
    x = gaussian(seed, stream, layer, [head], torch.tensor([position]), channel + 1)
    expected = hashed_normal(seed, stream, layer, head, position, channel)
    assert float(x[0, 0, channel]) == pytest.approx(expected, abs=3e-5, rel=1e-5)


@given(data=st.data())
def test_batches_chunks_and_order_make_no_difference(data):
    positions = torch.tensor(data.draw(st.lists(st.integers(0, 10**6), min_size=1, max_size=12)))
    heads = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=4, unique=True))
    whole = gaussian(42, 1, 2, heads, positions, 6)
    assert whole.shape == (len(heads), len(positions), 6)
    at = data.draw(st.integers(0, len(positions)))
    parts = [gaussian(42, 1, 2, heads, part, 6) for part in (positions[:at], positions[at:])]
    assert torch.equal(whole, torch.cat(parts, 1))
    assert torch.equal(whole.flip(0, 1), gaussian(42, 1, 2, heads[::-1], positions.flip(0), 6))
    batch = gaussian(42, 1, 2, heads, torch.stack([positions, positions + 3]), 6)
    assert torch.equal(batch[0], whole)
    assert torch.equal(whole[..., :4], gaussian(42, 1, 2, heads, positions, 4))


def test_no_generator_is_read_or_moved():
    torch.manual_seed(1)
    first, state = draws(), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, draws())
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
