"""What a remap's attention takes and gives: memory, dtypes, strides, dropout, compilation, tables that are kept."""

from __future__ import annotations

import pytest
import torch
from tests.attention.cases import Largest, close
from tests.attention.test_remapped import EACH, SCALE, YARN, Input, each, module_of, no_blocks, sizes
from torch import Tensor

from ropewalk.attention import attend
from ropewalk.attention.blockwise import attend_scored
from ropewalk.attention.mask import Visible
from ropewalk.attention.remapped import attend_remapped
from ropewalk.encodings import remap as remap_file
from ropewalk.encodings.dual_chunk import DualChunk
from ropewalk.encodings.remap import Remap
from ropewalk.encodings.self_extend import SelfExtend


@each
@pytest.mark.parametrize("queries", [2048, 1])
def test_no_matrix_of_all_scores(remap: Remap, queries: int) -> None:
    wide = {SelfExtend: SelfExtend(YARN, 400, 4), DualChunk: DualChunk(YARN, 700, 100)}.get(type(remap), remap)
    given, module = Input(queries, 2048, heads=2, groups=1), module_of(wide)
    with no_blocks(), Largest(given.q, given.k, given.v) as largest:
        given.attended(module)
    assert largest.numbers <= 2048 * 2048 / 16


@each
def test_dropout_takes_blocks(remap: Remap) -> None:
    given, module, found = Input(9, 12), module_of(remap), []
    for function in (attend_remapped, attend_scored):
        torch.manual_seed(3)
        held = given.q, given.k, given.v, given.positions, given.plain, SCALE
        found.append(function(module, *held, dropout=0.5))
    close(*found)
    assert not torch.allclose(found[0], given.attended(module), atol=1e-2)


def test_compiled() -> None:
    given, module = Input(9, 12), module_of(EACH[0])

    def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, module, given.positions, window=7)

    torch._dynamo.reset()
    compiled = torch.compile(attended, fullgraph=True, backend="eager")
    close(compiled(given.q, given.k, given.v), attended(given.q, given.k, given.v))


@each
def test_half_precision_is_as_exact_as_plain_attention(remap: Remap) -> None:
    """Plain attention here is the RoPE's own, which rounds queries and keys after turning them too."""
    given, module, rope = Input(160, 160, dtype=torch.float64), module_of(remap), YARN.module()
    exact, exact_plain = given.blockwise(module), attend(given.q, given.k, given.v, rope, scale=SCALE)
    given.q, given.k, given.v = (x.bfloat16() for x in (given.q, given.k, given.v))
    error = (attend(given.q, given.k, given.v, rope, scale=SCALE) - exact_plain).abs()
    for stored in (False, True):
        found = given.attended(module, stored=stored)
        assert found.dtype == torch.bfloat16
        ours = (found - exact).abs()
        assert ours.max() <= 2 * error.max() and ours.mean() <= 2 * error.mean()


@each
def test_what_is_kept_between_calls_changes_nothing(remap: Remap) -> None:
    """Tables are kept by length, position and dtype: other lengths in between, inference mode, then training."""
    module = module_of(remap)
    with torch.inference_mode():
        Input(20, 20).attended(module)
    assert not any(table.is_inference() for turn in module._turns.values() for table in turn.tables)
    for keys, start in ((20, 0), (20, 3), (7, 3), *((n, n) for n in range(1, 12)), (20, 0)):
        given = Input(min(keys, 4), keys, start=start)
        for stored in (False, True):
            close(given.attended(module, stored=stored), given.blockwise(module))
    assert len(module._turns) <= remap_file._MOST_TURNS
    given = Input(20, 20)
    given.q.requires_grad_()
    given.attended(module).sum().backward()
    assert given.q.grad is not None


def test_a_mask_that_learns_gets_gradients_after_a_long_prefix() -> None:
    given, module = Input(3, 40), module_of(EACH[0])
    bias = torch.zeros(1, 1, 3, 40).masked_fill_(torch.ones(3, 40, dtype=torch.bool).triu(38), -torch.inf)
    bias.requires_grad_()
    with sizes(least_prefix=2):
        assert given.attended(module, Visible(3, 40, causal=False, mask=bias)).requires_grad


def channels_apart(x: Tensor) -> Tensor:
    """The same numbers with the channels of a token apart in memory."""
    return x.mT.contiguous().mT


@each
@pytest.mark.parametrize("apart", ["q", "k", "v"])
def test_channels_that_are_not_side_by_side_in_memory(remap: Remap, apart: str) -> None:
    given, module = Input(9, 12), module_of(remap)
    expected = given.attended(module)
    setattr(given, apart, channels_apart(getattr(given, apart)))
    close(given.attended(module), expected)


def test_forward_derivatives() -> None:
    given, module = Input(9, 12, dtype=torch.float64), module_of(EACH[0])
    direction = torch.randn_like(given.q)
    _, found = torch.func.jvp(lambda q: attend(q, given.k, given.v, module), (given.q,), (direction,))
    step = 1e-6 * direction
    ends = [attend(given.q + sign * step, given.k, given.v, module) for sign in (1, -1)]
    close(found, (ends[0] - ends[1]) / 2e-6, 1e-6)


@pytest.mark.parametrize("half", ["k", "v"])
def test_autocast_with_inputs_of_different_dtypes(half: str) -> None:
    """A model with q/k norm in float32 and no cache has float32 queries and keys, and values in bfloat16."""
    given, module = Input(9, 12), module_of(EACH[0])
    exact = given.attended(module)
    setattr(given, half, getattr(given, half).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        close(given.attended(module), exact, 5e-2)
