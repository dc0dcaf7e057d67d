"""The machine card: what a figure was measured on. Every result of a benchmark carries one."""

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch
import torchvision

__all__ = ["describe_card", "machine_card", "markdown", "publish"]


def machine_card() -> dict[str, str | int | float]:
    """Describe this machine and its software; no host name, no user name, no paths."""
    card: dict[str, str | int | float] = {
        "cpu": cpu_name(),
        "cores": available_cores(),
        "ram_gb": ram_gb(),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "os": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    if torch.cuda.is_available():
        card["gpu"] = torch.cuda.get_device_name()
        card["cuda"] = str(torch.version.cuda)
    return card


def describe_card(card: dict[str, str | int | float]) -> str:
    """Put a card in one line, for the head of a table."""
    gpu = f", {card['gpu']} (CUDA {card['cuda']})" if "gpu" in card else ""
    return (
        f"{card['cpu']}, {card['cores']} cores, {card['ram_gb']} GB, {card['simd']}{gpu}; "
        f"torch {card['torch']}, Python {card['python']}, commit {card['commit']}, {card['date']}"
    )


def publish(out: Path | None, title: str, rows: dict[str, dict], *, notes: str = "") -> str:
    """Write `rows` as JSON and as a table, with command and machine card; return the table.

    Args:
        out: the JSON file; None writes nothing.
        title: heading of the table.
        rows: name -> column -> value; a column that a row lacks stays empty.
        notes: a paragraph under the heading.
    """
    command = " ".join(["python", *sys.argv])
    lines = [f"# {title}", "", f"`{command}`", "", describe_card(machine_card()), ""]
    lines += [notes, ""] if notes else []
    table = "\n".join(lines + markdown(rows)) + "\n"
    if out:
        out.with_suffix(".md").write_text(table)
        result = {"command": command, "machine": machine_card(), "rows": rows}
        out.write_text(json.dumps(result, indent=1) + "\n")
    return table


def markdown(rows: dict[str, dict]) -> list[str]:
    """Return the lines of a table: name -> column -> value; missing values stay empty."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        cells = (row.get(column, "") for column in columns)
        shown = (f"{cell:g}" if isinstance(cell, int | float) else str(cell) for cell in cells)
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return lines


def cpu_name() -> str:
    """Read the model name of the CPU; virtual machines often shorten it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def available_cores() -> int:
    """Count the cores this process may use, which in a container are fewer than it sees."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ram_gb() -> float:
    """Read the memory of the machine in GB, NaN where the system does not tell."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, OSError, ValueError):
        return float("nan")


def commit() -> str:
    """Return the commit of this checkout, with `+` if the library differs from it."""
    root = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "styleaug", "pretrained", "benchmarks/*.py")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    print(describe_card(machine_card()))
