"""DAPE V2: attention scores convolved across heads and neighbouring keys (Zheng et al., arXiv 2410.04798)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import conv2d, leaky_relu, pad

from ropewalk.encodings.base import Encoding, ScoreModule
from ropewalk.encodings.dape import bias_module, check_bias, check_heads, scaled_products
from ropewalk.errors import ArgumentError
from ropewalk.validation import check_count


@dataclasses.dataclass(frozen=True)
class DAPEv2(Encoding):
    """Scores as a feature map: A + B + f(A, B), where f sees the `kernel` nearest keys of all heads (section 3).

    A are the scaled dot products and B a bias, if any. f is two convolutions of 1 x `kernel` over the key axis with a
    LeakyReLU between them: the 2 H maps of A and B (H of A alone when `inner` is None) -> `hidden` maps -> H. What a
    query can't see is 0 in A and B before f, so hidden content never reaches its scores.

    Padding: for each query the maps go on with zeros past its last visible key, as in the authors' causal code, where
    the hidden maps there are those of zeros and not 0. Before its first visible key the hidden maps are 0 too, as
    the authors' padding makes them. Theirs are 0 as well past the end of the map, so that their last kernel // 2 rows
    depend on how many keys follow; here a score doesn't depend on hidden keys being there, before or after, nor on
    other queries. Neighbours are those in the order of the keys, whatever their positions.

    `num_heads` is the number of query heads H, `kernel` an odd number (1: DAPE), `inner` an encoding such as KERPLE(H),
    trained along. Scores are (B, H, N, M), float32 or wider. Raises ArgumentError for a count that isn't a positive
    integer, an even kernel, or an `inner` that isn't a bias encoding for `num_heads` heads.
    """

    kind: ClassVar[str] = "dape_v2"
    summary: ClassVar[str] = "attention scores convolved over all heads and neighbouring keys"
    nested: ClassVar[tuple[str, ...]] = ("inner",)
    num_heads: int
    inner: Encoding | None = None
    kernel: int = 3
    hidden: int = 32

    def __post_init__(self) -> None:
        check_count("num_heads", self.num_heads)
        if self.inner is not None:
            check_bias(self.inner, self.num_heads)
        check_count("kernel", self.kernel)
        if self.kernel % 2 == 0:
            raise ArgumentError("kernel", self.kernel, "give an odd number, as many keys before as after")
        check_count("hidden", self.hidden)

    def module(self) -> DAPEv2Module:
        """The module; attention asks its `scores` block by block."""
        return DAPEv2Module(self)


class DAPEv2Module(ScoreModule):
    """DAPE V2 with its bias module `bias` (or None) and its convolutions `first` and `second`.

    `first` takes the H products, then the H biases. Both start as torch's Conv2d does, from torch's global generator,
    as in the authors' code. They work in float32 or wider, whatever the module is cast to.
    """

    def __init__(self, encoding: DAPEv2):
        super().__init__()
        self.encoding = encoding
        self.bias = None if encoding.inner is None else bias_module(encoding.inner)
        self.mixes_keys = encoding.kernel > 1
        heads, hidden, window = encoding.num_heads, encoding.hidden, (1, encoding.kernel)
        maps = heads if self.bias is None else 2 * heads
        self.first = torch.nn.Conv2d(maps, hidden, window, dtype=torch.float32)
        self.second = torch.nn.Conv2d(hidden, heads, window, dtype=torch.float32)

    def scores(
        self,
        q: Tensor,
        keys: tuple[Tensor, ...],
        of_queries: Tensor,
        of_keys: Tensor,
        visible: Tensor | None,
        scale: float,
    ) -> Tensor:
        """A + B + f(A, B), (B, H, N, M) float32 or wider; those of hidden keys mean nothing."""
        check_heads(q, keys[0], self.encoding.num_heads)
        products = scaled_products(q, keys[0], scale)
        if self.bias is None:
            return products + self._convolved([products], visible)
        bias = self.bias.bias(of_queries, of_keys).to(products.dtype)
        return products + bias + self._convolved([products, bias.expand_as(products)], visible)

    def _convolved(self, maps: list[Tensor], visible: Tensor | None) -> Tensor:
        """f of the maps, each (B, H, N, M); the result has the shape of one."""
        side = self.encoding.kernel // 2
        if visible is not None:
            visible = visible[(None,) * (4 - visible.dim())]
            maps = [one.masked_fill(~visible, 0.0) for one in maps]
        # Hidden maps reach `side` keys past the last one: there, they are those of zeros.
        hidden = leaky_relu(_convolve(self.first, pad(torch.cat(maps, dim=1), (side, 2 * side))))
        if visible is not None:
            # argmax gives the first key that some head sees; where there is none, no score counts
            first_visible = visible.any(dim=1, keepdim=True).byte().argmax(dim=-1, keepdim=True)
            index = torch.arange(hidden.shape[-1], device=hidden.device)
            hidden = hidden.masked_fill(index < first_visible, 0.0)
        return _convolve(self.second, pad(hidden, (side, 0)))

    def extra_repr(self) -> str:
        """The config, for print(model)."""
        return repr(self.encoding)


def _convolve(layer: torch.nn.Conv2d, x: Tensor) -> Tensor:
    assert layer.bias is not None
    return conv2d(x, layer.weight.to(x), layer.bias.to(x))
