"""A Hugging Face model card: what was measured, as metadata that the hub reads and as a table that people read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ropewalk.hub.names import is_hub_id

if TYPE_CHECKING:
    from ropewalk.hub.plan import Plan

_METRICS = {
    "exact": "exact match",
    "nll": "negative log-likelihood of the answer, nats a token",
    "text_nll": "negative log-likelihood of the text, nats a token",
}


@dataclass(frozen=True)
class Figure:
    """One measured figure: `value` with its 95 % interval [low, high] over `n` prompts; an open bound is None.

    arm: the encoding or plan. task: what was asked, such as `needle, 11,000 tokens, noisy`. metric: `exact`, `nll` or
    `text_nll`.
    """

    arm: str
    task: str
    metric: str
    value: float
    low: float | None
    high: float | None
    n: int


def card(title: str, about: str, figures: Sequence[Figure], base_model: str | None = None) -> str:
    """The text of a README.md for a repository on the hub.

    Args:
        title: of the page.
        about: a paragraph, Markdown.
        figures: what was measured; in the metadata each with its arm's name.
        base_model: the model measured; named in the metadata when it is an id on the hub.
    """
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="ropewalk",
            dataset_name=figure.task,
            dataset_config=figure.task,  # results of one configuration are made one data set's, whatever its name
            dataset_args={"prompts": figure.n},
            metric_type=figure.metric,
            metric_name=f"{_METRICS.get(figure.metric, figure.metric)}, {figure.arm}",
            metric_value=round(figure.value, 4),
            metric_args={"low": figure.low, "high": figure.high},
        )
        for figure in figures
    ]
    data = ModelCardData(
        base_model=base_model if base_model and "/" in base_model and is_hub_id(base_model) else None,
        library_name="ropewalk",
        tags=["ropewalk", "long-context", "positional-encoding"],
        model_name=title if results else None,
        eval_results=results or None,
    )
    lines = ["---", data.to_yaml(), "---", "", f"# {plain(title)}", "", about, ""]
    return "\n".join([*lines, *_table(figures), ""])


def plan_card(plan: Plan, place: str) -> str:
    """The card of a plan at `place`, a hub id or a folder: what it does, how to switch it on, and its evidence."""
    model = str(plan.model["name"] or "a model without a name")
    task = f"needle, {plan.target_length:,} tokens"
    figures = [
        Figure(arm, task, metric, found[metric]["mean"], found[metric]["low"], found[metric]["high"], found["prompts"])
        for arm, found in plan.evidence.items()
        if isinstance(found, dict) and "prompts" in found
        for metric in _METRICS
        if isinstance(found.get(metric), dict)
    ]
    about = [
        f"A plan that makes {plain(model)} read {plan.target_length:,} tokens; it was trained on "
        f"{plan.original_length:,}. It changes how queries and keys are rotated and no weight.",
        "",
        "```python",
        "import ropewalk",
        "",
        f"model, tokenizer = ropewalk.load_model({model!r})",
        f"ropewalk.from_pretrained({place!r}).install(model)",
        "```",
        "",
        "```",
        plan.summary().split("\n  installed:")[0],
        "```",
    ]
    if isinstance(verdict := plan.evidence.get("verdict"), str):
        about += ["", plain(verdict)]
    return card(f"{model}, {plan.target_length:,} tokens", "\n".join(about), figures, model)


def _table(figures: Sequence[Figure]) -> list[str]:
    """A row an arm and task, a column a metric; brackets hold 95 % intervals."""
    if not figures:
        return []
    metrics = list(dict.fromkeys(figure.metric for figure in figures))
    found: dict[tuple[str, str], dict[str, Figure]] = {}
    for figure in figures:
        found.setdefault((figure.task, figure.arm), {})[figure.metric] = figure
    header = ["task", "encoding", "prompts", *(_METRICS.get(metric, plain(metric)) for metric in metrics)]
    rows = [
        [plain(task), plain(arm), str(max(f.n for f in by.values())), *(_cell(by.get(metric)) for metric in metrics)]
        for (task, arm), by in found.items()
    ]
    lines = [header, ["---"] * len(header), *rows]
    return ["Brackets are 95 % intervals.", "", *(f"| {' | '.join(cells)} |" for cells in lines)]


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return "–"
    low, high = ("–" if bound is None else f"{bound:.3f}" for bound in (figure.low, figure.high))
    return f"{figure.value:.3f} [{low}, {high}]"


def plain(text: Any) -> str:
    """A name or text in Markdown that can't become a tag, a link or another cell."""
    escaped = str(text).replace("&", "&amp;").replace("<", "&lt;")
    return " ".join("".join(f"\\{c}" if c in "|[]`*_" else c for c in escaped).split())
