"""`attend` for every kind of encoding: the naive formula, masks, chunks, batches, gradients, dtypes, compiling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.attention.cases import HEADS, KINDS, Case, D, case, close, encoding, gradients, small_blocks

from ropewalk.attention import attend
from ropewalk.encodings.absolute import Sinusoidal
from ropewalk.encodings.alibi import ALiBi
from ropewalk.encodings.pope import PoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import ArgumentError

MASK_SHAPES = [(2, 1, 1, "M"), (1, HEADS, "N", "M"), (1, 1, "N", 1), (2, HEADS, "N", "M"), ("N", "M"), ("M",), ()]
every_kind = pytest.mark.parametrize("kind", KINDS)


@st.composite
def cases(draw: st.DrawFn, dtype: torch.dtype = torch.float32, grad: bool = False) -> Case:
    torch.manual_seed(draw(st.integers(0, 9999)))
    causal = draw(st.booleans())
    keys = draw(st.integers(1, 11))
    queries = draw(st.integers(1, keys if causal else 11))
    options: dict[str, Any] = {"causal": causal}
    if causal and draw(st.booleans()):
        options["window"] = draw(st.integers(1, 12))

    def shaped() -> list[int]:
        return [{"N": queries, "M": keys}.get(size, size) for size in draw(st.sampled_from(MASK_SHAPES))]  # type: ignore[call-overload]

    kind_of_mask = draw(st.sampled_from(["none", "bool", "float"]))
    if kind_of_mask != "none":
        mask = torch.rand(shaped()) < 0.6
        # some numbers hide, as in Hugging Face's masks
        options["mask"] = mask if kind_of_mask == "bool" else torch.randn(mask.shape).masked_fill(~mask, -torch.inf)
    if draw(st.booleans()):
        options["bias"] = torch.randn(shaped(), requires_grad=grad)
    if draw(st.booleans()):
        options["scale"] = 0.7
    made = case(
        draw(st.sampled_from(KINDS)),
        queries,
        keys,
        draw(st.sampled_from([1, 2, 4])),
        v_size=draw(st.sampled_from([3, D, 20])),
        dtype=dtype,
        grad=grad,
        **options,
    )
    if draw(st.booleans()):  # rows of the batch at other places, as left padding makes them
        made.of_queries, made.of_keys = (torch.stack((p, p * 2)) for p in (made.of_queries, made.of_keys))
    return made


def wanted(made: Case) -> list[torch.Tensor]:
    bias = made.options.get("bias")
    parameters = [] if made.module is None else [*made.module.parameters()]
    return [made.q, made.k, made.v, *parameters, *([] if bias is None else [bias])]


class TestTheNaiveFormula:
    @given(made=cases(), small=st.booleans())
    def test_forward(self, made: Case, small: bool) -> None:
        with torch.no_grad():
            expected = made.expected()
            if small:
                with small_blocks():
                    close(made.attended(), expected)
            else:
                close(made.attended(), expected)

    @given(made=cases(torch.float64, grad=True), small=st.booleans())
    def test_gradients(self, made: Case, small: bool) -> None:
        expected = made.expected()
        if small:
            with small_blocks():
                out = made.attended()
                ours = gradients(out, wanted(made))
        else:
            out = made.attended()
            ours = gradients(out, wanted(made))
        close(out, expected)
        for found, naive in zip(ours, gradients(expected, wanted(made)), strict=True):
            assert found.isfinite().all()
            close(found, naive, 2e-5)

    @every_kind
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_dtypes_and_defaults(self, kind: str, dtype: torch.dtype) -> None:
        """In half precisions within what rounding values, weights and scores of this size costs."""
        made = case(kind, 6, 9, dtype=dtype)
        made.of_queries, made.of_keys = torch.arange(3, 9), torch.arange(9)
        out = attend(made.q, made.k, made.v, made.module)
        assert out.dtype == dtype
        close(out, made.expected(), 1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps)

    @every_kind
    def test_a_config_serves_as_its_module(self, kind: str) -> None:
        made, config = case(kind), encoding(kind, 2)
        torch.manual_seed(3)
        module = None if config is None else config.module()
        torch.manual_seed(3)
        assert torch.equal(attend(made.q, made.k, made.v, config), attend(made.q, made.k, made.v, module))


@every_kind
class TestInvariants:
    def test_chunks_equal_the_whole(self, kind: str) -> None:
        made = case(kind, 13, 13)
        whole = attend(made.q, made.k, made.v, made.module)
        for small in (False, True):
            parts, begin = [], 0
            for end in (6, 7, 13):
                q, k, v = made.q[:, :, begin:end], made.k[:, :, :end], made.v[:, :, :end]
                if small:
                    with small_blocks():
                        parts.append(attend(q, k, v, made.module))
                else:
                    parts.append(attend(q, k, v, made.module))
                begin = end
            close(torch.cat(parts, dim=2), whole)

    def test_a_batch_equals_its_rows(self, kind: str) -> None:
        made = case(kind, 4, 6, mask=torch.rand(2, 1, 1, 6) < 0.7)
        made.of_queries = torch.randint(0, 50, (2, 4)).sort().values
        made.of_keys = torch.randint(0, 50, (2, 6)).sort().values
        whole, mask = made.attended(), made.options["mask"]
        for b in range(2):
            q, k, v = (x[b : b + 1] for x in (made.q, made.k, made.v))
            positions = made.of_queries[b], made.of_keys[b]
            close(attend(q, k, v, made.module, positions, mask=mask[b : b + 1]), whole[b : b + 1])

    def test_hidden_keys_dont_count(self, kind: str) -> None:
        """However it is said that they are hidden, as a mask of True and False or of numbers, with a bias or not."""
        hides = torch.ones(7, dtype=torch.bool)
        hides[[0, 3]] = False
        for mask in (hides, torch.zeros(7).masked_fill(~hides, -torch.inf)):
            for bias in (None, torch.zeros(7)):
                made = case(kind, 7, 7, mask=mask, bias=bias)
                before = made.attended()
                made.k[:, :, [0, 3]] = 50.0
                made.v[:, :, [0, 3]] = 50.0
                close(made.attended(), before)

    def test_a_query_that_sees_nothing_gets_zeros(self, kind: str) -> None:
        for mask in (torch.ones(6, 6, dtype=torch.bool), torch.zeros(6, 6, dtype=torch.float64)):
            mask[2:4] = False if mask.dtype == torch.bool else -torch.inf
            for size in (D, 3):
                with small_blocks():
                    made = case(kind, 6, 6, v_size=size, dtype=torch.float64, grad=True, mask=mask)
                    out = made.attended()
                    assert out[:, :, 2:4].eq(0).all() and out[:, :, [1, 4]].ne(0).all()
                    found = gradients(out, wanted(made))
                    assert all(gradient.isfinite().all() for gradient in found)
                    assert found[0][:, :, 2:4].eq(0).all() and found[0][:, :, 4].ne(0).all()

    def test_no_queries_and_no_keys(self, kind: str) -> None:
        made = case(kind, 0, 5, v_size=3)
        assert made.attended().shape == (2, HEADS, 0, 3)
        made = case(kind, 5, 0, v_size=3, causal=False)
        out = made.attended()
        assert out.shape == (2, HEADS, 5, 3) and out.eq(0).all()

    def test_dropout(self, kind: str) -> None:
        made = case(kind, 60, 60, v_size=20)
        made.v = torch.ones_like(made.v)
        with small_blocks():
            out = made.attended(dropout=0.5)
            assert not torch.equal(made.attended(dropout=0.5), out)
        close(made.attended(dropout=0.0), torch.ones_like(out))
        # weights that stay are doubled, so that their sum is 1 on average
        assert out.mean().item() == pytest.approx(1.0, abs=0.08) and out.std() > 0.1


class TestPositions:
    def test_of_few_bits_dont_wrap(self) -> None:
        made = case("alibi", 3, 3, causal=False)
        pairs = [(torch.arange(3, dtype=d), torch.arange(200, 203, dtype=d)) for d in (torch.int64, torch.uint8)]
        outs = [attend(made.q, made.k, made.v, made.module, pair, causal=False) for pair in pairs]
        assert torch.equal(outs[0], outs[1])

    def test_of_few_bits_that_start_again_are_no_run(self) -> None:
        made, positions = case("kerple", 4, 4), torch.tensor([254, 255, 0, 1])
        outs = [attend(made.q, made.k, made.v, made.module, positions.to(d)) for d in (torch.int64, torch.uint8)]
        assert torch.equal(outs[0], outs[1])

    def test_more_queries_than_keys_both_start_at_0(self) -> None:
        made = case("rope", 6, 4, causal=False)
        both = torch.arange(6), torch.arange(4)
        assert torch.equal(
            attend(made.q, made.k, made.v, made.module, causal=False),
            attend(made.q, made.k, made.v, made.module, both, causal=False),
        )


class TestAutocast:
    @pytest.mark.parametrize("mask", [None, torch.ones(600, dtype=torch.bool)])
    def test_long_unequal_sizes(self, mask: torch.Tensor | None) -> None:
        """The kernel for those writes into tensors of its own, which autocast's products don't fit."""
        x = torch.randn(1, 1, 600, D, requires_grad=True)
        module = PoPE(D, 1).module()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = attend(x, x, x, module, mask=mask)
        close(out, attend(x, x, x, module, mask=mask), 0.05)
        out.sum().backward()
        assert x.grad is not None and x.grad.isfinite().all()


Q = torch.randn(2, 4, 3, 8)
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"q": Q[0]}, r"q\.shape"),
    ({"k": "k"}, r"k\.shape"),
    ({"q": Q.long()}, r"q\.dtype"),
    ({"k": Q.double()}, r"k\.dtype"),
    ({"v": Q.bfloat16()}, r"v\.dtype"),
    ({"q": Q[..., :0], "k": Q[..., :0]}, r"q\.shape"),
    ({"k": Q[:1], "v": Q[:1]}, r"k\.shape"),
    ({"k": Q[..., :4]}, r"k\.shape"),
    ({"v": Q[:, :2]}, r"v\.shape"),
    ({"v": Q[:, :, :2]}, r"v\.shape"),
    ({"k": Q[:, :3], "v": Q[:, :3]}, r"k\.shape\[1\]"),
    ({"k": Q[:, :0], "v": Q[:, :0]}, r"k\.shape\[1\]"),
    ({"k": Q[:, :, :2], "v": Q[:, :, :2]}, r"q\.shape\[2\]"),
    ({"encoding": "rope"}, "encoding"),
    ({"encoding": RoPE}, "encoding"),
    ({"encoding": Sinusoidal(8)}, "encoding"),
    ({"encoding": RoPE(16)}, r"q\.shape"),
    ({"encoding": PoPE(8, 2)}, "num_kv_heads"),
    ({"encoding": ALiBi(2)}, "num_heads"),
    ({"encoding": encoding("dape", 1), "q": Q[:, :2], "k": Q[:, :2], "v": Q[:, :2]}, r"q\.shape"),
    ({"positions": 3}, "positions"),
    ({"positions": torch.arange(4)}, r"positions\.shape"),
    ({"positions": torch.arange(3.0)}, r"positions\.dtype"),
    ({"positions": torch.arange(-1, 2)}, r"min\(positions\)"),
    ({"encoding": ALiBi(4), "positions": (torch.arange(3), torch.arange(2))}, r"positions\[1\]\.shape"),
    ({"causal": "yes"}, "causal"),
    ({"scale": "big"}, "scale"),
    ({"scale": float("nan")}, "scale"),
    ({"mask": [[True]]}, "mask"),
    ({"mask": torch.ones(3, 3, dtype=torch.int64)}, "mask"),
    ({"mask": torch.ones(3, 4)}, r"mask\.shape"),
    ({"mask": torch.ones(1, 2, 4, 3, 3)}, r"mask\.shape"),
    ({"bias": torch.ones(2, 2, 3, 3)}, r"bias\.shape"),
    ({"bias": torch.ones(3, 3, dtype=torch.bool)}, "bias"),
    ({"window": 0}, "window"),
    ({"window": True}, "window"),
    ({"window": 2.0}, "window"),
    ({"window": 2, "causal": False}, "window"),
    ({"dropout": 1.0}, "dropout"),
    ({"dropout": -0.1}, "dropout"),
    ({"dropout": None}, "dropout"),
]


@pytest.mark.parametrize(("arguments", "argument"), WRONG)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{argument}=") as caught:
        attend(**({"q": Q, "k": Q, "v": Q} | arguments))
    assert "\n" not in str(caught.value)
