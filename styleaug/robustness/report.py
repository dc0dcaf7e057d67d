"""Results and plan of a robustness test, as numbers and as tables."""

import statistics as std
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from styleaug.errors import ConfigError, code, markdown, printable
from styleaug.io.atomic import atomic
from styleaug.robustness.protocol import HOME, TRAIN, Protocol, Store
from styleaug.robustness.runs import Record, RunFile
from styleaug.robustness.statistics import Difference, Spread, difference, holm, spread

if TYPE_CHECKING:
    from styleaug.robustness.report import ArmResult, Robustness

__all__ = ["ArmResult", "Plan", "Robustness", "plain_table"]

_OTHERS = "mean of others"
CORRUPTED = "corrupted"


@dataclass(frozen=True)
class ArmResult:
    """Scores of an arm."""

    name: str
    spec: str
    seeds: tuple[int, ...]
    scores: dict[str, Spread]
    """Scores by domain, and `"mean of others"` (several other domains) and `"corrupted"` if measured."""
    differences: dict[str, Difference]
    """Differences from the baseline over the same seeds, with the keys of `scores`."""
    p_holm: dict[str, float]
    """p values of the paired t test, corrected for the number of arms (Holm)."""
    seconds: float
    """Median time of a training, in seconds."""
    slowdown: float | None
    """Training time divided by the baseline's."""


@dataclass(frozen=True)
class Robustness:
    """Results of a robustness test."""

    arms: list[ArmResult]
    baseline: str
    settings: dict[str, Any]
    runs: list[Record]
    corruptions: dict[str, dict[str, float]]
    """Mean score by arm and corruption."""
    failed: list[tuple[Path, str]]
    """Files that could not be read, with the reasons."""
    transductive: tuple[str, ...] = ()
    """Names of the arms that saw images of the tests, without labels; see `reported`."""
    first_seed: int = 0
    """First seed that is reported in `arms`."""
    chosen: tuple[ArmResult, ...] = ()
    """Scores over the seeds before `first_seed`, set aside to choose settings on."""
    classes: dict[str, dict[str, dict[str, dict[str, float]]]] = field(default_factory=dict)
    """With masks: mean measures by arm, domain, class and name of the measure."""

    @classmethod
    def of(cls, protocol: Protocol, store: Store, runs: RunFile) -> "Robustness":
        """Summarise the runs of a file: the arms of the protocol, then other arms in the file."""
        _, records = runs.read()
        by_arm = by_arm_of(records, [arm.name for arm in protocol.arms])
        return cls(
            _compare(by_arm, protocol.compared_with),
            protocol.compared_with,
            runs.settings,
            records,
            all_by_corruption(by_arm),
            store.failed,
            classes=all_by_class(by_arm),
        )

    def reported(self, *, transductive: Collection[str] = (), first_seed: int = 0) -> "Robustness":
        """Tell apart what saw the tests, and the seeds set aside to choose settings on.

        Args:
            transductive: names of the arms that saw images of the tests, without labels. They get a table
                of their own.
            first_seed: first seed that is reported. Runs with earlier seeds get a table of their own.

        Raises:
            ConfigError: there is no arm with such a name.
        """
        names = list(dict.fromkeys(arm.name for arm in (*self.arms, *self.chosen)))
        if unknown := sorted(set(transductive) - set(names)):
            raise ConfigError(f"no arm is called {', '.join(unknown)}; there are {', '.join(names)}.")
        late = by_arm_of([record for record in self.runs if record["seed"] >= first_seed], names)
        early = by_arm_of([record for record in self.runs if record["seed"] < first_seed], names)
        return replace(
            self,
            arms=_compare(late, self.baseline),
            corruptions=all_by_corruption(late),
            classes=all_by_class(late),
            transductive=tuple(name for name in names if name in transductive),
            first_seed=first_seed,
            chosen=tuple(_compare(early, self.baseline)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the same as JSON-ready values."""
        return {
            "baseline": self.baseline,
            "settings": self.settings,
            "arms": [asdict(arm) for arm in self.arms],
            "corruptions": self.corruptions,
            "transductive": list(self.transductive),
            "first_seed": self.first_seed,
            "chosen": [asdict(arm) for arm in self.chosen],
            **({"classes": self.classes} if self.classes else {}),
        }

    def table(self) -> str:
        """Format the scores as text for a terminal."""
        from styleaug.robustness.report import plain_table

        return plain_table(self)

    def markdown(self) -> str:
        """Format the scores as Markdown."""
        return _markdown_table(self)

    def save(self, path: Path) -> Path:
        """Write the Markdown table."""
        with atomic(path) as part:
            part.write_text(self.markdown(), encoding="utf-8")
        return path


def measures_of(record: Record) -> dict[str, float]:
    """Return the scores of a run: each domain, mean of the others, mean of the corruptions."""
    others = [score for name, score in record["scores"].items() if name != HOME]
    found = dict(record["scores"])
    if len(others) > 1:
        found[_OTHERS] = std.fmean(others)
    if record["corrupted"]:
        found[CORRUPTED] = std.fmean(record["corrupted"].values())
    return found


def by_arm_of(records: Sequence[Record], names: Iterable[str]) -> dict[str, list[Record]]:
    """Return the runs of each arm: of these arms, then of others; without arms that have no runs."""
    by_arm: dict[str, list[Record]] = {name: [] for name in names}
    for record in records:
        by_arm.setdefault(record["arm"], []).append(record)
    return {name: found for name, found in by_arm.items() if found}


def all_by_corruption(by_arm: Mapping[str, Sequence[Record]]) -> dict[str, dict[str, float]]:
    """Compute the mean score of each arm and corruption, for the arms with corrupted tests."""
    return {name: by_corruption(found) for name, found in by_arm.items() if found[0]["corrupted"]}


def by_corruption(records: Sequence[Record]) -> dict[str, float]:
    """Compute the mean score of each corruption over seeds and severities."""
    names = dict.fromkeys(key.rpartition(" ")[0] for key in records[0]["corrupted"])
    return {
        name: std.fmean(
            score
            for record in records
            for key, score in record["corrupted"].items()
            if key.rpartition(" ")[0] == name
        )
        for name in names
    }


def all_by_class(by_arm: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """Compute `by_class` for each arm with masks."""
    return {name: by_class(found) for name, found in by_arm.items() if found and "classes" in found[0]}


def by_class(records: Sequence[Record]) -> dict[str, dict[str, dict[str, float]]]:
    """Compute the mean of each measure over seeds, by domain and class, where all records have it."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for domain, classes in records[0]["classes"].items():
        for name, measures in classes.items():
            for measure in measures:
                values = [record["classes"].get(domain, {}).get(name, {}).get(measure) for record in records]
                if None not in values:
                    found.setdefault(domain, {}).setdefault(name, {})[measure] = std.fmean(values)
    return found


def _compare(by_arm: Mapping[str, Sequence[Record]], baseline: str) -> list[ArmResult]:
    """Summarise each arm and its difference from the baseline over the same seeds."""
    scores = {
        name: {
            measure: {record["seed"]: measures_of(record)[measure] for record in records}
            for measure in measures_of(records[0])
        }
        for name, records in by_arm.items()
    }
    clocks = {name: std.median(record["seconds"] for record in records) for name, records in by_arm.items()}
    base = scores.get(baseline, {})
    gaps = {
        name: {
            measure: gap
            for measure, by_seed in found.items()
            if name != baseline and measure in base and (gap := difference(by_seed, base[measure]))
        }
        for name, found in scores.items()
    }
    corrected: dict[str, dict[str, float]] = {name: {} for name in scores}
    for measure in base:
        tested = {name: gap[measure].p for name, gap in gaps.items() if measure in gap}
        for name, p in holm({name: p for name, p in tested.items() if p is not None}).items():
            corrected[name][measure] = p
    return [
        ArmResult(
            name,
            records[0]["spec"].rpartition(" #")[0],
            tuple(sorted(record["seed"] for record in records)),
            {measure: spread(list(by_seed.values())) for measure, by_seed in scores[name].items()},
            gaps[name],
            corrected[name],
            clocks[name],
            clocks[name] / clocks[baseline] if clocks.get(baseline) else None,
        )
        for name, records in by_arm.items()
    ]


@dataclass(frozen=True)
class Plan:
    """Planned runs of a robustness test, and their estimated time."""

    classes: tuple[str, ...]
    images: dict[str, int]
    runs: int
    missing: int
    seconds: dict[str, float]
    """Seconds of one training, for each arm with missing runs."""
    test_seconds: float
    """Seconds of the tests of one run."""
    corruption_seconds: float
    total_seconds: float
    jobs: int
    settings: dict[str, Any]
    failed: list[tuple[Path, str]]
    """Files that could not be read, with the reasons."""

    @classmethod
    def of(
        cls,
        protocol: Protocol,
        store: Store,
        settings: dict[str, Any],
        jobs: Sequence[Any],
        missing: Sequence[Any],
        seconds: Mapping[str, tuple[float, float]],
        per_corruption: Mapping[str, float],
    ) -> "Plan":
        """Make a plan from the measured times."""
        homes = protocol.seeds if HOME not in store.domains else 1
        held_out = len(store.labels(HOME)) if HOME in store.domains else held_out_of(protocol, store)
        corrupting = sum(per_corruption.values()) * held_out * len(protocol.severities) * homes
        training = sum(sum(seconds[job.arm.name]) for job in missing)
        return cls(
            store.classes,
            {name: domain.images for name, domain in store.domains.items()},
            len(jobs),
            len(missing),
            {name: clock[0] for name, clock in seconds.items()},
            max((clock[1] for clock in seconds.values()), default=0.0),
            corrupting,
            (corrupting + training) / protocol.jobs,
            protocol.jobs,
            settings,
            store.failed,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the same as JSON-ready values."""
        return {name: value for name, value in asdict(self).items() if name != "failed"}

    def table(self) -> str:
        """Format the plan as text."""
        lines = [f"{len(self.classes)} classes: {', '.join(map(printable, self.classes))}"]
        lines += ["images: " + ", ".join(f"{printable(name)} {n}" for name, n in self.images.items())]
        recipe = ", ".join(f"{key} {value}" for key, value in self.settings["recipe"].items())
        kind, name = network_of(self.settings)
        lines += [f"{kind.lower()}: {name}; {recipe}"]
        lines += [f"runs: {self.runs}, of which {self.runs - self.missing} are done"]
        for name, seconds in self.seconds.items():
            lines += [f"  {printable(name):32} {duration(seconds)} of training"]
        if self.missing:
            lines += [f"tests of each run: {duration(self.test_seconds)}"]
        if self.corruption_seconds:
            lines += [f"corrupting, once: {duration(self.corruption_seconds)}"]
        lines += [f"in all about {duration(self.total_seconds)}, with jobs={self.jobs}"]
        return "\n".join(lines)


def held_out_of(protocol: Protocol, store: Store) -> int:
    """Count the images of the home test."""
    return len(protocol.split(store.labels(TRAIN), 0)[1])


def duration(seconds: float) -> str:
    """Format a time in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


NOTE = (
    "Recall averaged over classes, in percent: mean over seeds, and sample standard deviation. Differences "
    "from {baseline} are paired by seed (same split, initial weights, batches, geometry), with 95 % t "
    "interval. 'better' and 'worse': the interval is clear of 0; (Holm n.s.): no longer so among all arms. "
    "s: median seconds of training, and how many times {baseline}'s."
)


MASK_NOTE = (
    "Dice in percent: for each class but the background the mean over images, then the mean over classes; "
    "mean over seeds, and sample standard deviation. An image counts for the classes that its mask or the "
    "network shows. Differences from {baseline} are paired by seed (same split, initial weights, batches, "
    "geometry), with 95 % t interval. 'better' and 'worse': the interval is clear of 0; (Holm n.s.): no "
    "longer so among all arms. s: median seconds of training, and how many times {baseline}'s."
)
MASK_MEASURES = {"dice": "Dice", "iou": "IoU", "nsd": "surface Dice"}
"""Titles of the measures of masks."""


def note_of(settings: Mapping[str, Any]) -> str:
    """Return the text below the table."""
    return MASK_NOTE if settings.get("task") == "segmentation" else NOTE


def network_of(settings: Mapping[str, Any]) -> tuple[str, str]:
    """Return the kind and the name of the network."""
    if settings.get("task") == "segmentation":
        return "Segmentation network", settings["segmenter"]
    return "Classifier", settings["classifier"]


def tables_of(result: "Robustness") -> list[tuple[str, list[list[str]]]]:
    """Return the tables with their titles: first what is reported, then what is set aside.

    Each is in two parts if there are transductive arms. A result that is not `reported` has one table
    without a title.
    """
    seeds = ("", "")
    if result.first_seed:
        last = result.first_seed - 1
        chosen = "Seed 0" if last == 0 else f"Seeds 0 to {last}"
        seeds = (f"Seed {result.first_seed} and later", f"{chosen}, set aside to choose settings on")
    parts = [(False, ""), (True, "")]
    if result.transductive:
        parts = [
            (False, "arms that saw no image of the tests"),
            (True, "arms that saw images of the tests, without labels"),
        ]
    tables = []
    for when, arms in zip(seeds, (result.arms, result.chosen), strict=True):
        for saw, what in parts:
            part = [arm for arm in arms if (arm.name in result.transductive) == saw]
            if part:
                title = ": ".join(filter(None, (when, what)))
                tables.append((title[:1].upper() + title[1:], rows_of(part, result.baseline)))
    return tables or [("", rows_of([], result.baseline))]


def rows_of(arms: Sequence["ArmResult"], baseline: str) -> list[list[str]]:
    """Return the cells of a table, the header first."""
    measures = list(arms[0].scores) if arms else []
    compared = [name for name in ("mean of others", "corrupted") if name in measures]
    if "mean of others" not in measures:
        compared = [name for name in measures if name not in ("home", "corrupted")] + compared
    compared = compared or measures[:1]
    gaps = [f"{name} minus {baseline}" for name in compared]
    rows = [["arm", "seeds", *measures, *gaps, "s"]]
    for arm in arms:
        cells = [arm.name, str(len(arm.seeds)), *(spread_cell(arm.scores[name]) for name in measures)]
        cells += [gap_cell(arm, name, baseline) for name in compared]
        slow = "" if arm.slowdown is None or arm.name == baseline else f" ({arm.slowdown:.2f}x)"
        rows.append([*cells, f"{arm.seconds:.1f}{slow}"])
    return rows


def spread_cell(found: Spread) -> str:
    """Format a mean and its deviation."""
    return f"{100 * found.mean:.1f}" + ("" if found.deviation is None else f" ± {100 * found.deviation:.1f}")


def gap_cell(arm: "ArmResult", measure: str, baseline: str) -> str:
    """Format a difference, its interval and its verdict."""
    gap: Difference | None = arm.differences.get(measure)
    if gap is None:
        return "" if arm.name == baseline else "no common seed"
    if gap.low is None or gap.high is None:
        return f"{100 * gap.mean:+.1f}, one seed: no verdict"
    p = arm.p_holm.get(measure)
    doubt = " (Holm n.s.)" if gap.verdict in ("better", "worse") and p is not None and p >= 0.05 else ""
    return f"{100 * gap.mean:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}] {gap.verdict}{doubt}"


def corruption_rows(result: "Robustness") -> list[list[str]]:
    """Return the cells of the table of corruptions, averaged over severities."""
    names = list(next(iter(result.corruptions.values()), {}))
    rows = [["corruption", *result.corruptions]]
    for name in names:
        rows.append([name, *(f"{100 * found[name]:.1f}" for found in result.corruptions.values())])
    return rows


def class_rows(result: "Robustness") -> list[list[str]]:
    """Return the cells of the table of classes: domain, class and measure of each arm."""
    arms = list(result.classes)
    rows = [["domain, class, measure", *arms]]
    for domain, classes in result.classes[arms[0]].items():
        for name, measures in classes.items():
            for measure in measures:
                values = [result.classes[arm].get(domain, {}).get(name, {}).get(measure) for arm in arms]
                cells = ["" if value is None else f"{100 * value:.1f}" for value in values]
                rows.append([f"{domain}, {name}, {titled(measure, result.settings)}", *cells])
    return rows


def titled(measure: str, settings: Mapping[str, Any]) -> str:
    """Return the title of a measure of masks."""
    within = f" at {settings['tolerance']:g} px" if measure == "nsd" else ""
    return MASK_MEASURES[measure] + within


def plain_table(result: "Robustness") -> str:
    """Format the scores for a terminal."""
    lines: list[str] = []
    for title, rows in tables_of(result):
        lines += [*([title] if title else []), *aligned(rows), ""]
    if result.corruptions:
        lines += [*aligned(corruption_rows(result)), ""]
    if result.classes:
        lines += [*aligned(class_rows(result)), ""]
    return "\n".join([*lines, note_of(result.settings).format(baseline=printable(result.baseline))])


def aligned(rows: list[list[str]]) -> list[str]:
    """Pad cells to aligned columns."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _markdown_table(result: "Robustness") -> str:
    """Format the scores and the settings in Markdown."""
    settings = result.settings
    recipe = ", ".join(f"{name} {value}" for name, value in settings["recipe"].items())
    domains = ", ".join(f"{markdown(name)} {found['images']}" for name, found in settings["domains"].items())
    lines = ["# Robustness", "", note_of(settings).format(baseline=markdown(result.baseline)), ""]
    lines += [f"{' '.join(network_of(settings))}: {recipe}.", ""]
    lines += [f"Classes: {', '.join(map(markdown, settings['classes']))}. Images: {domains}.", ""]
    for title, rows in tables_of(result):
        lines += [*([f"## {title}", ""] if title else []), *text_table(rows), ""]
    if result.corruptions:
        lines += [
            "Corruptions, mean over severities and seeds:",
            "",
            *text_table(corruption_rows(result)),
            "",
        ]
    if result.classes:
        lines += ["Classes, mean over seeds:", "", *text_table(class_rows(result)), ""]
    specs = {arm.name: arm.spec for arm in (*result.arms, *result.chosen)}
    lines += ["Arms:", "", *(f"- {markdown(name)}: {code(spec)}" for name, spec in specs.items()), ""]
    return "\n".join(lines)


def text_table(rows: list[list[str]]) -> list[str]:
    """Format a Markdown table; cells may contain any text."""
    head, *others = ["| " + " | ".join(map(markdown, row)) + " |" for row in rows]
    return [head, "|---|" + "--:|" * (len(rows[0]) - 1), *others]
