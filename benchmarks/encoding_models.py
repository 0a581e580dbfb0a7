"""A small Llama with each encoding: what a decoded token costs with a long cache, and what a training step costs."""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from encoding_attention import HEADER, recipes
from encoding_measure import HEADS, SIZE, Table, against, progress, size_text, turns
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicCache

from ropewalk import PoPE, RoPE, install, installed
from ropewalk.patching.position_channels import with_positions

# Encodings to train with, besides the model's own; those that a build of ropewalk lacks are left out.
TRAINED = ("rope", "pope", "nope", "alibi", "t5", "kerple", "fire", "xpos", "rope_plus_plus", "dape", "dape_v2")
Fill = Callable[[Tensor, Tensor], Tensor]


def small_llama(seed: int, quick: bool) -> Any:
    """Untrained: 8 layers, 512 wide, 8 heads of 64 channels."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=HEADS * SIZE,
        num_hidden_layers=2 if quick else 8,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=SIZE,
        intermediate_size=1536,
        vocab_size=1000,
        max_position_embeddings=32768,
    )
    return LlamaForCausalLM(config)


def decode(options: argparse.Namespace) -> Table:
    """Seconds a token and bytes of the cache, for caches of several lengths."""
    lengths = (64, 256) if options.quick else (1024, 4096, 8192, 16384)
    tokens = 3 if options.quick else 20
    table = Table("Decoding a token", ("tokens in the cache", "what", *HEADER, "cache", "cache to RoPE's"))
    plain = small_llama(options.seed, options.quick).eval()
    models = {name: plain if name == "RoPE" else copy.deepcopy(plain) for name in ("RoPE", *_SEAMS)}
    for name, put in _SEAMS.items():
        put(models[name])
    for length in lengths:
        _decode_at(length, models, tokens, options.seed, table)
    table.notes += [
        "Llama of 8 layers, 512 wide, 8 heads of 64 channels, untrained; `DynamicCache`, arms in turn token by token",
        f"caches hold random numbers of the right shape instead of a prefill; they grow by the {tokens + 1} tokens "
        "decoded, as in a generation: a cropped cache would be copied on a slower path",
        "RoPE is the model without ropewalk; a key that carries its position takes one channel more, 65 for 64",
    ]
    return table


def _decode_at(length: int, models: dict[str, Any], tokens: int, seed: int, table: Table) -> None:
    caches = {name: _cache(model, _FILLS.get(name), length, seed) for name, model in models.items()}
    sizes = {name: _bytes(cache) for name, cache in caches.items()}
    times = turns({name: (lambda name=name: _token(models[name], caches[name])) for name in models}, tokens)
    for name, columns in against(times, "RoPE").items():
        ratio = f"{sizes[name] / sizes['RoPE']:.3f}"
        table.rows.append((f"{length:,}", name, *columns, size_text(sizes[name]), ratio))
        table.raw.append({"arm": name, "length": length, "seconds": times[name], "bytes": sizes[name]})
    progress(f"decode, {length} tokens in the cache: {', '.join(f'{n} {min(t):.4f} s' for n, t in times.items())}")


_SEAMS: dict[str, Callable[[Any], Any]] = {
    "RoPE through the seam": lambda model: install(model, RoPE.from_model(model)),
    'RoPE, `cache="content"`': lambda model: install(model, RoPE.from_model(model), cache="content"),
    "PoPE": lambda model: install(model, PoPE(SIZE, HEADS, delta="uniform")),
}
_FILLS: dict[str, Fill] = {
    'RoPE, `cache="content"`': with_positions,
    "PoPE": lambda keys, positions: with_positions(F.softplus(keys), positions),
}


def _cache(model: Any, fill: Fill | None, length: int, seed: int) -> DynamicCache:
    """A cache full of random content."""
    torch.manual_seed(seed)
    cache, positions = DynamicCache(config=model.config), torch.arange(length)[None]
    for layer in range(model.config.num_hidden_layers):
        keys, values = torch.randn(2, 1, HEADS, length, SIZE).unbind()
        cache.update(keys if fill is None else fill(keys, positions), values.contiguous(), layer)
    return cache


def _bytes(cache: DynamicCache) -> int:
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def _token(model: Any, cache: DynamicCache) -> float:
    with torch.no_grad():
        began = time.perf_counter()
        model(input_ids=torch.tensor([[5]]), past_key_values=cache, use_cache=True)
        return time.perf_counter() - began


def train(options: argparse.Namespace) -> Table:
    """A step of training: forward, loss, backward and AdamW, the encodings in turn on one model."""
    length, batch = (32, 1) if options.quick else (1024, 2)
    table = Table(f"A training step, {batch} x {length} tokens", ("encoding", *HEADER, "parameters of its own"))
    model = small_llama(options.seed, options.quick).train()
    ids = torch.randint(0, 1000, (batch, length), generator=torch.Generator().manual_seed(options.seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    _step(model, ids, optimizer, None)  # its state is there before the first turn
    own: dict[str, int] = {}
    jobs: dict[str, Callable[[], float]] = {"RoPE, plain": lambda: _told("plain", _step(model, ids, optimizer, None))}
    for name in TRAINED:
        try:
            encoding = recipes(length)[name]()
            with installed(model, encoding):
                own[name] = sum(p.numel() for p in _own(model))
        except Exception as error:  # one that can't be installed must not stop the others
            table.notes.append(f"`{name}` was left out: {type(error).__name__}: {error}")
            continue
        jobs[name] = lambda name=name, encoding=encoding: _told(name, _with(model, encoding, ids, optimizer))
    times = turns(jobs, options.training_rounds)
    for name, columns in against(times, "RoPE, plain").items():
        shown = name if name not in own else f"`{name}` through the seam"
        table.rows.append((shown, *columns, f"{own.get(name, 0):,}"))
        table.raw.append({"encoding": name, "tokens": [batch, length], "seconds": times[name]})
    table.notes.append("one Llama of 8 layers, 512 wide, 8 heads of 64; each encoding is installed for its turn")
    return table


def _with(model: Any, encoding: Any, ids: Tensor, optimizer: torch.optim.Optimizer) -> float:
    with installed(model, encoding):
        model.train()
        own = _own(model)
        return _step(model, ids, optimizer, torch.optim.AdamW(own, lr=1e-4) if own else None)


def _own(model: Any) -> list[torch.nn.Parameter]:
    return [parameter for name, parameter in model.named_parameters() if "position_encoding" in name]


def _step(model: Any, ids: Tensor, optimizer: torch.optim.Optimizer, own: torch.optim.Optimizer | None) -> float:
    began = time.perf_counter()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    for one in (optimizer, own):
        if one is not None:
            one.step()
            one.zero_grad()
    return time.perf_counter() - began


def _told(name: str, seconds: float) -> float:
    progress(f"train {name}: {seconds:.2f} s")
    return seconds
