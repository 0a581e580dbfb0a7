"""DAPE: biases that adapt to the attention scores of all heads (Zheng et al., arXiv 2405.14722)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu, linear

from ropewalk.encodings.base import BiasModule, Encoding, ScoreModule, grouped_products
from ropewalk.errors import ArgumentError
from ropewalk.validation import check_count


@dataclasses.dataclass(frozen=True)
class DAPE(Encoding):
    """Data-adaptive bias: scores are A + B + f(A, B), with A the scaled dot products and B a bias (section 3).

    At each query and key, f takes the H products and the H biases through one hidden layer of `hidden` units with
    LeakyReLU to H numbers, so the heads tell each other what to add. `num_heads` is the number of query heads H;
    `inner` is the encoding that gives B, one for as many heads, such as ALiBi(H), KERPLE(H) or FIRE(H); its learnable
    parts are trained along. Each query and key stand alone, so what a query can't see never reaches its scores.
    Scores are (B, H, N, M), float32 or wider. Raises ArgumentError when a count isn't a positive integer, or `inner`
    isn't a bias encoding for `num_heads` heads.
    """

    kind: ClassVar[str] = "dape"
    summary: ClassVar[str] = "a bias that a small network over all heads adapts to the attention scores"
    nested: ClassVar[tuple[str, ...]] = ("inner",)
    num_heads: int
    inner: Encoding
    hidden: int = 32

    def __post_init__(self) -> None:
        check_count("num_heads", self.num_heads)
        check_bias(self.inner, self.num_heads)
        check_count("hidden", self.hidden)

    def module(self) -> DAPEModule:
        """The module; attention asks its `scores` block by block."""
        return DAPEModule(self)


class DAPEModule(ScoreModule):
    """DAPE with its bias module `bias` and its layers `first`, of the H products and then the H biases, and `second`.

    Both start as torch's Linear does, from torch's global generator, as in the authors' code. They work in
    float32 or wider, whatever the module is cast to.
    """

    def __init__(self, encoding: DAPE):
        super().__init__()
        self.encoding = encoding
        self.bias = bias_module(encoding.inner)
        heads, hidden = encoding.num_heads, encoding.hidden
        self.first = torch.nn.Linear(2 * heads, hidden, dtype=torch.float32)
        self.second = torch.nn.Linear(hidden, heads, dtype=torch.float32)

    def scores(
        self,
        q: Tensor,
        keys: tuple[Tensor, ...],
        of_queries: Tensor,
        of_keys: Tensor,
        visible: Tensor | None,
        scale: float,
    ) -> Tensor:
        """A + B + f(A, B), (B, H, N, M) float32 or wider; `visible` isn't needed."""
        check_heads(q, keys[0], self.encoding.num_heads)
        products = scaled_products(q, keys[0], scale)
        bias = self.bias.bias(of_queries, of_keys).to(products.dtype)
        both = torch.cat((products, bias.expand_as(products)), dim=1).movedim(1, -1)
        adapted = _applied(self.second, leaky_relu(_applied(self.first, both)))
        return products + bias + adapted.movedim(-1, 1)

    def extra_repr(self) -> str:
        """The config, for print(model)."""
        return repr(self.encoding)


def scaled_products(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """q·k * scale, (B, H, N, M) float32 or wider, for q (B, H, N, d) and k (B, G, M, d) where G divides H."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    return grouped_products(q.to(dtype), k.to(dtype)) * scale


def _applied(layer: torch.nn.Linear, x: Tensor) -> Tensor:
    return linear(x, layer.weight.to(x), layer.bias.to(x))


def check_heads(q: Tensor, k: Tensor, num_heads: int) -> None:
    """Refuse q (B, H, N, d) and k (B, G, M, d) unless H is `num_heads` and G divides it."""
    if q.shape[1] != num_heads:
        raise ArgumentError("q.shape", tuple(q.shape), f"give (batch, num_heads={num_heads}, tokens, channels)")
    if num_heads % k.shape[1]:
        raise ArgumentError("k.shape", tuple(k.shape), f"give a number of key heads that divides {num_heads}")


def check_bias(bias: Any, num_heads: int) -> None:
    """Refuse anything but a bias encoding for `num_heads` heads."""
    if not isinstance(bias, Encoding):
        raise ArgumentError("inner", bias, f"give a bias encoding, such as ALiBi({num_heads})")
    # A config is a value: asking what module it builds must not move the random numbers that come next.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        heads = bias_module(bias).num_heads
    if heads != num_heads:
        raise ArgumentError("inner.num_heads", heads, f"give as many heads as num_heads, {num_heads}")


def bias_module(bias: Encoding) -> BiasModule:
    """The bias encoding's module; an encoding of another kind is refused."""
    try:
        made: Any = bias.module()
    except NotImplementedError:
        made = None
    if not isinstance(made, BiasModule):
        raise ArgumentError(
            "inner", bias, f"{bias.kind} adds no bias to the scores; give a kind that does, such as ALiBi"
        )
    return made
