"""The ways to attend that benchmarks/encodings.py compares: ropewalk's, torch's own, and other libraries'.

All get the same q, k and v (1, heads, N, 64), causal, and encode q and k themselves. Peers that aren't installed are
left out, with a line that says so.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from encoding_measure import HEADS, SIZE
from torch import Tensor, nn

from ropewalk import PoPE, RoPE, attend

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
SCALE = SIZE**-0.5


@dataclasses.dataclass(frozen=True)
class Arm:
    """A way to attend.

    Args:
        name: as the page calls it.
        make: builds it from the phases (heads, 64) that every PoPE is given, and returns it with what it learns.
        is_polar: whether it's PoPE, so that its outputs must be those of the others.
        matrices: how many numbers for every pair of tokens it holds at once, a head; 0: none.
    """

    name: str
    make: Callable[[Tensor], tuple[Attend, nn.Module | None]]
    is_polar: bool = False
    matrices: int = 0

    def bytes_at(self, tokens: int) -> int:
        """About what its matrices take."""
        return self.matrices * HEADS * tokens * tokens * 4


def arms() -> tuple[dict[str, Arm], list[str]]:
    """The arms by a short name, and a line about each peer that is missing."""
    found = {
        "sdpa": Arm("no encoding, torch's attention", _plain),
        "rope": Arm("RoPE, torch's attention", _rope),
        "pope": Arm("PoPE, `ropewalk.attend`", _pope, True),
        "padded": Arm("PoPE, values padded to 128 for torch's attention", _padded, True),
    }
    missing = []
    try:
        import PoPE_pytorch  # noqa: F401
    except ImportError as error:
        missing.append(f"PoPE-pytorch was left out: {error}")
    else:
        name = f"PoPE-pytorch {importlib.metadata.version('PoPE-pytorch')}, `flash_attn_with_pope`"
        found["pope_pytorch"] = Arm(name, _pope_pytorch, True, 5)
    try:
        import x_transformers.attend  # noqa: F401
    except ImportError as error:
        missing.append(f"x-transformers was left out: {error}")
    else:
        name = f"x-transformers {importlib.metadata.version('x-transformers')}, `PolarEmbedding`, "
        found["x_transformers_flash"] = Arm(name + "`Attend(flash=True)`", _x_transformers(True), True, 5)
        found["x_transformers"] = Arm(name + "`Attend`, its default", _x_transformers(False), True, 10)
    return found, missing


def _plain(_: Tensor) -> tuple[Attend, None]:
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=SCALE), None


def _rope(_: Tensor) -> tuple[Attend, None]:
    module = RoPE(SIZE).module()

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = module(q, k, torch.arange(q.shape[2]))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=SCALE)

    return run, None


def _module(phases: Tensor) -> nn.Module:
    module = PoPE(SIZE, HEADS).module()
    module.delta.data.copy_(phases)
    return module


def _pope(phases: Tensor) -> tuple[Attend, nn.Module]:
    module = _module(phases)
    return lambda q, k, v: attend(q, k, v, module), module


def _padded(phases: Tensor) -> tuple[Attend, nn.Module]:
    module = _module(phases)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = module(q, k, torch.arange(q.shape[2]))
        return F.scaled_dot_product_attention(q, k, F.pad(v, (0, SIZE)), is_causal=True, scale=SCALE)[..., :SIZE]

    return run, module


def _pope_pytorch(phases: Tensor) -> tuple[Attend, nn.Module]:
    import PoPE_pytorch

    module = PoPE_pytorch.PoPE(SIZE, heads=HEADS)
    module.bias.data.copy_(phases)
    return lambda q, k, v: PoPE_pytorch.flash_attn_with_pope(q, k, v, pos_emb=module(q.shape[2]), causal=True), module


def _x_transformers(flash: bool) -> Callable[[Tensor], tuple[Attend, nn.Module]]:
    def make(phases: Tensor) -> tuple[Attend, nn.Module]:
        from x_transformers.attend import Attend as TheirAttend
        from x_transformers.x_transformers import PolarEmbedding, apply_polar_pos_emb

        module = PolarEmbedding(SIZE, HEADS)
        module.learned_bias.data.copy_(phases[:, None])
        inner = TheirAttend(heads=HEADS, causal=True, scale=SCALE, flash=flash)

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            frequencies, bias = module(torch.arange(q.shape[2]))
            out: Tensor = inner(apply_polar_pos_emb(q, frequencies), apply_polar_pos_emb(k, frequencies + bias), v)[0]
            return out

        return run, module

    return make


def phases(seed: int) -> Tensor:
    """Learned phases as they might be after training, (heads, 64) within [-2 pi, 0]."""
    generator = torch.Generator().manual_seed(seed)
    return -2 * math.pi * torch.rand(HEADS, SIZE, generator=generator)


def content(tokens: int, seed: int) -> list[Tensor]:
    """Queries, keys, values and a gradient of the output, each (1, heads, tokens, 64)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, HEADS, tokens, SIZE, generator=generator) for _ in range(4)]


def forward(run: Attend, qkv: list[Tensor]) -> Tensor:
    """One pass without gradients."""
    with torch.no_grad():
        return run(*qkv[:3])


def both(run: Attend, module: nn.Module | None, qkv: list[Tensor]) -> list[Tensor]:
    """One pass forward and back: the gradients of queries, keys and values; what the arm learns gets its own too."""
    if module is not None:
        module.zero_grad()
    leaves = [x.detach().requires_grad_() for x in qkv[:3]]
    run(*leaves).backward(qkv[3])
    return [leaf.grad for leaf in leaves if leaf.grad is not None]
