"""A sweep of 32 DoPE plans on one prompt, beside a forward of its own for each plan.

    python benchmarks/sweep_speed.py smollm2 --length 4096

The plans are those that `ropewalk extend` tries (14, less what a model can't have) and, rotation taken from the whole
head, 1 to 10 heads by the first key score and the first query score of those. For each plan in turn both ways are
timed, one right after the other, so that a busy machine slows both; their answers must be equal in every bit.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from ropewalk import load_model
from ropewalk.analysis.calibration_pass import measure
from ropewalk.analysis.head_statistics import Statistics
from ropewalk.data.text import draw_window, read_text
from ropewalk.encodings.base import Encoding
from ropewalk.encodings.dope import DoPE
from ropewalk.evaluation.candidates import dope_candidates, plain_candidate, rotation_to_stretch
from ropewalk.evaluation.prefix_sharing import SharedReading
from ropewalk.evaluation.provenance import machine, versions
from ropewalk.evaluation.reader import Reader
from ropewalk.hub.fingerprint import describe
from ropewalk.patching import installed
from ropewalk.tasks.needle import NeedleTask

SCORES = (("truncated_entropy", 32, "key"), ("truncated_effective_rank", 16, "query"))


class Clock:
    """Adds up what its with blocks take, on the wall and on the processor."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began[0]
        self.cpu_seconds += time.process_time() - self._began[1]


def plans(model: Any, statistics: Statistics, original_length: int) -> list[Encoding]:
    """The plans of the sweep, each once."""
    base = plain_candidate(rotation_to_stretch(model, original_length)[0])
    rope: Any = base.encoding
    found = [candidate.encoding for candidate in dope_candidates(base, statistics, original_length)]
    for score, r, indicator in SCORES:
        rank = min(r, statistics.head_dim)
        for heads in range(1, 11):
            selection = statistics.select(score, r=rank, indicator=indicator, heads=heads, order="ascending")
            found.append(DoPE(rope, selection, original_length=original_length))
    return list(dict.fromkeys(found))


def statistics_of(model: Any, tokenizer: Any, length: int, kept: Path | None) -> Statistics:
    """Head statistics under the model's own rotation, from a file where there is one."""
    if kept is not None and kept.exists():
        return Statistics.load(kept)
    ids = draw_window(read_text("kjv"), tokenizer, length, 0.37)
    found = measure(model, torch.tensor([ids]))
    if kept is not None:
        found.save(kept)
    return found


def main() -> None:
    """Time both ways plan by plan and print what came out as one line of JSON."""
    options = _options()
    model, tokenizer = load_model(options.model)
    original_length = describe(model)["original_length"]
    statistics = statistics_of(model, tokenizer, options.length, options.statistics)
    encodings = plans(model, statistics, original_length)[: options.plans]
    task = NeedleTask(read_text("kjv"), options.length, depths=options.questions)
    (prompt,) = task.prompts(tokenizer, 1)
    reader = Reader(model, tokenizer)
    shared = SharedReading(model, prompt.haystack_ids, encodings)
    together, apart = Clock(), Clock()
    for number, index in enumerate(shared.order):
        with together, installed(model, encodings[index]):
            cache = shared.read(index)
            with shared.asking():
                ours = reader.questions(prompt, task.setting, cache)
        del cache
        with apart, installed(model, encodings[index]):
            theirs = reader.answers(prompt, task.setting)
        assert ours == theirs, f"plan {index} answers otherwise alone"
        so_far = f"{together.seconds:.1f} s together, {apart.seconds:.1f} s apart"
        print(f"{number + 1} plans: {so_far}, {together.seconds / apart.seconds:.3f}", flush=True)
    layers = len(encodings) * statistics.layers[-1] + len(encodings)
    record = {
        "model": options.model,
        "length": options.length,
        "questions": options.questions,
        "plans": len(encodings),
        "seconds_together": round(together.seconds, 2),
        "seconds_apart": round(apart.seconds, 2),
        "ratio": round(together.seconds / apart.seconds, 4),
        "cpu_ratio": round(together.cpu_seconds / apart.cpu_seconds, 4),
        "layer_ratio": round(shared.layer_passes / layers, 4),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "machine": machine(),
    }
    print(json.dumps(record))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--plans", type=int, default=32)
    parser.add_argument("--questions", type=int, default=1, help="about the prompt, each with its own needle")
    parser.add_argument("--statistics", type=Path, help="a file to keep head statistics in")
    return parser.parse_args()


if __name__ == "__main__":
    main()
