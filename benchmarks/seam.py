"""What the seam, a plan, calibration, inspection and the multi protocol cost, beside the plain model: one table.

    python benchmarks/seam.py --tokens 4096 --repeats 5 --out results/seam-speed.md

Every ratio is taken within one run: variants take turns, round after round. Reported is the ratio of the medians, with
the smallest and largest ratio of a round. Memory is the peak resident size during the pass, in a process of its own
(Linux).
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from encoding_measure import resident, restart_peak, turns
from transformers.cache_utils import DynamicCache

from ropewalk import DoPE, HeadSelection, RoPE, installed, load_model, measure
from ropewalk.analysis.head_statistics import STAGES
from ropewalk.analysis.inspect import inspect
from ropewalk.data.text import read_text
from ropewalk.evaluation.provenance import machine, versions
from ropewalk.evaluation.reader import Reader
from ropewalk.report.inspect import write_inspection
from ropewalk.tasks.needle import NeedleTask

DECODED = 40
KINDS = ("plain", "calibration", "inspect")
PARTS = ("passes", "decoding", "multi", "memory", "inspect")


def main() -> None:
    """Measure everything and write the table."""
    options = _options()
    model, tokenizer = load_model(options.model)
    torch.manual_seed(options.seed)
    ids = torch.randint(0, model.config.vocab_size, (1, options.tokens))
    if options.memory:
        _use_memory(model, ids, options.memory)
        return
    parts: dict[str, Callable[[], list[tuple[str, ...]]]] = {
        "passes": lambda: _passes(model, ids, options),
        "decoding": lambda: _decoding(model, ids, options),
        "multi": lambda: [_multi(model, tokenizer, options)],
        "memory": lambda: _memory(options),
        "inspect": lambda: _inspect(model, ids, options),
    }
    rows = [row for name in options.parts for row in parts[name]()]
    text = _page(rows, options)
    print(text)
    if options.out:
        Path(options.out).write_text(text, encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--out", default="")
    parser.add_argument("--memory", choices=KINDS, default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def _variants(model: Any, seed: int) -> dict[str, Callable[[], AbstractContextManager[Any]]]:
    own = RoPE.from_model(model)
    config = model.config
    rng = random.Random(seed)
    layers, heads = range(config.num_hidden_layers), range(config.num_attention_heads)
    pairs = [(layer, head) for layer in layers for head in heads]
    plan = DoPE(own, HeadSelection(rng.sample(pairs, 5)), mode="all")
    return {
        "plain": nullcontext,
        "plain RoPE through the seam": lambda: installed(model, own),
        "by-all with 5 query heads": lambda: installed(model, plan),
    }


def _passes(model: Any, ids: torch.Tensor, options: argparse.Namespace) -> list[tuple[str, ...]]:
    """Prefill with each variant, and the calibration pass, taking turns."""

    def prefill(context: Callable[[], AbstractContextManager[Any]]) -> float:
        with torch.no_grad(), context():
            began = time.perf_counter()
            model(input_ids=ids, use_cache=True, logits_to_keep=1)
            return time.perf_counter() - began

    def calibration() -> float:
        began = time.perf_counter()
        measure(model, ids, stages=("pre_ntk", "post_ntk"))
        return time.perf_counter() - began

    variants = _variants(model, options.seed)
    jobs: dict[str, Callable[[], float]] = {
        name: (lambda context=context: prefill(context)) for name, context in variants.items()
    }
    jobs["forward without a cache"] = lambda: _forward(model, ids)
    jobs["calibration pass"] = calibration
    times = turns(jobs, options.repeats)
    rows = [
        _row(f"prefill, {name}", times[name], times["plain"], limit)
        for name, limit in (("plain RoPE through the seam", 1.02), ("by-all with 5 query heads", 1.03))
    ]
    calibrations, forwards = times["calibration pass"], times["forward without a cache"]
    rows.append(_row("calibration pass (two stages)", calibrations, forwards, 1.15))
    return rows


def _decoding(model: Any, ids: torch.Tensor, options: argparse.Namespace) -> list[tuple[str, ...]]:
    """Tokens decoded one by one after a prefill, each variant with its own cache, taking turns token by token."""
    variants = _variants(model, options.seed)
    caches: dict[str, Any] = {}
    with torch.no_grad():
        for name, context in variants.items():
            caches[name] = DynamicCache(config=model.config)
            with context():
                model(input_ids=ids, past_key_values=caches[name], use_cache=True, logits_to_keep=1)

    def decode(name: str) -> float:
        with torch.no_grad(), variants[name]():
            began = time.perf_counter()
            model(input_ids=torch.tensor([[5]]), past_key_values=caches[name], use_cache=True)
            return time.perf_counter() - began

    times = turns({name: (lambda name=name: decode(name)) for name in variants}, DECODED * options.repeats)
    return [
        _row(f"decoding a token, {name}", times[name], times["plain"], limit)
        for name, limit in (("plain RoPE through the seam", 1.02), ("by-all with 5 query heads", 1.05))
    ]


def _multi(model: Any, tokenizer: Any, options: argparse.Namespace) -> tuple[str, ...]:
    """Ten needles in one haystack against one prompt: haystack, one question, no more."""
    reader = Reader(model, tokenizer)
    task = NeedleTask(read_text("kjv"), options.tokens, seed=options.seed)
    prompt = task.prompts(tokenizer, 1)[0]
    whole, ones = [], []
    for _ in range(max(2, options.repeats // 2)):
        began = time.perf_counter()
        cache = reader.read(prompt.haystack_ids)
        read = time.perf_counter() - began
        one = time.perf_counter()
        reader.questions(_first_question(prompt), "original", cache)
        ones.append(read + time.perf_counter() - one)
        rest = time.perf_counter()
        reader.questions(prompt, "original", cache)
        whole.append(read + time.perf_counter() - rest)
    return _row("ten needles, multi protocol, against one prompt", whole, ones, 1.5)


def _first_question(prompt: Any) -> Any:
    return dataclasses.replace(prompt, questions=prompt.questions[:1])


def _memory(options: argparse.Namespace) -> list[tuple[str, ...]]:
    """Peak resident memory of a calibration pass beyond that of a plain forward, each in a process of its own."""
    rows = []
    for tokens in (options.tokens // 4, options.tokens):
        extra = (_peak(options, "calibration", tokens) - _peak(options, "plain", tokens)) / 1024
        rows.append(
            (f"calibration of {tokens} tokens, three stages, extra memory", f"{extra:.0f} MiB", "", "", "64 MiB")
        )
    return rows


def _inspect(model: Any, ids: torch.Tensor, options: argparse.Namespace) -> list[tuple[str, ...]]:
    """Looking at every head, with and without drawing the page, taking turns with a plain forward; and its memory."""
    needle = (options.tokens // 2, options.tokens // 2 + 16)

    def looked(draws: bool) -> float:
        began = time.perf_counter()
        found = inspect(model, ids, needle)
        if draws:
            with tempfile.TemporaryDirectory() as folder:
                write_inspection(found, "", Path(folder))
        return time.perf_counter() - began

    jobs = {"plain": lambda: _forward(model, ids), "inspect": lambda: looked(False), "drawn": lambda: looked(True)}
    times = turns(jobs, options.repeats)
    memory = _peak(options, "inspect", options.tokens) / 1024
    return [
        _row("inspection of all heads", times["inspect"], times["plain"], 2.5),
        _row("inspection, page and pictures", times["drawn"], times["plain"], 2.5),
        (f"inspection of {options.tokens} tokens, memory above the model", f"{memory:.0f} MiB", "", "", "1024 MiB"),
    ]


def _forward(model: Any, ids: torch.Tensor) -> float:
    """Seconds of a plain pass."""
    with torch.no_grad():
        began = time.perf_counter()
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
        return time.perf_counter() - began


def _peak(options: argparse.Namespace, kind: str, tokens: int) -> int:
    """KiB above the loaded model at most during one pass, in a process of its own."""
    command = [sys.executable, __file__, "--tokens", str(tokens), "--model", options.model, "--memory", kind]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def _use_memory(model: Any, ids: torch.Tensor, kind: str) -> None:
    """Run one pass and print the peak resident size during it, in KiB above that of the loaded model."""
    before = resident()
    restart_peak()
    if kind == "inspect":
        inspect(model, ids, (len(ids[0]) // 2, len(ids[0]) // 2 + 16))
    elif kind == "plain":
        with torch.no_grad():
            model(input_ids=ids, use_cache=False, logits_to_keep=1)
    else:
        measure(model, ids, stages=STAGES)
    print((resident("VmHWM") - before) // 1024)


def _row(name: str, ours: list[float], plain: list[float], limit: float) -> tuple[str, ...]:
    ratios = [a / b for a, b in zip(ours, plain, strict=True)]
    median = statistics.median(ours) / statistics.median(plain)
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    return name, f"{median:.3f}", spread, f"{statistics.median(ours):.4f} s", f"{limit:.2f}"


def _page(rows: list[tuple[str, ...]], options: argparse.Namespace) -> str:
    header = ("what", "ratio to plain (medians)", "ratios of the rounds", "median time", "to reach, at most")
    table = [header, ("---",) * len(header), *rows]
    lines = [
        f"# What the seam costs: {options.model}, {options.tokens} tokens",
        "",
        *(f"| {' | '.join(row)} |" for row in table),
        "",
        f"- command: `python {shlex.join(['benchmarks/seam.py', *sys.argv[1:]])}`",
        f"- seed {options.seed}, {options.repeats} rounds after one that isn't counted",
        f"- versions: {', '.join(f'{name} {version}' for name, version in versions().items())}",
        f"- machine: {machine()}",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
