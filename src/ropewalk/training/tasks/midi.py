"""Piano pieces from MIDI files, in REMI tokens."""

from __future__ import annotations

import csv
import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ropewalk.data.dataset_cache import arrow_dataset, pieces, sequences, sha256_of
from ropewalk.data.splits import SPLITS, check_split
from ropewalk.errors import ArgumentError
from ropewalk.training.tasks.base import SequenceTask
from ropewalk.validation import check_sequence_length, check_whole_field

if TYPE_CHECKING:
    from datasets import Dataset
    from miditok import REMI

_ENDINGS = (".mid", ".midi")
_COLUMNS = ("midi_filename", "split")
# miditok has pitch tokens from the lowest key on, and one more than a piano has keys.
_KEYS = 88
# Of 20 files in the order of their hashes, one is for validation and one for the test.
_PARTS = 20


@dataclass(frozen=True)
class Midi(SequenceTask):
    """Music from a folder of MIDI files, in REMI tokens as miditok makes them, with its default settings.

    folder: searched for .mid and .midi files, with all folders in it. A table as MAESTRO has it, `maestro*.csv` or
    `maestro*.json` with the columns midi_filename and split, tells the splits; without one, files are sorted by
    their SHA-256, and the first twentieth, at least one, is for the test, the next for validation. length: tokens of
    a sequence; a longer piece goes on in the next, and the last is shorter. transpose: training pieces come also in
    each transposition of 1 to so many semitones up and down that leaves all notes on the piano's 88 keys. programs:
    a token before each note names its instrument; without it, each track of a file is a piece of its own.

    Each piece starts with miditok's start token and ends with its end token; all tokens but a sequence's first are
    labelled. Files that can't be used are left out, and `problems` names each.
    Needs the package miditok. Raises ArgumentError for values that can't be used, and when the data are read, for a
    folder without enough files that can be.
    """

    name: ClassVar[str] = "midi"
    summary: ClassVar[str] = "MIDI: piano pieces in REMI tokens"
    metric: ClassVar[str] = "nll"

    folder: str
    length: int = 2048
    transpose: int = 0
    programs: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", str(self.folder))
        check_sequence_length(self.length)
        check_whole_field(self, "transpose", 0, 24)
        if not isinstance(self.programs, bool):
            raise ArgumentError("programs", self.programs, "must be true or false")

    @property
    def sha256(self) -> str:
        """The SHA-256 (hex) of what the data are made from: each file's name and bytes, and the table's splits.

        Names count, as they say which piece comes first.
        """
        found = {"files": _listing(self.folder), "splits": _table(Path(self.folder))}
        return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()

    @property
    def vocabulary_size(self) -> int:
        return len(_tokenizer(self.programs))

    @property
    def longest(self) -> int:
        return self.length

    @property
    def problems(self) -> tuple[str, ...]:
        """A line for each file that is left out, in the order of their names: which one and why."""
        return _sorted_out(self.folder, self.programs)[1]

    def dataset(self, split: str) -> Dataset:
        check_split(split)
        files, _ = _sorted_out(self.folder, self.programs)
        own = tuple((place, file) for place, (file, of) in files.items() if of == split)
        depends_on = {"length": self.length, "transpose": self.transpose if split == "train" else 0}
        source = {"folder": self.folder, "listing": _listing(self.folder), "programs": self.programs}
        remedy = f"of {len(files)} usable MIDI files none is for {split}; give at least 3, or MAESTRO's own table"
        none = ArgumentError("folder", self.folder, remedy)
        return sequences(_rows, self.vocabulary_size, none, own=own, **source, **depends_on, **_made_by())


def _rows(
    folder: str,
    listing: tuple[tuple[str, str], ...],
    programs: bool,
    length: int,
    transpose: int,
    own: tuple[tuple[int, str], ...],
    **rest: Any,
) -> Iterator[dict[str, Any]]:
    tokenizer = _tokenizer(programs)
    pitches = sorted(token for name, token in tokenizer.vocab.items() if name.startswith("Pitch_"))
    start, end = tokenizer["BOS_None"], tokenizer["EOS_None"]
    tokenized = _tokenized(folder, listing, programs)
    for place, _ in own:
        for piece in tokenized[place]["pieces"]:
            for tokens in _transposed(np.array(piece), pitches, transpose):
                yield from pieces([start, *tokens, end], length)


def _transposed(tokens: Any, pitches: list[int], most: int) -> Iterator[list[int]]:
    """The piece, then its transpositions; pitches' tokens are in the order of the pitches, so they just move."""
    yield tokens.tolist()
    is_pitch = np.isin(tokens, pitches)
    played = tokens[is_pitch]
    for step in (sign * size for size in range(1, most + 1) for sign in (1, -1)):
        if played.size and played.min() + step >= pitches[0] and played.max() + step <= pitches[_KEYS - 1]:
            yield (tokens + step * is_pitch).tolist()


def _sorted_out(folder: str, programs: bool) -> tuple[dict[int, tuple[str, str]], tuple[str, ...]]:
    """Of each file that can be used, by its place in the listing, its name and its split; and the others' problems."""
    listing = _listing(folder)
    found = _tokenized(folder, listing, programs)["problem"]
    problems = [f"{name} ({why})" for (name, _), why in zip(listing, found, strict=True) if why]
    usable = {place: name for place, (name, _) in enumerate(listing) if not found[place]}
    table = _table(Path(folder))
    if table is not None:
        there = {name for name, _ in listing}
        problems += [f"{name} (in the table, but not in the folder)" for name in table if name not in there]
        problems += [f"{name} (not in the table)" for name in usable.values() if name not in table]
        files = {place: (name, table[name]) for place, name in usable.items() if name in table}
        return files, tuple(sorted(problems))
    # Equal files count once, or the same piece would be for training and for the test.
    first = {listing[place][1]: place for place in reversed(usable)}
    for place, name in usable.items():
        if (same := first[listing[place][1]]) != place:
            problems.append(f"{name} (the same as {listing[same][0]})")
    ranked = [first[digest] for digest in sorted(first)]
    held_back = -(-len(ranked) // _PARTS)
    splits = ["test"] * held_back + ["validation"] * held_back + ["train"] * len(ranked)
    files = {place: (usable[place], split) for place, split in zip(ranked, splits, strict=False)}
    return dict(sorted(files.items())), tuple(sorted(problems))


def _listing(folder: str) -> tuple[tuple[str, str], ...]:
    """Each MIDI file's place in the folder and SHA-256, in the order of the names."""
    root = Path(folder)
    if not root.is_dir():
        raise ArgumentError("folder", folder, "no such folder; give one with .mid or .midi files")
    files = sorted(file for file in root.rglob("*") if file.suffix.lower() in _ENDINGS and file.is_file())
    if not files:
        raise ArgumentError("folder", folder, "holds no .mid or .midi files; give a folder that does")
    return tuple((file.relative_to(root).as_posix(), sha256_of(str(file), "folder")) for file in files)


def _tokenized(folder: str, listing: tuple[tuple[str, str], ...], programs: bool) -> Dataset:
    """A row a file: its pieces' tokens, none if it has a problem, and the problem, empty if it has none."""
    _tokenizer(programs)  # says what to install before anything is asked of the package
    columns = {"pieces": "[[int32]]", "problem": "string"}
    none = ArgumentError("folder", folder, "holds no .mid or .midi files; give a folder that does")
    return arrow_dataset(_files, columns, none, folder=folder, listing=listing, programs=programs, **_made_by())


def _files(folder: str, listing: tuple[tuple[str, str], ...], programs: bool, **rest: Any) -> Iterator[dict[str, Any]]:
    tokenizer = _tokenizer(programs)
    for name, _ in listing:
        problem, found = "", []
        try:
            read = tokenizer(Path(folder) / name)
            found = [piece.ids for piece in (read if isinstance(read, list) else [read]) if _has_notes(piece.tokens)]
        except Exception as error:
            # What a damaged file makes of the parser isn't told by any list of exceptions.
            problem = " ".join(f"can't be parsed: {error}".split())[:160]
        yield {"pieces": found, "problem": problem or ("" if found else "no notes")}


def _has_notes(tokens: list[str]) -> bool:
    return any(token.startswith("Pitch") for token in tokens)


def _table(root: Path) -> dict[str, str] | None:
    """The split of each file that MAESTRO's table names; None without a table."""
    tables = [*sorted(root.glob("maestro*.csv")), *sorted(root.glob("maestro*.json"))]
    if not tables:
        return None
    path = tables[0]
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file)) if path.suffix == ".csv" else _records(json.load(file))
        splits = {str(row[_COLUMNS[0]]): str(row[_COLUMNS[1]]) for row in rows}
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error, OSError) as error:
        remedy = f"isn't a table with the columns {' and '.join(_COLUMNS)}; mend or remove it"
        raise ArgumentError("folder", str(path), remedy) from error
    if unknown := sorted(set(splits.values()) - set(SPLITS)):
        raise ArgumentError("folder", str(path), f"has the split {unknown[0]!r}; must be one of {', '.join(SPLITS)}")
    return splits


def _records(content: Any) -> list[dict[str, Any]]:
    """The rows of a table in JSON: a list of them, or each column's values by the row's number."""
    if isinstance(content, list):
        return content
    columns = [content[name] for name in _COLUMNS]
    return [dict(zip(_COLUMNS, (column[row] for column in columns), strict=True)) for row in columns[0]]


@functools.lru_cache(maxsize=2)
def _tokenizer(programs: bool) -> REMI:
    try:
        from miditok import REMI, TokenizerConfig
    except ModuleNotFoundError as error:
        remedy = "needs the package miditok; pip install 'ropewalk[music]'"
        raise ArgumentError("task", Midi.name, remedy) from error
    return REMI(TokenizerConfig(use_programs=programs))


def _made_by() -> dict[str, str]:
    """What the tokens depend on besides the files."""
    from importlib.metadata import version

    return {"miditok": version("miditok"), "symusic": version("symusic")}
