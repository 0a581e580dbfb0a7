from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tests.evaluation.tiny_models import tiny

from ropewalk.analysis.inspect import Inspection, inspect
from ropewalk.errors import ArgumentError, DamagedFileError, RopewalkError


@pytest.fixture(scope="module")
def found() -> Inspection:
    return inspect(tiny("Llama"), torch.arange(100) * 37 % 590 + 3, (10, 15))


def test_what_is_saved_is_read_back(found: Inspection, tmp_path: Path) -> None:
    found.save(tmp_path / "new" / "a.safetensors")
    back = Inspection.load(tmp_path / "new" / "a.safetensors")
    assert back.about == found.about and back.tensors.keys() == found.tensors.keys()
    assert all(torch.equal(back[name], found[name]) for name in found.tensors)
    assert repr(back) == "Inspection(4 layers x 4 heads, 100 tokens)"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.safetensors"]
    assert back.about["model"]["fingerprint"] and len(back.about["text_fingerprint"]) == 64


def test_a_score_says_what_it_wants(found: Inspection) -> None:
    assert found.score("truncated_entropy", 4, "query").shape == (4, 4)
    keys = found.score("spectral_norm")
    assert torch.equal(keys[:, 0], keys[:, 1]) and not torch.equal(keys[:, 1], keys[:, 2])
    for arguments in (("spectral", None), ("spectral_norm", 3), ("truncated_entropy", None)):
        with pytest.raises(ArgumentError):
            found.score(*arguments)
    with pytest.raises(ArgumentError, match="stage"):
        found.score("spectral_norm", stage="post_rope")
    with pytest.raises(ArgumentError, match="indicator"):
        found.score("spectral_norm", indicator="both")


def test_tensors_that_do_not_fit_are_named(found: Inspection) -> None:
    tensors, about = dict(found.tensors), dict(found.about)
    for name, changed in (
        ("sinks.first", tensors["sinks.first"][:, :3]),
        ("usage.key", tensors["usage.key"][:1]),
        ("tokens", tensors["tokens"][None]),
    ):
        with pytest.raises(ArgumentError, match="shape"):
            Inspection(tensors | {name: changed}, about)
    with pytest.raises(ArgumentError, match=r"sinks\.few"):
        Inspection({name: tensor for name, tensor in tensors.items() if name != "sinks.few"}, about)
    with pytest.raises(ArgumentError, match=r"needle\.after"):
        Inspection(tensors | {"needle.aftr": tensors["sinks.first"]}, about)


def test_bands_are_there_as_a_whole_or_not_at_all(found: Inspection, tmp_path: Path) -> None:
    banded = ("frequencies", "band_entropy", "usage", "cone")
    tensors, about = dict(found.tensors), dict(found.about)
    without = {name: tensor for name, tensor in tensors.items() if not name.startswith(banded)}
    Inspection(without, about).save(tmp_path / "a.safetensors")
    back = Inspection.load(tmp_path / "a.safetensors")
    assert not back.has_bands and found.has_bands and back.tensors.keys() == without.keys()
    with pytest.raises(ArgumentError, match=r"band_entropy.*no bands"):
        back.score("band_entropy")
    for name in ("frequencies", "usage.query", "cone.bound.key"):
        with pytest.raises(ArgumentError, match=name):
            Inspection({other: tensor for other, tensor in tensors.items() if other != name}, about)


def damaged(found: Inspection, path: Path, how: str) -> None:
    found.save(path)
    metadata: dict[str, Any] = {"format": "ropewalk.inspection", "format_version": "1", "about": '{"layers": [0]}'}
    tensors = dict(found.tensors)
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    elif how == "text":
        path.write_text("no safetensors")
    elif how == "kind":
        safetensors.torch.save_file(tensors, path, metadata | {"format": "ropewalk.statistics.1"})
    elif how == "later":
        safetensors.torch.save_file(tensors, path, metadata | {"format_version": "2"})
    elif how == "json":
        safetensors.torch.save_file(tensors, path, metadata | {"about": "{"})
    else:
        safetensors.torch.save_file(tensors, path, metadata)


@pytest.mark.parametrize("how", ["cut", "text", "kind", "later", "json", "layers"])
def test_damaged_files_are_told_in_one_line(found: Inspection, tmp_path: Path, how: str) -> None:
    damaged(found, tmp_path / "a.safetensors", how)
    with pytest.raises(DamagedFileError, match=r"a\.safetensors") as caught:
        Inspection.load(tmp_path / "a.safetensors")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_cannot_be_written_is_named(found: Inspection, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="no such file"):
        Inspection.load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RopewalkError, match="file"):
        found.save(tmp_path / "file" / "a.safetensors")
