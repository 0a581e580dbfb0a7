"""Speed and memory of the encodings beside RoPE, and of PoPE beside other libraries: one command, one page.

    python benchmarks/encodings.py --out results/encoding-speed.md

Parts: `attention` and `memory` (RoPE, PoPE and other libraries' PoPE), `decode` (a token with a long cache), `train` (a
training step) and `all` (every encoding at attention). Ratios are taken within one run: arms take turns, in another
order each round, after one round that isn't counted. Peers (PoPE-pytorch, x-transformers) are used if they can be
imported. Linux; about ten minutes on two cores. `--quick` only tries that everything works.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from encoding_attention import attention, every_encoding, memory, print_memory
from encoding_measure import Table, progress

from ropewalk.evaluation.provenance import machine, versions

PEERS = ("PoPE-pytorch", "x-transformers")


def main() -> None:
    """Measure the parts asked for and write the page."""
    options = _options()
    torch.set_num_threads(options.threads)
    if options.memory:
        print_memory(options.memory, options.tokens, options.seed)
        return
    from encoding_models import decode, train  # transformers' models: the processes that measure memory need none

    parts: dict[str, Callable[[argparse.Namespace], Table]] = {
        "attention": attention,
        "memory": memory,
        "decode": decode,
        "train": train,
        "all": every_encoding,
    }
    began = time.perf_counter()
    tables: dict[str, Table] = {}
    for name in options.parts:
        progress(f"-- {name}, after {time.perf_counter() - began:.0f} s")
        tables[name] = parts[name](options)
    progress(f"-- done after {time.perf_counter() - began:.0f} s")
    text = _page(tables, options)
    print(text)
    if options.out:
        Path(options.out).write_text(text, encoding="utf-8")
    if options.raw:
        records = [{"part": name, **record} for name, table in tables.items() for record in table.raw]
        Path(options.raw).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("attention", "memory", "decode", "train", "all")
    parser.add_argument("--parts", nargs="+", default=names, choices=names)
    parser.add_argument("--rounds", type=int, default=4, help="rounds of attention that count")
    parser.add_argument("--training-rounds", type=int, default=3, help="rounds of training that count")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--out", default="", help="the page, Markdown")
    parser.add_argument("--raw", default="", help="all figures behind it, JSON lines")
    parser.add_argument("--memory", default="", help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, default=1024, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.rounds = options.training_rounds = 1
    return options


def _page(tables: dict[str, Table], options: argparse.Namespace) -> str:
    found = versions()
    for name in PEERS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    lines = [
        "# Speed and memory of the encodings",
        "",
        f"- command: `python {shlex.join(['benchmarks/encodings.py', *sys.argv[1:]])}`",
        f"- seed {options.seed}; arms in turn, {options.rounds} rounds of attention and {options.training_rounds} of "
        "training after one that isn't counted; ratios within this run",
        f"- versions: {', '.join(f'{name} {version}' for name, version in found.items())}",
        f"- machine: {machine()}, float32",
    ]
    for table in tables.values():
        lines += table.lines()
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
