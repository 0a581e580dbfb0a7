"""Speed and memory of remaps of positions beside RoPE: one command, one page.

    python benchmarks/remaps.py --out results/remap-speed.md --raw results/remap-speed.jsonl

Parts: `attention` (forward at 4,096 and 8,192 tokens, encoding q and k included), `memory` (peaks of a pass, each in a
process of its own), `error` (bfloat16 and float32 against float64), `decode` (a token with 8,192 in the cache, whole
model) and `prefill` (SmolLM2 at 16,384 tokens, plain and under Self-Extend). Arms take turns, in another order each
round, after one round that isn't counted; ratios are within this run. Linux, a quiet machine.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from encoding_measure import Table, against, progress, resident, restart_peak, size_text, time_text, turns
from torch import Tensor
from transformers.cache_utils import DynamicCache

from ropewalk import DualChunk, ReRoPE, RoPE, SelfExtend, attend, install, installed, load_model
from ropewalk.encodings.base import Encoding
from ropewalk.evaluation.provenance import machine, versions
from ropewalk.patching.position_channels import with_positions

# SmolLM2's: 9 query heads, 3 key heads of 64 channels.
HEADS, GROUPS, SIZE = 9, 3, 64
HEADER = ("median", "least", "median to RoPE's", "least to RoPE's")


def arms(tokens: int) -> dict[str, Encoding]:
    """RoPE and each remap, which acts from a quarter of the tokens on."""
    rope, near = RoPE(SIZE, base=1e5), tokens // 4
    return {
        "RoPE": rope,
        "Self-Extend": SelfExtend(rope, window=near, group=4),
        "ReRoPE": ReRoPE(rope, window=near),
        "dual chunk": DualChunk(rope, chunk_size=2 * near, local_size=near // 2),
    }


def content(tokens: int, seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """q, k and v of one text."""
    torch.manual_seed(seed)
    return [torch.randn(1, heads, tokens, SIZE).to(dtype) for heads in (HEADS, GROUPS, GROUPS)]


def attention(options: argparse.Namespace) -> Table:
    """Forward of attention alone."""
    table = Table("Attention, forward", ("tokens", "what", *HEADER))
    for tokens in (256, 512) if options.quick else (4096, 8192):
        qkv = content(tokens, options.seed)
        jobs = {name: partial(_timed, partial(attend, *qkv, config.module())) for name, config in arms(tokens).items()}
        times = turns(jobs, options.rounds)
        for name, columns in against(times, "RoPE").items():
            table.rows.append((f"{tokens:,}", name, *columns))
            table.raw.append({"arm": name, "tokens": tokens, "seconds": times[name]})
        progress(f"attention, {tokens} tokens: {', '.join(f'{n} {min(t):.3f} s' for n, t in times.items())}")
    table.notes.append(f"float32, {HEADS} query and {GROUPS} key heads of {SIZE} channels; remaps from N / 4 on")
    return table


def memory(options: argparse.Namespace) -> Table:
    """Peak memory beyond q, k and v."""
    lengths = (512, 1024) if options.quick else (2048, 4096, 8192, 16384)
    table = Table("Peak memory of attention, forward", ("what", *(f"{n:,} tokens" for n in lengths)))
    for name in arms(1024):
        peaks = [_peak(name, tokens, options.seed) for tokens in lengths]
        table.rows.append((name, *map(size_text, peaks)))
        table.raw.append({"arm": name, "bytes": dict(zip(lengths, peaks, strict=True))})
    return table


def _peak(name: str, tokens: int, seed: int) -> int:
    command = [sys.executable, __file__, "--memory", name, "--tokens", str(tokens), "--seed", str(seed)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return int(done.stdout.splitlines()[-1])


def print_peak(name: str, tokens: int, seed: int) -> None:
    """In a process of its own."""
    module, small, qkv = arms(tokens)[name].module(), content(512, seed), content(tokens, seed)
    attend(*small, module)
    restart_peak()
    before = resident()
    attend(*qkv, module)
    print(resident("VmHWM") - before)


def error(options: argparse.Namespace) -> Table:
    """The largest difference to the same in float64."""
    tokens = 256 if options.quick else 2048
    table = Table(f"Largest error against float64, {tokens:,} tokens", ("what", "float32", "bfloat16"))
    for name, config in arms(tokens).items():
        module = config.module()
        row = []
        for dtype in (torch.float32, torch.bfloat16):
            qkv = content(tokens, options.seed, dtype)
            exact = attend(*(x.double() for x in qkv), module)
            row.append(float((attend(*qkv, module).double() - exact).abs().max()))
        table.rows.append((name, *(f"{value:.1e}" for value in row)))
        table.raw.append({"arm": name, "float32": row[0], "bfloat16": row[1]})
    return table


def decode(options: argparse.Namespace) -> Table:
    """A token with a full cache, whole model: SmolLM2, and an untrained Llama whose key heads aren't shared."""
    from encoding_models import small_llama

    length, tokens = (256, 3) if options.quick else (8192, 20)
    table = Table(f"Decoding a token, {length:,} in the cache", ("model", "what", *HEADER, "cache", "cache to RoPE's"))
    for name, model in (("SmolLM2", load_model("smollm2")[0]), ("Llama", small_llama(options.seed, options.quick))):
        _decode(name, model.eval(), length, tokens, options.seed, table)
    table.notes += [
        "SmolLM2: 30 layers, 9 query and 3 key heads; Llama: 8 layers, 512 wide, 8 query and 8 key heads, untrained",
        "`DynamicCache` filled with random numbers of the right shape; arms in turn token by token",
    ]
    return table


def _decode(title: str, model: Any, length: int, tokens: int, seed: int, table: Table) -> None:
    rope = RoPE.from_model(model)
    kinds: dict[str, tuple[Encoding, str | None]] = {
        "Self-Extend": (SelfExtend(rope, window=length // 4, group=4), None),
        'Self-Extend, `cache="content"`': (SelfExtend(rope, window=length // 4, group=4), "content"),
        "ReRoPE": (ReRoPE(rope, window=length // 4), None),
        "dual chunk": (DualChunk(rope, chunk_size=length // 2, local_size=length // 8), None),
    }
    models, caches = {"RoPE": model}, {"RoPE": _cache(model, length, seed, lambda keys, _: keys)}
    for name, (config, cache) in kinds.items():
        models[name] = copy.deepcopy(model)
        install(models[name], config, cache=cache)
        module: Any = config.module()

        def fill(keys: Tensor, positions: Tensor, module: Any = module, cache: str | None = cache) -> Tensor:
            return with_positions(keys if cache == "content" else module.stored(keys, positions), positions)

        caches[name] = _cache(model, length, seed, fill)
    sizes = {name: sum(layer.keys.nbytes + layer.values.nbytes for layer in c.layers) for name, c in caches.items()}
    times = turns({name: partial(_token, models[name], caches[name]) for name in models}, tokens)
    for name, columns in against(times, "RoPE").items():
        ratio = f"{sizes[name] / sizes['RoPE']:.3f}"
        table.rows.append((title, name, *columns, size_text(sizes[name]), ratio))
        table.raw.append({"model": title, "arm": name, "length": length, "seconds": times[name], "bytes": sizes[name]})


def _cache(model: Any, length: int, seed: int, fill: Callable[[Tensor, Tensor], Tensor]) -> DynamicCache:
    torch.manual_seed(seed)
    config, positions = model.config, torch.arange(length)[None]
    cache = DynamicCache(config=config)
    for layer in range(config.num_hidden_layers):
        keys, values = torch.randn(2, 1, config.num_key_value_heads, length, SIZE).unbind()
        cache.update(fill(keys, positions), values.contiguous(), layer)
    return cache


@torch.no_grad()
def _token(model: Any, cache: DynamicCache) -> float:
    return _timed(lambda: model(input_ids=torch.tensor([[5]]), past_key_values=cache, use_cache=True))


@torch.no_grad()
def prefill(options: argparse.Namespace) -> Table:
    """SmolLM2 reads a prompt."""
    tokens = 512 if options.quick else 16384
    model, _ = load_model("smollm2")
    own = RoPE.from_model(model)
    ids = torch.randint(0, 49152, (1, tokens), generator=torch.Generator().manual_seed(options.seed))
    remap = SelfExtend(own, window=tokens // 8, group=3)

    def read(encoding: Encoding | None) -> float:
        if encoding is None:
            return _timed(lambda: model(ids, use_cache=True, logits_to_keep=1))
        with installed(model, encoding):
            return _timed(lambda: model(ids, use_cache=True, logits_to_keep=1))

    times = turns({"plain": lambda: read(None), "Self-Extend": lambda: read(remap)}, options.prefills)
    table = Table(f"SmolLM2 reads {tokens:,} tokens", ("what", "median", "least", "median to plain", "least to plain"))
    for name, columns in against(times, "plain").items():
        table.rows.append((name, *columns))
        table.raw.append({"arm": name, "tokens": tokens, "seconds": times[name]})
        progress(f"prefill {name}: {', '.join(map(time_text, times[name]))}")
    table.notes.append(f"float32, with a cache, logits of the last token; window {tokens // 8:,}, groups of 3")
    return table


def _timed(job: Callable[[], object]) -> float:
    began = time.perf_counter()
    job()
    return time.perf_counter() - began


PARTS = {"attention": attention, "memory": memory, "error": error, "decode": decode, "prefill": prefill}


def main() -> None:
    """Measure the parts asked for and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=tuple(PARTS), choices=PARTS)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of attention that count")
    parser.add_argument("--prefills", type=int, default=2, help="rounds of prefill that count")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--out", default="", help="the page, Markdown")
    parser.add_argument("--raw", default="", help="all figures behind it, JSON lines")
    parser.add_argument("--memory", default="", help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, default=1024, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        print_peak(options.memory, options.tokens, options.seed)
        return
    tables = {name: PARTS[name](options) for name in options.parts}
    lines = [
        "# Speed and memory of remaps",
        "",
        f"- command: `python {shlex.join(['benchmarks/remaps.py', *sys.argv[1:]])}`",
        f"- seed {options.seed}; arms in turn, after one round that isn't counted; ratios within this run",
        f"- versions: {', '.join(f'{name} {version}' for name, version in versions().items())}",
        f"- machine: {machine()}",
        *(line for table in tables.values() for line in table.lines()),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        Path(options.out).write_text(text, encoding="utf-8")
    if options.raw:
        records = [{"part": name, **record} for name, table in tables.items() for record in table.raw]
        Path(options.raw).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


if __name__ == "__main__":
    main()
