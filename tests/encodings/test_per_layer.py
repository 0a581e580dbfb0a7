"""One encoding a layer: what is refused where it is made."""

from __future__ import annotations

from typing import Any

import pytest

from ropewalk.encodings.base import Encoding
from ropewalk.encodings.nope import NoPE
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import ArgumentError

BAD: dict[str, tuple[Any, str]] = {
    "a layer twice": (((0, RoPE(8)), (1, RoPE(8)), (0, NoPE())), "layers=0: this layer is named twice"),
    "under 0": (((0, RoPE(8)), (-1, NoPE())), "layers=-1: layers are counted from 0"),
    "no pair": ((RoPE(8),), "each entry must be a pair"),
    "a truth value": (((True, RoPE(8)),), "each entry must be a pair"),
    "no tuple": ([(0, RoPE(8))], "give a tuple of pairs"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_what_is_refused(case: str) -> None:
    layers, text = BAD[case]
    with pytest.raises(ArgumentError, match=text) as caught:
        PerLayer(layers)
    assert "\n" not in str(caught.value)


def test_a_layer_twice_in_a_file() -> None:
    entry = [0, RoPE(8).to_dict()]
    with pytest.raises(ArgumentError, match="layers=0: this layer is named twice"):
        Encoding.from_dict({"kind": "per_layer", "layers": [entry, entry]})


def test_layers_in_any_order_and_with_gaps() -> None:
    some = PerLayer(((3, NoPE()), (0, RoPE(8))))
    assert some.at(0) == RoPE(8) and some.at(3) == NoPE()
    assert Encoding.from_dict(some.to_dict()) == some
