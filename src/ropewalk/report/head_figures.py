"""Pictures of a model's heads, in the manner of the papers' figures; told apart in grey as well as in colour."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ropewalk.analysis.inspect import SIDES, Inspection
from ropewalk.report.kit.colours import COLOURS
from ropewalk.report.needle_figures import finish

_MAP = "viridis"  # from dark to bright without a break
_PLURAL = {"query": "queries", "key": "keys"}
_MARKS = {"query": ("o", COLOURS[1]), "key": ("^", COLOURS[2])}
_SHOWN_SCORES: tuple[tuple[str, str, int | None], ...] = (
    ("band entropy", "band_entropy", None),
    ("matrix entropy", "matrix_entropy", None),
    ("spectral norm", "spectral_norm", None),
    ("effective rank (8)", "truncated_effective_rank", 8),
    ("truncated entropy (8)", "truncated_entropy", 8),
)


def draw_heads(found: Inspection, folder: Path) -> dict[str, Path]:
    """Write every picture that the inspection has data for, as SVG and PNG; the SVG files by the picture's name."""
    drawn = {}
    for name, draw in _PICTURES.items():
        figure = draw(found)
        if figure is None:
            continue
        figure.savefig(folder / f"{name}.png", dpi=150)
        figure.set_layout_engine("none")  # everything has found its place, which takes as long as drawing it
        figure.savefig(folder / f"{name}.svg", dpi=150)
        drawn[name] = folder / f"{name}.svg"
    return drawn


def usage(found: Inspection) -> Any:
    """Layer by frequency: the mean 2-norm of each pair, over heads, of queries and keys (PoPE's figures 3-6).

    None for an encoding without bands.
    """
    if not found.has_bands:
        return None
    figure, panels = _panels(1, 2, (10.0, _height(len(found.layers))))
    what = "magnitude of each channel" if found.about["encoding"]["kind"] == "pope" else "2-norm of each pair"
    once = 2 * math.pi / len(found["tokens"])
    for axes, side in zip(panels, SIDES, strict=True):
        values = found[f"usage.{side}"].mean(1)
        _map(figure, axes, values, found.layers, f"{_PLURAL[side]}: mean {what}")
        # Bands to the right of this line turn less than once in the text.
        edge = (found["frequencies"] >= once).sum(-1).double() - 0.5
        rows = torch.arange(len(edge))
        lines = torch.stack((rows - 0.5, rows + 0.5), dim=1).flatten()
        for line in ({"color": "black", "linewidth": 2.4}, {"color": "white", "linewidth": 1.2, "linestyle": "--"}):
            axes.plot(edge.repeat_interleave(2).numpy(), lines.numpy(), **line)
        axes.set(xlabel="frequency number (0 = fastest)", ylabel="layer")
    figure.suptitle("Frequency usage; right of the dashed line a band turns less than once in the text", fontsize=10)
    return figure


def sinks(found: Inspection) -> Any:
    """Layer by head: the mass of the first token, and the largest of any token."""
    figure, panels = _panels(1, 2, (10.0, _height(len(found.layers))))
    titles = {"sinks.first": "mean attention to the first token", "sinks.largest": "largest mean attention to a token"}
    for axes, (name, title) in zip(panels, titles.items(), strict=True):
        _map(figure, axes, found[name], found.layers, title, (0.0, 1.0))
        axes.set(xlabel="head", ylabel="layer")
    rows, heads = ((found["sinks.largest_at"] != 0) & (found["sinks.largest"] >= 0.01)).nonzero().T
    panels[1].scatter(heads.numpy(), rows.numpy(), s=9, facecolor="white", edgecolor="black", linewidth=0.6)
    figure.suptitle("Attention sinks; dots: the token isn't the first", fontsize=10)
    return figure


def score_maps(found: Inspection) -> Any:
    """Layer by head, a panel a score, for queries and for keys (a key head's score for each of its query heads)."""
    size = min(found[f"shares.post_ntk.{side}"].shape[-1] for side in SIDES)
    known = [score for score in _SHOWN_SCORES if found.has_bands or score[1] != "band_entropy"]
    shown = [score for score in known if (score[2] or 0) <= size]
    figure, panels = _panels(2, len(shown), (2.7 * len(shown), 2 * _height(len(found.layers), 0.09)))
    for row, side in enumerate(SIDES):
        for column, (label, name, r) in enumerate(shown):
            axes = panels[row * len(shown) + column]
            _map(figure, axes, found.score(name, r, side), found.layers, f"{_PLURAL[side]}: {label}")
            axes.set(xlabel="head" if row else "", ylabel="" if column else "layer")
    return figure


def low_rank(found: Inspection) -> Any:
    """Tokens against eigenvectors for the most and the least spiky head by their keys (DoPE's figures 3-6)."""
    spiky = found.score("spectral_norm")
    figure, panels = _panels(2, 2, (11.0, 5.4))
    places = found["low_rank.places"]
    for row, (label, index) in enumerate((("most", spiky.argmax()), ("least", spiky.argmin()))):
        layer, head = divmod(int(index), spiky.shape[1])
        for column, side in enumerate(SIDES):
            values = found[f"low_rank.{side}"][layer]
            group = head * values.shape[0] // spiky.shape[1]
            axes = panels[2 * row + column]
            share = float(found.score("spectral_norm", indicator=side)[layer, head])
            title = f"{label} spiky head, {found.layers[layer]}.{head}, {_PLURAL[side]} ({share:.0%} in one direction)"
            # Over [-1, 1] one colour map from dark to bright, as two-sided ones have two dark ends in grey.
            numbers = [i + 1 for i in range(values.shape[-1])]
            _map(figure, axes, values[group].T.float(), numbers, title, (-1.0, 1.0))
            ticks = torch.linspace(0, len(places) - 1, 5).round().long()
            axes.set_xticks(ticks.tolist(), [f"{int(places[i]):,}" for i in ticks])
            axes.set(xlabel="token" if row else "", ylabel="" if column else "eigenvector")
    figure.suptitle(
        "Cosine of each token's vector with the leading eigenvectors of the head's Gram matrix", fontsize=10
    )
    return figure


def cone(found: Inspection) -> Any:
    """DoPE's bound against the eigenvalue that it bounds, where that says anything; None without bands."""
    if not found.has_bands:
        return None
    from matplotlib.ticker import NullFormatter, PercentFormatter

    figure, (left, right) = _panels(1, 2, (10.0, 4.2))
    low, high, least = math.inf, 0.0, math.inf
    for side in SIDES:
        bound, measured = (found[f"cone.{name}.{side}"] for name in ("bound", "measured"))
        holds = (bound > 0) & (measured > 0)
        mark, colour = _MARKS[side]
        label = f"{_PLURAL[side]}: {int(holds.sum()):,} of {holds.numel():,} bands"
        left.scatter(
            measured[holds], bound[holds], s=10, marker=mark, facecolor="none", edgecolor=colour, linewidth=0.7,
            label=label, rasterized=True,
        )  # fmt: skip
        low, high = min([low, *measured[holds].tolist()]), max([high, *measured[holds].tolist()])
        least = min([least, *bound[holds].tolist()])
        share = (found[f"cone.gamma.{side}"] < math.pi / 2).double().mean((0, 1))
        right.plot(share.numpy(), marker=mark, color=colour, markersize=4, linewidth=1.2, label=_PLURAL[side])
    if high > 0:
        left.plot([low, high], [low, high], color="black", linewidth=1, linestyle="--", label="bound = measured")
        # From one power of ten to another, so that there are two ticks at least and none between them needs a label.
        left.set(xscale="log", yscale="log", xlim=_powers(low, high), ylim=_powers(min(least, low), high))
        for axis in (left.xaxis, left.yaxis):
            axis.set_minor_formatter(NullFormatter())
        left.legend(frameon=False, fontsize=8)
    else:
        left.set(xticks=[], yticks=[])
        left.text(0.5, 0.5, "no band's vectors all lie in a cone", ha="center", va="center", transform=left.transAxes)
    finish(left, "measured largest eigenvalue of the band", "N βmin² |k|² cos² γ")
    left.set_title("the cone bound, where all tokens lie in a cone", fontsize=9)
    finish(right, "frequency number (0 = fastest)", "share of heads")
    right.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    right.set_ylim(0, 1.02)
    right.set_title("bands whose vectors lie in a cone, γ < 90°", fontsize=9)
    right.legend(frameon=False, fontsize=8)
    return figure


def needle(found: Inspection) -> Any:
    """Attention from the answer's place to the needle, per head: without a plan and, where there is one, with it."""
    if "needle.before" not in found:
        return None
    begin, end = found.about["needle"]
    even = (end - begin) / len(found["tokens"])
    names = {"before": "without a plan", "after": "with the plan"}
    shown = {label: found[f"needle.{name}"] for name, label in names.items() if f"needle.{name}" in found}
    highest = max(float(values.max()) for values in shown.values())
    panels_wanted = 3 if len(shown) == 2 else 1
    figure, panels = _panels(1, panels_wanted, (4.6 * panels_wanted, _height(len(found.layers))))
    for axes, (label, values) in zip(panels, shown.items(), strict=False):
        _map(figure, axes, values, found.layers, f"{label}: attention to the needle", (0.0, highest))
        axes.set(xlabel="head", ylabel="layer")
    if len(shown) == 2:
        axes, (before, after) = panels[2], shown.values()
        axes.scatter(
            before.numpy(), after.numpy(), s=14, marker="o", facecolor="none", edgecolor=COLOURS[1], linewidth=0.8
        )
        axes.plot([0, highest], [0, highest], color="black", linewidth=1, linestyle="--", label="unchanged")
        axes.axvline(even, color=COLOURS[2], linewidth=1, linestyle=":", label=f"even attention, {even:.1%}")
        axes.legend(frameon=False, fontsize=8)
        finish(axes, "without a plan", "with the plan")
        axes.set_title("each head's attention to the needle", fontsize=9)
    between = " " if len(shown) == 2 else "\n"  # one panel is too narrow for the whole line
    figure.suptitle(f"From the answer's place to the needle;{between}spread evenly it would be {even:.1%}", fontsize=10)
    return figure


def delta(found: Inspection) -> Any:
    """PoPE's learned phase in [-pi, pi), a row a key head and a column a channel; None without one."""
    if "delta" not in found:
        return None
    values = found["delta"].flatten(0, 1)
    groups = found["delta"].shape[1]
    figure, (axes,) = _panels(1, 1, (7.0, _height(len(values))))
    names = [f"{layer}.{group}" for layer in found.layers for group in range(groups)]
    # A map that closes like the circle has each brightness twice: in grey a shift and its opposite would look alike.
    signed = (values + math.pi).remainder(2 * math.pi) - math.pi
    largest = float(signed.abs().max())
    is_small = 0 < largest < math.pi / 4  # as after a short training: on the whole scale it would look like nothing
    reach = largest if is_small else math.pi
    title = f"PoPE's delta, wrapped into -π to π; at most {largest:.2g} from 0"
    bar = _map(figure, axes, signed, names, title, (-reach, reach))
    bar.set_label("radians", fontsize=8)
    if not is_small:
        bar.set_ticks([-math.pi, -math.pi / 2, 0.0, math.pi / 2, math.pi], labels=["-π", "-π/2", "0", "π/2", "π"])
    axes.set(xlabel="channel (0 = fastest)", ylabel="layer.key head")
    return figure


_PICTURES: dict[str, Callable[[Inspection], Any]] = {
    "usage": usage,
    "sinks": sinks,
    "scores": score_maps,
    "low_rank": low_rank,
    "cone": cone,
    "needle": needle,
    "delta": delta,
}


def _panels(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _powers(low: float, high: float) -> tuple[float, float]:
    """The powers of ten around two numbers, never the same."""
    below = math.floor(math.log10(low))
    return 10.0**below, 10.0 ** max(math.ceil(math.log10(high)), below + 1)


def _height(rows: int, each: float = 0.13) -> float:
    """Inches for a map of so many rows."""
    return min(max(2.6, 1.4 + each * rows), 12.0)


def _map(
    figure: Any,
    axes: Any,
    values: Tensor,
    rows: Any,
    title: str,
    bounds: tuple[float | None, float | None] = (None, None),
) -> Any:
    """A heat map whose rows are named, with its scale beside it, which is returned."""
    from matplotlib.ticker import MaxNLocator

    # Pixels in an SVG too: a square a cell would make large files.
    image = axes.imshow(
        values.numpy(), aspect="auto", cmap=_MAP, vmin=bounds[0], vmax=bounds[1], interpolation="nearest"
    )
    step = max(1, math.ceil(len(rows) / 16))
    axes.set_yticks(range(0, len(rows), step), [str(rows[i]) for i in range(0, len(rows), step)])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # columns are counted, however few they are
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=8)
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.ax.tick_params(labelsize=7)
    return bar
