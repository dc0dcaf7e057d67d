"""The table of a robustness test, for a terminal and in Markdown."""

from typing import TYPE_CHECKING

from styleaug.evaluation.statistics import Difference, Spread
from styleaug.foreign import code, markdown, printable

if TYPE_CHECKING:
    from styleaug.evaluation.robustness_table import ArmResult, Robustness

__all__ = ["markdown_table", "plain_table"]

NOTE = (
    "Recall averaged over classes, in percent: mean over seeds, and sample standard deviation. Differences "
    "from {baseline} are paired by seed (same split, initial weights, batches, geometry), with 95 % t "
    "interval. 'better' and 'worse': the interval is clear of 0; (Holm n.s.): no longer so among all arms. "
    "s: median seconds of training, and how many times {baseline}'s."
)


def rows_of(result: "Robustness") -> list[list[str]]:
    """Give the cells of the table, its head first."""
    measures = list(result.arms[0].scores) if result.arms else []
    compared = [name for name in ("mean of others", "corrupted") if name in measures]
    if "mean of others" not in measures:
        compared = [name for name in measures if name not in ("home", "corrupted")] + compared
    compared = compared or measures[:1]
    gaps = [f"{name} minus {result.baseline}" for name in compared]
    rows = [["arm", "seeds", *measures, *gaps, "s"]]
    for arm in result.arms:
        cells = [arm.name, str(len(arm.seeds)), *(spread_cell(arm.scores[name]) for name in measures)]
        cells += [gap_cell(arm, name, result.baseline) for name in compared]
        slow = "" if arm.slowdown is None or arm.name == result.baseline else f" ({arm.slowdown:.2f}x)"
        rows.append([*cells, f"{arm.seconds:.1f}{slow}"])
    return rows


def spread_cell(found: Spread) -> str:
    """Show a mean and its deviation."""
    return f"{100 * found.mean:.1f}" + ("" if found.deviation is None else f" ± {100 * found.deviation:.1f}")


def gap_cell(arm: "ArmResult", measure: str, baseline: str) -> str:
    """Show a difference, its interval and what may be said of it."""
    gap: Difference | None = arm.differences.get(measure)
    if gap is None:
        return "" if arm.name == baseline else "no common seed"
    if gap.low is None or gap.high is None:
        return f"{100 * gap.mean:+.1f}, one seed: no verdict"
    p = arm.p_holm.get(measure)
    doubt = " (Holm n.s.)" if gap.verdict in ("better", "worse") and p is not None and p >= 0.05 else ""
    return f"{100 * gap.mean:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}] {gap.verdict}{doubt}"


def corruption_rows(result: "Robustness") -> list[list[str]]:
    """Give the cells of the table of single corruptions, averaged over severities."""
    names = list(next(iter(result.corruptions.values()), {}))
    rows = [["corruption", *result.corruptions]]
    for name in names:
        rows.append([name, *(f"{100 * found[name]:.1f}" for found in result.corruptions.values())])
    return rows


def plain_table(result: "Robustness") -> str:
    """Lay the scores out for a terminal."""
    lines = aligned(rows_of(result))
    if result.corruptions:
        lines += ["", *aligned(corruption_rows(result))]
    return "\n".join([*lines, "", NOTE.format(baseline=printable(result.baseline))])


def aligned(rows: list[list[str]]) -> list[str]:
    """Pad cells to columns."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def markdown_table(result: "Robustness") -> str:
    """Lay the scores out in Markdown, with the settings."""
    settings = result.settings
    recipe = ", ".join(f"{name} {value}" for name, value in settings["recipe"].items())
    domains = ", ".join(f"{markdown(name)} {found['images']}" for name, found in settings["domains"].items())
    lines = ["# Robustness", "", NOTE.format(baseline=markdown(result.baseline)), ""]
    lines += [f"Classifier {settings['classifier']}: {recipe}.", ""]
    lines += [f"Classes: {', '.join(map(markdown, settings['classes']))}. Images: {domains}.", ""]
    lines += grid(rows_of(result))
    if result.corruptions:
        lines += ["", "Corruptions, mean over severities and seeds:", "", *grid(corruption_rows(result))]
    lines += ["", "Arms:", "", *(f"- {markdown(arm.name)}: {code(arm.spec)}" for arm in result.arms), ""]
    return "\n".join(lines)


def grid(rows: list[list[str]]) -> list[str]:
    """Draw a Markdown table of cells that are any text."""
    head, *others = ["| " + " | ".join(map(markdown, row)) + " |" for row in rows]
    return [head, "|---|" + "--:|" * (len(rows[0]) - 1), *others]
