"""What a model's answers depend on besides prompt and encoding: so measured answers are used again for it alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ropewalk.data.char_tokenizer import tokenizer_hash
from ropewalk.encodings.model_rotation import model_config
from ropewalk.patching.handle import CONFIG

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


# What a config says of where a model comes from, or what is told beside it.
_ORIGIN = ("_name_or_path", "_commit_hash", "architectures", "dtype", "torch_dtype", "transformers_version", CONFIG)


def identity(model: nn.Module, tokenizer: Any) -> dict[str, str | None]:
    """SHA-256 hashes (hex) and names of all that decides a model's answers, JSON-ready.

    - weights: every value of every parameter and saved buffer, also of what an installed encoding learned; None where
      they are elsewhere (device meta);
    - config: what differs from its class's defaults, so that defaults added by a later transformers change nothing;
    - tokenizer: how it spells, its special tokens and its chat template;
    - dtype of the weights, and attention: the implementation's name in transformers.

    Take it before anything is installed that a cell names by itself.
    """
    config: Any = model_config(model)
    return {
        "weights": _weights(model),
        "config": _hash(_differing(model.config)),
        "tokenizer": _hash(_spelling(tokenizer)),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "attention": getattr(config, "_attn_implementation", None),
    }


def differing(here: Mapping[str, str | None], there: Mapping[str, str | None]) -> list[str]:
    """In what two identities differ, by name."""
    return [name for name in here if here[name] != there[name]]


def _weights(model: nn.Module) -> str | None:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if value.device.type == "meta":
            return None
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _differing(config: Any) -> dict[str, Any]:
    found: dict[str, Any] = config.to_diff_dict()
    return {name: value for name, value in found.items() if name not in _ORIGIN}


def _spelling(tokenizer: Any) -> list[Any]:
    kind, special = type(tokenizer).__name__, getattr(tokenizer, "special_tokens_map", None)
    return [kind, tokenizer_hash(tokenizer), special, getattr(tokenizer, "chat_template", None)]


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
