from __future__ import annotations

import json
import re

import pytest

from ropewalk.cli import listing
from ropewalk.cli.app import main
from ropewalk.training.presets import NAMES


def test_every_registry_is_listed() -> None:
    groups = listing.summaries()
    assert set(groups) == {"encodings", "encodings to train", "rules", "scores", "reading tasks", "training tasks"}
    assert {"rope", "nope"} <= set(groups["encodings"])
    assert set(groups["encodings to train"]) == set(NAMES)
    assert {"linear", "ntk", "yarn", "llama3", "longrope"} <= set(groups["rules"])
    assert {"band_entropy", "spectral_norm"} <= set(groups["scores"])
    assert {"needle", "many_shot", "lookup", "tracking"} == set(groups["reading tasks"])
    assert {"indexing", "chorales", "language", "copying"} <= set(groups["training tasks"])


def test_every_entry_has_a_summary_of_one_line() -> None:
    for entries in listing.summaries().values():
        for name, summary in entries.items():
            assert summary.strip() and "\n" not in summary, name


def test_json_holds_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == listing.summaries()


def test_the_tables_show_every_entry_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for group, entries in listing.summaries().items():
        assert f"\n{group}" in f"\n{out}"
        for name, summary in entries.items():
            assert re.search(rf"^ *{re.escape(name)} +{re.escape(summary)} *$", out, re.MULTILINE), name


def test_brackets_in_a_summary_are_printed_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(listing, "summaries", lambda: {"scores": {"share": "a share in [bold] or [0, 1]"}})
    listing.list_names()
    assert "a share in [bold] or [0, 1]" in capsys.readouterr().out
