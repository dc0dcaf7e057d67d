"""What do damaged and hostile files do? Each case goes the way that a user's file goes.

    python benchmarks/attack.py --cases 20000 --out benchmarks/results/attack.json

Every case is a file that was written well and then changed, at random or with malice, and made to be used. A
case is its number and the seed: `--only KIND --case N` runs it again and shows what it raises. Cases run in
forked processes, so that a crash, a hang or a flood of memory ends one process, and is counted.
"""

import argparse
import gc
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attack_files import KINDS, Kind, mutate, special
from machine import publish

from styleaug.errors import StyleAugError

OUTCOMES = ("clean", "right", "wrong", "foreign", "hang", "crash", "memory")
HANG = 5.0
"""Processor seconds after which a case counts as a hang; a waiting case is ended after six times as many."""
MEMORY = 500 * 2**20
"""Bytes that a case may allocate in addition to what the process had."""
ROOM = 6 * 2**30
"""Largest number of bytes of a process, so that no case can exhaust the machine's memory."""
BATCH = 250
NEW = ("chunk", "repack")
"""Changes after which the checksum is recomputed, so that the file is valid again."""

NOTES = """\
Kinds of files, and what became of cases. *clean*: our error, which names the file. *right*: used, with the
same result as the file that was not changed, or as another file that is just as valid. *wrong*: used though
a checksum or a bound could have told, or a result that is not finite or all black. *foreign*: an exception
that is not ours, or an error that does not name the file. *hang*: over 5 s of a processor. *crash*: the
process was ended by a signal. *memory*: over 500 MB more than before."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], help="kinds of files")
    parser.add_argument("--case", type=int, help="run this one alone, in this process")
    parser.add_argument("--failures", type=Path, help="write what failed to this file, a line each")
    parser.add_argument("--out", type=Path, help="JSON file of the result")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if args.case is not None:
            print(
                run_case(
                    args.seed, args.case, chosen(args.only), specimens(Path(folder)), Path(folder), loud=True
                )
            )
            return
        found = attack(args.cases, args.seed, args.only, Path(folder))
    bad = [case for case in found if case["outcome"] not in ("clean", "right")]
    for case in bad[:50]:
        print(json.dumps(case), file=sys.stderr)
    if args.failures:
        args.failures.write_text("".join(json.dumps(case) + "\n" for case in bad))
    print(publish(args.out, f"{len(found):,} damaged and hostile files", table(found), notes=NOTES))


def chosen(only: list[str]) -> list[Kind]:
    """Choose kinds by name."""
    return [kind for kind in KINDS if not only or kind.name in only]


def table(found: list[dict[str, Any]]) -> dict[str, dict]:
    """Count outcomes by kind."""
    rows = {}
    for name in [*dict.fromkeys(case["kind"] for case in found), "all"]:
        cases = [case for case in found if name in (case["kind"], "all")]
        counts = Counter(case["outcome"] for case in cases)
        rows[name] = {
            "cases": len(cases),
            **{outcome: counts[outcome] for outcome in OUTCOMES},
            "most s": round(max(case["seconds"] for case in cases), 2),
            "most MB": round(max(case["bytes"] for case in cases) / 2**20),
        }
    return rows


def attack(cases: int, seed: int, only: list[str], folder: Path) -> list[dict[str, Any]]:
    """Run cases, a batch of them in a process; behind a case that ends it, the next one goes on."""
    kinds, whole = chosen(only), specimens(folder)
    found: list[dict[str, Any]] = []
    while len(found) < cases:
        numbers = range(len(found), min(len(found) + BATCH, cases))
        log = folder / f"log-{numbers[0]}"
        log.touch()
        gc.collect()
        child = os.fork()
        if child == 0:
            batch(seed, numbers, kinds, whole, folder, log)
        ended = watch(child, log)
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        done = [line for line in lines if "outcome" in line]
        found += done
        if len(done) < len(numbers):
            begun = (
                lines[-1]
                if lines and "outcome" not in lines[-1]
                else {"case": len(found), "kind": "?", "how": ""}
            )
            found.append({**begun, "outcome": ended, "seconds": 0.0, "bytes": 0, "said": ended})
    return found


def watch(child: int, log: Path) -> str:
    """Wait for a process, end it if a case takes too long, and return how it ended."""
    size, since, used = -1, time.monotonic(), 0.0
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return "crash" if os.WIFSIGNALED(status) else "foreign"
        if log.stat().st_size != size:
            size, since, used = log.stat().st_size, time.monotonic(), processor(child)
        if processor(child) - used > 2 * HANG or time.monotonic() - since > 12 * HANG:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "hang"
        time.sleep(0.02)


def processor(child: int) -> float:
    """Read how many seconds of a processor a process has used."""
    try:
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def batch(seed: int, numbers: range, kinds: list[Kind], whole: dict, folder: Path, log: Path) -> None:
    """Run cases one after the other, and end the process."""
    try:
        limit = memory("VmData") + ROOM
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 2)  # decoders print
        os.dup2(sink, 1)
        with log.open("a") as file:
            for number in numbers:
                kind, how = described(seed, number, kinds)
                file.write(json.dumps({"case": number, "kind": kind.name, "how": how}) + "\n")
                file.flush()
                file.write(json.dumps(run_case(seed, number, kinds, whole, folder)) + "\n")
                file.flush()
        os._exit(0)
    except BaseException:
        os._exit(1)


def described(seed: int, number: int, kinds: list[Kind]) -> tuple[Kind, str]:
    """Return the kind of a case, and the change of its file."""
    specials = [(kind, name) for kind in kinds for name in special(kind)]
    if number < len(specials):
        return specials[number]
    return kinds[(number - len(specials)) % len(kinds)], ""


def run_case(
    seed: int, number: int, kinds: list[Kind], whole: dict, folder: Path, *, loud: bool = False
) -> dict[str, Any]:
    """Make the file of a case, use it, and judge what became of it."""
    kind, how = described(seed, number, kinds)
    rng = random.Random(f"{seed}:{number}:{kind.name}")
    place = folder / f"case-{number}"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder / kind.name, place)
    path = place / (folder / kind.name / kind.file).relative_to(folder / kind.name)
    try:
        if how:
            path = special(kind)[how](path) or path
        else:
            content, how = mutate(path.read_bytes(), rng, kind)
            path.write_bytes(content)
        reset_peak()
        before, start = memory("VmRSS"), time.process_time()
        outcome, said = judge(kind, path, whole, loud=loud, special=number < len_special(kinds) or how in NEW)
        used, taken = time.process_time() - start, memory("VmHWM") - before
    finally:
        shutil.rmtree(place, ignore_errors=True)
    outcome = "memory" if taken > MEMORY else "hang" if used > HANG else outcome
    facts = {"case": number, "kind": kind.name, "how": how, "outcome": outcome, "said": said[:300]}
    return {**facts, "seconds": round(used, 3), "bytes": max(0, taken)}


def len_special(kinds: list[Kind]) -> int:
    """Count the cases that are made with malice; they come first."""
    return sum(len(special(kind)) for kind in kinds)


def judge(kind: Kind, path: Path, whole: dict, *, loud: bool, special: bool) -> tuple[str, str]:
    """Use a file as its user would."""
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            result = kind.use(path)
    except StyleAugError as error:
        if loud:
            traceback.print_exc()
        return ("clean" if names(error, path) else "foreign"), f"{type(error).__name__}: {error}"
    except MemoryError as error:
        return "memory", f"MemoryError: {error}"
    except BaseException as error:
        if loud:
            traceback.print_exc()
        return "foreign", f"{type(error).__name__}: {error}"
    return weigh(kind, result, whole[kind.name], [str(each.message) for each in warned], special=special)


def names(error: Exception, path: Path) -> bool:
    """Return whether an error names a file or its folder, in any spelling."""
    words = re.findall(r"[A-Za-z0-9]{1,40}", path.name) or [path.name]
    return path.parent.name in str(error) or all(word in str(error) for word in words)


def weigh(kind: Kind, result: dict, whole: dict, warned: list[str], *, special: bool) -> tuple[str, str]:
    """Judge the result of a file that was used."""
    for name, values in result.items():
        values = np.asarray(values)
        if values.dtype.kind == "f" and not np.isfinite(values).all() and not result.get("gaps", False):
            return "wrong", f"{name} is not finite"
        if name == "styled" and values.size > 4 and not values.any() and np.asarray(result["image"]).any():
            return "wrong", "all black"
        if (
            values.dtype.kind == "f"
            and values.size
            and float(np.abs(values).max(initial=0)) > 1e30
            and kind.bounded
        ):
            return "wrong", f"{name} has values as large as {np.abs(values).max():.3g}"
    if special or any("digest" in text or "damaged" in text for text in warned):
        return "right", "; ".join(warned)
    if not kind.checked or same(result, whole):
        return "right", ""
    return "wrong", "other values than were written, though a checksum stands in the file"


def same(one: dict, other: dict) -> bool:
    """Compare two results."""
    return one.keys() == other.keys() and all(
        np.array_equal(
            np.asarray(one[name]), np.asarray(other[name]), equal_nan=np.asarray(one[name]).dtype.kind == "f"
        )
        for name in one
        if name != "gaps"
    )


def specimens(folder: Path) -> dict[str, dict]:
    """Write a file of each kind, use it, and keep the results."""
    whole = {}
    for kind in KINDS:
        (folder / kind.name).mkdir()
        kind.make(folder / kind.name / kind.file)
        shutil.copytree(folder / kind.name, folder / "whole")
        torch.manual_seed(0)
        whole[kind.name] = kind.use(folder / "whole" / kind.file)
        shutil.rmtree(folder / "whole")
    return whole


def memory(field: str) -> int:
    """Read a figure of this process's memory in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def reset_peak() -> None:
    """Reset the peak of this process's memory."""
    with suppress(OSError):  # without the right to it the peak of the batch so far counts
        Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
