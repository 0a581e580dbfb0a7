"""A comparison for torchrun to start, in any number of processes: OUT [KEY=VALUE of the recipe ...]."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from tests.training.tiny import Echo, recipe

from ropewalk.training.compare import Comparison, compare
from ropewalk.training.recipe import parse_changes

torch.set_num_threads(1)
changes = parse_changes(sys.argv[2:])
compare(Comparison(recipe(**changes), Echo(), ("rope", "pope-uniform"), 1, Path(sys.argv[1])), use_cpu=True)
PartialState().destroy_process_group()
