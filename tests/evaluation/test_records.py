from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ropewalk.errors import ArgumentError, DamagedFileError
from ropewalk.evaluation.records import Store, read_records
from ropewalk.io import write_atomically

SETTINGS = {"length": 2048, "task": {"seed": 3, "depths": [0.0, 1.0]}}


def filled(path, number=3):
    with Store(path, SETTINGS) as store:
        for i in range(number):
            store.append({"key": f"k{i}", "nll": i / 8, "text": "a\u2028b\nc"})
    return path


def in_another_process(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


class TestStore:
    def test_reads_back_what_was_written(self, tmp_path):
        path = filled(tmp_path / "new" / "run.jsonl")
        with Store(path, SETTINGS) as store:
            assert [r["key"] for r in store.records()] == ["k0", "k1", "k2"]
            assert store.records()[1] == {"key": "k1", "nll": 0.125, "text": "a\u2028b\nc"}
            assert store.has("k2")
            assert not store.has("k3")
        assert read_records(path)[0] == SETTINGS
        assert json.loads(path.read_text().splitlines()[0]) == {
            "format": "ropewalk.records", "version": 1, "settings": SETTINGS
        }  # fmt: skip

    def test_goes_on_where_it_stopped(self, tmp_path):
        path = filled(tmp_path / "run.jsonl")
        with Store(path, SETTINGS) as store:
            store.append({"key": "k3"})
        assert [r["key"] for r in read_records(path)[1]] == ["k0", "k1", "k2", "k3"]

    @pytest.mark.parametrize("order", [1, -1])
    def test_a_cut_at_any_byte_of_the_last_line_loses_that_line_only(self, tmp_path, order):
        content = filled(tmp_path / "whole.jsonl").read_bytes()
        last = content[:-1].rfind(b"\n") + 1
        for cut in range(last, len(content))[::order]:
            path = tmp_path / "cut.jsonl"
            path.write_bytes(content[:cut])
            assert len(read_records(path)[1]) == 2
            with Store(path, SETTINGS) as store:
                assert [r["key"] for r in store.records()] == ["k0", "k1"]
                assert path.read_bytes() == content[:last]
                store.append({"key": "k2", "nll": 2 / 8, "text": "a\u2028b\nc"})
            assert path.read_bytes() == content

    def test_a_cut_inside_the_header_starts_anew(self, tmp_path):
        header = filled(tmp_path / "whole.jsonl", 0).read_bytes()
        for cut in range(len(header)):
            path = tmp_path / "cut.jsonl"
            path.write_bytes(header[:cut])
            Store(path, SETTINGS).close()
            assert path.read_bytes() == header

    def test_killed_in_the_middle_of_a_write(self, tmp_path):
        path = filled(tmp_path / "run.jsonl")
        code = """
            import os, sys
            from ropewalk.evaluation.records import Store
            store = Store(sys.argv[1], {"length": 2048, "task": {"seed": 3, "depths": [0.0, 1.0]}})
            write = os.write
            def half(file, data):
                write(file, data[: len(data) // 2])
                os._exit(9)
            os.write = half
            store.append({"key": "lost", "text": "x" * 1000})
        """
        whole = path.read_bytes()
        result = in_another_process(code, path)
        assert result.returncode == 9, result.stderr
        assert len(path.read_bytes()) > len(whole) + 400
        with Store(path, SETTINGS) as store:  # the dead process's lock is gone, too
            assert not store.has("lost")
            assert len(store.records()) == 3
            assert path.read_bytes() == whole

    def test_a_damaged_line_is_named_and_skipped_and_what_it_held_can_be_appended_again(self, tmp_path):
        path = filled(tmp_path / "run.jsonl")
        lines = path.read_bytes().split(b"\n")
        for damage in (b'{"key": "k1", "nl', b"", b"\xff\xfe", b"[1]", b'{"nll": 1}', b'{"key": "k0"}'):
            path.write_bytes(b"\n".join([lines[0], lines[1], damage, *lines[3:]]))
            before = path.read_bytes()
            told = rf"{path}: line 3 is damaged and skipped"
            with pytest.warns(UserWarning, match=told):
                assert [r["key"] for r in read_records(path)[1]] == ["k0", "k2"]
            with Store(path, SETTINGS) as store:
                assert store.damaged == (3,) and re.match(told, store.damage)
                assert store.records()[0]["nll"] == 0.0  # of two with one key the first counts
                assert not store.has("k1") and path.read_bytes() == before
                store.append({"key": "k1", "nll": 9.0})
            with Store(path, SETTINGS) as store:
                assert [r["key"] for r in store.records()] == ["k0", "k2", "k1"] and store.damaged == (3,)
                assert path.read_bytes().startswith(before)

    def test_damaged_lines_are_told_in_one_line_however_many(self, tmp_path):
        path = filled(tmp_path / "run.jsonl")
        with Store(path, SETTINGS) as store:
            assert store.damage == ""
        path.write_bytes(path.read_bytes() + b"x\n" * 12)
        with Store(path, SETTINGS) as store:
            assert store.damaged == tuple(range(5, 17)) and len(store.records()) == 3
            told = "12 lines are damaged and skipped (5, 6, 7, 8, 9, 10, 11, 12, 13, 14, ...)"
            assert store.damage.startswith(f"{path}: {told}; what they held is measured again")

    def test_a_damaged_header_is_refused(self, tmp_path):
        path = filled(tmp_path / "run.jsonl")
        lines = path.read_bytes().split(b"\n")
        for damage in (lines[0][:-5], b"", lines[0].replace(b"settings", b"settinks")):
            path.write_bytes(b"\n".join([damage, *lines[1:]]))
            with pytest.raises(DamagedFileError, match="isn't a file of records"):
                Store(path, SETTINGS)
            with pytest.raises(DamagedFileError, match="isn't a file of records"):
                read_records(path)

    @pytest.mark.parametrize("content", ["hello", "hello\n", '{"format": "other"}\n', "[]\n"])
    def test_another_file_is_left_alone(self, tmp_path, content):
        path = tmp_path / "notes.txt"
        path.write_text(content)
        with pytest.raises(DamagedFileError, match="isn't a file of records"):
            Store(path, SETTINGS)
        assert path.read_text() == content

    def test_a_later_version_is_refused(self, tmp_path):
        path = filled(tmp_path / "run.jsonl")
        path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
        with pytest.raises(DamagedFileError, match="version 2"):
            Store(path, SETTINGS)

    def test_other_settings_are_named(self, tmp_path):
        path = filled(tmp_path / "run.jsonl")
        other = {"length": 4096, "task": {"seed": 4, "depths": [0.0, 1.0]}, "new": None}
        with pytest.raises(ArgumentError, match=r"other length, new, task\.seed; choose another --out"):
            Store(path, other)
        tuples = {"task": {"depths": (0.0, 1.0), "seed": 3}, "length": 2048}
        Store(path, tuples).close()

    def test_one_writer_at_a_time(self, tmp_path):
        path = tmp_path / "run.jsonl"
        code = "import sys; from ropewalk.evaluation.records import Store; Store(sys.argv[1], {'a': 1})"
        with Store(path, {"a": 1}) as store:
            store.append({"key": "k"})
            result = in_another_process(code, path)
            assert "another process is writing" in result.stderr
            with pytest.raises(ArgumentError, match="another process"):
                Store(path, {"a": 1})
            assert len(read_records(path)[1]) == 1
        assert in_another_process(code, path).returncode == 0

    def test_records_that_cannot_be_kept(self, tmp_path):
        path = tmp_path / "run.jsonl"
        with Store(path, {}) as store:
            for record in (
                {"nll": 1.0},
                {"key": 3},
                {"key": "a", "nll": float("nan")},
                {"key": "a", "x": object()},
            ):
                with pytest.raises(ArgumentError):
                    store.append(record)
            store.append({"key": "a"})
            with pytest.raises(ArgumentError, match="already"):
                store.append({"key": "a"})
        with pytest.raises(ArgumentError, match="closed"):
            store.append({"key": "b"})
        assert [r["key"] for r in read_records(path)[1]] == ["a"]

    def test_no_space_leaves_the_file_whole(self, tmp_path, monkeypatch):
        path = filled(tmp_path / "run.jsonl")
        before = path.read_bytes()
        with Store(path, SETTINGS) as store:
            write = os.write

            def full(file: int, data: bytes) -> int:
                if len(data) < 50:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return write(file, data[:50])

            monkeypatch.setattr(os, "write", full)
            with pytest.raises(ArgumentError, match="No space left") as error:
                store.append({"key": "big", "text": "x" * 120})
            assert "\n" not in str(error.value)
            assert path.read_bytes() == before
            monkeypatch.undo()
            assert not store.has("big")
            store.append({"key": "big"})
        assert len(read_records(path)[1]) == 4

    def test_every_record_is_synced(self, tmp_path, monkeypatch):
        synced = []
        monkeypatch.setattr(os, "fsync", synced.append)
        with Store(tmp_path / "run.jsonl", {}) as store:
            store.append({"key": "a"})
            store.append({"key": "b"})
        assert len(synced) == 3

    def test_a_place_that_cannot_be_written(self, tmp_path):
        file = tmp_path / "file"
        file.write_text("x")
        for path in (file / "run.jsonl", tmp_path):
            with pytest.raises(ArgumentError, match=r"out=.*can't write"):
                Store(path, {})
        with pytest.raises(ArgumentError, match="can't read"):
            read_records(tmp_path / "missing.jsonl")

    @settings(max_examples=30)
    @given(st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.none()), max_size=5))
    def test_any_text_survives(self, tmp_path_factory, contents):
        path = tmp_path_factory.mktemp("store") / "run.jsonl"
        records = [{**content, "key": str(i)} for i, content in enumerate(contents)]
        with Store(path, {}) as store:
            for record in records:
                store.append(record)
        assert read_records(path)[1] == records


class TestWriteAtomically:
    def test_replaces_whole_and_leaves_nothing_else(self, tmp_path):
        path = tmp_path / "new" / "page.html"
        write_atomically(path, "one\r\n")
        write_atomically(path, "zwei ü\n")
        assert path.read_bytes() == "zwei ü\n".encode()
        assert os.listdir(path.parent) == ["page.html"]
        ordinary = tmp_path / "ordinary"
        ordinary.write_text("")
        assert path.stat().st_mode == ordinary.stat().st_mode

    def test_an_error_keeps_the_old_content(self, tmp_path, monkeypatch):
        path = tmp_path / "page.html"
        write_atomically(path, "old")

        def full(file: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(ArgumentError, match=r"page\.html.*No space left"):
            write_atomically(path, "new")
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["page.html"]

    def test_a_place_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("x")
        with pytest.raises(ArgumentError, match="can't write"):
            write_atomically(tmp_path / "file" / "page.html", "x")
