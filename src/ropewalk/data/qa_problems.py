"""Questions with worked answers, read from JSON lines, and the final answer found in each."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ropewalk.data.text import dataset_rows
from ropewalk.errors import ArgumentError
from ropewalk.io import one_line_errors

QUESTION_FIELDS = ("question", "problem")
WORKED_FIELD = "solution"
ANSWER_FIELDS = ("answer", WORKED_FIELD)
MOST_ROWS = 100_000
_FINAL_LINE = "####"
_CALCULATION = re.compile(r"<<[^<>]*>>")
_BOX = re.compile(r"\\f?box(?:ed)?(?![A-Za-z])\s*")
_BARE = re.compile(r"[^\s$.,;]+")


@dataclass(frozen=True)
class Problem:
    """A question, its final answer on one line, and how that is found, which may be empty.

    `place` names it within its source, such as `train.jsonl:12`.
    """

    question: str
    answer: str
    solution: str
    place: str


@dataclass(frozen=True)
class Problems:
    """Problems whose questions all differ, the name of their source, and a SHA-256 (hex) of all they say."""

    problems: tuple[Problem, ...]
    name: str
    fingerprint: str

    def to_dict(self) -> dict[str, Any]:
        """What a record keeps of them: name, fingerprint and number."""
        return {"name": self.name, "fingerprint": self.fingerprint, "problems": len(self.problems)}

    def __repr__(self) -> str:
        return f"Problems({self.name!r}, {len(self.problems):,}, sha256 {self.fingerprint[:12]})"


def problems_of(problems: Iterable[Problem], name: str) -> Problems:
    """`Problems` from those given; of several with one question, the first. Refuses none at all."""
    first_of: dict[str, Problem] = {}
    for problem in problems:
        first_of.setdefault(problem.question, problem)
    kept = tuple(first_of.values())
    if not kept:
        raise ArgumentError("questions", name, "holds no questions; give JSON lines with questions and answers")
    digest = hashlib.sha256()
    for problem in kept:
        digest.update(json.dumps([problem.question, problem.answer, problem.solution]).encode())
    return Problems(kept, name, digest.hexdigest())


def read_problems(source: str | Path, question_field: str = "", answer_field: str = "") -> Problems:
    """Read questions and their answers.

    `source` is a file of JSON lines, a JSON file with one record or a list of them, a folder of such files (`*.jsonl`
    and `*.json`, at any depth), or `hf:NAME[@REVISION][:CONFIG][:SPLIT]`, a Hugging Face data set, of which the first
    100,000 rows are read. A record holds its question under `question_field`, or else under `question` or `problem`,
    and its answer under `answer_field`, or else under `answer` or `solution`; with both, the solution is worked.
    The final answer is what follows the last `####` (GSM8K), or is in the last \\boxed{} (MATH), or all of an answer
    of one line. Of records with the same question the first is kept. Raises ArgumentError naming the line for a record
    that can't be used, and for a source without any.
    """
    if str(source).startswith("hf:"):
        rows = itertools.islice(dataset_rows(str(source), "questions"), MOST_ROWS)
        placed: Iterator[tuple[str, str, Any]] = (
            (f"row {number}", f"{source}, row {number}", row) for number, row in enumerate(rows)
        )
    else:
        placed = _records(Path(source))
    return problems_of((_problem(*one, question_field, answer_field) for one in placed), str(source))


def final_answer(text: str) -> tuple[str, str]:
    """(the final answer of a worked one, the working without it); the first is empty if none can be told."""
    if _FINAL_LINE in text:
        working, _, final = text.rpartition(_FINAL_LINE)
        return re.sub(r"(?<=\d),(?=\d{3})", "", _one_line(final)), _CALCULATION.sub("", working).strip()
    if _BOX.search(text):
        return _one_line(_last_box(text)), text.strip()
    lines = text.strip().splitlines()
    return (_one_line(text), "") if len(lines) == 1 else ("", text.strip())


def _problem(place: str, where: str, record: Any, question_field: str, answer_field: str) -> Problem:
    if not isinstance(record, dict):
        raise ArgumentError("questions", where, "should hold an object with a question and an answer; mend it")
    held = {name: _text(value) for name, value in record.items()}
    question = _first(held, (question_field,) if question_field else QUESTION_FIELDS)
    answer = _first(held, (answer_field,) if answer_field else ANSWER_FIELDS)
    for kind, found, fields, given in (
        ("question", question, QUESTION_FIELDS, question_field),
        ("answer", answer, ANSWER_FIELDS, answer_field),
    ):
        if not found:
            missing = given or " or ".join(fields)
            remedy = f"has no {kind} under {missing}; name its field with {kind}_field ({', '.join(record) or 'none'})"
            raise ArgumentError("questions", where, remedy)
    final, working = final_answer(answer)
    solution = "" if answer_field else held.get(WORKED_FIELD, "")
    if solution and solution != answer:
        worked_final, worked = final_answer(solution)
        final, working = final or worked_final, worked or solution
    if not final:
        remedy = "has no final answer; give one line, or a worked answer that ends with #### or holds \\boxed{}"
        raise ArgumentError("questions", where, remedy)
    return Problem(question, final, working, place)


def _first(held: dict[str, str], names: tuple[str, ...]) -> str:
    return next((held[name] for name in names if held.get(name)), "")


def _text(value: Any) -> str:
    """A text or number of a record as text; empty for anything else."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return ""
    # A lone half of a surrogate pair, which JSON can spell and no tokenizer takes.
    return str(value).encode("utf-8", "replace").decode("utf-8").strip()


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _last_box(text: str) -> str:
    """What the last \\boxed{...} or \\boxed x holds; empty if its brace isn't closed."""
    *_, found = _BOX.finditer(text)
    rest = text[found.end() :]
    if not rest.startswith("{"):
        bare = _BARE.match(rest)
        return bare.group() if bare else ""
    depth, escaped = 0, False
    for place, character in enumerate(rest):
        if character in "{}" and not escaped:
            depth += 1 if character == "{" else -1
            if depth == 0:
                return rest[1:place]
        escaped = character == "\\" and not escaped
    return ""


def _records(path: Path) -> Iterator[tuple[str, str, Any]]:
    """(place, where an error points, record) of each record of a file, or of all files of a folder."""
    if not path.is_dir():
        yield from _file_records(path, path.name)
        return
    files = sorted(f for f in path.rglob("*") if f.suffix in (".jsonl", ".json") and f.is_file())
    if not files:
        raise ArgumentError("questions", str(path), "no .jsonl or .json file is in this folder; give another place")
    for file in files:
        yield from _file_records(file, file.relative_to(path).as_posix())


def _file_records(path: Path, name: str) -> Iterator[tuple[str, str, Any]]:
    if not path.exists():
        raise ArgumentError("questions", str(path), "no such file; give JSON lines, a folder of them, or hf:NAME")
    try:
        with one_line_errors(path, "read", "questions"):
            text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ArgumentError("questions", str(path), "isn't UTF-8 text; convert it") from error
    if path.suffix == ".json" and (whole := _whole(text)) is not None:
        if isinstance(whole, list):
            yield from ((f"{name}#{i}", f"{path}#{i}", record) for i, record in enumerate(whole))
        else:
            yield name, str(path), whole
        return
    # Not splitlines: JSON's texts may hold the other line breaks of Unicode as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}:{number}"
            try:
                yield f"{name}:{number}", where, json.loads(line)
            except (ValueError, RecursionError) as error:  # of these, json's own error has a short message
                reason = getattr(error, "msg", type(error).__name__)
                raise ArgumentError("questions", where, f"isn't JSON ({reason}); mend the line") from error


def _whole(text: str) -> Any:
    """The one JSON value that a text is; None if it isn't one."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
