from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ropewalk.data.qa_problems import final_answer, read_problems
from ropewalk.errors import ArgumentError

WORKING = "Six ropes of 4 make 24.\nTwo are lost: 24-2=22."
WORKED = "Six ropes of 4 make <<6*4=24>>24.\nTwo are lost: 24-2=<<24-2=22>>22.\n#### 22"


def written(path, *records):
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


class TestFinalAnswer:
    @pytest.mark.parametrize(
        ("text", "final", "working"),
        [
            (WORKED, "22", WORKING),
            ("So many.\n#### 1,234,567", "1234567", "So many."),
            ("A pair.\n#### 3,4", "3,4", "A pair."),
            ("It is $\\boxed{7}$, not $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}", None),
            ("First \\boxed{a \\{ b}", "a \\{ b", None),
            ("Thus $\\boxed 9$.", "9", None),
            ("Thus $\\fbox{yes}$", "yes", None),
            ("\\boxed{a\n  b}", "a b", None),
            ("\\boxed{open", "", None),
            ("  Paris ", "Paris", ""),
            ("no\nfinal one", "", None),
            ("####", "", ""),
        ],
    )
    def test_is_found(self, text, final, working):
        assert final_answer(text) == (final, text.strip() if working is None else working)

    @settings(max_examples=100, deadline=None)
    @given(st.text(alphabet="\\{}boxedf #\n$12 ,"))
    def test_any_text_gives_one_line(self, text):
        final, _ = final_answer(text)
        assert len(final.splitlines()) <= 1
        assert final == final.strip()


class TestFields:
    @pytest.mark.parametrize(
        ("record", "answer", "solution"),
        [
            ({"question": "Q", "answer": WORKED}, "22", WORKING),
            ({"problem": "Q", "level": 5, "solution": "See $\\boxed{3}$."}, "3", "See $\\boxed{3}$."),
            ({"problem": "Q", "solution": "See $\\boxed{3}$.", "answer": "three"}, "three", "See $\\boxed{3}$."),
            ({"problem": "Q", "solution": "Count.", "answer": 3}, "3", "Count."),
            ({"question": "Q", "answer": "Paris"}, "Paris", ""),
        ],
        ids=["gsm8k", "math", "both", "number", "short"],
    )  # fmt: skip
    def test_are_found(self, tmp_path, record, answer, solution):
        (one,) = read_problems(written(tmp_path / "a.jsonl", record)).problems
        assert (one.question, one.answer, one.solution, one.place) == ("Q", answer, solution, "a.jsonl:1")

    def test_are_given(self, tmp_path):
        path = written(tmp_path / "a.jsonl", {"ask": "Q", "say": "A", "answer": "B", "question": "C"})
        assert read_problems(path, "ask", "say").problems[0].answer == "A"
        assert read_problems(path, "ask").problems[0].question == "Q"

    def test_half_a_pair_of_surrogates_is_replaced(self, tmp_path):
        path = tmp_path / "a.jsonl"
        path.write_text('{"question": "Q\\ud800", "answer": "A"}')
        assert read_problems(path).problems[0].question == "Q?"


class TestSources:
    def test_lines_lists_records_and_folders(self, tmp_path):
        (tmp_path / "deep" / "er").mkdir(parents=True)
        written(tmp_path / "b.jsonl", {"question": "1", "answer": "a"}, {"question": "2", "answer": "b"})
        (tmp_path / "deep" / "er" / "list.json").write_text(json.dumps([{"question": "3", "answer": "c"}]))
        (tmp_path / "deep" / "one.json").write_text(json.dumps({"problem": "4", "solution": "d"}, indent=1))
        written(tmp_path / "deep" / "two.json", {"question": "5", "answer": "e"}, {"question": "6", "answer": "f"})
        (tmp_path / "deep" / "notes.txt").write_text("nothing")
        found = read_problems(tmp_path)
        assert {p.place: p.question for p in found.problems} == {
            "b.jsonl:1": "1", "b.jsonl:2": "2", "deep/er/list.json#0": "3", "deep/one.json": "4",
            "deep/two.json:1": "5", "deep/two.json:2": "6",
        }  # fmt: skip
        assert found.name == str(tmp_path)

    def test_a_question_told_twice_counts_once(self, tmp_path):
        rows = [{"question": q, "answer": a} for q, a in [("1", "a"), ("2", "b"), (" 1", "c")]]
        found = read_problems(written(tmp_path / "a.jsonl", *rows))
        assert [(p.question, p.answer) for p in found.problems] == [("1", "a"), ("2", "b")]
        assert found.to_dict()["problems"] == 2

    def test_the_fingerprint_is_of_what_they_say(self, tmp_path):
        one = read_problems(written(tmp_path / "a.jsonl", {"question": "1", "answer": "a"}))
        same = read_problems(written(tmp_path / "b.jsonl", {"problem": "1 ", "level": 1, "answer": "a"}))
        other = read_problems(written(tmp_path / "c.jsonl", {"question": "1", "answer": "b"}))
        assert one.fingerprint == same.fingerprint != other.fingerprint

    def test_line_breaks_of_unicode_inside_texts(self, tmp_path):
        path = tmp_path / "a.jsonl"
        path.write_bytes('\ufeff{"question": "a\u2028b", "answer": "c"}\r\n\r\n'.encode())
        assert read_problems(path).problems[0].question == "a\u2028b"

    def test_a_data_set(self, tmp_path):
        pytest.importorskip("datasets")
        written(tmp_path / "test.jsonl", {"question": "1", "answer": "a"}, {"question": "2", "answer": "b"})
        found = read_problems(f"hf:{tmp_path}::test")
        assert [(p.place, p.answer) for p in found.problems] == [("row 0", "a"), ("row 1", "b")]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, r"no such file"),
        (b"", r"holds no questions"),
        (b"\xff", r"isn't UTF-8"),
        (b'{"question": "1", "answer": "a"}\n{"question": ', r"a\.jsonl:2': isn't JSON \(Expecting value\)"),
        (b"[" * 100_000, r"a\.jsonl:1': isn't JSON"),
        (b"\n[1]", r"a\.jsonl:2': should hold an object"),
        (b'{"question": "1"}', r"a\.jsonl:1': has no answer under answer or solution.*answer_field \(question\)"),
        (b'{"question": "1", "answer": true}', r"has no answer"),
        (b'{"answer": "1", "ask": "?"}', r"has no question under question or problem.*\(answer, ask\)"),
        (b'{"question": "1", "answer": "So\\nso"}', r"a\.jsonl:1': has no final answer"),
        (b"{}", r"has no question.*\(none\)"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(tmp_path, content, reason):
    path = tmp_path / "a.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArgumentError, match=reason) as error:
        read_problems(path)
    assert error.value.argument == "questions"
    assert "\n" not in str(error.value)


def test_a_folder_without_files_and_a_missing_data_set(tmp_path):
    with pytest.raises(ArgumentError, match=r"no \.jsonl or \.json file"):
        read_problems(tmp_path)
    with pytest.raises(ArgumentError, match="questions='hf:"):
        read_problems("hf:")
