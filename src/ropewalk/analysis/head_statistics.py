"""What one calibration pass measured: a Gram per head and stage; the scores and selections from them."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ropewalk.analysis.head_scores import ORDERS, band_channels, band_entropy, eigenvalue_shares, find_score
from ropewalk.errors import ArgumentError, DamagedFileError, unknown_name
from ropewalk.heads import HeadSelection
from ropewalk.io import one_line_damage

STAGES = ("pre_ntk", "post_rope", "post_ntk")
INDICATORS = ("query", "key", "both")
_FORMAT = "ropewalk.statistics.1"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Statistics:
    """The Gram matrices of one calibration pass.

    Args:
        grams: stage -> (query Grams (layers, H, d, d), key Grams (layers, G, d, d)); stages are "pre_ntk"
            (before any rotation), "post_rope" (the model's own frequencies) and "post_ntk" (the length rule
            in force).
        num_tokens: how many real tokens each Gram sums.
        layers: the model's number of each measured layer, ascending.
        layout: how rotary pairs lie in a head, "half" or "interleaved".
        rotary_dim: how many leading channels rotate.
        model: the name of the model measured.
        text_fingerprint: a hash of the calibration text.

    Raises:
        ArgumentError: a field doesn't fit the others.
    """

    grams: dict[str, tuple[Tensor, Tensor]]
    num_tokens: int
    layers: tuple[int, ...]
    layout: str
    rotary_dim: int
    model: str = ""
    text_fingerprint: str = ""
    _shares: dict[tuple[str, str], Tensor] = dataclasses.field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if not self.grams:
            raise ArgumentError("grams", self.grams, f"must hold at least one stage of {', '.join(STAGES)}")
        for stage, pair in self.grams.items():
            if stage not in STAGES:
                raise unknown_name("stage", stage, STAGES)
            self._check_shapes(stage, pair)
        if list(self.layers) != list(HeadSelection((layer, 0) for layer in self.layers).layers):
            raise ArgumentError("layers", self.layers, "must be distinct layer numbers, ascending")
        band_channels(self.head_dim, self.layout, self.rotary_dim)

    def __repr__(self) -> str:
        return (
            f"Statistics(model={self.model!r}, {len(self.layers)} layers x {self.num_heads} heads "
            f"({self.num_kv_heads} key heads, size {self.head_dim}), stages={list(self.grams)}, "
            f"num_tokens={self.num_tokens})"
        )

    @property
    def num_heads(self) -> int:
        """H, the query heads of a layer."""
        return self._any()[0].shape[1]

    @property
    def num_kv_heads(self) -> int:
        """G, the key heads of a layer."""
        return self._any()[1].shape[1]

    @property
    def head_dim(self) -> int:
        """d, the size of a head."""
        return self._any()[0].shape[-1]

    def score(self, name: str, r: int | None = None, indicator: str = "key", stage: str = "post_ntk") -> Tensor:
        """A score of each query head, (layers, H) float64; row i is the model's layer `layers[i]`.

        Args:
            name: one of `ropewalk.analysis.head_scores.scores()`.
            r: how many leading eigenvalues count, 1 to d; for the truncated scores only.
            indicator: "query"; "key", where a key head's score counts for each query head of its group; or
                "both", the mean of the two ranks over all heads (1 = lowest, ties averaged).
            stage: which vectors; must have been measured.

        Raises:
            ArgumentError: an unknown name, a missing or needless r, or a stage that wasn't measured.
        """
        find_score(name).check_r(name, r)
        if indicator not in INDICATORS:
            raise unknown_name("indicator", indicator, INDICATORS)
        self._measured(stage)
        if indicator == "both":
            queries, keys = (self._score(name, r, side, stage) for side in ("query", "key"))
            return (ranks(queries) + ranks(keys)) / 2
        return self._score(name, r, indicator, stage)

    def select(
        self,
        name: str,
        r: int | None = None,
        indicator: str = "key",
        stage: str = "post_ntk",
        heads: int | None = None,
        quantile: float | None = None,
        order: str | None = None,
    ) -> HeadSelection:
        """The heads that come first when all layers x query heads are sorted by a score together.

        Args:
            name, r, indicator, stage: as for `score`.
            heads: how many to take, 1 to layers x H. Default: 3, when quantile isn't given either.
            quantile: instead of heads, the fraction to take, in (0, 1], rounded down but at least one head.
            order: "ascending" takes the lowest scores, "descending" the highest. Default: the score's own.

        Returns:
            Pairs of (the model's layer number, query head); ties go to the lower layer, then the lower head.

        Raises:
            ArgumentError: both heads and quantile, one out of its range, or whatever `score` refuses.
        """
        order = find_score(name).order if order is None else order
        if order not in ORDERS:
            raise unknown_name("order", order, ORDERS)
        count = _count(heads, quantile, len(self.layers) * self.num_heads)
        values = self.score(name, r, indicator, stage).flatten()
        found = torch.sort(values, stable=True, descending=order == "descending").indices[:count].tolist()
        return HeadSelection((self.layers[i // self.num_heads], i % self.num_heads) for i in found)

    def matched_sigma(self, selected: HeadSelection, indicator: str = "key", stage: str = "post_ntk") -> float:
        """The size of the heads that aren't selected, for DoPE's `sigma` (noise as large as what stays).

        The root mean square of one channel of their vectors: a Gram holds no means, and heads' vectors have a mean
        far smaller than their spread or, where not, one that noise should match too. "both" averages the two sides.

        Raises:
            ArgumentError: every head is selected, or as `score` does.
        """
        if indicator not in INDICATORS:
            raise unknown_name("indicator", indicator, INDICATORS)
        sides = (0, 1) if indicator == "both" else (INDICATORS.index(indicator),)
        pair = self._measured(stage)
        squares = []
        for grams in (pair[side] for side in sides):
            energy = grams.diagonal(dim1=-2, dim2=-1).sum(-1).repeat_interleave(self.num_heads // grams.shape[1], dim=1)
            kept = torch.ones(energy.shape, dtype=torch.bool)
            for layer, head in selected:
                if layer in self.layers and head < self.num_heads:
                    kept[self.layers.index(layer), head] = False
            if not kept.any():
                raise ArgumentError("selected", selected, "leaves no head to match; select fewer")
            squares.append(float(energy[kept].mean()) / (self.num_tokens * self.head_dim))
        return math.sqrt(sum(squares) / len(squares))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file: tensors `<stage>.query` and `<stage>.key`; JSON metadata for the rest.

        Raises:
            ArgumentError: the directory doesn't exist.
        """
        if not os.path.isdir(os.path.dirname(os.fspath(path)) or "."):
            raise ArgumentError("path", os.fspath(path), "its directory doesn't exist; make it first")
        # Stages may share memory (no length rule: post_rope is post_ntk), which the format refuses: copy.
        tensors = {
            f"{stage}.{side}": gram.detach().cpu().clone(memory_format=torch.contiguous_format)
            for stage, pair in self.grams.items()
            for side, gram in zip(("query", "key"), pair, strict=True)
        }
        fields: dict[str, Any] = {name: getattr(self, name) for name in _PLAIN_FIELDS}
        metadata = {"format": _FORMAT, "fields": json.dumps(fields | {"stages": list(self.grams)})}
        safetensors.torch.save_file(tensors, os.fspath(path), metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Statistics:
        """The statistics that `save` wrote, on the CPU.

        Raises:
            ArgumentError: there is no such file.
            DamagedFileError: the file is truncated, of another kind, or has a wrong field.
        """
        place = os.fspath(path)
        with one_line_damage(place, "a readable statistics file", "write one with Statistics.save"):
            return cls._read(place)

    @classmethod
    def _read(cls, path: str) -> Statistics:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise DamagedFileError(f"its format is {metadata.get('format')!r}, not {_FORMAT!r}")
            fields = json.loads(metadata["fields"])
            names = {stage: (f"{stage}.query", f"{stage}.key") for stage in fields["stages"]}
            # Cloned, as the file is mapped into memory and may be written over while the tensors are in use.
            grams = {stage: (file.get_tensor(q).clone(), file.get_tensor(k).clone()) for stage, (q, k) in names.items()}
        plain = {name: fields[name] for name in _PLAIN_FIELDS}
        for name, kind in _PLAIN_FIELDS.items():
            if type(plain[name]) is not kind:
                raise DamagedFileError(f"its field {name} is {plain[name]!r}")
        return cls(grams=grams, **(plain | {"layers": tuple(plain["layers"])}))

    def _measured(self, stage: str) -> tuple[Tensor, Tensor]:
        if stage not in STAGES:
            raise unknown_name("stage", stage, STAGES)
        if stage not in self.grams:
            raise ArgumentError("stage", stage, f"wasn't measured; this pass has {', '.join(self.grams)}")
        return self.grams[stage]

    def _any(self) -> tuple[Tensor, Tensor]:
        return next(iter(self.grams.values()))

    def _check_shapes(self, stage: str, pair: tuple[Tensor, Tensor]) -> None:
        query, key = (tuple(gram.shape) for gram in pair)
        if len(query) != 4 or query[0] != len(self.layers) or query[2] != query[3] or 0 in query:
            remedy = f"must have the shape ({len(self.layers)} layers, H, d, d)"
            raise ArgumentError(f"grams[{stage!r}] query", query, remedy)
        if len(key) != 4 or (key[0], *key[2:]) != (query[0], *query[2:]) or key[1] < 1 or query[1] % key[1]:
            remedy = f"must have the shape ({query[0]}, G, {query[2]}, {query[3]}), G a divisor of {query[1]}"
            raise ArgumentError(f"grams[{stage!r}] key", key, remedy)
        expected = tuple(tuple(gram.shape) for gram in self._any())
        if (query, key) != expected:
            remedy = f"must have the shapes of the other stages, {expected}"
            raise ArgumentError(f"grams[{stage!r}]", (query, key), remedy)

    def _score(self, name: str, r: int | None, side: str, stage: str) -> Tensor:
        gram, score = self.grams[stage][side == "key"], find_score(name)
        if score.from_shares is None:
            values = band_entropy(gram, self.layout, self.rotary_dim)
        else:
            # A sweep asks for many scores and ranks of the same matrices: the decomposition is done once.
            if (stage, side) not in self._shares:
                self._shares[stage, side] = eigenvalue_shares(gram)
            values = score.from_shares(self._shares[stage, side], r)
        return values.repeat_interleave(self.num_heads // values.shape[1], dim=1)


_PLAIN_FIELDS = {
    "num_tokens": int,
    "layers": list,
    "layout": str,
    "rotary_dim": int,
    "model": str,
    "text_fingerprint": str,
}


def _count(heads: int | None, quantile: float | None, total: int) -> int:
    if heads is not None and quantile is not None:
        raise ArgumentError("quantile", quantile, f"give heads or quantile, not both; heads={heads} is given too")
    if quantile is not None:
        if not 0 < quantile <= 1:
            raise ArgumentError("quantile", quantile, "must be above 0 and at most 1")
        # The rounding keeps 0.29 * 100 = 28.999999999999996 at 29.
        return max(1, math.floor(round(quantile * total, 6)))
    heads = 3 if heads is None else heads
    if isinstance(heads, bool) or not isinstance(heads, int) or not 1 <= heads <= total:
        raise ArgumentError("heads", heads, f"must be an integer from 1 to {total}, all layers x query heads")
    return heads


def ranks(values: Tensor) -> Tensor:
    """Ranks over all entries, 1 = lowest, ties averaged: same shape, float64."""
    _, group, sizes = torch.unique(values, return_inverse=True, return_counts=True)
    last = sizes.cumsum(0).double()
    found: Tensor = (last - (sizes.double() - 1) / 2)[group]
    return found


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's rank correlation of two tensors of the same shape, in [-1, 1]; NaN where one is constant."""
    centred = [found - found.mean() for found in (ranks(one).flatten(), ranks(other).flatten())]
    scale = centred[0].norm() * centred[1].norm()
    return float(centred[0] @ centred[1] / scale) if scale > 0 else math.nan
