"""PoPE: the paper's equations, relative positions, precision, delta and its clamp, caches, JSON, refusals."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference import pope as reference

from ropewalk.encodings.base import Encoding
from ropewalk.encodings.pope import Clamp, PoPE, PoPEModule
from ropewalk.errors import ArgumentError

FULL = 2 * math.pi


def scores(module: PoPEModule, q: torch.Tensor, k: torch.Tensor, positions: Any) -> torch.Tensor:
    """(B, H, N, M), each query head with its group's key as Hugging Face orders them; q and k are never widened."""
    q2, k2 = module(q, k, positions)
    return q2 @ k2.repeat_interleave(q.shape[1] // k.shape[1], dim=1).transpose(-1, -2)


def expected(
    module: PoPEModule, q: torch.Tensor, k: torch.Tensor, of_queries: torch.Tensor, of_keys: torch.Tensor
) -> torch.Tensor:
    """The oracle's scores in float64; positions (B, N) and (B, M), and `delta` as the module holds it."""
    config, size = module.encoding, q.shape[1] // k.shape[1]
    delta = None if module.delta is None else module.delta.double().tolist()
    if delta is not None and config.bound == "clamp":
        delta = [[reference.clamped(x) for x in row] for row in delta]
    result = torch.empty(*q.shape[:3], k.shape[2], dtype=torch.float64)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            of_head = None if delta is None else delta[h // size]
            for n, t in enumerate(of_queries[b].tolist()):
                for m, s in enumerate(of_keys[b].tolist()):
                    content = q[b, h, n].double().tolist(), k[b, h // size, m].double().tolist()
                    result[b, h, n, m] = reference.score(
                        *content, t, s, config.base, of_head, config.magnitude, config.width
                    )
    return result


def drawn(config: PoPE, seed: int = 0) -> PoPEModule:
    """The module with a delta that reaches past both edges of the clamp."""
    torch.manual_seed(seed)
    module = config.module()
    if module.delta is not None:
        torch.nn.init.uniform_(module.delta, -FULL - 2, 2.0)
    return module


CONFIGS = st.builds(
    PoPE,
    head_dim=st.sampled_from([4, 5, 8]),
    num_kv_heads=st.sampled_from([1, 2]),
    base=st.sampled_from([100.0, 10000.0, 5e5]),
    delta=st.sampled_from(["zero", "uniform", "none"]),
    bound=st.sampled_from(["clamp", "free"]),
    magnitude=st.sampled_from(["softplus", "relu", "identity"]),
    rotary_dim=st.sampled_from([None, 1, 3, 4]),
)


class TestThePaper:
    @given(config=CONFIGS, size=st.sampled_from([1, 2, 3]), seed=st.integers(0, 999))
    def test_scores(self, config: PoPE, size: int, seed: int) -> None:
        module, groups = drawn(config, seed), config.num_kv_heads
        q, k = torch.randn(2, groups * size, 2, config.head_dim), torch.randn(2, groups, 3, config.head_dim)
        of_queries, of_keys = torch.randint(0, 60, (2, 2)), torch.randint(0, 60, (2, 3))
        found = scores(module, q, k, (of_queries, of_keys)).double()
        torch.testing.assert_close(found, expected(module, q, k, of_queries, of_keys), rtol=1e-5, atol=1e-5)

    def test_a_score_by_hand(self) -> None:
        """Two channels, theta = 1 and 1/10: mu mu cos((s - t) theta + delta)."""
        module = PoPE(2, 1, base=100.0, magnitude="identity").module()
        with torch.no_grad():
            assert module.delta is not None
            module.delta.copy_(torch.tensor([[-0.5, -1.0]]))
        q, k = torch.tensor([[[[2.0, 3.0]]]]), torch.tensor([[[[5.0, 7.0]]]])
        by_hand = 10 * math.cos(4 - 9 - 0.5) + 21 * math.cos((4 - 9) / 10 - 1.0)
        assert scores(module, q, k, (torch.tensor([9]), torch.tensor([4]))).item() == pytest.approx(by_hand, rel=1e-5)

    def test_sizes_and_starts(self) -> None:
        for delta, least, most in (("zero", 0.0, 0.0), ("uniform", -FULL, 0.0)):
            module = PoPE(16, 3, delta=delta).module()
            assert module.delta is not None and module.delta.shape == (3, 16) and module.delta.dtype == torch.float32
            assert least <= module.delta.min() and module.delta.max() <= most
        assert module.delta.std() > 1
        assert PoPE(16, 3, delta="none").module().delta is None
        assert PoPE(8, 1).frequencies().tolist() == pytest.approx([10000 ** (-c / 8) for c in range(8)])
        q2, k2 = PoPE(16, 1, rotary_dim=4)(torch.randn(1, 2, 3, 16), torch.randn(1, 1, 3, 16), torch.arange(3))
        assert q2.shape == (1, 2, 3, 20) and k2.shape == (1, 1, 3, 20)

    @given(config=CONFIGS, shift=st.integers(1, 2000))
    def test_only_distance_counts(self, config: PoPE, shift: int) -> None:
        module, groups = drawn(config), config.num_kv_heads
        q, k = torch.randn(1, 2 * groups, 4, config.head_dim), torch.randn(1, groups, 4, config.head_dim)
        here = torch.tensor([0, 1, 7, 50])
        torch.testing.assert_close(scores(module, q, k, here + shift), scores(module, q, k, here), rtol=1e-3, atol=5e-3)

    def test_one_row_of_positions_serves_the_batch(self) -> None:
        module, q, k = drawn(PoPE(8, 2)), torch.randn(3, 4, 5, 8), torch.randn(3, 2, 5, 8)
        shared = module(q, k, torch.arange(5))
        for given_positions in (torch.arange(5)[None], torch.arange(5).expand(3, 5)):
            assert all(map(torch.equal, module(q, k, given_positions), shared))


class TestPrecision:
    """At positions around 100,000: angles are float32, so off by half of their last place and no more."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("is_cast", [False, True])
    def test_far_positions(self, dtype: torch.dtype, is_cast: bool) -> None:
        module = drawn(PoPE(32, 2, delta="uniform", bound="free"))
        if is_cast:  # the delta is rounded, the frequencies are not
            module = module.to(torch.bfloat16)
        q, k = torch.randn(1, 4, 6, 32).to(dtype), torch.randn(1, 2, 6, 32).to(dtype)
        of_queries, of_keys = torch.randint(99_000, 101_000, (1, 6)), torch.randint(99_000, 101_000, (1, 6))
        q2, k2 = module(q, k, (of_queries, of_keys))
        assert q2.dtype == k2.dtype == dtype and module.frequencies.dtype == torch.float32
        assert module.tables(of_queries, dtype)[0].dtype == torch.float32
        found = q2.double() @ k2.double().repeat_interleave(2, dim=1).transpose(-1, -2)
        mu = [torch.nn.functional.softplus(x.double()) for x in (q, k.repeat_interleave(2, dim=1))]
        # Rounded once as a magnitude and once as an output, on both sides; an angle's last place at 2^17 is 2^-7, and
        # theta's own rounding adds as much again.
        relative = 4 * torch.finfo(dtype).eps / 2 + 4 * 2.0**-8
        bound = relative * (mu[0] @ mu[1].transpose(-1, -2))
        error = (found - expected(module, q, k, of_queries, of_keys)).abs()
        assert (error <= bound).all()
        # Most of that is a worst case: on average a score is a tenth nearer.
        assert error.mean() <= 0.1 * bound.mean()

    def test_autocast_leaves_phases_float32(self) -> None:
        module, q, k = drawn(PoPE(8, 1)), torch.randn(1, 1, 4, 8), torch.randn(1, 1, 4, 8)
        positions = torch.arange(4) + 70_000
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = module(q, k, positions)
        assert all(map(torch.equal, inside, module(q, k, positions)))

    def test_delta_is_float32_in_a_model_made_in_bfloat16(self) -> None:
        torch.set_default_dtype(torch.bfloat16)
        try:
            module = PoPE(4, 1).module()
        finally:
            torch.set_default_dtype(torch.float32)
        assert module.delta is not None and module.delta.dtype == torch.float32

    def test_an_empty_model_gets_real_frequencies(self) -> None:
        with torch.device("meta"):
            module = PoPE(4, 1).module()
        assert torch.equal(module.to_empty(device="cpu").frequencies, PoPE(4, 1).frequencies())


class TestDelta:
    @pytest.mark.parametrize("bound", ["clamp", "free"])
    @pytest.mark.parametrize("rotary_dim", [None, 3])
    def test_gradients(self, bound: str, rotary_dim: int | None) -> None:
        """Against differences, in float64; delta inside the clamp, where it changes nothing."""
        module = PoPE(5, 2, delta="uniform", bound=bound, rotary_dim=rotary_dim).module().double()
        assert module.delta is not None
        q = torch.randn(1, 4, 2, 5, dtype=torch.float64, requires_grad=True)
        k = torch.randn(1, 2, 3, 5, dtype=torch.float64, requires_grad=True)
        positions = torch.tensor([3, 9]), torch.tensor([0, 3, 8])
        weights = torch.randn(1, 4, 2, 3, dtype=torch.float64)
        (scores(module, q, k, positions) * weights).sum().backward()
        step = 1e-2
        for x, index in ((q, (0, 0, 1, 0)), (k, (0, 1, 2, -1)), (module.delta, (0, 0)), (module.delta, (1, -1))):
            values = []
            for by in (step, -2 * step):
                with torch.no_grad():
                    x[index] += by
                values.append((expected(module, q, k, positions[0][None], positions[1][None]) * weights).sum().item())
            with torch.no_grad():
                x[index] += step
            assert x.grad is not None and x.grad.abs().amax(dim=-1).all()
            assert x.grad[index].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-3, abs=1e-3)

    def test_the_clamp_drops_what_leads_further_out(self) -> None:
        delta = torch.tensor([-7.0, -7.0, -FULL, -3.0, -3.0, 0.0, 0.0, 1.0, 1.0], requires_grad=True)
        out = Clamp.apply(delta)
        assert out.tolist() == pytest.approx([-FULL, -FULL, -FULL, -3, -3, 0, 0, 0, 0])
        # A step goes against the gradient: + takes delta down, - takes it up.
        given_gradient = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
        out.backward(given_gradient)
        assert delta.grad is not None
        assert delta.grad.tolist() == [0.0, -1.0, 0.0, 1.0, -1.0, 1.0, 0.0, 1.0, 0.0]

    @pytest.mark.parametrize(("start", "target"), [(0.7, -0.5), (-FULL - 0.7, 0.5 - FULL), (0.0, -0.3)])
    def test_a_delta_that_a_step_pushed_out_returns(self, start: float, target: float) -> None:
        module = PoPE(1, 1, bound="clamp", magnitude="identity").module()
        assert module.delta is not None
        with torch.no_grad():
            module.delta.fill_(start)
        one, optimizer = torch.ones(1, 1, 1, 1), torch.optim.SGD(module.parameters(), lr=0.5)
        for _ in range(200):
            optimizer.zero_grad()
            phase = module.phase()
            assert phase is not None
            # |e^(i phase) - e^(i target)|^2, from the keys that attention would get
            key = module(one, one, torch.zeros(1, dtype=torch.long))[1].flatten()
            (key - torch.tensor([math.cos(target), math.sin(target)])).pow(2).sum().backward()
            optimizer.step()
        assert module.delta.item() == pytest.approx(target, abs=1e-3)

    @pytest.mark.parametrize("bound", ["free", "clamp"])
    def test_from_zero_only_a_free_delta_turns_to_what_lies_behind(self, bound: str) -> None:
        """The score of the key before is greatest at delta = theta, above 0."""
        module = PoPE(4, 1, base=16.0, bound=bound).module()
        assert module.delta is not None
        optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
        one, positions = torch.ones(1, 1, 1, 4), (torch.tensor([1]), torch.tensor([0]))
        for _ in range(60):
            optimizer.zero_grad()
            (-scores(module, one, one, positions)).sum().backward()
            optimizer.step()
        wanted = module.frequencies.tolist() if bound == "free" else [0.0] * 4
        assert module.delta[0].tolist() == pytest.approx(wanted, abs=1e-3)

    def test_free_and_clamped_are_the_same_function_a_turn_apart(self) -> None:
        free, clamped = drawn(PoPE(8, 2)), PoPE(8, 2, bound="clamp").module()
        assert free.delta is not None and clamped.delta is not None
        with torch.no_grad():
            clamped.delta.copy_(-((-free.delta) % FULL))
        q, k = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8)
        torch.testing.assert_close(
            scores(free, q, k, torch.arange(5)), scores(clamped, q, k, torch.arange(5)), rtol=1e-5, atol=1e-5
        )


class TestCache:
    @given(config=CONFIGS, size=st.sampled_from([1, 2]))
    def test_stored_keys_and_folded_queries_give_the_same_scores(self, config: PoPE, size: int) -> None:
        module, width = drawn(config), config.width
        q = torch.randn(2, config.num_kv_heads * size, 3, config.head_dim)
        k = torch.randn(2, config.num_kv_heads, 4, config.head_dim)
        positions = torch.randint(0, 500, (2, 3)), torch.randint(0, 500, (2, 4))
        tables = module.tables(positions[0]), module.tables(positions[1])
        whole = module.encode(q, k, positions, tables)
        stored = module.stored(k)
        assert stored.shape == k.shape
        assert all(map(torch.equal, module.encode_stored(q, stored, positions, tables), whole))
        assert all(map(torch.equal, module(q, k, positions), whole))
        a, b = module.fold(q, positions[0])
        stored = stored.repeat_interleave(size, dim=1)
        mu, (cos, sin) = stored[..., :width], (table[:, None] for table in tables[1])
        folded = a @ (mu * cos).transpose(-1, -2) + b @ (mu * sin).transpose(-1, -2)
        folded = folded + q[..., width:] @ stored[..., width:].transpose(-1, -2)
        by_keys = whole[0] @ whole[1].repeat_interleave(size, dim=1).transpose(-1, -2)
        torch.testing.assert_close(folded, by_keys, rtol=1e-5, atol=2e-5)

    def test_equal_frequencies_share_tables(self) -> None:
        key = PoPE(8, 2).module().table_key
        assert key == PoPE(8, 4, delta="none", magnitude="relu").module().table_key
        assert key not in (PoPE(8, 2, base=5e5).module().table_key, PoPE(8, 2, rotary_dim=4).module().table_key)


def test_compiled_whole() -> None:
    module, q, k = drawn(PoPE(8, 1)), torch.randn(1, 2, 4, 8), torch.randn(1, 1, 4, 8)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    found = compiled(q, k, torch.arange(4))
    for ours, whole in zip(found, module(q, k, torch.arange(4)), strict=True):
        torch.testing.assert_close(ours, whole)
    found[1].sum().backward()
    assert module.delta is not None and module.delta.grad is not None and module.delta.grad.any()


@given(config=CONFIGS)
def test_json_round_trip(config: PoPE) -> None:
    again = Encoding.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and hash(again) == hash(config) and repr(config) in repr(again.module())


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"head_dim": 0}, "head_dim"),
        ({"head_dim": 8.0}, "head_dim"),
        ({"num_kv_heads": 0}, "num_kv_heads"),
        ({"num_kv_heads": True}, "num_kv_heads"),
        ({"base": 1.0}, "base"),
        ({"base": math.nan}, "base"),
        ({"delta": "zeros"}, "delta"),
        ({"bound": None}, "bound"),
        ({"magnitude": "Softplus"}, "magnitude"),
        ({"rotary_dim": 9}, "rotary_dim"),
        ({"rotary_dim": 0}, "rotary_dim"),
    ],
)
def test_wrong_configs_are_refused_at_construction(arguments: dict[str, Any], argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{argument}=") as caught:
        PoPE(**({"head_dim": 8, "num_kv_heads": 2} | arguments))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("q", "k", "argument"),
    [
        ((1, 4, 3, 8), (1, 4, 3, 8), "num_kv_heads"),
        ((1, 4, 3, 6), (1, 2, 3, 8), r"q\.shape"),
        ((1, 4, 3, 8), (1, 2, 3, 16), r"k\.shape"),
        ((1, 4, 3, 8), (2, 3, 8), r"k\.shape"),
        ((1, 4, 2, 8), (1, 2, 3, 8), r"positions\.shape"),
    ],
)
def test_wrong_queries_and_keys_are_refused(q: tuple[int, ...], k: tuple[int, ...], argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{argument}=") as caught:
        PoPE(8, 2)(torch.randn(q), torch.randn(k), torch.arange(3))
    assert "\n" not in str(caught.value)
