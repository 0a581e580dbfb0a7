"""Head statistics for a search, kept in a file beside its records."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ropewalk.analysis.calibration_pass import measure
from ropewalk.analysis.head_statistics import Statistics
from ropewalk.data.text import Text, draw_window_with_start, start_of
from ropewalk.errors import RopewalkError
from ropewalk.evaluation.candidates import Candidate
from ropewalk.evaluation.records import Store

FILE = "statistics.safetensors"


def calibrate(
    model: nn.Module,
    tokenizer: Any,
    text: Text,
    length: int,
    rule: Candidate,
    store: Store,
    on_start: Callable[[str, str, str], None] = lambda *_: None,
) -> Statistics:
    """Head statistics under a rule or a remap, on text of the target length (v2 finding (v)).

    They are measured once, then read back.

    A file that the store's record doesn't vouch for (of another run, or damaged) is measured again.
    """
    kept = store.path.with_name(FILE)
    key = f"statistics/{length}/{rule.name}{start_suffix(tokenizer)}"
    known = next((record for record in store.records() if record["key"] == key), None)
    if known is not None and (found := _vouched(kept, known["sha256"])) is not None:
        return found
    on_start("calibration", rule.name, text.name)
    began = time.monotonic()
    ids = draw_window_with_start(text, tokenizer, length, 0.37)
    device = next(model.parameters()).device
    statistics = measure(model, torch.tensor([ids], device=device), rope=rule.encoding)
    part = kept.with_suffix(".part")
    statistics.save(part)
    part.replace(kept)
    if known is None:
        seconds = round(time.monotonic() - began, 2)
        store.append({"key": key, "kind": "statistics", "sha256": _hash(statistics), "seconds": seconds})
    return statistics


def start_suffix(tokenizer: Any) -> str:
    """The end of a record's key: `/start` where the tokenizer puts a start token before a text, else nothing.

    Records without it were made when texts began without the start token; they are measured again.
    """
    return "/start" if start_of(tokenizer) else ""


def _vouched(kept: Path, sha256: str) -> Statistics | None:
    """The statistics in a file if they are those of that hash."""
    try:
        found = Statistics.load(kept)
    except RopewalkError:
        return None
    return found if _hash(found) == sha256 else None


def _hash(statistics: Statistics) -> str:
    """SHA-256 of the matrices; the file's own bytes may come in another order each time."""
    digest = hashlib.sha256()
    for stage in sorted(statistics.grams):
        for gram in statistics.grams[stage]:
            digest.update(gram.cpu().numpy().tobytes())
    return digest.hexdigest()
