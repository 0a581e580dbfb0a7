from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference import head_scores as reference
from tests.reference.inspection import spearman

from ropewalk.analysis import head_statistics as module
from ropewalk.analysis.head_statistics import Statistics, rank_correlation
from ropewalk.errors import ArgumentError, DamagedFileError
from ropewalk.heads import HeadSelection

LAYERS, H, G, D = (1, 4, 5), 4, 2, 8


def vectors(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return tuple(torch.randn(len(LAYERS), heads, 40, D, dtype=torch.float64) for heads in (H, G))  # type: ignore[return-value]


def statistics(q: torch.Tensor, k: torch.Tensor, **changed: Any) -> Statistics:
    grams = (q.mT @ q, k.mT @ k)
    fields: dict[str, Any] = {
        "grams": {"post_ntk": grams},
        "num_tokens": 40,
        "layers": LAYERS,
        "layout": "half",
        "rotary_dim": D,
        "model": "tiny",
        "text_fingerprint": "abc",
    }
    return Statistics(**(fields | changed))


@pytest.mark.parametrize(
    ("name", "r"),
    [
        ("band_entropy", None),
        ("matrix_entropy", None),
        ("spectral_norm", None),
        ("truncated_entropy", 3),
        ("truncated_entropy", 1),
        ("truncated_effective_rank", 3),
    ],
)
def test_scores_equal_the_formulas(name: str, r: int | None) -> None:
    q, k = vectors()
    measured = statistics(q, k, layout="interleaved", rotary_dim=6)
    extra = ("interleaved", 6) if name == "band_entropy" else () if r is None else (r,)
    formula = getattr(reference, name)
    queries = [[formula(q[i, h].numpy(), *extra) for h in range(H)] for i in range(len(LAYERS))]
    keys = [[formula(k[i, h // (H // G)].numpy(), *extra) for h in range(H)] for i in range(len(LAYERS))]
    torch.testing.assert_close(measured.score(name, r, "query"), torch.tensor(queries, dtype=torch.float64))
    torch.testing.assert_close(measured.score(name, r, "key"), torch.tensor(keys, dtype=torch.float64))
    torch.testing.assert_close(measured.score(name, r), measured.score(name, r, "key"))
    ranks = reference.mean_ranks([x for row in queries for x in row], [x for row in keys for x in row])
    assert measured.score(name, r, "both").flatten().tolist() == ranks


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2), st.integers(0, H - 1), st.sampled_from([1, 2, 5]), st.integers(0, 1000))
def test_the_spiked_head_is_selected(layer: int, head: int, r: int, seed: int) -> None:
    q, k = vectors(seed)
    q[layer, head] += 100 * torch.randn(D, dtype=torch.float64)
    measured = statistics(q, k)
    wanted = HeadSelection([(LAYERS[layer], head)])
    for name in ("truncated_effective_rank", "truncated_entropy"):
        assert measured.select(name, r, "query", heads=1) == wanted
    for name in ("matrix_entropy", "spectral_norm"):
        assert measured.select(name, indicator="query", heads=1) == wanted


def test_a_spiked_key_selects_its_group_and_ties_go_to_the_first() -> None:
    q, k = vectors()
    k[1, 1] += 100
    measured = statistics(q, k)
    assert list(measured.select("truncated_effective_rank", 2, heads=2)) == [(4, 2), (4, 3)]
    assert list(measured.select("truncated_effective_rank", 2, heads=1)) == [(4, 2)]
    assert measured.select("truncated_effective_rank", 2, "both", heads=1).layers == (4,)


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_all_equal_heads_are_taken_in_order(order: str) -> None:
    same = torch.eye(D, dtype=torch.float64).expand(len(LAYERS), H, D, D)
    measured = statistics(*vectors(), grams={"pre_ntk": (same, same[:, :G])})
    for indicator in module.INDICATORS:
        taken = measured.select("matrix_entropy", indicator=indicator, stage="pre_ntk", heads=6, order=order)
        assert list(taken) == [(1, 0), (1, 1), (1, 2), (1, 3), (4, 0), (4, 1)]
    assert measured.score("matrix_entropy", indicator="both", stage="pre_ntk").unique().tolist() == [6.5]


def test_orders_and_counts() -> None:
    measured = statistics(*vectors())
    values = measured.score("truncated_entropy", 4, "query").flatten()
    by_value = [(LAYERS[i // H], i % H) for i in values.argsort().tolist()]
    options: dict[str, Any] = {"name": "truncated_entropy", "r": 4, "indicator": "query"}
    assert measured.select(**options) == HeadSelection(by_value[:3])
    assert measured.select(**options, order="descending", heads=2) == HeadSelection(by_value[-2:])
    assert len(measured.select(**options, heads=12)) == 12
    for quantile, count in ((0.25, 3), (0.3, 3), (0.01, 1), (1.0, 12), (1 / 12, 1)):
        assert measured.select(**options, quantile=quantile) == HeadSelection(by_value[:count])
    low = measured.select("band_entropy", indicator="query", heads=12 - 5, order="ascending")
    assert not low & measured.select("band_entropy", indicator="query", heads=5)


def test_a_quantile_is_not_short_of_a_head_by_rounding() -> None:
    assert 0.29 * 100 < 29
    same = torch.eye(2).expand(1, 100, 2, 2)
    measured = Statistics({"post_ntk": (same, same)}, 1, (0,), "half", 2)
    assert list(measured.select("matrix_entropy", quantile=0.29)) == [(0, head) for head in range(29)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "entropy"}, "score='entropy': did you mean"),
        ({"name": "truncated_entropy"}, "r=None: truncated_entropy needs r"),
        ({"name": "matrix_entropy", "r": 4}, "r=4: matrix_entropy has no r"),
        ({"name": "truncated_entropy", "r": 9}, "r=9: must be an integer from 1 to head_dim=8"),
        ({"name": "matrix_entropy", "indicator": "keys"}, "indicator='keys': did you mean key"),
        ({"name": "matrix_entropy", "stage": "post"}, "stage='post'"),
        (
            {"name": "matrix_entropy", "stage": "pre_ntk"},
            "stage='pre_ntk': wasn't measured; this pass has post_ntk",
        ),
        ({"name": "matrix_entropy", "order": "up"}, "order='up'"),
        ({"name": "matrix_entropy", "heads": 0}, "heads=0: must be an integer from 1 to 12"),
        ({"name": "matrix_entropy", "heads": 13}, "heads=13: must be an integer from 1 to 12"),
        ({"name": "matrix_entropy", "heads": 2.0}, "heads=2.0"),
        ({"name": "matrix_entropy", "quantile": 0.0}, "quantile=0.0"),
        ({"name": "matrix_entropy", "quantile": 1.5}, "quantile=1.5"),
        ({"name": "matrix_entropy", "quantile": float("nan")}, "quantile=nan"),
        ({"name": "matrix_entropy", "heads": 3, "quantile": 0.1}, "heads or quantile"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        statistics(*vectors()).select(**options)


@pytest.mark.parametrize(
    "changed",
    [
        {"layers": (1, 4)},
        {"layers": (4, 1, 5)},
        {"layers": (1, 1, 5)},
        {"layers": (-1, 4, 5)},
        {"layout": "whole"},
        {"rotary_dim": 10},
        {"grams": {}},
        {"grams": {"later": (torch.zeros(3, H, D, D), torch.zeros(3, G, D, D))}},
        {"grams": {"pre_ntk": (torch.zeros(3, H, D, D), torch.zeros(3, 3, D, D))}},
        {"grams": {"pre_ntk": (torch.zeros(3, H, D, D), torch.zeros(3, G, D, D + 2))}},
        {"grams": {"pre_ntk": (torch.zeros(3, H, D), torch.zeros(3, G, D, D))}},
        {
            "grams": {
                "pre_ntk": (torch.zeros(3, H, D, D), torch.zeros(3, G, D, D)),
                "post_ntk": (torch.zeros(3, H, D, D), torch.zeros(3, H, D, D)),
            }
        },
    ],
)
def test_fields_that_do_not_fit_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        statistics(*vectors(), **changed)


def test_a_sweep_decomposes_each_matrix_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    decompose = module.eigenvalue_shares

    def counted(gram: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return decompose(gram)

    monkeypatch.setattr(module, "eigenvalue_shares", counted)
    measured = statistics(*vectors())
    for r in (1, 2, 4):
        measured.select("truncated_entropy", r, "both")
        measured.select("truncated_effective_rank", r, "key")
    assert len(calls) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saving_and_loading(tmp_path: Path, dtype: torch.dtype) -> None:
    q, k = vectors()
    grams = ((q.mT @ q).to(dtype), (k.mT @ k).to(dtype))
    measured = statistics(q, k, grams={"post_rope": grams, "post_ntk": grams}, rotary_dim=6, layout="interleaved")
    measured.save(tmp_path / "s.safetensors")
    again = Statistics.load(tmp_path / "s.safetensors")
    assert list(again.grams) == ["post_rope", "post_ntk"]
    for stage in again.grams:
        for mine, theirs in zip(measured.grams[stage], again.grams[stage], strict=True):
            assert torch.equal(mine, theirs) and mine.dtype == theirs.dtype
    for field in ("num_tokens", "layers", "layout", "rotary_dim", "model", "text_fingerprint"):
        assert getattr(again, field) == getattr(measured, field)
    assert repr(again) == repr(measured) and len(repr(again)) < 200
    assert again.select("band_entropy") == measured.select("band_entropy")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    statistics(*vectors()).save(path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not ours", whole[:4] + whole):
        path.write_bytes(content)
        with pytest.raises(DamagedFileError, match=r"s\.safetensors") as caught:
            Statistics.load(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(ArgumentError, match="no such file"):
        Statistics.load(tmp_path / "absent.safetensors")
    with pytest.raises(ArgumentError, match="directory"):
        statistics(*vectors()).save(tmp_path / "absent" / "s.safetensors")


@pytest.mark.parametrize(
    "fields",
    [
        {"layers": [1, 4]},
        {"layers": [1, 4, "5"]},
        {"layers": 3},
        {"rotary_dim": "8"},
        {"layout": "whole"},
        {"stages": ["pre_ntk"]},
        {"stages": 1},
        {"num_tokens": None},
    ],
)
def test_a_wrong_field_in_a_file_is_named(tmp_path: Path, fields: dict[str, Any]) -> None:
    path = tmp_path / "s.safetensors"
    statistics(*vectors()).save(path)
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    metadata["fields"] = json.dumps(json.loads(metadata["fields"]) | fields)
    safetensors.torch.save_file(tensors, path, metadata=metadata)
    with pytest.raises(DamagedFileError):
        Statistics.load(path)
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(DamagedFileError, match="format"):
        Statistics.load(path)


def test_matched_noise_is_as_large_as_the_heads_that_stay() -> None:
    q, k = vectors()
    measured = statistics(q, k)
    layers, heads, groups = measured.layers, measured.num_heads, measured.num_kv_heads
    gone = HeadSelection([(layers[0], 0), (layers[-1], heads - 1)])
    for side, x in (("query", q), ("key", k.repeat_interleave(heads // groups, dim=1))):
        kept = [
            x[i, head].double() for i, layer in enumerate(layers) for head in range(heads) if (layer, head) not in gone
        ]
        assert measured.matched_sigma(gone, side, "post_ntk") == pytest.approx(
            float(torch.stack(kept).square().mean().sqrt()), rel=1e-5
        )
    two = [measured.matched_sigma(gone, side, "post_ntk") ** 2 for side in ("query", "key")]
    assert measured.matched_sigma(gone, "both", "post_ntk") ** 2 == pytest.approx(sum(two) / 2)
    everything = HeadSelection((layer, head) for layer in layers for head in range(heads))
    with pytest.raises(ArgumentError, match="leaves no head"):
        measured.matched_sigma(everything, "key", "post_ntk")


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=12))
def test_rank_correlation_is_that_of_the_ranks(pairs: list[tuple[int, int]]) -> None:
    one, other = ([float(pair[side]) for pair in pairs] for side in (0, 1))
    found = rank_correlation(torch.tensor(one), torch.tensor(other))
    if len(set(one)) == 1 or len(set(other)) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(spearman(one, other), abs=1e-9)
