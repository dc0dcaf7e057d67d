"""Write the tables of README and docs from benchmarks/results/*.json, so that a figure stands once.

    python docs/tables.py [--check]

A table stands between two comments, the first of which says in JSON what is in it:

    <!-- table: {"from": "quality", "rows": {"adain": "`adain`"}, "columns": {"LPIPS": "lpips"}} -->
    <!-- /table -->

`from` names the result. A result of `evaluate robustness` gives a row for each arm: unseen domains, mean and
standard deviation over seeds, and home. Any other result gives the values of `columns`: a title and a key of
the row, or a path of keys below `path`, in which `{}` is the row. `rows` maps what the file calls a row to
its name in the table; without it all rows are shown. `first_seed` and `last_seed` leave the runs of other
seeds out. `questions` in place of `from` gives a row for each of several results: the unseen score of some
of its arms, and home of the first and the last. `column` is another score of each, such as home.
`--check` writes nothing, and exits with 1 where a table differs.
"""

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TABLE = re.compile(r"(<!-- table: (\{.*?\}) -->\n).*?(<!-- /table -->)", re.DOTALL)

Rows = list[tuple[str, list[str]]]


def pages() -> list[Path]:
    """List the pages that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def filled(text: str) -> str:
    """Return a page with its tables made anew."""
    return TABLE.sub(lambda found: found[1] + table(json.loads(found[2])) + found[3], text)


def table(wanted: dict[str, Any]) -> str:
    """Make one table in Markdown."""
    if "questions" in wanted:
        head, rows = questions(wanted)
    else:
        result = json.loads((RESULTS / f"{wanted['from']}.json").read_text(encoding="utf-8"))
        robust = str(result.get("format", "")).startswith("styleaug robustness")
        head, rows = (arms if robust else plain)(result, wanted)
    lines = [f"| {wanted.get('head', '')} | " + " | ".join(head) + " |", "|---" + "|--:" * len(head) + "|"]
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows]
    return "\n".join(lines) + "\n"


def questions(wanted: dict[str, Any]) -> tuple[list[str], Rows]:
    """Read one row a question: a score of some of its arms."""
    rows = []
    for question, (name, *chosen) in wanted["questions"].items():
        result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        column = "corrupted" if result["settings"]["corruptions"] else "unseen"
        column = wanted.get("column", column)
        scores = {"column": column, "home": "home"}
        first = wanted.get("first_seed", 0)
        _, found = arms(
            result, {"columns": scores, "rows": {arm: arm for arm in chosen}, "first_seed": first}
        )
        each = [cells[0] for _, cells in found]
        if "column" not in wanted:
            each.append(" to ".join(cells[1].partition(" ")[0] for _, cells in (found[0], found[-1])))
        rows.append((question, each))
    return [*wanted["arms"], *([] if "column" in wanted else ["home"])], rows


def arms(result: dict[str, Any], wanted: dict[str, Any]) -> tuple[list[str], Rows]:
    """Read the scores of a comparison of arms: each domain, and their mean."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for run in result["runs"]:
        if wanted.get("first_seed", 0) <= run["seed"] <= wanted.get("last_seed", run["seed"]):
            runs.setdefault(run["arm"], []).append(run)
    domains = [name for name in result["runs"][0]["scores"] if name != "home"]
    usual = {"unseen": "unseen", "home": "home"} | {name: name for name in domains}
    if result["settings"]["corruptions"]:
        usual = {"corrupted": "corrupted", "clean": "home"}
    columns = wanted.get("columns", usual)
    rows = []
    for arm, name in wanted.get("rows", {arm: arm for arm in runs}).items():
        cells = [
            with_spread([score(run, column, domains) for run in runs[arm]]) for column in columns.values()
        ]
        rows.append((name, [*cells, str(len(runs[arm]))]))
    return [*columns, "seeds"], rows


def score(run: dict[str, Any], column: str, domains: list[str]) -> float:
    """Read one score of a run, in percent."""
    scores = run["scores"]
    if column == "unseen":
        return 100 * statistics.fmean(scores[name] for name in domains)
    if column == "corrupted":
        return 100 * statistics.fmean(run["corrupted"].values())
    return 100 * scores[column]


def with_spread(values: list[float]) -> str:
    """Write a mean, with the sample's standard deviation where there are several values."""
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def plain(result: dict[str, Any], wanted: dict[str, Any]) -> tuple[list[str], Rows]:
    """Read values of any other result, each by its path from `path`."""
    found = reach(result, wanted.get("path", ["rows"]))
    names = wanted.get("rows") or {name: name for name in found}
    columns = wanted.get("columns") or {key: key for row in found.values() for key in row}
    rows = []
    for row, name in names.items():
        paths = [["{}", key] if isinstance(key, str) else key for key in columns.values()]
        rows.append((name, [number(reach(found, [part.format(row) for part in path])) for path in paths]))
    return list(columns), rows


def reach(value: Any, path: list[str]) -> Any:
    """Follow a path of keys; what is not there is empty."""
    for key in path:
        value = value.get(key, "") if isinstance(value, dict) else ""
    return value


def number(value: Any) -> str:
    """Write a number with at most three significant digits after a leading run of whole ones."""
    if not isinstance(value, int | float):
        return str(value)
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def main() -> int:
    """Write all tables, or check them."""
    different = []
    for page in pages():
        before = page.read_text(encoding="utf-8")
        after = filled(before)
        if after != before:
            different.append(str(page.relative_to(ROOT)))
            if "--check" not in sys.argv:
                page.write_text(after, encoding="utf-8")
    if different:
        told = "differ from benchmarks/results" if "--check" in sys.argv else "written"
        print(f"{', '.join(different)}: {told}")
    return int("--check" in sys.argv and bool(different))


if __name__ == "__main__":
    sys.exit(main())
