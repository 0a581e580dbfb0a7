"""Genomes in tokens of six bases, as the Nucleotide Transformer makes them."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ropewalk.data.dataset_cache import pieces, sequences, sha256_of
from ropewalk.data.splits import check_split
from ropewalk.errors import ArgumentError
from ropewalk.training.tasks.base import SequenceTask
from ropewalk.validation import check_sequence_length

if TYPE_CHECKING:
    from datasets import Dataset

SPECIAL = ("<unk>", "<pad>", "<mask>", "<cls>", "<eos>", "<bos>")
BASES = "ATCG"
_MER = 6
_FIRST_MER = len(SPECIAL)
_MERS: int = 4096  # len(BASES) ** _MER
_FIRST_BASE = _FIRST_MER + _MERS
_N = len(BASES)  # among the codes of letters, which are places in BASES otherwise
_VOCABULARY: int = _FIRST_BASE + len(BASES) + 1
# What stands for one of several bases; the Nucleotide Transformer's data have N for each of these.
_AMBIGUOUS = "NRYSWKMBDHV"
_NO_LETTER = 255
# Of each stretch of 20, 18 are for training, one for validation, one for the test.
_PARTS = 20


@dataclass(frozen=True)
class Genome(SequenceTask):
    """The next six bases of a genome.

    path: a FASTA file, plain or gzip; lower case counts as upper, IUPAC's letters for one of several bases
    (RYSWKMBDHV) as N, and any other letter is refused. length: tokens of a sequence.

    Tokens (Nucleotide Transformer, doi 10.1038/s41592-024-02523-z; ids as in its version 2): between one N and the
    next, bases are taken six at a time from the left, and what is left over at the end one at a time; each N is a
    token. The 4,107: 0 to 5 are <unk> <pad> <mask> <cls> <eos> <bos>, of which <pad> alone is used, then the 4,096
    groups of six in the order of ATCG, then A T C G N.

    Splits share no base: of each record of at least 20 sequences' bases the first 90 % are for training, the next
    5 % for validation and the last 5 % for the test; of every 20 shorter records 18, 1 and 1, whole. A sequence is
    from one record's part, the last one of a part is shorter, and those of nothing but N are left out. All tokens
    but a sequence's first are labelled. Raises ArgumentError for values that can't be used, and when the data are
    read, for a file that isn't of this form or too small.
    """

    name: ClassVar[str] = "genome"
    summary: ClassVar[str] = "Genome: the next six bases"
    metric: ClassVar[str] = "nll"
    padding: ClassVar[int] = SPECIAL.index("<pad>")

    path: str
    length: int = 1000

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", str(self.path))
        check_sequence_length(self.length)

    @property
    def sha256(self) -> str:
        """The SHA-256 (hex) of the file."""
        return sha256_of(self.path, "path")

    @property
    def vocabulary_size(self) -> int:
        return _VOCABULARY

    @property
    def longest(self) -> int:
        return self.length

    def dataset(self, split: str) -> Dataset:
        check_split(split)
        remedy = f"too short or too few records for a {split} split; give more bases, or a shorter length"
        none = ArgumentError("path", self.path, remedy)
        depends_on = {"path": self.path, "sha256": self.sha256, "length": self.length, "split": split}
        return sequences(_rows, self.vocabulary_size, none, **depends_on)


def tokens_of(bases: str) -> list[int]:
    """The tokens of a sequence of bases; raises ArgumentError for letters that stand for none."""
    codes = _CODES[np.frombuffer(bases.encode(), dtype=np.uint8)]
    if _NO_LETTER in codes:
        raise ArgumentError("bases", bases[:20], f"has other letters than ACGTN and {_AMBIGUOUS[1:]}")
    return _tokens(codes)


def spelled(tokens: list[int]) -> list[str]:
    """Each token's name: its bases, or a name in angle brackets."""
    names = []
    for token in tokens:
        if not 0 <= token < _VOCABULARY:
            raise ArgumentError("tokens", token, f"must be from 0 to {_VOCABULARY - 1}")
        if token >= _FIRST_BASE:
            names.append((BASES + "N")[token - _FIRST_BASE])
        elif token >= _FIRST_MER:
            mer = token - _FIRST_MER
            names.append("".join(BASES[mer >> 2 * place & 3] for place in reversed(range(_MER))))
        else:
            names.append(SPECIAL[token])
    return names


def _rows(path: str, sha256: str, length: int, split: str) -> Iterator[dict[str, Any]]:
    short = 0
    for name, letters in _records(path):
        codes = _CODES[np.frombuffer(letters, dtype=np.uint8)]
        if (bad := np.flatnonzero(codes == _NO_LETTER)).size:
            found = f"the record {name!r:.60} has {chr(letters[bad[0]])!r} at base {bad[0] + 1:,}"
            raise ArgumentError("path", path, f"{found}; bases must be ACGTN or one of {_AMBIGUOUS[1:]}")
        if len(codes) >= _PARTS * _MER * length:
            ends = len(codes) * (_PARTS - 2) // _PARTS, len(codes) * (_PARTS - 1) // _PARTS
            part = {"train": codes[: ends[0]], "validation": codes[ends[0] : ends[1]], "test": codes[ends[1] :]}[split]
        else:
            own = {_PARTS - 2: "validation", _PARTS - 1: "test"}.get(short % _PARTS, "train")
            part = codes if own == split else codes[:0]
            short += 1
        for row in pieces(_tokens(part), length):
            if any(token != _VOCABULARY - 1 for token in row["input_ids"]):
                yield row


def _tokens(codes: NDArray[np.uint8]) -> list[int]:
    """Tokens of letters given as their places in BASES, or _N."""
    changes = np.flatnonzero(np.diff(codes == _N)) + 1
    found: list[int] = []
    for stretch in np.split(codes, changes):
        if not stretch.size or stretch[0] == _N:
            found += [_FIRST_BASE + _N] * stretch.size
            continue
        whole = stretch.size // _MER * _MER
        worth = len(BASES) ** np.arange(_MER - 1, -1, -1)
        found += (_FIRST_MER + stretch[:whole].reshape(-1, _MER) @ worth).tolist()
        found += (_FIRST_BASE + stretch[whole:].astype(np.int64)).tolist()
    return found


def _records(path: str) -> Iterator[tuple[str, bytes]]:
    """Each record's name and letters, as they stand in the file."""
    name: str | None = None
    lines: list[bytes] = []
    found = False
    try:
        with _opened(path) as file:
            for line in file:
                line = line.strip()
                if line.startswith(b">"):
                    if name is not None:
                        yield name, b"".join(lines)
                    name, lines = line[1:].decode("utf-8", "replace").strip(), []
                elif line and name is None:
                    raise ArgumentError("path", path, "isn't FASTA, which starts with >; give a FASTA file")
                elif line:
                    lines.append(line)
                    found = True
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ArgumentError("path", path, f"is a damaged gzip file ({error}); fetch it again") from error
    if not found:
        raise ArgumentError("path", path, "holds no bases; give a FASTA file with some")
    yield str(name), b"".join(lines)


def _opened(path: str) -> IO[bytes] | gzip.GzipFile:
    """The file, unpacked if it is gzip, whatever its name."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if packed else open(path, "rb")


def _letter_codes() -> NDArray[np.uint8]:
    codes = np.full(256, _NO_LETTER, dtype=np.uint8)
    for letters, given in ((BASES, range(len(BASES))), (_AMBIGUOUS, [_N] * len(_AMBIGUOUS))):
        for letter, code in zip(letters, given, strict=True):
            codes[ord(letter)] = codes[ord(letter.lower())] = code
    return codes


_CODES = _letter_codes()
