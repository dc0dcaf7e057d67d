"""The result file of `wbc.py`, written run by run, and the table made from it."""

import fcntl
import json
import os
import statistics
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["HOMES", "Run", "append_run", "finished", "forget", "key", "others", "write_table"]

Run = dict[str, Any]
Key = tuple[str, str, str, str, int]

HOMES = ("pbc", "tecom")
LABS = ("pbc", "tecom", "cellavision_blog", "bccd")
MEAN = "mean of 3 others"


def others(home: str) -> tuple[str, ...]:
    """List the laboratories that a classifier trained in `home` is tested in."""
    return tuple(lab for lab in LABS if lab != home)


def key(run: Run) -> Key:
    """Name a run: a file holds one of each."""
    return run["home"], run["bank_split"], run["classifier"], run["arm"], run["seed"]


def append_run(path: Path, run: Run) -> None:
    """Add a run; other processes may add theirs to the same file."""
    with locked(path):
        write_runs(path, [*read_runs(path), run])


def forget(path: Path, keys: Iterable[Key]) -> None:
    """Drop runs, so that they are run again."""
    with locked(path):
        write_runs(path, [run for run in read_runs(path) if key(run) not in set(keys)])


def finished(path: Path) -> dict[Key, Run]:
    return {key(run): run for run in read_runs(path)}


def read_runs(path: Path) -> list[Run]:
    return json.loads(path.read_text())["runs"] if path.exists() else []


def write_runs(path: Path, runs: list[Run]) -> None:
    unfinished = path.with_suffix(".part")
    lines = ",\n".join(json.dumps(run, sort_keys=True) for run in sorted(runs, key=key))
    unfinished.write_text(f'{{"runs": [\n{lines}\n]}}\n')
    unfinished.replace(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from rewriting `path`. Locks its folder, so no lock file is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def write_table(path: Path) -> Path:
    """Write the Markdown table of a result file beside it, under the same name."""
    runs = read_runs(path)
    lines = ["# White blood cells: train in one laboratory, test in four", ""]
    lines += ["Balanced accuracy, mean ± standard deviation over seeds (of the sample, n - 1)."]
    lines += ["Trained on 100 images of each class; the other laboratories are never trained on."]
    lines += ["`minus none` is the difference to the arm `none` with the same seed (same split,"]
    lines += [f"initial weights, batches and geometry), for the {MEAN}; in brackets the seeds"]
    lines += ["in which the arm is the better one. `s/run` is the median time of training and home"]
    lines += ["test, on the clock and of the CPU. Settings are in the docstring of `wbc.py`.", ""]
    for protocol in sorted({key(run)[:3] for run in runs}):
        lines += section(*protocol, [run for run in runs if key(run)[:3] == protocol])
    lines += ["Commands (`STYLEAUG_DATA` and `STYLEAUG_WEIGHTS` set):", ""]
    lines += [f"    {command}" for command in sorted({run["command"] for run in runs})]
    lines += ["", "Machines:", ""]
    lines += [f"- {machine}" for machine in sorted({run["machine"] for run in runs})]
    table = path.with_suffix(".md")
    table.write_text("\n".join(lines) + "\n")
    return table


def section(home: str, bank_split: str, classifier: str, runs: list[Run]) -> list[str]:
    """Render the table of one classifier under one protocol."""
    tested = {
        "all": "the images tested on, unlabelled (transductive)",
        "half": "half of each other laboratory, tested on the other half",
    }
    settings = ", ".join(f"{name} {value}" for name, value in runs[0]["recipe"].items())
    labs = (home, *others(home))
    head = ["arm", "seeds", *labs, MEAN, "minus none", "s/run (CPU)"]
    where = " and ".join(sorted({f"{run['device']}, threads {run['threads']}" for run in runs}))
    lines = [f"## Trained in {home}, {classifier}; banks see {tested[bank_split]}", ""]
    lines += [f"{settings}; {where}.", ""]
    lines += ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    base = {run["seed"]: mean_of_others(run) for run in runs if run["arm"] == "none"}
    for arm in dict.fromkeys(run["arm"] for run in sorted(runs, key=arm_order)):
        of_arm = [run for run in runs if run["arm"] == arm]
        cells = [arm, str(len(of_arm))]
        cells += [spread([run["scores"][lab] for run in of_arm]) for lab in labs]
        cells += [f"**{spread([mean_of_others(run) for run in of_arm])}**"]
        gains = [mean_of_others(run) - base[run["seed"]] for run in of_arm if run["seed"] in base]
        cells += [gain_cell(gains) if arm != "none" else ""]
        clock = statistics.median(run["seconds"] for run in of_arm)
        cells += [f"{clock:.0f} ({statistics.median(run['cpu_seconds'] for run in of_arm):.0f})"]
        lines += ["| " + " | ".join(cells) + " |"]
    return [*lines, ""]


def arm_order(run: Run) -> tuple[int, str]:
    main = ("none", "jitter", "color", "color+guard", "photo", "photo+guard", "adain", "adain+guard", "both")
    return (main.index(run["arm"]) if run["arm"] in main else len(main), run["arm"])


def mean_of_others(run: Run) -> float:
    return statistics.fmean(run["scores"][lab] for lab in others(run["home"]))


def spread(scores: list[float], sign: str = "") -> str:
    deviation = f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
    return f"{statistics.fmean(scores):{sign}.3f}{deviation}"


def gain_cell(gains: list[float]) -> str:
    better = sum(gain > 0 for gain in gains)
    return f"{spread(gains, '+')} ({better} of {len(gains)})" if gains else "no `none` yet"
