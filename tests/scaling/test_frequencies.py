"""The length rules: transformers' bits, the papers' equations and the limits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference import frequencies as reference
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ropewalk import scaling as f

SIZES = [(8, 10000.0), (64, 10000.0), (96, 10000.0), (128, 500000.0), (128, 1000000.0), (80, 12345.6)]


def near(schedule: f.Schedule, expected: list[float]) -> None:
    assert schedule.frequencies.dtype == torch.float32
    # float32's power of a base is off by up to some 2e-6 where the exponent times ln(base) is large
    target = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(schedule.frequencies.double(), target, rtol=3e-6, atol=0)


def hf(kind: str, size: tuple[int, float], max_length: int, seq_len: int | None = None, **parameters: Any) -> Any:
    """(our rule's schedule from the same config, transformers' frequencies, its scale)."""
    head_dim, base = size
    config = LlamaConfig(
        hidden_size=head_dim * 2,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=max_length,
        rope_parameters={"rope_type": kind, "rope_theta": base, **parameters},
    )
    expected, scale = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=seq_len)
    rule = f.rule_from_hf(config.rope_parameters, max_length, target_length=seq_len)
    assert rule is not None
    return rule.schedule(head_dim, base), expected, scale


def assert_same_bits(case: Any) -> None:
    schedule, expected, scale = case
    assert torch.equal(schedule.frequencies, expected)
    assert schedule.attention_scale == scale


@pytest.mark.parametrize("size", SIZES)
class TestTransformersBits:
    @pytest.mark.parametrize("factor", [1.0, 2.0, 3.7, 8])
    def test_linear(self, size: tuple[int, float], factor: float) -> None:
        assert_same_bits(hf("linear", size, 4096, factor=factor))

    @pytest.mark.parametrize("factor", [1.0, 2.0, 3.7])
    @pytest.mark.parametrize("length", [None, 100, 2048, 2049, 8192, 100_001])
    def test_dynamic(self, size: tuple[int, float], factor: float, length: int | None) -> None:
        assert_same_bits(hf("dynamic", size, 2048, length, factor=factor))

    @pytest.mark.parametrize(
        "extra",
        [
            {},
            {"truncate": False},
            {"beta_fast": 16, "beta_slow": 2},
            {"attention_factor": 1.25},
            {"mscale": 1.0, "mscale_all_dim": 0.707},
            {"mscale": 0.707},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("factor", [1.0, 2.0, 3.7, 40])
    def test_yarn(self, size: tuple[int, float], factor: float, extra: dict[str, Any]) -> None:
        assert_same_bits(hf("yarn", size, 32768, factor=factor, original_max_position_embeddings=4096, **extra))

    @pytest.mark.parametrize("factor", [1.0, 8.0, 32.0])
    @pytest.mark.parametrize("low_high", [(1.0, 4.0), (0.5, 3.0)])
    def test_llama3(self, size: tuple[int, float], factor: float, low_high: tuple[float, float]) -> None:
        names = dict(zip(("low_freq_factor", "high_freq_factor"), low_high, strict=True))
        assert_same_bits(hf("llama3", size, 131072, factor=factor, original_max_position_embeddings=8192, **names))

    @pytest.mark.parametrize("length", [None, 4096, 4097, 131072])
    @pytest.mark.parametrize("extra", [{}, {"factor": 32.0}, {"attention_factor": 1.19}], ids=str)
    def test_longrope(self, size: tuple[int, float], length: int | None, extra: dict[str, float]) -> None:
        short = [1.0 + 0.01 * c for c in range(size[0] // 2)]
        long = [1.0 + 0.7 * c for c in range(size[0] // 2)]
        lists: dict[str, Any] = {"short_factor": short, "long_factor": long}
        lists["original_max_position_embeddings"] = 4096
        assert_same_bits(hf("longrope", size, 131072, length, **lists, **extra))

    def test_default(self, size: tuple[int, float]) -> None:
        dim, base = size
        expected = 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.float) / dim))
        assert torch.equal(f.default_schedule(dim, base).frequencies, expected)


@pytest.mark.parametrize("size", SIZES)
class TestPapersEquations:
    def test_default(self, size: tuple[int, float]) -> None:
        near(f.default_schedule(*size), reference.default(*size))

    def test_linear(self, size: tuple[int, float]) -> None:
        near(f.Linear(3.7).schedule(*size), reference.linear(*size, 3.7))

    def test_ntk(self, size: tuple[int, float]) -> None:
        near(f.NTK(3.7).schedule(*size), reference.ntk(*size, 3.7))

    @pytest.mark.parametrize("target", [100, 2048, 5000])
    def test_dynamic_ntk(self, size: tuple[int, float], target: int) -> None:
        expected = reference.dynamic_ntk(*size, target, 2048, 2.0)
        near(f.DynamicNTK(target, 2048, 2.0).schedule(*size), expected)

    def test_ntk_by_parts(self, size: tuple[int, float]) -> None:
        expected = reference.ntk_by_parts(*size, 3.7, 4096, 32.0, 1.0)
        schedule = f.NTKByParts(3.7, 4096).schedule(*size)
        torch.testing.assert_close(schedule.frequencies.tolist(), expected, rtol=2e-5, atol=0)

    @pytest.mark.parametrize("truncate", [True, False])
    def test_yarn(self, size: tuple[int, float], truncate: bool) -> None:
        schedule = f.YaRN(3.7, 4096, truncate=truncate).schedule(*size)
        expected = reference.yarn(*size, 3.7, 4096, 32.0, 1.0, truncate)
        torch.testing.assert_close(schedule.frequencies.tolist(), expected, rtol=2e-5, atol=0)
        assert schedule.attention_scale == pytest.approx(reference.yarn_scale(3.7), rel=1e-15)

    def test_llama3(self, size: tuple[int, float]) -> None:
        expected = reference.llama3(*size, 8.0, 8192, 1.0, 4.0)
        schedule = f.Llama3(8.0, 8192).schedule(*size)
        torch.testing.assert_close(schedule.frequencies.tolist(), expected, rtol=2e-5, atol=0)

    def test_longrope(self, size: tuple[int, float]) -> None:
        short, long = [1.5] * (size[0] // 2), [1.0 + c for c in range(size[0] // 2)]
        schedule = f.LongRoPE(tuple(short), tuple(long), 4096, 4097).schedule(*size)
        near(schedule, reference.longrope(*size, long))
        assert schedule.attention_scale == pytest.approx(reference.longrope_scale(4097 / 4096, 4096))
        at_training_length = f.LongRoPE(tuple(short), tuple(long), 4096, 4096).schedule(*size)
        near(at_training_length, reference.longrope(*size, short))
        assert at_training_length.attention_scale == 1.0

    def test_resonance(self, size: tuple[int, float]) -> None:
        schedule = f.Resonance().schedule(*size)
        # rounds the same float32 wavelengths: a wavelength of a million tokens isn't known to half a token
        inner = f.default_schedule(*size).frequencies.tolist()
        near(schedule, reference.resonance(inner))
        periods = 2 * torch.pi / schedule.frequencies.double()
        torch.testing.assert_close(periods, periods.round(), rtol=1e-6, atol=0)

    @pytest.mark.parametrize("clipped", [0, 1, 2, 4])
    def test_cope(self, size: tuple[int, float], clipped: int) -> None:
        schedule = f.CoPE(clipped=clipped).schedule(*size)
        expected = reference.cope(reference.default(*size), clipped)
        torch.testing.assert_close(schedule.frequencies.tolist(), expected, rtol=3e-6, atol=1e-9)

    def test_cope_by_length(self, size: tuple[int, float]) -> None:
        default = reference.default(*size)
        clipped = sum(2 * torch.pi / theta > 4096 for theta in default)
        schedule = f.CoPE(original_length=4096).schedule(*size)
        torch.testing.assert_close(
            schedule.frequencies.tolist(), reference.cope(default, clipped), rtol=3e-6, atol=1e-9
        )


class TestLimits:
    @pytest.mark.parametrize("rule", [f.Linear(1.0), f.NTK(1.0), f.DynamicNTK(2048, 2048, 5.3)])
    def test_a_factor_of_one_changes_no_bit(self, rule: f.Rule) -> None:
        assert torch.equal(rule.schedule(64, 1e4).frequencies, f.default_schedule(64, 1e4).frequencies)

    @pytest.mark.parametrize("rule", [f.YaRN(1.0, 2048), f.NTKByParts(1.0, 2048), f.Llama3(1.0, 2048)])
    def test_a_factor_of_one_changes_nothing(self, rule: f.Rule) -> None:
        schedule, plain = rule.schedule(64, 1e4), f.default_schedule(64, 1e4)
        torch.testing.assert_close(schedule.frequencies, plain.frequencies, rtol=3e-7, atol=0)
        assert schedule.attention_scale == 1.0

    @given(factor=st.floats(1, 100), half=st.integers(2, 64), base=st.floats(100, 1e7))
    def test_ntk_keeps_the_fastest_pair_and_divides_the_slowest(self, factor: float, half: int, base: float) -> None:
        plain, stretched = (r.schedule(2 * half, base).frequencies for r in (f.Linear(1.0), f.NTK(factor)))
        assert stretched[0] == plain[0] == 1.0
        assert stretched[-1].item() == pytest.approx(plain[-1].item() / factor, rel=1e-5)

    @given(factor=st.floats(1, 64), half=st.integers(2, 64), original=st.integers(64, 100_000))
    def test_by_parts_and_yarn_stay_between_plain_and_linear(self, factor: float, half: int, original: int) -> None:
        plain = f.default_schedule(2 * half, 1e4).frequencies
        for rule in (f.NTKByParts(factor, original), f.YaRN(factor, original), f.Llama3(factor, original)):
            frequencies = rule.schedule(2 * half, 1e4).frequencies
            assert (frequencies <= plain * (1 + 1e-5)).all()
            assert (frequencies >= plain / factor * (1 - 1e-5)).all()

    def test_dynamic_ntk_at_a_factor_of_one_is_ntk_of_the_ratio(self) -> None:
        dynamic, fixed = f.DynamicNTK(8192, 2048).schedule(64, 1e4), f.NTK(4.0).schedule(64, 1e4)
        assert torch.equal(dynamic.frequencies, fixed.frequencies)

    def test_cope_leaves_the_slowest_pair_at_rest(self) -> None:
        assert f.CoPE(clipped=20).schedule(128, 5e5).frequencies[-1] == 0.0

    def test_resonance_of_a_resting_pair_rests(self) -> None:
        frequencies = f.Resonance(f.CoPE(clipped=4)).schedule(16, 1e4).frequencies
        assert frequencies[-1] == 0.0 and frequencies.isfinite().all()

    def test_resonance_keeps_the_inner_scale(self) -> None:
        assert f.Resonance(f.YaRN(4.0, 2048)).schedule(64, 1e4).attention_scale == reference.yarn_scale(4.0)

    def test_given_gives_back_any_schedule(self) -> None:
        schedule = f.YaRN(4.0, 2048).schedule(64, 1e4)
        again = f.Given.of(schedule).schedule(64, 99.0)
        assert torch.equal(again.frequencies, schedule.frequencies)
        assert again.attention_scale == schedule.attention_scale
