from __future__ import annotations

import json
import random
import sys
import warnings
from importlib.metadata import PackageNotFoundError

import pytest
from tests.training.tasks.splits import everything, ids, rows

from ropewalk.errors import ArgumentError
from ropewalk.training.tasks import midi
from ropewalk.training.tasks.midi import Midi


@pytest.fixture
def symusic():
    pytest.importorskip("miditok")
    return pytest.importorskip("symusic")


@pytest.fixture
def write(symusic, tmp_path):
    def _write(name, seed=0, low=40, high=80, tracks=1, shift=0, drums=False):
        rng = random.Random(seed)
        score = symusic.Score(480)
        for number in range(tracks):
            track, time = symusic.Track(program=10 * number, is_drum=drums, name="t"), 0
            for _ in range(60):
                note = (rng.choice([120, 240, 480]), rng.randint(low, high) + shift, rng.randint(20, 120))
                track.notes.append(symusic.Note(time, *note))
                time += rng.choice([0, 120, 480])
            score.tracks.append(track)
        path = tmp_path / "music" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        score.dump_midi(path)
        return path

    return _write


@pytest.fixture
def folder(write, tmp_path):
    for number in range(6):
        write(f"{2000 + number % 2}/piece{number}.{'midi' if number % 2 else 'MID'}", number)
    return tmp_path / "music"


def pieces(task, split):
    """The pieces that the sequences of a split are cut from."""
    joined, found = [token for sequence in ids(task, split) for token in sequence], []
    while joined:
        end = joined.index(2) + 1
        found.append(joined[:end])
        joined = joined[end:]
    return found


def remi(path):
    from miditok import REMI

    return [1, *REMI()(path)[0].ids, 2]


def test_every_piece_is_there_once_between_start_and_end(folder):
    task = Midi(folder, length=64)
    expected = sorted(remi(path) for path in folder.rglob("*.*"))
    found = {split: pieces(task, split) for split in ("train", "validation", "test")}
    assert sorted(found["train"] + found["validation"] + found["test"]) == expected
    assert [len(of) for of in found.values()] == [4, 1, 1]
    assert max(map(len, ids(task, "train"))) == task.longest == 64
    assert task.vocabulary_size == 357 and task.padding == 0 and task.problems == ()
    assert all(row["labels"][1:] == row["input_ids"][1:] for row in rows(task, "test"))


def test_splits_go_by_content_not_by_name(folder):
    task = Midi(folder, length=64)
    before = everything(task)
    (folder / "2000" / "piece0.MID").rename(folder / "other.mid")
    after = everything(task)
    assert {split: sorted(found) for split, found in before.items()} == {s: sorted(f) for s, f in after.items()}


class TestFingerprint:
    """What `sha256` says of a folder: a run isn't continued where it has become another."""

    def test_is_of_the_music_alone(self, folder):
        before = Midi(folder).sha256
        (folder / "notes.txt").write_text("not music")
        (folder / "2000" / "piece0.MID").touch()
        assert Midi(folder, length=64, transpose=2).sha256 == before and len(before) == 64

    def test_is_another_where_a_file_is_added_changed_renamed_or_taken_away(self, folder, write):
        seen = [Midi(folder).sha256]
        for change in (
            lambda: write("2000/more.mid", 6),
            lambda: write("2000/more.mid", 7),
            lambda: (folder / "2000" / "more.mid").rename(folder / "more.mid"),
            lambda: (folder / "2000" / "piece0.MID").unlink(),
        ):
            change()
            seen.append(Midi(folder).sha256)
        assert len(set(seen)) == 5

    def test_is_another_where_the_table_gives_other_splits(self, folder):
        seen, table = [Midi(folder).sha256], folder / "maestro.json"
        rows = TestTable().rows(folder)
        for first, year in (("train", "2000"), ("train", "2001"), ("test", "2001")):
            rows[0] |= {"split": first, "year": year}
            table.write_text(json.dumps(rows))
            seen.append(Midi(folder).sha256)
        assert seen[1] == seen[2] and len(set(seen)) == 3


class TestTable:
    SPLITS = ("train", "train", "validation", "test", "train", "test")

    def rows(self, folder):
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
        return [{"midi_filename": n, "year": "2000", "split": s} for n, s in zip(names, self.SPLITS, strict=True)]

    @pytest.mark.parametrize("form", ["csv", "rows", "columns"])
    def test_maestro_s_own_split(self, folder, form):
        rows = self.rows(folder)
        columns = {key: {str(i): row[key] for i, row in enumerate(rows)} for key in rows[0]}
        text = json.dumps(rows if form == "rows" else columns)
        if form == "csv":
            text = "\n".join(",".join(line) for line in [list(rows[0]), *(list(row.values()) for row in rows)])
        (folder / f"maestro-v3.0.0.{'csv' if form == 'csv' else 'json'}").write_text(text)
        task = Midi(folder, length=64)
        for split in ("train", "validation", "test"):
            assert pieces(task, split) == [remi(folder / r["midi_filename"]) for r in rows if r["split"] == split]

    def test_files_in_one_but_not_in_the_other_are_named(self, folder):
        rows = self.rows(folder)
        left_out = rows.pop()["midi_filename"]
        rows.append({"midi_filename": "2004/lost.midi", "split": "train"})
        (folder / "maestro.json").write_text(json.dumps(rows))
        problems = Midi(folder).problems
        assert set(problems) == {
            f"{left_out} (not in the table)", "2004/lost.midi (in the table, but not in the folder)",
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("text", "reason"),
        [("[1]", "isn't a table with the columns"), ("{", "isn't a table"), ("{}", "isn't a table"),
         ('[{"midi_filename": "a", "split": "valid"}]', "has the split 'valid'")],
    )  # fmt: skip
    def test_one_of_another_form(self, folder, text, reason):
        (folder / "maestro.json").write_text(text)
        with pytest.raises(ArgumentError, match=f"maestro.json.*{reason}") as error:
            Midi(folder).dataset("train")
        assert "\n" not in str(error.value)


class TestTransposition:
    def test_is_of_the_notes_and_of_the_training_pieces_alone(self, folder, write, tmp_path):
        task, plain = Midi(folder, length=64, transpose=2), Midi(folder, length=64)
        for split in ("validation", "test"):
            assert ids(task, split) == ids(plain, split)
        found = pieces(task, "train")
        assert len(found) == 5 * 4
        originals = pieces(plain, "train")
        for number in range(6):
            if remi(write("../a.mid", number)) in originals:
                for shift in (-2, -1, 0, 1, 2):
                    assert remi(write("../a.mid", number, shift=shift)) in found

    def test_no_note_leaves_the_piano(self, write, tmp_path):
        for number in range(3):
            write(f"{number}.mid", number, low=22, high=107)
        original = pieces(Midi(tmp_path / "music", length=64), "train")[0]
        found = pieces(Midi(tmp_path / "music", length=64, transpose=3), "train")
        lowest, highest = 5, 92  # the tokens of the pitches 21 and 108
        pitches = [token for token in original if lowest <= token <= highest]
        steps = [step for step in range(-3, 4) if min(pitches) + step >= lowest and max(pitches) + step <= highest]
        assert 1 < len(steps) < 7
        moved = [[token + step * (lowest <= token <= highest) for token in original] for step in steps]
        assert sorted(found) == sorted(moved)

    def test_drums_stay(self, write, tmp_path):
        for number in range(3):
            write(f"{number}.mid", number, drums=True)
        found = pieces(Midi(tmp_path / "music", length=64, transpose=1), "train")
        assert len({tuple(piece) for piece in found}) == 1


def test_tracks_are_pieces_or_a_stream_with_programs(write, tmp_path):
    for number in range(3):
        write(f"{number}.mid", number, tracks=2)
    folder = tmp_path / "music"
    assert len(pieces(Midi(folder, length=64), "train")) == 2
    task = Midi(folder, length=64, programs=True)
    assert len(pieces(task, "train")) == 1 and task.vocabulary_size > 357


class TestProblems:
    @pytest.fixture
    def bad(self, folder, symusic):
        (folder / "noise.mid").write_bytes(b"nonsense")
        (folder / "nothing.mid").write_bytes(b"")
        (folder / "cut.mid").write_bytes((folder / "2000" / "piece2.MID").read_bytes()[:90])
        (folder / "twin.mid").write_bytes((folder / "2000" / "piece0.MID").read_bytes())
        symusic.Score(480).dump_midi(folder / "silent.mid")
        (folder / "notes.txt").write_text("not music")
        return folder

    def test_are_left_out_counted_and_named(self, bad):
        task = Midi(bad, length=64)
        assert [problem.partition(" ")[0] for problem in task.problems] == [
            "cut.mid", "noise.mid", "nothing.mid", "silent.mid", "twin.mid",
        ]  # fmt: skip
        assert all("can't be parsed" in problem for problem in task.problems[:3])
        assert "silent.mid (no notes)" in task.problems and "(the same as 2000/piece0.MID)" in task.problems[-1]
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            assert len(pieces(task, "train")) == 4

    def test_do_not_change_what_the_others_give(self, folder, bad):
        with_them = everything(Midi(bad, length=64))
        for name in ("noise", "nothing", "cut", "silent", "twin"):
            (folder / f"{name}.mid").unlink()
        assert everything(Midi(folder, length=64)) == with_them

    def test_too_few_files(self, write, tmp_path):
        write("a.mid", 1)
        write("b.mid", 2)
        with pytest.raises(ArgumentError, match="of 2 usable MIDI files none is for train"):
            Midi(tmp_path / "music").dataset("train")


def test_what_cannot_be_used_is_refused_in_one_line(tmp_path, monkeypatch):
    for fields, reason in (
        ({"length": 1}, "length=1"), ({"transpose": -1}, "transpose=-1"), ({"programs": 1}, "programs=1"),
    ):  # fmt: skip
        with pytest.raises(ArgumentError, match=reason):
            Midi(tmp_path, **fields)
    pytest.importorskip("miditok")
    with pytest.raises(ArgumentError, match=r"folder=.*no such folder"):
        Midi(tmp_path / "none").dataset("train")
    with pytest.raises(ArgumentError, match=r"folder=.*holds no \.mid"):
        Midi(tmp_path).dataset("train")


def _not_installed(name):
    raise PackageNotFoundError(name)


def test_missing_package_tells_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "a.mid").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "miditok", None)
    monkeypatch.setattr("importlib.metadata.version", _not_installed)
    midi._tokenizer.cache_clear()
    for read in (lambda: Midi(tmp_path).dataset("train"), lambda: Midi(tmp_path).vocabulary_size):
        with pytest.raises(ArgumentError, match=r"pip install 'ropewalk\[music\]'"):
            read()
