"""The documentation is right: its python blocks run, the commands and options of its bash blocks exist.

The blocks of one file share a namespace and a fresh folder. An HTML comment just before a python block says
`<!-- not run: reason -->` or `<!-- slow -->` (left to `make test-slow`).
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cli.app import main

ROOT = Path(__file__).parents[1]
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if page.exists()]

# A fence of three or more backticks, perhaps indented in a list, and the comment before it if there is one.
_BLOCK = re.compile(
    r"(?:^[ ]*<!--[ ]*(?P<comment>[^\n]*?)[ ]*-->[ ]*\n(?:[ ]*\n)*)?"
    r"^(?P<indent>[ ]*)(?P<fence>`{3,})(?P<language>\w*)[^\n`]*\n(?P<code>.*?)^[ ]*(?P=fence)[ ]*$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block: language, code (indent removed), the line the code starts on, the comment before it."""

    language: str
    code: str
    line: int
    comment: str

    @property
    def runs(self) -> bool:
        """Whether the block is to be run; a comment `not run` has to give a reason."""
        if not self.comment.startswith("not run"):
            return True
        assert re.fullmatch(r"not run: *\S.*", self.comment), f"line {self.line}: 'not run' without a reason"
        return False

    @property
    def slow(self) -> bool:
        return self.comment == "slow"


def blocks(text: str, language: str) -> list[Block]:
    """The fenced blocks of that language in a Markdown text, in order."""
    found = []
    for match in _BLOCK.finditer(text):
        code = re.sub(rf"^{match['indent']}", "", match["code"], flags=re.MULTILINE)
        line = text.count("\n", 0, match.start("code")) + 1
        found.append(Block(match["language"], code, line, match["comment"] or ""))
    return [block for block in found if block.language == language]


def commands(text: str) -> list[list[str]]:
    """The words of every line of a bash block that starts with `ropewalk `, continued lines joined."""
    code = "\n".join(block.code for block in blocks(text, "bash")).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in code.splitlines() if line.startswith("ropewalk ")]


def run(page: Path, chosen: list[Block]) -> dict[str, Any]:
    """Run the blocks in order in one namespace and return it; a traceback names the page and its line."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in chosen:
        padded = "\n" * (block.line - 1) + block.code
        exec(compile(padded, str(page), "exec", dont_inherit=True), namespace)
    return namespace


def _runnable(page: Path) -> list[Block]:
    return [block for block in blocks(page.read_text(), "python") if block.runs]


def _page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=_page_id)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(page, [block for block in _runnable(page) if not block.slow])


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(block.slow for block in _runnable(page))], ids=_page_id)
def test_slow_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(page, _runnable(page))


def _check_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The command line's command exists and its help shows each option used."""
    name = [words[1]] if not words[1].startswith("-") else []
    assert main([*name, "--help"]) == 0, f"no such command: {shlex.join(words)}"
    help_text = capsys.readouterr().out
    for word in words[1:]:
        option = word.split("=")[0]
        if option.startswith("--"):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", help_text), f"{option}: {shlex.join(words)}"


@pytest.mark.parametrize("page", PAGES, ids=_page_id)
def test_commands_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands(page.read_text()):
        _check_command(words, capsys)


SAMPLE = """
```python
x = 1
```

<!-- not run: needs a hub -->
```python
raise RuntimeError
```
<!-- slow -->

```python
y = x + 1
```
- in a list

  ```python
  def f():
      return 3
  ```

```bash
pip install ropewalk
ropewalk list \\
  --json  # all
ropewalk no-such-command
```
"""


def test_the_blocks_of_a_page_are_found() -> None:
    found = blocks(SAMPLE, "python")
    assert [(block.line, block.runs, block.slow) for block in found] == [
        (3, True, False),
        (8, False, False),
        (13, True, True),
        (18, True, False),
    ]
    namespace = run(Path("page.md"), [block for block in found if block.runs])
    assert namespace["y"] == 2 and namespace["f"]() == 3


def test_a_failing_block_names_its_page_and_line() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        run(Path("page.md"), blocks("text\n\n```python\nx = 0\n1 / x\n```\n", "python"))
    assert (str(caught.traceback[-1].path), caught.traceback[-1].lineno + 1) == ("page.md", 5)


def test_not_run_needs_a_reason() -> None:
    (block,) = blocks("<!-- not run: -->\n```python\n1 / 0\n```\n", "python")
    with pytest.raises(AssertionError, match="without a reason"):
        _ = block.runs


def test_wrong_commands_and_options_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    right, wrong = commands(SAMPLE)
    assert right == ["ropewalk", "list", "--json"]
    _check_command(right, capsys)
    with pytest.raises(AssertionError, match="no such command"):
        _check_command(wrong, capsys)
    with pytest.raises(AssertionError, match="--jso"):
        _check_command(["ropewalk", "list", "--jso"], capsys)
