"""A look at every head of a model while it reads one text: sinks, scores, frequencies, needle attention."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ropewalk.analysis import attention_rows as sinks
from ropewalk.analysis import frequency_bands as bands
from ropewalk.analysis import head_scores as directions
from ropewalk.analysis.attention_capture import Heard, listening
from ropewalk.analysis.gram_matrix import GramAccumulator
from ropewalk.analysis.head_scores import band_entropy, eigenvalue_shares, find_score
from ropewalk.encodings.base import RotaryModule
from ropewalk.encodings.dope import DoPEModule
from ropewalk.encodings.model_rotation import own_rotation, rotary_layers
from ropewalk.encodings.nope import NoPE
from ropewalk.encodings.pope import PoPE, PoPEModule
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import ArgumentError, DamagedFileError, UnsupportedModelError, unknown_name
from ropewalk.hub.fingerprint import describe
from ropewalk.hub.plan import Plan
from ropewalk.io import one_line_damage, one_line_errors
from ropewalk.patching.handle import handle_of
from ropewalk.patching.input_limits import check_vocabulary

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
            name: one of `ropewalk.analysis.head_scores.scores()`.
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


# Tokens whose vectors are compared with eigenvectors, and how many of those.
SAMPLED_TOKENS, EIGENVECTORS = 256, 8


def inspect(
    model: nn.Module,
    input_ids: Tensor,
    needle: tuple[int, int] | None = None,
    plan: Plan | None = None,
    first_tokens: int = 4,
    queries: int | None = None,
    on_layer: Callable[[int, int], None] = lambda *_: None,
) -> Inspection:
    """Read a text once, with a plan once more, and keep what each head did.

    Beyond what the model needs itself this takes blocks of attention rows of two megabytes and, for the layer at hand,
    a number a head and token: memory grows with the text no faster than the model's own. Time grows with its square, as
    the model's does, unless `queries` says how many rows are looked at.

    Args:
        model: a causal model whose rotation `install` can replace, or with an encoding installed. What is told by
            frequency (usage, cone, band entropy) is there for RoPE, DoPE, NoPE and PoPE alone: others have no bands.
        input_ids: (N,) or (1, N) tokens, more than 64.
        needle: [start, end) of tokens whose attention from the last token is measured.
        plan: installed for a second pass, in which the needle's attention is measured again.
        first_tokens: how many tokens count as the first few, 1 to 49.
        queries: how many queries' attention is looked at for sinks, evenly spread; all when None.
        on_layer: called with the layers done and those to do, over all passes.

    Raises:
        ArgumentError: a value out of its range, a plan without a needle, or a plan that can't be installed.
        UnsupportedModelError: a model that can't be served: no rotary attention, attention weights that can't be
            heard, or layers whose heads differ or that don't all have bands.
    """
    ids = _checked_ids(input_ids)
    check_vocabulary(model, ids[0].tolist())
    sinks.check_first_tokens(first_tokens)
    counted = sinks.counted_queries(ids.shape[1], queries)
    _check_needle(needle, plan, ids.shape[1])
    layers = len(rotary_layers(model))
    total, done = layers * (1 if plan is None else 2), 0

    def read(*hearing: Callable[[Heard], None]) -> None:
        def heard(part: Heard) -> None:
            nonlocal done
            for hear in hearing:
                hear(part)
            done += 1
            on_layer(done, total)

        with torch.no_grad(), listening(model, heard):
            _decoder(model)(input_ids=ids.to(next(model.parameters()).device), use_cache=False)

    after = _NeedleRows(needle)
    if plan is not None:  # first, as a plan that can't be installed should be refused early
        with plan.installed(model, when="always"):
            read(after.hear)
    before, found = _NeedleRows(needle), _Layers(counted, first_tokens)
    read(found.hear, before.hear)
    tensors = found.stacked(type(model).__name__) | {"tokens": ids[0].cpu()}
    tensors |= before.stacked("needle.before") | after.stacked("needle.after")
    choices = {"first_tokens": first_tokens, "queries": len(counted), "needle": needle and list(needle)}
    about = _about(model, ids, found) | choices | {"plan": None if plan is None else plan.encoding.to_dict()}
    return Inspection(tensors, about)


def _about(model: nn.Module, ids: Tensor, found: _Layers) -> dict[str, Any]:
    """What was read, by which model, JSON-ready."""
    return {
        "layers": sorted(found.by_layer),
        "windows": [found.windows[index] for index in sorted(found.by_layer)],
        "model": describe(model),
        "encoding": _in_force(model),
        "layout": found.layout,
        "text_fingerprint": hashlib.sha256(ids.cpu().numpy().tobytes()).hexdigest(),
        "first_query": sinks.FIRST_QUERY,
        "recent": sinks.RECENT,
    }


class _NeedleRows:
    """The last token's attention to a span, in each layer that is heard."""

    def __init__(self, span: tuple[int, int] | None):
        self._span = span
        self.found: dict[int, Tensor] = {}

    def hear(self, heard: Heard) -> None:
        if self._span is not None:
            row = heard.rows.row(heard.rows.num_tokens - 1)
            self.found[heard.index] = row[:, slice(*self._span)].sum(-1)

    def stacked(self, name: str) -> dict[str, Tensor]:
        """(layers, heads) under a name; nothing when nothing was heard."""
        return {name: torch.stack([self.found[index] for index in sorted(self.found)])} if self.found else {}


class _Layers:
    """What is kept of each layer that is heard."""

    def __init__(self, counted: Tensor, first_tokens: int):
        self._counted, self._first_tokens = counted, first_tokens
        self.by_layer: dict[int, dict[str, Tensor]] = {}
        self.windows: dict[int, int | None] = {}
        self.layout: str | None = None
        self._places: Tensor | None = None

    def hear(self, heard: Heard) -> None:
        banded = _bands(heard)
        mass = sinks.column_mass(heard.rows, self._counted)
        kept = {f"sinks.{name}": value for name, value in sinks.sink_figures(mass, self._first_tokens).items()}
        num_tokens = heard.rows.num_tokens
        places = torch.linspace(0, num_tokens - 1, min(SAMPLED_TOKENS, num_tokens)).round().long()
        for number, side in enumerate(SIDES):
            if heard.before is not None and (banded is not None or isinstance(heard.module, RotaryModule)):
                gram = _gram(heard.before[number])
                kept[f"shares.pre_ntk.{side}"] = eigenvalue_shares(gram)
                if banded is not None:
                    kept[f"band_entropy.pre_ntk.{side}"] = band_entropy(gram, banded.layout, banded.width)
            x = heard.after[number]
            gram = _gram(x)
            kept[f"shares.post_ntk.{side}"] = eigenvalue_shares(gram)
            if banded is not None:
                kept |= {f"{name}.{side}": value for name, value in _by_band(x, gram, banded).items()}
            vectors = directions.leading_eigenvectors(gram, min(EIGENVECTORS, gram.shape[-1]))
            kept[f"low_rank.{side}"] = directions.cosines(x[:, places.to(x.device)], vectors).half()
        if banded is not None:
            self.layout, kept["frequencies"] = banded.layout, banded.frequencies
        if isinstance(heard.module, PoPEModule) and (delta := heard.module.phase()) is not None:
            kept["delta"] = delta.detach().clone()  # a free one is the parameter itself, which may be trained on
        self._places = places
        self.windows[heard.index] = heard.rows.window
        self.by_layer[heard.index] = {
            name: (value.float() if value.dtype == torch.float64 else value).cpu() for name, value in kept.items()
        }

    def stacked(self, model: str) -> dict[str, Tensor]:
        """Every tensor with an axis of layers in front."""
        kept = [self.by_layer[index] for index in sorted(self.by_layer)]
        if len({tuple((name, value.shape) for name, value in layer.items()) for layer in kept}) != 1:
            raise UnsupportedModelError(f"{model} has layers whose heads differ in number or size, or in having bands")
        assert self._places is not None
        stacked = {name: torch.stack([layer[name] for layer in kept]) for name in kept[0]}
        return stacked | {"low_rank.places": self._places}


def _checked_ids(input_ids: Tensor) -> Tensor:
    ids = input_ids[None] if input_ids.dim() == 1 else input_ids
    if ids.dim() != 2 or ids.shape[0] != 1:
        raise ArgumentError("input_ids.shape", tuple(input_ids.shape), "give the tokens of one text, (N,) or (1, N)")
    return ids


def _check_needle(needle: tuple[int, int] | None, plan: Plan | None, num_tokens: int) -> None:
    if needle is None and plan is not None:
        raise ArgumentError("needle", None, "give the needle's [start, end): it is what a plan is looked at for")
    if needle is not None and not 0 <= needle[0] < needle[1] < num_tokens:
        raise ArgumentError("needle", needle, f"give [start, end) of tokens before the last of {num_tokens}")


def _decoder(model: nn.Module) -> Any:
    """The model without its head: nobody looks at the logits."""
    whole: Any = model
    return whole.get_decoder() if hasattr(model, "get_decoder") else whole


def _in_force(model: nn.Module) -> dict[str, Any]:
    handle = handle_of(model)
    encoding = None if handle is None else handle.encoding
    return (own_rotation(model) if encoding is None else encoding).to_dict()


def _gram(x: Tensor) -> Tensor:
    """X^T X of each head, (H, d, d) float64 for x (H, N, d)."""
    accumulator = GramAccumulator(x.shape[0], x.shape[2], x.device)
    accumulator.add(x[None])
    return accumulator.gram


class _Bands(NamedTuple):
    """How bands lie in the compared vectors: the layout, how many channels are in pairs, and each pair's frequency."""

    layout: str
    width: int
    frequencies: Tensor


def _by_band(x: Tensor, gram: Tensor, banded: _Bands) -> dict[str, Tensor]:
    """What is told by band of the compared vectors x (H, N, D) and their Gram matrices, by name."""
    found = {
        "band_entropy.post_ntk": band_entropy(gram, banded.layout, banded.width),
        "usage": bands.usage(x, banded.layout, banded.width),
    }
    cone = bands.cone(x, gram, banded.layout, banded.width)
    return found | {f"cone.{name}": value for name, value in cone.items()}


def _bands(heard: Heard) -> _Bands | None:
    """The layer's bands; None where its encoding has none: biases, scores of their own, tables."""
    encoding, module = heard.encoding, heard.module
    if isinstance(encoding, PoPE):
        return _Bands("half", 2 * encoding.width, encoding.frequencies())
    rope = module.config if isinstance(module, DoPEModule) else encoding
    width = min(heard.rope.width, heard.after[0].shape[-1])
    if isinstance(rope, RoPE):
        return _Bands(rope.layout, width, rope.schedule().frequencies)
    if isinstance(rope, NoPE):
        return _Bands(heard.rope.layout, width, torch.zeros(width // 2))
    return None
