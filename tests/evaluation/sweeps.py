"""A tiny sweep: a model's folder, a config's plans and tasks, and what measures them in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.data.tokenizers import byte_tokenizer, story
from tests.evaluation.tiny_models import tiny

from ropewalk.data.text import Text, text_of
from ropewalk.evaluation.as_saved import as_saved
from ropewalk.evaluation.cells import Cells
from ropewalk.evaluation.grid import Job, Unit, job_of
from ropewalk.evaluation.identity import identity
from ropewalk.evaluation.local_engine import Local
from ropewalk.evaluation.plans import Target, build_plan
from ropewalk.evaluation.reader import Reader
from ropewalk.evaluation.sweep_config import ModelEntry, SweepConfig, build_config
from ropewalk.evaluation.sweep_run import report_indices
from ropewalk.hub.loading import load_model

TEXT = text_of(story(120), "story")
CONFIG: dict[str, Any] = {
    "models": ["{folder}"],
    "plans": ["plain", {"rule": "ntk", "factor": [2.0, 3.0]}],
    "tasks": [{"task": "needle", "text": "{folder}/text.txt", "depths": 2}],
    "lengths": [220],
    "prompts": 2,
    "calibration": "{folder}/text.txt",
}
DOPE = {"rule": "ntk", "factor": 2.0, "dope": {"mode": "all", "heads": [1, 2], "r": 4}}


def needles_folder(place: Path) -> Path:
    """A folder with a tiny model, its tokenizer and a text."""
    folder = place / "model"
    tiny("Llama").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    (folder / "text.txt").write_text(TEXT.text, encoding="utf-8")
    return folder


def filled(content: Any, folder: Path) -> Any:
    """A config's content with the folder's path in the place of {folder}."""
    if isinstance(content, dict):
        return {key: filled(value, folder) for key, value in content.items()}
    if isinstance(content, list):
        return [filled(value, folder) for value in content]
    return content.replace("{folder}", str(folder)) if isinstance(content, str) else content


class LocalNeedles:
    """The model of such a folder, and units of a config without head statistics."""

    def __init__(self, folder: Path, text: Text | None = None):
        self.folder = folder
        self.entry = ModelEntry(str(folder))
        self.model, self.tokenizer = load_model(str(folder))
        self.saved = as_saved(self.model, str(folder))
        self.about = self.saved.about
        self.identity = identity(self.model, self.tokenizer)
        self.text = text

    def config(self, content: Any) -> SweepConfig:
        return build_config(filled(content, self.folder))

    def target(self, config: SweepConfig, cells: Cells) -> Target:
        return Target(self.model, self.tokenizer, self.saved, self.identity, 128, config.lengths[0], self.text, cells)

    def job(self, config: SweepConfig) -> Job:
        return job_of(config, str(self.folder), self.identity, config.lengths[0])

    def units(self, content: Any, cells: Cells | None = None) -> list[Unit]:
        config = self.config(content)
        plans = [build_plan(entry, self.target(config, cells or Cells(self.folder))) for entry in config.plans]
        return self.job(config).units(plans, report_indices(config))

    def measure(self, units: Sequence[Unit], cells: Cells) -> None:
        Local(Reader(self.model, self.tokenizer), cells).run(units)
