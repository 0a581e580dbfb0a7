"""A comparison, or a recalibration, for torchrun to start in any number of processes."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accelerate import PartialState, state
from tests.training.tiny import Echo, recipe

from ropewalk.training.compare import Comparison, compare
from ropewalk.training.config import parse_changes
from ropewalk.training.recalibrate import Recalibration, recalibrate

read = argparse.ArgumentParser()
read.add_argument("out", type=Path)
read.add_argument("changes", nargs="*", help="KEY=VALUE of the recipe")
read.add_argument("--recalibrate", nargs=2, metavar=("MODEL", "TEXT"))
read.add_argument("--sharded", action="store_true", help="with FSDP, which the environment asks for")
given = read.parse_args()

if given.sharded:
    # accelerate cuts a model into shards only where it sees GPUs: it is told that these processes are such.
    # $ACCELERATE_TORCH_DEVICE says where they really compute.
    def pretended(*_: object, **__: object) -> tuple[str, state.DistributedType]:
        return "gloo", state.DistributedType.MULTI_GPU

    state.PartialState._prepare_backend = pretended

torch.set_num_threads(1)
if given.recalibrate:
    model, text = given.recalibrate
    wanted = Recalibration(model, "pope-uniform", 6, 16, text, batch=4, learning_rate=1e-2, held_out=64)
    recalibrate(wanted, given.out, use_cpu=not given.sharded)
else:
    names = ("rope", "pope-uniform")
    compare(Comparison(recipe(**parse_changes(given.changes)), Echo(), names, 1, given.out), use_cpu=not given.sharded)
if given.sharded:
    # One write, line's end included, so that two processes' lines don't get into each other.
    print(f"sharded {state.AcceleratorState().distributed_type.value}\n", end="", flush=True)
PartialState().destroy_process_group()
