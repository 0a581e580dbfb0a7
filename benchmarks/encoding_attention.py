"""Attention alone: time and memory of RoPE, PoPE and the peers, and what every encoding costs beside RoPE."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from encoding_measure import HEADS, SIZE, Table, against, available, progress, resident, restart_peak, size_text, turns
from encoding_peers import Arm, Attend, arms, both, content, forward, phases
from torch import Tensor, nn

import ropewalk
from ropewalk import HeadSelection, RoPE, attend
from ropewalk.encodings.base import Encoding, encodings

TOLERANCE = 1e-4
HEADER = ("median", "least", "median to RoPE's", "least to RoPE's")


def attention(options: argparse.Namespace) -> Table:
    """Forward, and forward and backward, every arm in turn, after a check that all PoPEs compute the same."""
    tokens = 512 if options.quick else 4096
    table = Table(f"Attention, {tokens} tokens", ("what", "pass", *HEADER))
    found, missing = arms()
    table.notes += missing
    qkv = content(tokens, options.seed)
    chosen = {name: arm for name, arm in found.items() if _fits(arm, tokens, table)}
    made = {name: arm.make(phases(options.seed)) for name, arm in chosen.items()}
    table.notes.append(_check_same(chosen, made, options.seed))

    def timed(job: Callable[[], object], name: str) -> float:
        began = time.perf_counter()
        job()
        seconds = time.perf_counter() - began
        progress(f"attention {name}: {seconds:.2f} s")
        return seconds

    passes: dict[str, Callable[[Attend, nn.Module | None], object]] = {
        "forward": lambda run, _: forward(run, qkv),
        "forward and backward": lambda run, module: both(run, module, qkv),
    }
    for what, one in passes.items():
        jobs = {name: (lambda n=name: timed(lambda: one(*made[n]), f"{n}, {what}")) for name in made}  # noqa: B023
        times = turns(jobs, options.rounds)
        for name, columns in against(times, "rope").items():
            table.rows.append((chosen[name].name, what, *columns))
            table.raw.append({"arm": name, "pass": what, "tokens": tokens, "seconds": times[name]})
    table.notes.append(f"float32, batch 1, {HEADS} heads of {SIZE} channels, causal; encoding q and k is part of it")
    return table


def _check_same(chosen: dict[str, Arm], made: dict[str, tuple[Attend, nn.Module | None]], seed: int) -> str:
    """That all PoPEs give the same output and gradients on the same numbers; raises if not."""
    qkv = content(600, seed + 1)
    expected: list[Tensor] = []
    worst, polar = 0.0, [name for name, arm in chosen.items() if arm.is_polar]
    for name in polar:
        run, module = made[name]
        found = [forward(run, qkv), *both(run, module, qkv)]
        expected = expected or found
        for ours, theirs in zip(expected, found, strict=True):
            worst = max(worst, float((ours - theirs).abs().max()))
        if not worst <= TOLERANCE:
            raise SystemExit(f"{chosen[name].name} computes something else than {chosen[polar[0]].name}: {worst:.1e}")
    return f"the {len(polar)} PoPEs agree on 600 tokens in output and gradients within {worst:.0e}"


def _fits(arm: Arm, tokens: int, table: Table) -> bool:
    """Whether the arm's matrices of all scores fit in memory; a note where not."""
    if arm.bytes_at(tokens) < 0.8 * available():
        return True
    table.notes.append(f"{arm.name} was left out at {tokens} tokens: it needs about {size_text(arm.bytes_at(tokens))}")
    return False


def memory(options: argparse.Namespace) -> Table:
    """Peak memory beyond q, k and v, each arm and length in a process of its own."""
    lengths = (512, 1024) if options.quick else (1024, 2048, 4096, 8192)
    table = Table("Peak memory of attention", ("what", "pass", *(f"{n} tokens" for n in lengths)))
    found, missing = arms()
    table.notes += missing
    for name in ("sdpa", "rope", "pope", "padded", "pope_pytorch", "x_transformers_flash"):
        if name not in found:
            continue
        peaks = {n: _in_own_process(name, n, options) if _fits(found[name], n, table) else {} for n in lengths}
        for what in ("forward", "forward and backward"):
            texts = [size_text(peaks[n][what]) if peaks[n] else "-" for n in lengths]
            table.rows.append((found[name].name, what, *texts))
            table.raw.append({"arm": name, "pass": what, "bytes": {n: p.get(what) for n, p in peaks.items()}})
    table.notes.append("resident memory at its peak beyond what was there before the pass (q, k, v and a gradient)")
    return table


def _in_own_process(name: str, tokens: int, options: argparse.Namespace) -> dict[str, int]:
    main = Path(__file__).with_name("encodings.py")
    command = [sys.executable, str(main), "--memory", name, "--tokens", str(tokens), "--threads", str(options.threads)]
    # Freed memory goes back to the system at once, so that one pass leaves no room that the next would fill unseen.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    progress(f"memory {name}, {tokens} tokens: {done.stdout.strip()}")
    peaks: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return peaks


def print_memory(name: str, tokens: int, seed: int) -> None:
    """In a process of its own: the peaks of both passes, as JSON."""
    run, module = arms()[0][name].make(phases(seed))
    small, qkv = content(512, seed), content(tokens, seed)
    forward(run, small), both(run, module, small)  # threads and their rooms are there before
    found = {}
    for what in ("forward", "forward and backward"):
        restart_peak()
        before = resident()
        out = forward(run, qkv) if what == "forward" else both(run, module, qkv)
        found[what] = resident("VmHWM") - before
        del out
    print(json.dumps(found))


def every_encoding(options: argparse.Namespace) -> Table:
    """`attend` with each encoding in the registry."""
    tokens = 256 if options.quick else 2048
    table = Table(f"`attend` with every encoding, {tokens} tokens, forward", ("encoding", *HEADER))
    qkv = content(tokens, options.seed)
    jobs: dict[str, Callable[[], float]] = {}
    for kind in encodings():
        recipe = recipes(tokens).get(kind)
        if recipe is None:
            table.notes.append(f"`{kind}` was left out: not at attention, or without sizes in this script")
            continue
        try:
            module = recipe().module()
            run: Attend = lambda q, k, v, module=module: attend(q, k, v, module)  # noqa: E731
            forward(run, content(64, options.seed))
        except Exception as error:  # one that fails must not stop the others
            table.notes.append(f"`{kind}` was left out: {type(error).__name__}: {error}")
            continue
        jobs[kind] = lambda kind=kind, run=run: _timed_forward(kind, run, qkv)
    times = turns(jobs, options.rounds)
    for kind, columns in against(times, "rope").items():
        table.rows.append((f"`{kind}`", *columns))
        table.raw.append({"encoding": kind, "tokens": tokens, "seconds": times[kind]})
    return table


def _timed_forward(kind: str, run: Attend, qkv: list[Tensor]) -> float:
    began = time.perf_counter()
    forward(run, qkv)
    seconds = time.perf_counter() - began
    progress(f"all {kind}: {seconds:.2f} s")
    return seconds


def recipes(tokens: int) -> dict[str, Callable[[], Encoding]]:
    """How to build each kind that acts at attention, for these heads; remaps act at a quarter of the tokens."""
    rope, near = RoPE(SIZE), tokens // 4
    return {
        "rope": lambda: rope,
        "pope": lambda: ropewalk.PoPE(SIZE, HEADS),
        "nope": lambda: ropewalk.NoPE(),
        "dope": lambda: ropewalk.DoPE(rope, HeadSelection([(0, 1), (0, 5)])),
        "alibi": lambda: ropewalk.ALiBi(HEADS),
        "t5": lambda: ropewalk.T5Bias(HEADS),
        "kerple": lambda: ropewalk.KERPLE(HEADS),
        "fire": lambda: ropewalk.FIRE(HEADS),
        "dape": lambda: ropewalk.DAPE(HEADS, ropewalk.KERPLE(HEADS)),
        "dape_v2": lambda: ropewalk.DAPEv2(HEADS, ropewalk.KERPLE(HEADS)),
        "xpos": lambda: ropewalk.XPos(SIZE),
        "rope_plus_plus": lambda: ropewalk.RoPEPlusPlus(rope),
        "drope": lambda: ropewalk.DroPE(near, tokens, 0.1),
        "rerope": lambda: ropewalk.ReRoPE(rope, window=near),
        "self_extend": lambda: ropewalk.SelfExtend(rope, window=near, group=4),
        "dual_chunk": lambda: ropewalk.DualChunk(rope, chunk_size=2 * near, local_size=near // 2),
    }
