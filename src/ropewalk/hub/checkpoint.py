"""The encoding of a saved model: named in its config, what it learned among its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from ropewalk.encodings.base import Encoding
from ropewalk.errors import ArgumentError, DamagedFileError, RopewalkError
from ropewalk.patching.content_attention import is_own
from ropewalk.patching.handle import CONFIG, OPTIONS
from ropewalk.patching.install import install

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


def restore_encoding(model: Any, source: str, revision: str | None = None) -> None:
    """Install the encoding that the model's config names, with what it learned; nothing for a config without one.

    Raises:
        DamagedFileError: the entry is no encoding, doesn't fit the model, or its weights are missing.
    """
    entry = getattr(model.config, CONFIG, None)
    if entry is None:
        return
    delattr(model.config, CONFIG)
    try:
        encoding, options = _read(entry)
        install(model, encoding, **options)
    except RopewalkError as error:
        raise DamagedFileError(f"{source}: its {CONFIG} can't be installed ({error})") from error
    learned = {name: p for name, p in model.named_parameters() if is_own(name)}
    found = _weights(source, revision, set(learned))
    for name, parameter in learned.items():
        if name not in found or found[name].shape != parameter.shape:
            raise DamagedFileError(f"{source}: {name} is missing or of another shape; save the model again")
        parameter.data.copy_(found[name])


def _read(entry: Any) -> tuple[Encoding, dict[str, Any]]:
    """The encoding that a config's entry names, and the further arguments of `install`."""
    options = entry.get(OPTIONS, {}) if isinstance(entry, dict) else {}
    if not isinstance(options, dict) or not options.keys() <= {"when", "original_length", "cache"}:
        raise ArgumentError(OPTIONS, options, "give when, original_length or cache, as install takes them")
    encoding = {name: value for name, value in entry.items() if name != OPTIONS} if isinstance(entry, dict) else entry
    return Encoding.from_dict(encoding), options


def _weights(source: str, revision: str | None, names: set[str]) -> dict[str, Tensor]:
    """Those of the named weights that a model's files hold."""
    from safetensors import safe_open

    if not names:
        return {}
    found: dict[str, Tensor] = {}
    for file in _files(source, revision):
        with safe_open(file, framework="pt") as weights:
            found |= {name: weights.get_tensor(name) for name in names & set(weights.keys())}
    return found


def _files(source: str, revision: str | None) -> list[Path]:
    """The safetensors files of a folder, or of a hub repository that has just been loaded."""
    from transformers.utils.hub import cached_file

    def path(name: str) -> Path | None:
        if Path(source).is_dir():
            return Path(source) / name if (Path(source) / name).is_file() else None
        found = cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        return None if found is None else Path(found)

    if (index := path(_INDEX)) is not None:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        return [file for name in names if (file := path(name)) is not None]
    single = path(_WEIGHTS)
    return [] if single is None else [single]
