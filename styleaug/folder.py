"""Stylise a folder of images into another one: same tree, same file types, with a manifest."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from styleaug.atomic import remove_parts
from styleaug.bank import StyleBank
from styleaug.errors import ConfigError, FileError, StyleAugError
from styleaug.files import image_files, open_image, save_image
from styleaug.generators.base import AbstractGenerator
from styleaug.samplers import Sampler
from styleaug.transforms.core import WITHIN_BATCH, Stylizer

__all__ = ["Applied", "apply_folder"]

MANIFEST = "manifest.jsonl"


@dataclass
class Applied:
    """What a run over a folder did."""

    written: int = 0
    skipped: int = 0
    """Done by an earlier run."""

    failed: list[tuple[Path, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """One copy of one image."""

    source: Path
    target: Path
    name: str
    """Path of the source below the folder, with forward slashes."""

    output: str
    copy: int


def apply_folder(
    source: str | Path,
    out: str | Path,
    *,
    bank: str | Path | StyleBank | None = None,
    generator: str | Path | AbstractGenerator | None = None,
    copies: int = 1,
    strength: float | Sequence[float] = (0.5, 1.0),
    sampler: Sampler = "uniform",
    keep_luminance: bool = False,
    seed: int = 0,
    workers: int = 0,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Applied:
    """Write stylised copies of all images below `source` to `out`, and go on where a run stopped.

    A copy's style depends on the seed, its name and its number only: not on the workers, the order or
    what else is in the folder. `out/manifest.jsonl` holds the settings in its first line, then one line a
    copy: source, output, strength, and the rows of the bank with their shares. Lines are added as
    copies are finished; on a new call with the same settings, what the manifest names is skipped.

    Args:
        source: searched with all folders below it; never written to.
        out: made if it is missing; must lie outside `source`.
        bank: a shipped name, a path, a run folder, or a `StyleBank`; see `StyleAugment`.
        generator: see `StyleAugment`.
        copies: for each image; `photo.jpg` becomes `photo.jpg`, or `photo-1.jpg`, `photo-2.jpg`, ...
        strength: see `StyleAugment`.
        sampler: see `StyleAugment`.
        keep_luminance: see `StyleAugment`.
        seed: of all draws.
        workers: processes; 0 works in this one.
        report: called with the number of copies done and in all.

    Raises:
        FileError: no images, `out` in `source`, or `out` cannot be written to. Images that cannot be
            read do not stop the run; they are listed in the result.
        ConfigError: `out` holds a run with other settings.
    """
    source, out = Path(source), Path(out)
    if copies < 1:
        raise ConfigError(f"copies must be at least 1, got {copies}.")
    if out.resolve().is_relative_to(source.resolve()):
        raise FileError(f"{out} lies in {source}; write the copies to a folder outside it.")
    files = image_files(source)
    if bank == WITHIN_BATCH:
        raise ConfigError('bank="batch" takes styles from other images of a batch; here there is none.')
    stylizer = Stylizer(
        bank, generator=generator, p=1.0, strength=strength, sampler=sampler, keep_luminance=keep_luminance
    )
    known, home = stylizer.bank, stylizer.home
    settings = {
        # A bank carries its generator's fingerprint.
        "bank": hashlib.sha256(known.to_bytes()).hexdigest()[:16] if known else home.fingerprint,
        "generator": home.name,
        "copies": copies,
        "strength": list(stylizer.strength),
        "sampler": sampler,
        "keep_luminance": keep_luminance,
        "seed": seed,
    }
    jobs = plan(source, out, files, copies)
    done = open_manifest(out / MANIFEST, settings)
    remove_parts(out)
    todo = [job for job in jobs if job.output not in done or not job.target.exists()]
    result = Applied(skipped=len(jobs) - len(todo))
    loader = DataLoader(JobDataset(todo, stylizer, seed), batch_size=None, num_workers=workers)
    with (out / MANIFEST).open("a") as manifest:
        for index, (row, error) in enumerate(loader):
            if error:
                result.failed.append((todo[index].source, error))
            else:
                manifest.write(json.dumps(row) + "\n")
                manifest.flush()
                result.written += 1
            report(result.skipped + index + 1, len(jobs))
    return result


class JobDataset(Dataset[tuple[dict[str, Any], str]]):
    """Stylises when indexed, so that DataLoader's workers do the work.

    Items are the manifest's line, and an empty string or what was wrong with the image.
    """

    def __init__(self, jobs: list[Job], stylizer: Stylizer, seed: int):
        self.jobs, self.stylizer, self.seed = jobs, stylizer, seed

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, index: int) -> tuple[dict[str, Any], str]:
        job = self.jobs[index]
        digest = hashlib.sha256(f"{self.seed}:{job.copy}:{job.name}".encode()).digest()
        rng = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        try:
            image = open_image(job.source)
            params = self.stylizer.make_params(image, rng=rng)
            styled = self.stylizer.apply(image, params)
        except StyleAugError as error:
            reason = str(error)
            return {}, reason if str(job.source) in reason else f"{job.source}: {reason}"
        save_image(styled, job.target)
        row = {
            "source": job.name,
            "output": job.output,
            "copy": job.copy,
            "strength": round(float(params["strength"][0]), 6),
            "styles": params["sources"][0].tolist(),
            "shares": [round(share, 6) for share in params["shares"][0].tolist()],
        }
        return row, ""


def plan(source: Path, out: Path, files: list[Path], copies: int) -> list[Job]:
    """List every copy to be made, and make sure that none lands on an input."""
    inputs = {path.resolve() for path in files}
    jobs = []
    for path in files:
        relative = path.relative_to(source)
        for copy in range(1, copies + 1):
            name = path.name if copies == 1 else f"{path.stem}-{copy}{path.suffix}"
            output = relative.with_name(name)
            target = out / output
            if target.resolve() in inputs:
                raise FileError(f"{target} would overwrite an input; write the copies to another folder.")
            jobs.append(Job(path, target, relative.as_posix(), output.as_posix(), copy))
    return jobs


def open_manifest(path: Path, settings: dict[str, Any]) -> set[str]:
    """Start the manifest, or read which outputs an earlier run with the same settings finished."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.stat().st_size == 0:
            path.write_text(json.dumps({"settings": settings}) + "\n")
            return set()
        text = path.read_text()
    except OSError as error:
        raise FileError(f"cannot write to {path}: {error.strerror}.") from None
    rows = []
    for line in text.splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue  # the last line of a killed run; its copy is made again
    if not rows or rows[0].get("settings") != settings:
        found = rows[0].get("settings") if rows else None
        raise ConfigError(
            f"{path.parent} holds copies made with other settings: {found}, now {settings}. "
            "Use these settings, or another output folder."
        )
    if not text.endswith("\n"):
        with path.open("a") as file:
            file.write("\n")
    return {row["output"] for row in rows[1:] if "output" in row}
