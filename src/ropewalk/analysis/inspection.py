"""What one look at a model's heads found, as a value that can be saved and read back."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from ropewalk.analysis.scores import find_score
from ropewalk.errors import ArgumentError, DamagedFileError, unknown_name
from ropewalk.files import one_line_damage, one_line_errors

FORMAT, FORMAT_VERSION = "ropewalk.inspection", 1
SIDES = ("query", "key")

# Every tensor by name, with the names of its axes; "groups" are key heads. Those of a side have one for each.
_OF_HEADS = {
    "sinks.first": ("layers", "heads"),
    "sinks.few": ("layers", "heads"),
    "sinks.largest": ("layers", "heads"),
    "sinks.largest_at": ("layers", "heads"),
    "sinks.by_place": ("layers", "heads", "bins"),
    "low_rank.places": ("sample",),
    "tokens": ("tokens",),
}
_OF_SIDES = {
    "shares.post_ntk": ("layers", "side", "channels"),
    "low_rank": ("layers", "side", "sample", "vectors"),
}
_OF_BANDS = {
    "band_entropy.post_ntk": ("layers", "side"),
    "usage": ("layers", "side", "bands"),
    "cone.gamma": ("layers", "side", "bands"),
    "cone.bound": ("layers", "side", "bands"),
    "cone.measured": ("layers", "side", "bands"),
}
_OPTIONAL = {
    "shares.pre_ntk.query": ("layers", "heads", "channels"),
    "shares.pre_ntk.key": ("layers", "groups", "channels"),
    "band_entropy.pre_ntk.query": ("layers", "heads"),
    "band_entropy.pre_ntk.key": ("layers", "groups"),
    "needle.before": ("layers", "heads"),
    "needle.after": ("layers", "heads"),
    "delta": ("layers", "groups", "bands"),
}


def _of_sides(names: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return {
        f"{name}.{side}": tuple({"side": {"query": "heads", "key": "groups"}[side]}.get(axis, axis) for axis in axes)
        for name, axes in names.items()
        for side in SIDES
    }


_ALWAYS = _OF_HEADS | _of_sides(_OF_SIDES)
# All of these or, for an encoding without bands, none.
_BANDED = {"frequencies": ("layers", "bands")} | _of_sides(_OF_BANDS)
_KNOWN = _ALWAYS | _BANDED | _OPTIONAL


@dataclass(frozen=True, eq=False, repr=False)
class Inspection:
    """What `inspect` measured.

    Args:
        tensors: by name, on the CPU; see docs/inspect.md. Those that end in `.query` have an entry for each query
            head, those in `.key` one for each key head.
        about: how it was measured, plain JSON: `layers` (the model's number of each measured layer), `model` (as
            `describe` tells it), `encoding`, and more.

    Raises:
        ArgumentError: a tensor is missing, unknown, or doesn't fit the others.
    """

    tensors: Mapping[str, Tensor]
    about: Mapping[str, Any]

    def __post_init__(self) -> None:
        sizes = {"layers": len(self.layers)}
        for name in _ALWAYS | (_BANDED if any(name in self.tensors for name in _BANDED) else {}):
            if name not in self.tensors:
                raise ArgumentError("tensors", name, "is missing")
        for name, tensor in self.tensors.items():
            axes = _KNOWN.get(name)
            if axes is None:
                raise unknown_name("tensors", name, _KNOWN)
            expected = tuple(sizes.get(axis, size) for axis, size in zip(axes, tensor.shape, strict=False))
            if len(axes) != tensor.dim() or expected != tuple(tensor.shape):
                raise ArgumentError(f"tensors[{name!r}].shape", tuple(tensor.shape), f"must be {', '.join(axes)}")
            sizes |= dict(zip(axes, tensor.shape, strict=True))

    def __repr__(self) -> str:
        layers, heads = self["sinks.first"].shape
        return f"Inspection({layers} layers x {heads} heads, {len(self['tokens']):,} tokens)"

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    @property
    def layers(self) -> tuple[int, ...]:
        """The model's number of each measured layer, ascending."""
        return tuple(self.about["layers"])

    @property
    def has_bands(self) -> bool:
        """Whether the encoding has bands, and so frequencies, usage, cones and band entropies."""
        return "frequencies" in self.tensors

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages whose scores there are, as `Statistics` names them: `post_ntk`, and `pre_ntk` for rotations."""
        return tuple(stage for stage in ("pre_ntk", "post_ntk") if f"shares.{stage}.query" in self.tensors)

    def score(self, name: str, r: int | None = None, indicator: str = "key", stage: str = "post_ntk") -> Tensor:
        """A score of each query head, (layers, heads) float64, as `Statistics.score` gives it.

        Args:
            name: one of `ropewalk.analysis.scores.scores()`.
            r: how many leading eigenvalues count; for the truncated scores only.
            indicator: "query", or "key", where a key head's score counts for each query head of its group.
            stage: one of `stages`.

        Raises:
            ArgumentError: an unknown name, a missing or needless r, a stage that wasn't measured, or a score of bands
                where there are none.
        """
        score = find_score(name)
        score.check_r(name, r)
        if score.from_shares is None and not self.has_bands:
            raise ArgumentError("name", name, "this model's encoding has no bands; choose a score of whole vectors")
        for argument, value, known in (("indicator", indicator, SIDES), ("stage", stage, self.stages)):
            if value not in known:
                raise unknown_name(argument, value, known)
        if score.from_shares is None:
            values = self[f"band_entropy.{stage}.{indicator}"].double()
        else:
            values = score.from_shares(self[f"shares.{stage}.{indicator}"].double(), r)
        return values.repeat_interleave(self["sinks.first"].shape[1] // values.shape[1], dim=1)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file with `about` as JSON metadata: whole or, whatever happens, not at all.

        Raises:
            ArgumentError: the place can't be written.
        """
        path = Path(path)
        plain = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        metadata = {"format": FORMAT, "format_version": str(FORMAT_VERSION), "about": json.dumps(dict(self.about))}
        content = safetensors.torch.save(plain, metadata=metadata)
        part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
        try:
            with one_line_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                part.write_bytes(content)
                os.replace(part, path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Inspection:
        """What `save` wrote.

        Raises:
            ArgumentError: there is no such file.
            DamagedFileError: the file is truncated, of another kind or a later version, or doesn't fit together.
        """
        place = os.fspath(path)
        with one_line_damage(place, "a readable inspection", "write one with Inspection.save or ropewalk inspect"):
            return cls._read(place)

    @classmethod
    def _read(cls, path: str) -> Inspection:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise DamagedFileError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
            if metadata.get("format_version") != str(FORMAT_VERSION):
                found = metadata.get("format_version")
                raise DamagedFileError(f"its version is {found!r}, this ropewalk reads {FORMAT_VERSION}")
            # Cloned, as the file is mapped into memory and may be written over while the tensors are in use.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return cls(tensors, json.loads(metadata["about"]))
