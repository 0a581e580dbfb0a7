"""What a figure needs beside it to be believed: versions and machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def versions() -> dict[str, str]:
    """The versions that decide a result."""
    names = ("ropewalk", "torch", "transformers")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a source tree that isn't installed
            found[name] = "not installed"
    return found


def provenance() -> dict[str, Any]:
    """Versions by name, and the machine: what a results file says of how it was made."""
    return {"versions": versions(), "machine": machine()}


def made_with() -> dict[str, str]:
    """Versions and machine, a line each, for a page."""
    return {"versions": spelled(versions()), "machine": machine()}


def spelled(found: Mapping[str, str]) -> str:
    """Versions by name as one line."""
    return ", ".join(f"{name} {version}" for name, version in found.items())


def machine() -> str:
    """One line: processor, threads in use and accelerator."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass  # not Linux: the platform's own word stays
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    threads = torch.get_num_threads()
    return f"{model}, {os.cpu_count()} processors, {threads} thread{'s' if threads > 1 else ''}, {device}"
