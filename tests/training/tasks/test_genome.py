from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest
from tests.training.tasks.splits import everything, ids, rows

from ropewalk.errors import ArgumentError
from ropewalk.training.tasks.genome import Genome, spelled, tokens_of

REAL = Path("/work/shared/data/NC_008253.fna.gz")


def bases(count, seed=0):
    return "".join(random.Random(seed).choices("ACGT", k=count))


def fasta(records, width=60):
    lines = []
    for name, letters in records.items():
        lines += [f">{name}", *(letters[i : i + width] for i in range(0, len(letters), width))]
    return "\n".join(lines) + "\n"


@pytest.fixture
def write(tmp_path):
    def _write(what, name="a.fna"):
        (tmp_path / name).write_bytes(what if isinstance(what, bytes) else what.encode())
        return tmp_path / name

    return _write


def split_up(tokens):
    return " ".join(spelled(tokens))


class TestTokens:
    @pytest.mark.parametrize(
        ("letters", "expected"),
        [("ATCGAATGGCGATGCAC", "ATCGAA TGGCGA T G C A C"), ("ATCGAATNGGCGATGCAC", "ATCGAA T N GGCGAT G C A C"),
         ("NNACGTACNN", "N N ACGTAC N N"), ("acgtacn", "ACGTAC N"), ("ACGTACRyACGTAC", "ACGTAC N N ACGTAC"),
         ("AC", "A C"), ("", "")],
    )  # fmt: skip
    def test_six_from_the_left_then_one_at_a_time(self, letters, expected):
        assert split_up(tokens_of(letters)) == expected

    def test_ids(self):
        """The special ones, the groups of six in the order of A T C G, A T C G, N."""
        assert Genome("a").vocabulary_size == 4107
        assert spelled([0, 1, 2, 3, 4, 5]) == ["<unk>", "<pad>", "<mask>", "<cls>", "<eos>", "<bos>"]
        assert tokens_of("AAAAAA") == [6] and tokens_of("AAAAAT") == [7] and tokens_of("AAAATA") == [10]
        assert tokens_of("GGGGGG") == [4101] and tokens_of("TAAAAA") == [6 + 4**5]
        assert tokens_of("A") + tokens_of("T") + tokens_of("C") + tokens_of("G") == [4102, 4103, 4104, 4105]
        assert tokens_of("N") == [4106] and Genome("a").padding == 1
        assert all(tokens_of(name) == [token] for token, name in enumerate(spelled(list(range(6, 4107))), 6))

    def test_others_are_refused(self):
        with pytest.raises(ArgumentError, match="has other letters than ACGTN"):
            tokens_of("ACGU")
        with pytest.raises(ArgumentError, match="tokens=4107"):
            spelled([4107])


class TestSplits:
    def test_a_long_record_is_cut_in_three(self, write):
        letters = bases(6 * 10 * 20 + 240)
        found = everything(Genome(write(fasta({"one": letters})), length=10))
        parts = {split: "".join(map("".join, map(spelled, sequences))) for split, sequences in found.items()}
        assert [len(part) for part in parts.values()] == [1296, 72, 72]
        assert "".join(parts.values()) == letters
        assert [list(map(len, found[split])) for split in ("validation", "test")] == [[10, 2], [10, 2]]

    def test_short_records_go_whole(self, write):
        records = {f"r{i}": bases(48, i) for i in range(43)}
        found = everything(Genome(write(fasta(records)), length=8))
        assert [len(sequences) for sequences in found.values()] == [39, 2, 2]
        of = {split: ["".join(spelled(tokens)) for tokens in sequences] for split, sequences in found.items()}
        assert of["validation"] == [records["r18"], records["r38"]] and of["test"] == [records["r19"], records["r39"]]
        assert sorted(of["train"] + of["validation"] + of["test"]) == sorted(records.values())

    def test_no_sequence_reaches_into_the_next_record(self, write):
        path = write(fasta({"one": "A" * 7, "two": "C" * 7}))
        assert [split_up(found) for found in ids(Genome(path, length=100), "train")] == ["AAAAAA A", "CCCCCC C"]

    def test_sequences_of_nothing_but_n_are_left_out(self, write):
        path = write(fasta({"one": "ACGTAC" * 2 + "N" * 9 + "ACGTAC"}))
        task = Genome(path, length=4)
        assert [split_up(found) for found in ids(task, "train")] == ["ACGTAC ACGTAC N N", "N N N ACGTAC"]

    def test_files_plain_packed_wrapped_and_lower_case_are_the_same(self, write):
        letters = bases(3000)
        plain = rows(Genome(write(fasta({"x": letters})), length=10), "train")
        assert plain == rows(Genome(write(gzip.compress(fasta({"x": letters}).encode()), "b"), length=10), "train")
        other = fasta({"x": letters.lower()}, width=7).replace("\n", "\r\n\r\n")
        assert plain == rows(Genome(write(other, "c"), length=10), "train")

    def test_a_changed_file_is_read_again(self, write):
        task = Genome(write(fasta({"x": bases(3000)})), length=10)
        before = ids(task, "test")
        write(fasta({"x": bases(3000, seed=1)}))
        assert ids(task, "test") != before


@pytest.mark.parametrize(
    ("what", "reason"),
    [("", "holds no bases"), (">a\n\n>b\n", "holds no bases"), ("ACGT\n", "isn't FASTA"),
     (">a\nACGT\n>prot x\nAC\nMKLV\n", "record 'prot x' has 'L' at base 5"), (">a\nAC-GT", "has '-' at base 3"),
     (">a\nACGU", "has 'U' at base 4"), (gzip.compress(b">a\n" + b"ACGT" * 999)[:-12], "is a damaged gzip file"),
     (b"\x1f\x8bnonsense", "is a damaged gzip file"), (b">a\nAC\xffGT", "at base 3"),
     (">a\n" + "ACGTAC" * 9, "too short or too few records for a test split")],
)  # fmt: skip
def test_files_that_cannot_be_used_are_refused_in_one_line(write, what, reason):
    path = write(what)
    with pytest.raises(ArgumentError, match=reason) as error:
        Genome(path).dataset("test")
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_arguments_that_cannot_be_used(tmp_path):
    with pytest.raises(ArgumentError, match="length=1"):
        Genome("a", length=1)
    with pytest.raises(ArgumentError, match=r"path=.*no such file"):
        Genome(tmp_path / "none").dataset("train")


@pytest.mark.skipif(not REAL.exists(), reason="the genome isn't here")
def test_a_bacterium():
    task = Genome(REAL)
    assert [len(task.dataset(split)) for split in ("train", "validation", "test")] == [741, 42, 42]
    with gzip.open(REAL, "rt") as file:
        start = "".join(line.strip() for line in list(file)[1:4])
    assert "".join(spelled(task.dataset("train")[0]["input_ids"])).startswith(start)
