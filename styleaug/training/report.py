"""The report of a training run: one self-contained HTML file with curves as SVG."""

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image

from styleaug.errors import FileError
from styleaug.io.files import open_image

__all__ = ["NOT_VALUES", "ROWS", "clean_text", "render"]

NOT_VALUES = {"event", "step", "time", "images_per_second"}
"""Entries of a log row that are not losses or scores."""

ROWS = ("source", "result", "target")
"""Contents of the rows of a sample grid."""

MOST_POINTS = 400
MOST_PICTURES = 12
PICTURE_BYTES = 2_000_000
"""Largest size of all pictures together in bytes, before base64 adds a third."""
PICTURE_SIDE = 1400
MOST_ITEMS = 20
"""Largest number of items shown for a list in a table."""

_WIDTH, _HEIGHT = 440, 230
LEFT, RIGHT, _TOP, BOTTOM = 58, 24, 12, 40
"""Margins of a chart around its curve, in SVG units."""

_TINY = 1e-30
"""Smallest size of a value that is drawn; its inverse is the largest."""

Point = tuple[float, float]

_STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #fff; --ink: #1c1e21; --soft: #666b73;
  --line: #dcdee2; --curve: #1f66c1; --mark: #b4530a; --bad: #b3261e; --bad-page: #fdeeec; }
@media screen and (prefers-color-scheme: dark) { :root { --page: #15171a; --card: #1d2024; --ink: #e6e7e9;
  --soft: #9ba1aa; --line: #353a41; --curve: #72a9f2; --mark: #f0a052; --bad: #ff8a80; --bad-page: #33201f; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 24px 20px 60px; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 36px 0 10px; }
h3 { font-size: 14px; margin: 0 0 2px; overflow-wrap: anywhere; }
p { margin: 0 0 8px; max-width: 75ch; }
.soft, figcaption, .range { color: var(--soft); font-size: 13px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px;
  margin: 0; break-inside: avoid; }
.chosen { border-left: 4px solid var(--curve); margin-top: 16px; overflow-wrap: anywhere; }
.numbers { display: flex; flex-wrap: wrap; gap: 6px 32px; margin: 10px 0 0; }
.numbers div { min-width: 80px; }
.numbers + table { margin-top: 10px; }
.numbers dt { color: var(--soft); font-size: 13px; }
.numbers dd { margin: 0; font-size: 20px; font-variant-numeric: tabular-nums; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 14px; }
.alarms { background: var(--bad-page); border-left: 4px solid var(--bad); list-style: none; }
.alarms li + li { margin-top: 8px; }
.alarms b { color: var(--bad); }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; vertical-align: top; padding: 4px 12px 4px 0; overflow-wrap: anywhere;
  border-bottom: 1px solid var(--line); }
th { font-weight: 500; color: var(--soft); width: 34%; }
tr:last-child > * { border-bottom: 0; }
.pictures { display: flex; flex-wrap: wrap; gap: 18px; }
figure { margin: 0; break-inside: avoid; }
figure img { display: block; max-width: 100%; height: auto; border: 1px solid var(--line); }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
svg .axis { stroke: var(--line); fill: none; }
svg .raw { stroke: var(--curve); fill: none; opacity: 0.3; }
svg .curve { stroke: var(--curve); fill: none; stroke-width: 1.8; stroke-linejoin: round; }
svg .dot { fill: var(--curve); }
svg .mark { stroke: var(--mark); stroke-dasharray: 4 3; }
svg text.marked { fill: var(--mark); }
@media print { :root { --page: #fff; } body { max-width: none; padding: 0; font-size: 11pt; }
  .grid { grid-template-columns: 1fr 1fr 1fr; } .pictures figure { width: calc(50% - 9px); }
  h2, h2 + .soft { break-after: avoid; }
}
"""


def render(
    title: str,
    facts: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    pictures: Sequence[tuple[int, Path]],
    outcome: Mapping[str, Any] | None,
) -> str:
    """Return the report of a run as one HTML page without scripts or links.

    Args:
        title: title of the run.
        facts: the configuration; nested mappings are flattened.
        rows: rows of `log.jsonl`, in order. Only losses, scores and alarms are used.
        pictures: `(step, file)` in order; at most 12 readable ones are shown.
        outcome: the chosen step and the reason: `"chosen step"`, `"why"`, `"scores"` and other facts;
            None while the run goes on.
    """
    chosen = (outcome or {}).get("chosen step")
    chosen = chosen if isinstance(chosen, int) else None
    losses = curves([row for row in rows if row.get("event", "losses") == "losses"])
    scores = curves([row for row in rows if row.get("event") == "scores"])
    scores = {name: scores[name] for name in sorted(scores, key=lambda name: name != "score")}
    speed = losses.pop("images_per_second", [])
    parts = [
        headline(title, rows, outcome),
        alarm_list([row for row in rows if row.get("event") == "alarm"]),
        section("Scores", charts(scores, chosen=chosen, dots=True), "On held-out images."),
        section("Losses", charts(losses), "Pale: as logged. Strong: smoothed."),
        section("Samples", picture_list(pictures, chosen), f"One grid a step; its rows: {', '.join(ROWS)}."),
        section("Speed", charts({"images per second": speed} if speed else {})),
        section("Configuration", f'<div class="card">{table(facts)}</div>' if facts else ""),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def clean_text(value: Any) -> str:
    """Convert a value to valid UTF-8 and HTML text; names of files may be invalid."""
    cleaned = str(value).encode("utf-8", "backslashreplace").decode()
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", cleaned)


def text(value: Any) -> str:
    """Format a value as HTML text or attribute."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "—"
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, list | tuple | set):
        more = f", … ({len(value)} in all)" if len(value) > MOST_ITEMS else ""
        return ", ".join(text(item) for item in list(value)[:MOST_ITEMS]) + more or "—"
    return escape(clean_text(value), quote=True)


def _number(value: float) -> str:
    """Format a number with at most four digits, without an exponent if possible."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:.4g}"


def section(name: str, content: str, note: str = "") -> str:
    """Format a section; return nothing if it has no content."""
    described = f'<p class="soft">{note}</p>\n' if note else ""
    return f"<section>\n<h2>{name}</h2>\n{described}{content}\n</section>" if content else ""


def headline(title: str, rows: Sequence[Mapping[str, Any]], outcome: Mapping[str, Any] | None) -> str:
    """Format the title, the chosen step and the reason, and the main numbers of the run."""
    last = max((row["step"] for row in rows), default=0)
    word = "Finished" if outcome and "chosen step" in outcome else "Stopped"
    state = f"{last} steps; the run goes on." if outcome is None else f"{word} after {last} steps."
    rest = dict(outcome or {})
    why, scores = rest.pop("why", None), rest.pop("scores", None)
    step = rest.pop("chosen step", None)
    body = "" if step is None else f"<h3>Chosen: step {text(step)}</h3>\n"
    body += "" if why is None else f"<p>{text(why)}</p>\n"
    if isinstance(scores, Mapping) and scores:
        pairs = "".join(f"<div><dt>{text(k)}</dt><dd>{text(v)}</dd></div>" for k, v in scores.items())
        body += f'<dl class="numbers">{pairs}</dl>\n'
    body += table(rest) if rest else ""
    card = f'\n<div class="card chosen">\n{body}</div>' if body else ""
    return f'<header>\n<h1>{text(title)}</h1>\n<p class="soft">{state}</p>{card}\n</header>'


def table(facts: Mapping[str, Any]) -> str:
    """Format names and values as a table."""
    lines = [f'<tr><th scope="row">{text(k)}</th><td>{text(v)}</td></tr>' for k, v in flat(facts)]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def flat(facts: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Flatten nested mappings to names `outer / inner`."""
    found = []
    for name, value in facts.items():
        nested = isinstance(value, Mapping) and value
        found += flat(value, f"{prefix}{name} / ") if nested else [(f"{prefix}{name}", value)]
    return found


def alarm_list(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format each alarm once, with the steps at which it was logged."""
    steps: dict[str, list[int]] = {}
    for row in rows:
        steps.setdefault(str(row.get("text", "")), []).append(row["step"])
    items = []
    for alarm, at in steps.items():
        when = f"Step {at[0]}" if len(at) == 1 else f"Steps {at[0]} to {at[-1]}, {len(at)} times"
        items.append(f"<li><b>{when}.</b> {text(alarm)}</li>")
    return section("Alarms", f'<ul class="card alarms">\n{"".join(items)}\n</ul>') if items else ""


def curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Point]]:
    """Collect the values of each name over the steps, without those that cannot be drawn."""
    found: dict[str, list[Point]] = {}
    for row in rows:
        for name, value in row.items():
            known = name not in NOT_VALUES or name == "images_per_second"
            if known and isinstance(value, int | float) and (value == 0 or _TINY < abs(value) < 1 / _TINY):
                found.setdefault(name, []).append((row["step"], value))
    return found


def charts(named: Mapping[str, list[Point]], *, chosen: int | None = None, dots: bool = False) -> str:
    """Draw each curve in a card of its own."""
    if not named:
        return ""
    cards = []
    for name, points in named.items():
        values = [value for _, value in points]
        note = f"last {_number(values[-1])}, from {_number(min(values))} to {_number(max(values))}"
        drawing = chart(name, points, chosen=chosen, dots=dots)
        cards.append(
            f'<div class="card">\n<h3>{text(name)}</h3>\n<div class="range">{note}</div>\n{drawing}\n</div>'
        )
    return f'<div class="grid">\n{"".join(cards)}\n</div>'


def chart(name: str, points: Sequence[Point], *, chosen: int | None = None, dots: bool = False) -> str:
    """Draw one curve with its axes as SVG.

    Args:
        name: name of the curve, for screen readers.
        points: `(step, value)`, at least one.
        chosen: step to mark.
        dots: draw every point and no smoothed curve, because scores have few points.
    """
    shown = thinned(points)
    first, last = shown[0][0], max(shown[-1][0], shown[0][0] + 1)
    low, high = value_range([value for _, value in shown], robust=not dots)

    def x(step: float) -> float:
        return LEFT + (step - first) / (last - first) * (_WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        height = (value - low) / (high - low)
        # A spike beyond the range may leave the frame, but not the drawing.
        return _HEIGHT - BOTTOM - max(-0.06, min(1.06, height)) * (_HEIGHT - _TOP - BOTTOM)

    def path(of: Sequence[Point]) -> str:
        return "M" + "L".join(f"{x(step):.1f} {y(value):.1f}" for step, value in of)

    lines = [axes(first, last, low, high, x, y)]
    if chosen is not None and first <= chosen <= last:
        side = "end" if chosen > (first + last) / 2 else "start"
        at = x(chosen) + (-4 if side == "end" else 4)
        lines.append(f'<path class="mark" d="M{x(chosen):.1f} {_TOP}V{_HEIGHT - BOTTOM}"/>')
        lines.append(f'<text class="marked" x="{at:.1f}" y="{_TOP + 9}" text-anchor="{side}">chosen</text>')
    if dots:
        lines.append(f'<path class="curve" d="{path(shown)}"/>')
        lines += [f'<circle class="dot" cx="{x(s):.1f}" cy="{y(v):.1f}" r="2.6"/>' for s, v in shown]
    else:
        lines.append(f'<path class="raw" d="{path(shown)}"/>')
        calm = [(step, max(low, min(high, value))) for step, value in shown]
        lines.append(f'<path class="curve" d="{path(smoothed(calm))}"/>')
    label = f"{text(name)} over the steps, last {_number(points[-1][1])}"
    head = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
    return head + "\n" + "\n".join(lines) + "\n</svg>"


def axes(first: float, last: float, low: float, high: float, x: Any, y: Any) -> str:
    """Draw grid lines and their numbers, and the unit of the steps."""
    lines, floor = [], _HEIGHT - BOTTOM
    for value in ticks(low, high, 4):
        lines.append(f'<path class="axis" d="M{LEFT} {y(value):.1f}H{_WIDTH - RIGHT}"/>')
        place = f'x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end"'
        lines.append(f"<text {place}>{_number(value)}</text>")
    for step in ticks(first, last, 5):
        lines.append(f'<path class="axis" d="M{x(step):.1f} {floor}v4"/>')
        place = f'x="{x(step):.1f}" y="{floor + 16}" text-anchor="middle"'
        lines.append(f"<text {place}>{_number(step)}</text>")
    lines.append(f'<path class="axis" d="M{LEFT} {_TOP}V{floor}H{_WIDTH - RIGHT}"/>')
    middle = (LEFT + _WIDTH - RIGHT) / 2
    lines.append(f'<text x="{middle:.0f}" y="{_HEIGHT - 8}" text-anchor="middle">steps</text>')
    return "\n".join(lines)


def ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round numbers from `low` to `high`."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    stride = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    start, end = math.ceil(low / stride - 1e-9), math.floor(high / stride + 1e-9)
    return [index * stride for index in range(start, end + 1)]


def value_range(values: Sequence[float], *, robust: bool) -> tuple[float, float]:
    """Find the range to draw; it starts at zero if zero is near.

    Args:
        values: at least one value.
        robust: exclude a few spikes that would flatten the rest of the curve.
    """
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    cut = len(ordered) // 50 if len(ordered) >= 100 else 0
    if robust and high - low > 2 * (ordered[-1 - cut] - ordered[cut]):
        low, high = ordered[cut], ordered[-1 - cut]
    flat = high - low <= 1e-6 * abs(high)
    margin = 0.05 * (abs(high) if flat else high - low) or 1.0
    return (0 if 0 <= low <= 0.4 * high else low - margin), high + margin


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Average neighbours to get at most `most` points; the first and last steps are kept."""
    if len(points) <= most:
        return list(points)
    edges = [index * len(points) // most for index in range(most + 1)]
    buckets = [points[a:b] for a, b in pairwise(edges)]
    means = [(b[len(b) // 2][0], sum(value for _, value in b) / len(b)) for b in buckets]
    return [(points[0][0], means[0][1]), *means[1:-1], (points[-1][0], means[-1][1])]


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Average each value with its neighbours, a fortieth of the curve on both sides."""
    reach = len(points) // 40
    found = []
    for index, (step, _) in enumerate(points):
        span = min(reach, index, len(points) - 1 - index)  # symmetric, so that a slope stays a slope
        near = points[index - span : index + span + 1]
        found.append((step, sum(value for _, value in near) / len(near)))
    return found


def picture_list(pictures: Sequence[tuple[int, Path]], chosen: int | None) -> str:
    """Format some sample grids, evenly spaced over the run, and that of the chosen step."""
    wanted = [picture for picture in pictures if picture[0] == chosen]
    shown = sorted({*evenly(pictures, MOST_PICTURES - len(wanted)), *wanted})
    figures = []
    for step, path in shown:
        source = data_uri(path, PICTURE_BYTES // len(shown))
        if source:
            name = f"Step {step}" + (", chosen" if step == chosen else "")
            figures.append(
                f'<figure><figcaption>{name}</figcaption><img alt="Samples at step {step}" src="{source}">'
                "</figure>"
            )
    return f'<div class="pictures">\n{"".join(figures)}\n</div>' if figures else ""


def evenly(pictures: Sequence[tuple[int, Path]], most: int) -> list[tuple[int, Path]]:
    """Choose at most `most` pictures, evenly spaced, with the first and the last."""
    if len(pictures) <= most:
        return list(pictures)
    return [pictures[round(index * (len(pictures) - 1) / (most - 1))] for index in range(most)]


def data_uri(path: Path, budget: int) -> str:
    """Encode a picture as JPEG of at most `budget` bytes; return nothing if it is damaged."""
    try:
        picture = open_image(path)
    except FileError:
        return ""
    assert isinstance(picture, Image.Image)  # `Monitor` writes PNG
    picture = picture.convert("RGB")
    side = min(PICTURE_SIDE, max(picture.size))
    while True:
        small = picture.copy()
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=85, optimize=True)
        if buffer.tell() <= budget or side <= 64:
            return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
        side = int(side * min(0.9, math.sqrt(budget / buffer.tell())))
