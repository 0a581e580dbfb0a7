"""What the tests of attention share: the kinds of encoding, their scores, inputs, and a comparison."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests.reference import attention as reference
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ropewalk.attention import attend
from ropewalk.attention import blockwise as scored
from ropewalk.attention import sdpa as vectors
from ropewalk.attention import tiled_cpu as unequal
from ropewalk.encodings.alibi import ALiBi
from ropewalk.encodings.base import BiasModule, Encoding, EncodingModule, RotaryModule, ScoreModule
from ropewalk.encodings.dape import DAPE
from ropewalk.encodings.dape_v2 import DAPEv2
from ropewalk.encodings.dope import DoPE
from ropewalk.encodings.fire import FIRE
from ropewalk.encodings.kerple import KERPLE
from ropewalk.encodings.nope import NoPE
from ropewalk.encodings.pope import PoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.encodings.rope_plus_plus import RoPEPlusPlus
from ropewalk.encodings.self_extend import SelfExtend
from ropewalk.encodings.t5 import T5Bias
from ropewalk.heads import HeadSelection

HEADS, D = 4, 8
KINDS = (
    "none", "nope", "rope", "rope_plus_plus", "pope", "dope", "alibi", "t5", "kerple", "fire", "self_extend", "dape",
    "dape_v2",
)  # fmt: skip


def encoding(kind: str, groups: int) -> Encoding | None:
    """For 4 query heads of 8 channels."""
    rope = RoPE(D)
    made: dict[str, Any] = {
        "none": None,
        "nope": NoPE(),
        "rope": rope,
        "rope_plus_plus": RoPEPlusPlus(rope),
        "pope": PoPE(D, groups, delta="uniform"),
        "dope": DoPE(rope, HeadSelection([(0, 1), (0, 2)]), original_length=8),
        "alibi": ALiBi(HEADS),
        "t5": T5Bias(HEADS, 8, 16, bidirectional=True),
        "kerple": KERPLE(HEADS),
        "fire": FIRE(HEADS, initial_L=5),
        "self_extend": SelfExtend(rope, 2, 3),
        "dape": DAPE(HEADS, KERPLE(HEADS), 6),
        "dape_v2": DAPEv2(HEADS, ALiBi(HEADS), 3, 6),
    }
    found: Encoding | None = made[kind]
    return found


@dataclass
class Case:
    """Arguments of `attend`, except those that differ from test to test."""

    module: EncodingModule | None
    q: Tensor
    k: Tensor
    v: Tensor
    of_queries: Tensor
    of_keys: Tensor
    options: dict[str, Any]

    def attended(self, **changed: Any) -> Tensor:
        positions = self.of_queries, self.of_keys
        return attend(self.q, self.k, self.v, self.module, positions, **(self.options | changed))

    def expected(self) -> Tensor:
        """The naive formula, float64."""
        options = dict(self.options)
        scale = options.pop("scale", None) or self.q.shape[-1] ** -0.5
        return reference.attention(self.scores(scale), self.v, **options)

    def scores(self, scale: float) -> Tensor:
        """All scores by the module's own word: what `attend` adds is masks, blocks and kernels."""
        q, k, module = self.q, self.k, self.module
        of_queries, of_keys = (p if p.dim() == 2 else p[None] for p in (self.of_queries, self.of_keys))
        if isinstance(module, RotaryModule):
            q, k = module(q, k, (self.of_queries, self.of_keys))
            own = dict(module.own_keys(HEADS, self.k.shape[1]))
            size, groups = HEADS // self.k.shape[1], self.k.shape[1]
            if own:
                k = k[:, [groups + own[head] if head in own else head // size for head in range(HEADS)]]
        if isinstance(module, ScoreModule):
            return module.scores(q, module.keys(k, of_keys), of_queries, of_keys, self.seen(), scale)
        products = reference.products(q, k, scale)
        return products + module.bias(of_queries, of_keys) if isinstance(module, BiasModule) else products

    def seen(self) -> Tensor:
        """Which keys each query may see, as a score module is told: by order, window, and a mask's False or -inf."""
        queries, keys = self.q.shape[2], self.k.shape[2]
        causal, window = self.options.get("causal", True), self.options.get("window")
        rows = [[reference.may_see(n, m, queries, keys, causal, window) for m in range(keys)] for n in range(queries)]
        seen = torch.tensor(rows, dtype=torch.bool).reshape(1, 1, queries, keys)
        for mask in (self.options.get("mask"), self.options.get("bias")):
            if mask is not None:
                seen = seen & (mask if mask.dtype == torch.bool else mask != -torch.inf)
        return seen


def case(
    kind: str = "none",
    queries: int = 5,
    keys: int = 5,
    groups: int = 2,
    batch: int = 2,
    v_size: int = D,
    dtype: torch.dtype = torch.float32,
    grad: bool = False,
    **options: Any,
) -> Case:
    """Random q, k, v and positions that count up from 3; `grad`: they and the module's parameters want gradients."""
    config = encoding(kind, groups)
    module: Any = None if config is None else config.module()
    q, k = torch.randn(batch, HEADS, queries, D, dtype=dtype), torch.randn(batch, groups, keys, D, dtype=dtype)
    v = torch.randn(batch, groups, keys, v_size, dtype=dtype)
    for x in (q, k, v):
        x.requires_grad_(grad)
    positions = torch.arange(keys) + 3
    of_queries = positions[keys - queries :] if queries <= keys else torch.arange(queries) + 3
    return Case(module, q, k, v, of_queries, positions, options)


@contextmanager
def small_blocks() -> Iterator[None]:
    """Blocks and tiles of a few queries, and the kernel for unequal sizes from 4 keys on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "BLOCK", 3)
        patch.setattr(scored, "BLOCK_SCORES", 1)
        patch.setattr(scored, "LEAST_ROWS", 2)
        patch.setattr(unequal, "LEAST_KEYS", 4)
        patch.setattr(unequal, "TILE", 16)
        patch.setattr(unequal, "ROWS_FORWARD", (2, 4))
        patch.setattr(unequal, "ROWS_BACKWARD", (1, 3))
        yield


class Largest(TorchDispatchMode):
    """The most numbers that any tensor made meanwhile has in memory; `given` ones and views of them don't count."""

    def __init__(self, *given: Tensor):
        super().__init__()
        self.numbers, self._given = 0, {x.untyped_storage().data_ptr() for x in given}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in self._given:
                self.numbers = max(self.numbers, x.untyped_storage().nbytes() // x.element_size())
        return out


def gradients(out: Tensor, wanted: list[Tensor]) -> list[Tensor]:
    """Those of a sum of `out` with fixed weights; 0 where there is none."""
    generator = torch.Generator().manual_seed(7)
    weights = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    total = (out.double() * weights).sum()
    if not total.requires_grad:  # no query sees anything
        return [torch.zeros_like(x) for x in wanted]
    found = torch.autograd.grad(total, wanted, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, found, strict=True)]


def close(ours: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours.double(), expected.double(), rtol=tolerance, atol=tolerance)
