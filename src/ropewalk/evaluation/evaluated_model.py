"""The models that a comparison is about: what each is called, its tokens, its encoding and what it was trained on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ropewalk.data.char_tokenizer import CHARACTERS, TokenizedText
from ropewalk.encodings.base import Encoding
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import ArgumentError, DamagedFileError, UnsupportedModelError
from ropewalk.evaluation.candidates import is_rope, rotation_to_stretch
from ropewalk.evaluation.identity import identity
from ropewalk.hub.fingerprint import describe
from ropewalk.hub.loading import load, load_model, model_folder
from ropewalk.io import one_line_errors
from ropewalk.patching.handle import handle_of
from ropewalk.patching.input_limits import check_reach, reach

MOST_UNKNOWN = 0.01
_RUN = "run.json"
# One of these is in every folder with a tokenizer that transformers saved.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model and what is known of it; the weights are elsewhere.

    Args:
        source: what the user called it.
        name: what tables call it.
        tokenizer: what makes its tokens.
        trained_on: the text of a model that `ropewalk train` or `recalibrate` made.
        trained_text: SHA-256 of the text that it was trained on, where that is known.
        about: what `describe` tells.
        encoding: the one it was saved with, if any.
        identity: what its answers depend on but for the encoding, as `identity` tells.
        rotation: the RoPE by which it turns; None for a model that doesn't, or whose encoding is another.
        stretched: which layers a length rule is for.
        longest: tokens that it can read, where its encoding ends; None for no end.
        vocabulary: how many different tokens it knows.
    """

    source: str
    name: str
    tokenizer: Any
    trained_on: TokenizedText | None
    trained_text: str | None
    about: dict[str, Any]
    encoding: Encoding | None
    identity: Mapping[str, str | None]
    rotation: RoPE | PerLayer | None
    stretched: Callable[[int], bool]
    longest: int | None
    vocabulary: int

    @property
    def training_length(self) -> int | None:
        """Tokens of the sequences that it was trained on, as far as that is known."""
        return self.about["original_length"] if self.trained_on is None else self.trained_on.length

    def check_tokens(self, sequences: Iterable[Sequence[int]], argument: str, value: Any) -> float:
        """The share of tokens, 0 to 1, that stand for what the tokenizer doesn't know.

        Raises ArgumentError, naming the argument and value that they came from, when that is over 1 %, and for tokens
        that the model has no vector for.
        """
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        count = total = 0
        for ids in sequences:
            if max(ids) >= self.vocabulary:
                has = f"spelled with the token {max(ids)}, but {self.name} knows 0 to {self.vocabulary - 1}"
                raise ArgumentError(argument, value, f"{has}; give the model the tokenizer it was trained with")
            total += len(ids)
            count += sum(token == unknown for token in ids)
        share = count / max(total, 1)
        if share > MOST_UNKNOWN:
            has = f"{share:.1%} of its tokens are unknown to {self.name}"
            raise ArgumentError(argument, value, f"{has}; give a text of the kind that it was trained on")
        return share

    def check_length(self, argument: str, value: Any, length: int) -> None:
        """Refuse lengths past the end of the model's positions; `argument` and `value` say what asked for them."""
        check_reach(self.name, self.longest, argument, value, length)


class Subjects:
    """The models of a comparison in the order given, all looked at; the weights of one at a time are in memory.

    Args:
        sources: for each model a name that `load_model` takes, or the folder of a run of `ropewalk train` (which is
            OUT/ENCODING/seed-N) or `recalibrate`, or the `model` in it.
        trust_remote_code: whether a model may run code that it brings along.

    Raises:
        ArgumentError: no such model, one given twice, or one whose tokens nobody knows.
        DamagedFileError: files that can't be read.
    """

    def __init__(self, sources: Sequence[str], trust_remote_code: bool = False):
        self._trusted = trust_remote_code
        self._held: tuple[str, Any] | None = None
        if not sources:
            raise ArgumentError("model", list(sources), "give at least one")
        for number, source in enumerate(sources):
            if source in sources[:number]:
                raise ArgumentError("model", source, "is given twice; give each model once")
        found = [self._look(source) for source in sources]
        names = [subject.name for subject in found]
        self.all = tuple(s if names.count(s.name) == 1 else dataclasses.replace(s, name=s.source) for s in found)

    def model(self, subject: Subject) -> Any:
        """A subject's model, as it was saved; the one before it is let go. Whoever changes it must change it back."""
        if self._held is None or self._held[0] != subject.source:
            self._held = None  # before the next one needs the room
            self._held = subject.source, _load(subject.source, self._trusted)[0]
        return self._held[1]

    def _look(self, source: str) -> Subject:
        self._held = None
        model, tokenizer, run = _load(source, self._trusted)
        self._held = source, model
        handle = handle_of(model)
        encoding, about = None if handle is None else handle.encoding, describe(model)
        rotation, stretched = _rotation(model, encoding, about["original_length"])
        return Subject(
            source=source,
            name=_name(source) if run is None else run.name,
            tokenizer=tokenizer,
            trained_on=None if run is None else run.task,
            trained_text=None if run is None else run.text,
            about=about,
            encoding=encoding,
            identity=identity(model, tokenizer),
            rotation=rotation,
            stretched=stretched,
            longest=reach(model),
            vocabulary=model.get_input_embeddings().num_embeddings,
        )


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """What run.json says: a name, the task, and the SHA-256 of its text where it is kept."""

    name: str
    task: TokenizedText
    text: str | None


def _load(source: str, trusted: bool) -> tuple[Any, Any, TrainedRun | None]:
    """(model, tokenizer, the run it is from)."""
    folder = model_folder(Path(source).expanduser())
    run = run_of(folder) if folder.is_dir() else None
    if run is None or any((folder / name).is_file() for name in _TOKENIZER_FILES):
        _check_tokenizer(folder, source)
        model, tokenizer = load_model(str(folder) if folder.is_dir() else source, trust_remote_code=trusted)
    else:
        model, tokenizer = load(str(folder), trust_remote_code=trusted), _task_tokenizer(run.task, source)
        if run.task.tokenizer == CHARACTERS and len(tokenizer) != model.config.vocab_size:
            text = f"{run.task.text} has {len(tokenizer)} tokens now, the model {model.config.vocab_size}"
            raise ArgumentError("model", source, f"its training text isn't what it was ({text}); bring that text back")
    handle = handle_of(model)
    if handle is not None and handle.options.get("when") == "long":
        remedy = "its encoding is for long inputs alone, so a text has no one figure; save it with when='always'"
        raise ArgumentError("model", source, remedy)
    return model, tokenizer, run


def _check_tokenizer(folder: Path, source: str) -> None:
    if (folder / "config.json").is_file() and not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        has = f"this folder has no tokenizer, and no {_RUN} of `ropewalk train` in it or above it"
        remedy = f"{has}; save its tokenizer into it"
        raise ArgumentError("model", source, remedy)


def _task_tokenizer(task: TokenizedText, source: str) -> Any:
    try:
        return task.load_tokenizer()
    except ArgumentError as error:
        remedy = f"its tokens are those of its training data, which can't be read ({error}); run where it was trained"
        raise ArgumentError("model", source, remedy) from error


def run_of(folder: Path) -> TrainedRun | None:
    """The run that a model's folder is in; None where it is in none."""
    path = next((place / _RUN for place in (folder, folder.resolve().parent) if (place / _RUN).is_file()), None)
    if path is None:
        return None
    try:
        with one_line_errors(path, "read", "model"):
            run = json.loads(path.read_text(encoding="utf-8"))
        fields = dict(run["task"])
        kind, name = fields.pop("name"), f"{run['name']}, seed {run['seed']}"
        task = TokenizedText(**fields) if kind == "language" else None
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedFileError(f"{path}: doesn't say what was trained ({type(error).__name__}: {error})") from error
    if task is None:
        remedy = f"it was trained on the task {kind}, whose tokens aren't text; give a model of language"
        raise ArgumentError("model", str(folder), remedy)
    return TrainedRun(name, task, run.get("data_sha256"))


def _name(source: str) -> str:
    path = Path(source).expanduser()
    return path.resolve().name if path.is_dir() else source


def _rotation(
    model: nn.Module, encoding: Encoding | None, trained: int | None
) -> tuple[RoPE | PerLayer | None, Callable[[int], bool]]:
    """The RoPE that a model turns by, and which of its layers a length rule is for."""
    if encoding is not None:
        return (encoding if is_rope(encoding) else None), lambda _: True
    try:
        return rotation_to_stretch(model, trained or 0)
    except UnsupportedModelError:
        return None, lambda _: True
