"""Where a plan's file is, on disk or on the Hugging Face Hub, and how it is read and written whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ropewalk.errors import ArgumentError, DamagedFileError
from ropewalk.files import write_atomically
from ropewalk.hf.hub import first_line, is_hub_id, one_line_hub_errors

FILE = "plan.json"
FORMAT, FORMAT_VERSION = "ropewalk.plan", 1


def write_plan(path: Path, fields: dict[str, Any]) -> None:
    """Write the fields as JSON under our format's name: whole or, whatever happens, not at all.

    Raises:
        ArgumentError: the place can't be written; names the path.
    """
    content = {"format": FORMAT, "format_version": FORMAT_VERSION} | fields
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, text, argument="directory")


def read_plan(path: Path) -> dict[str, Any]:
    """The fields that `write_plan` wrote.

    Raises:
        ArgumentError: the file can't be read.
        DamagedFileError: not JSON, not a plan, or a plan of a later version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArgumentError("plan", str(path), f"can't be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path}: isn't JSON ({first_line(error)}); save the plan again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DamagedFileError(f"{path}: isn't a plan (no format {FORMAT!r}); give a folder made by save_pretrained")
    version = content.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise DamagedFileError(f"{path}: has format_version {version!r}; it should be {FORMAT_VERSION}")
    if version > FORMAT_VERSION:
        raise DamagedFileError(
            f"{path}: has format_version {version}, this ropewalk reads {FORMAT_VERSION}; update ropewalk"
        )
    return {name: value for name, value in content.items() if name not in ("format", "format_version")}


def find_plan(directory_or_id: str, revision: str | None, token: str | None) -> Path:
    """The path of the plan's file: in a local folder, else downloaded from the hub.

    Raises:
        ArgumentError: no such folder or repository, or one without a plan.
    """
    folder = Path(directory_or_id).expanduser()
    if folder.is_dir():
        if (folder / FILE).is_file():
            return folder / FILE
        raise ArgumentError("plan", directory_or_id, f"this folder holds no {FILE}; give one made by save_pretrained")
    if folder.is_file():
        raise ArgumentError("plan", directory_or_id, "is a file; give the folder that it is in")
    if not is_hub_id(directory_or_id):
        raise ArgumentError("plan", directory_or_id, "no such folder; check the path, or give owner/name on the hub")
    from huggingface_hub import hf_hub_download

    with one_line_hub_errors(directory_or_id, "isn't a local folder, and its plan can't be had from"):
        return Path(hf_hub_download(directory_or_id, FILE, revision=revision, token=token))
