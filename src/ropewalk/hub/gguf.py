"""Models in GGUF files: unpacked once, and kept as safetensors with their tokenizer in a cache folder.

Reading a GGUF file through transformers parses its vocabulary several times, entry by entry, and unpacks
every block in Python: 25 s of computing for 135 million weights. The unpacked copy loads in 2 s.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ropewalk.errors import ArgumentError, DamagedFileError
from ropewalk.hub.names import first_line

# Larger models aren't kept: unpacked to float32, they take eight times the room of their file.
LARGEST_KEPT = 4 * 2**30
MANIFEST = "ropewalk-cache.json"
# Raised whenever files are read otherwise than before: copies of before are then made again.
_VERSION = 3
_MAGIC = b"GGUF"


def load_gguf(file: Path) -> tuple[Any, Any]:
    """(model, tokenizer) of a GGUF file, every weight unpacked to float32, on the CPU.

    An unpacked copy is kept in `cache_folder()`, under a name made of the file's SHA-256 and the version of
    transformers, when it takes at most 4 GiB and fits twice on the disk. A damaged copy is made anew;
    where none can be kept, the file is unpacked each time. Any copy may be deleted.

    Raises:
        ArgumentError: the package gguf isn't installed, one part of a split model, or a rotation that transformers
            can't have exactly (`gguf_metadata.Rotation`).
        DamagedFileError: not a GGUF file, or one that can't be read.
    """
    with file.open("rb") as opened:
        if opened.read(len(_MAGIC)) != _MAGIC:
            raise DamagedFileError(f"{file}: isn't a GGUF file; give another or get it again")
    copy = _place(file)
    if copy is not None and _is_whole(copy):
        return _read_copy(copy)
    if importlib.util.find_spec("gguf") is None:
        raise ArgumentError("model", str(file), "needs the package gguf; pip install 'ropewalk[gguf]'")
    model, tokenizer = _unpack(file)
    if copy is not None:
        _keep(model, tokenizer, copy)
    return model, tokenizer


def cache_folder() -> Path | None:
    """Where unpacked copies are kept: $ROPEWALK_CACHE, else ~/.cache/ropewalk; None without a home folder."""
    if given := os.environ.get("ROPEWALK_CACHE"):
        return Path(given)
    try:
        return Path.home() / ".cache" / "ropewalk"
    except RuntimeError:
        return None


def _place(file: Path) -> Path | None:
    """The folder of a file's unpacked copy; None when there can be none."""
    import transformers

    root = cache_folder()
    if root is None or file.stat().st_size > LARGEST_KEPT:
        return None
    key = hashlib.sha256(f"{_sha256(file)} {transformers.__version__} {_VERSION}".encode()).hexdigest()[:16]
    return root / "gguf" / f"{file.stem}-{key}"


def _unpack(file: Path) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import quantization_config

    from ropewalk.hub.gguf_metadata import read_rotation

    options: dict[str, Any] = {}
    # Newer versions would keep the weights packed and swap in attention kernels of their own for it.
    if hasattr(quantization_config, "GgufConfig"):
        options["quantization_config"] = quantization_config.GgufConfig(dequantize=True)
    place = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        rotation = read_rotation(file)
        config = AutoConfig.from_pretrained(**place)
        if rotation.into(config):
            options["config"] = config
        tokenizer = AutoTokenizer.from_pretrained(**place)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            **place, dtype=torch.float32, output_loading_info=True, **options
        )
    except ArgumentError:
        raise
    except ImportError as error:
        raise ArgumentError("model", str(file), f"can't be read here: {first_line(error)}") from error
    except Exception as error:  # the reader meets damaged bytes with whatever they lead to
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise DamagedFileError(f"{file}: can't be read as a model ({reason})") from error
    model, found = loaded
    if found["missing_keys"]:
        raise DamagedFileError(f"{file}: lacks weights, such as {min(found['missing_keys'])}; get it again")
    return model, tokenizer


def _read_copy(copy: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(copy))
    return AutoModelForCausalLM.from_pretrained(str(copy), dtype=torch.float32), tokenizer


def _is_whole(copy: Path) -> bool:
    """Whether every file of a copy has the SHA-256 that it was written with."""
    try:
        sums = json.loads((copy / MANIFEST).read_text(encoding="utf-8"))
        return bool(sums) and all(_sha256(copy / name) == written for name, written in sums.items())
    except (OSError, ValueError, AttributeError):
        return False


def _keep(model: Any, tokenizer: Any, copy: Path) -> None:
    """Write a copy beside its place and move it there whole; without room or right to write, keep none."""
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    if size > LARGEST_KEPT:
        return
    part = None
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(copy.parent).free < 2 * size:
            return
        part = Path(tempfile.mkdtemp(prefix=f".{copy.name}.", dir=copy.parent))
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        if not _same_tokenizer(tokenizer, part):
            return
        sums = {file.name: _sha256(file) for file in sorted(part.iterdir())}
        (part / MANIFEST).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")
        if copy.exists():
            if _is_whole(copy):  # another process was quicker, and others may be reading it
                return
            shutil.rmtree(copy)
        part.rename(copy)
    except (OSError, SafetensorError):
        return
    finally:
        if part is not None:
            with contextlib.suppress(OSError):
                shutil.rmtree(part)


def _same_tokenizer(tokenizer: Any, folder: Path) -> bool:
    """Whether the tokenizer that was saved to a folder comes back the same; not all kinds need do so."""
    from transformers import AutoTokenizer

    saved = AutoTokenizer.from_pretrained(str(folder))
    return all(
        _content(saved, name) == _content(tokenizer, name)
        for name in ("backend_tokenizer", "special_tokens_map", "chat_template", "padding_side")
    )


def _content(tokenizer: Any, name: str) -> Any:
    held: Any = getattr(tokenizer, name, None)
    return held.to_str() if hasattr(held, "to_str") else held


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while piece := opened.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
