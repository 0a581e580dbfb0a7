"""What a measured cell is named by: SHA-256 hashes of canonical content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# Raised whenever a change of ropewalk changes measured answers: cells of before are then measured again.
RESULTS = 2


def content_hash(content: Any) -> str:
    """The SHA-256 (hex) of JSON content: the same for the same content, however its keys are ordered."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def reference(content: Mapping[str, Any]) -> str:
    """A short name of content: the first 16 digits of its hash."""
    return content_hash(content)[:16]


def cell_key(model: str, plan: str, task: str, prompt: int) -> str:
    """The hash of a cell, from the references of its model, plan and task and the number of its prompt."""
    return content_hash({"results": RESULTS, "model": model, "plan": plan, "task": task, "prompt": prompt})


def of_all_seeds(task: Mapping[str, Any]) -> dict[str, Any]:
    """What a task is named by but for what tells its seeds apart: cells with the same are one comparison's.

    Seeds that share out a source say among which they do (`seeds`). A many-shot seed that doesn't asks from all
    problems, perhaps the same as another one, so it stays by itself.
    """
    is_alone = "problems" in task and "seeds" not in task
    return {name: value for name, value in task.items() if is_alone or name not in ("seed", "rank")}


def prompts_a_draw(task: Mapping[str, Any]) -> int:
    """How many prompts in a row are one independent draw, from what a task is named by.

    The prompts of a many-shot problem, one at each depth, share their examples and what is asked; in the multi
    protocol a prompt has all its depths itself.
    """
    return len(task["depths"]) if "problems" in task and task["protocol"] == "single" else 1
