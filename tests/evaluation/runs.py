"""Folders as `ropewalk train` leaves them, with models that were never trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ropewalk.encodings.base import Encoding
from ropewalk.patching import install
from ropewalk.training.tasks.language import Language

LENGTH = 32


def make_run(out: Path, name: str, encoding: Encoding, task: Language, seed: int = 0, **more: Any) -> Path:
    """OUT/NAME/seed-N with run.json and a model of 2 layers, 2 heads of 16 channels; `more` goes into run.json."""
    folder = out / name / f"seed-{seed}"
    config = LlamaConfig(
        vocab_size=task.vocabulary_size,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if path.endswith(("q_proj.weight", "k_proj.weight", "lm_head.weight")):
                parameter.mul_(20.0)
    install(model, encoding)
    model.save_pretrained(folder / "model")
    about = {"name": name, "seed": seed, "task": task.to_dict(), "recipe": {}} | more
    (folder / "run.json").write_text(json.dumps(about))
    return folder
