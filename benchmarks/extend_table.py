"""One page from the records of several runs on one model.

python benchmarks/extend_table.py results/extend-smollm2/remaps-*.jsonl --out results/extend-smollm2.md
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ropewalk.evaluation.records import read_records
from ropewalk.evaluation.statistics import Answer, paired_difference
from ropewalk.report.kit.colours import COLOURS
from ropewalk.report.kit.markdown import table_lines
from ropewalk.report.needle_figures import draw_by_depth
from ropewalk.report.summary import difference, nll, right

Answers = dict[str, list[Answer]]
STAGES = {"rules": "Search: rules and remaps", "dope": "Search: DoPE plans", "final": "Judged on fresh prompts"}


def main() -> None:
    """Write the tables, and a picture of each judgement beside the records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--head", type=Path, help="a Markdown file that goes before the tables")
    options = parser.parse_args()
    lines = options.head.read_text(encoding="utf-8").splitlines() if options.head else []
    for path in options.records:
        settings, records = read_records(path)
        lines += _condition(path, settings, records, options.out)
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _condition(path: Path, settings: dict[str, Any], records: list[dict[str, Any]], out: Path) -> list[str]:
    title = f"{settings['target_length']:,} tokens, {settings['setting']} setting"
    lines = ["", f"## {title}", "", f"Records: [`{path.name}`]({path.relative_to(out.parent)})."]
    reached = _answers(records, "at original length")
    if reached:
        found = reached["plain"]
        lines += ["", f"At the training length, plain: {right(found)}, NLL {nll(found)}."]
    for stage in ("final", "rules", "dope"):
        by_name = _answers(records, stage)
        if by_name:
            lines += ["", f"### {STAGES[stage]}", "", *_table(by_name, is_judgement=stage == "final")]
    final = _answers(records, "final")
    if final:
        picture = path.with_suffix(".png")
        drawn = _drawn(final)
        draw_by_depth({name: final[name] for name in drawn}, title, picture)
        fewer = min(map(len, final.values())) < min(len(final[name]) for name in drawn)
        which = "the least likely answers, or fewer prompts," if fewer else "the least likely answers"
        rest = "" if len(drawn) == len(final) else f" Those with {which} aren't drawn."
        lines += [
            "",
            f"![{title}, by depth]({picture.relative_to(out.parent)})",
            "",
            f"Right answers and NLL by depth.{rest}",
        ]
    return lines


def _answers(records: list[dict[str, Any]], stage: str) -> Answers:
    found: Answers = {}
    for record in records:
        if record["kind"] == "answers" and record["stage"] == stage:
            found.setdefault(record["candidate"], []).extend(Answer.from_dict(a) for a in record["answers"])
    return found


def _drawn(final: Answers) -> list[str]:
    """As many as lines can be told apart: plain, what was judged first, DoPE plans, then the others, best first."""
    rules = sorted((n for n in final if n != "plain" and "DoPE" not in n), key=lambda n: _mean(final[n]))
    judged_first = next(name for name in final if name in rules)
    order = ["plain", judged_first, *(n for n in final if "DoPE" in n), *(n for n in rules if n != judged_first)]
    # A line over fewer prompts beside the others would look like a difference.
    return [n for n in order if n in final and len(final[n]) >= len(final[judged_first])][: len(COLOURS)]


def _table(by_name: Answers, is_judgement: bool) -> list[str]:
    """Best first by prompts, then NLL; a judgement says the paired difference to its best rule."""
    rule = next((n for n in by_name if n != "plain" and " + " not in n), None) if is_judgement else None
    header = ["encoding", "prompts", "answers right", "answer NLL", *([f"against {rule}"] if rule else [])]
    rows = []
    for name, found in sorted(by_name.items(), key=lambda item: (-len(item[1]), _mean(item[1]))):
        row = [name, str(len({a.prompt for a in found})), right(found), nll(found)]
        if rule:
            shared = {a.prompt for a in found} & {a.prompt for a in by_name[rule]}
            pair = ([a for a in answers if a.prompt in shared] for answers in (found, by_name[rule]))
            row.append("" if name == rule else difference(paired_difference(*pair)))
        rows.append(row)
    return table_lines(header, rows)


def _mean(found: list[Answer]) -> float:
    return sum(a.nll for a in found) / len(found)


if __name__ == "__main__":
    main()
