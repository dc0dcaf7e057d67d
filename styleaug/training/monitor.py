"""The records of a training run: log, TensorBoard files, sample grids and report."""

import json
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from styleaug.errors import FileError
from styleaug.io.atomic import atomic
from styleaug.io.files import save_image
from styleaug.training.report import NOT_VALUES, clean_text, flat, render

__all__ = ["Monitor"]

_GAP = 2
"""White pixels between the tiles of a grid."""
TEXT_GAP = 6
"""White pixels on both sides of the name of a row."""
PICTURE = re.compile(r"step-(\d{8,})\.png")


class Monitor:
    """Write the records of a run: log.jsonl, TensorBoard, sample grids, report.html.

    TensorBoard's files are written if `tensorboard` is installed. If several processes train, only one
    has a monitor.

    Args:
        run: folder for `log.jsonl`, `samples/`, `tensorboard/` and `report.html`; made if missing.
        title: title of the report.
        facts: the configuration, shown in the report.
        step: step from which the run goes on. Later records of a killed process are deleted; at 0 all
            records are deleted.

    Raises:
        FileError: `run` cannot be written to.
    """

    run: Path
    title: str
    facts: dict[str, Any]
    board: Any

    def __init__(self, run: Path, *, title: str, facts: dict[str, Any], step: int = 0):
        self.run, self.title, self.facts = Path(run), title, facts
        self.log: Path = self.run / "log.jsonl"
        try:
            (self.run / "samples").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"cannot write to {self.run}: {error.strerror}.") from None
        take_up(self.log, step)
        for beyond, path in self.pictures():
            if beyond > step or step == 0:
                path.unlink(missing_ok=True)
        self.board = open_board(self.run / "tensorboard", step)
        if self.board:
            self.board.add_text("configuration", _markdown_table(facts), step)

    def losses(self, step: int, values: dict[str, float], *, images_per_second: float) -> None:
        """Write the losses of a step."""
        self.write({"event": "losses", "step": step, "images_per_second": images_per_second}, values)
        self.scalars(step, {f"losses/{name}": value for name, value in values.items()})
        self.scalars(step, {"speed/images per second": images_per_second})

    def scores(self, step: int, values: dict[str, float]) -> None:
        """Write the scores of a step, as `Judge.score` returns them."""
        self.write({"event": "scores", "step": step}, values)
        self.scalars(step, {f"scores/{name}": value for name, value in values.items()})

    def alarm(self, step: int, text: str) -> None:
        """Write an alarm."""
        self.write({"event": "alarm", "step": step}, {"text": text})
        if self.board:
            self.board.add_text("alarms", clean_text(text), step)
            self.board.flush()

    def samples(self, step: int, rows: Sequence[Float[Tensor, "K 3 H W"]], names: Sequence[str] = ()) -> Path:
        """Write a grid of images.

        Args:
            step: step in the name of the file.
            rows: one batch for each row, for example contents, outputs and targets, in [0, 1]. They are
                resized to the size of the first.
            names: names of the rows, written on their left.

        Returns:
            The path of `samples/step-00000500.png`.
        """
        pixels = _grid(rows)
        if names:
            pixels = torch.cat([_labels(names, (pixels.shape[1] - _GAP) // len(rows), _GAP), pixels], dim=2)
        path = self.run / "samples" / f"step-{step:08d}.png"
        save_image(Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()), path)
        if self.board:
            self.board.add_image("samples", pixels, step)
            self.board.flush()
        return path

    def report(self, outcome: dict[str, Any] | None = None) -> Path:
        """Write `report.html` from the files in the run's folder."""
        page = render(self.title, self.facts, read_log(self.log), self.pictures(), outcome)
        path = self.run / "report.html"
        with atomic(path) as part:
            part.write_text(page, encoding="utf-8")
        return path

    def close(self, outcome: dict[str, Any]) -> Path:
        """Write the last report and close TensorBoard's file.

        Args:
            outcome: the chosen step and the reason, for example `{"chosen step": 1500, "why": "...",
                "scores": {...}}`.

        Returns:
            The path of `report.html`.
        """
        if self.board:
            self.board.close()
            self.board = None
        return self.report(outcome)

    def rows(self, event: str) -> list[dict[str, Any]]:
        """Return the rows of one kind in the log, in order."""
        return [row for row in read_log(self.log) if row.get("event") == event]

    def pictures(self) -> list[tuple[int, Path]]:
        """List the sample grids and their steps, in order."""
        files = (self.run / "samples").glob("step-*.png")
        named = [(PICTURE.fullmatch(path.name), path) for path in files]
        return sorted((int(match[1]), path) for match, path in named if match)

    def write(self, head: dict[str, Any], values: dict[str, Any]) -> None:
        """Append a row to the log; values that are not finite become null, as JSON requires."""
        assert not set(values) & NOT_VALUES, f"reserved names among {sorted(values)}"
        row = {**head, "time": round(time.time(), 1), **values}
        row = {name: value if is_finite(value) else None for name, value in row.items()}
        try:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        except OSError as error:
            raise FileError(f"cannot write {self.log}: {error.strerror}.") from None

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write numbers to TensorBoard's file."""
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(clean_text(name), value, step)


def is_finite(value: Any) -> bool:
    """Return whether the value is no float or a finite one, as JSON requires."""
    return not isinstance(value, float) or math.isfinite(value)


def open_board(folder: Path, step: int) -> Any:
    """Open TensorBoard's writer; return None if it is not installed or cannot use the folder's name."""
    try:
        str(folder).encode()
        from torch.utils.tensorboard import SummaryWriter
    except (ImportError, UnicodeEncodeError):
        return None
    # TensorBoard hides its records from this step on; the step itself was finished.
    return SummaryWriter(folder, purge_step=step + 1 if step else 0, flush_secs=30)


def _markdown_table(facts: dict[str, Any]) -> str:
    """Format the facts as a Markdown table for TensorBoard."""
    cells = [
        [clean_text(cell).replace("|", "\\|").replace("\n", " ") for cell in pair] for pair in flat(facts)
    ]
    return "\n".join(
        ["| name | value |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in cells)]
    )


def take_up(log: Path, step: int) -> None:
    """Delete the rows of a log after `step` (all rows if it is 0) and incomplete lines.

    Raises:
        FileError: the log cannot be read or written.
    """
    try:
        old = log.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise FileError(f"cannot read {log}: {error.strerror}.") from None
    rows = [(line, _parse(line)) for line in old.splitlines() if step]
    kept = b"".join(line + b"\n" for line, row in rows if row and row["step"] <= step)
    if kept != old:
        with atomic(log) as part:
            part.write_bytes(kept)


def read_log(log: Path) -> list[dict[str, Any]]:
    """Read the rows of a log, without incomplete lines."""
    try:
        lines = log.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    return [row for row in map(_parse, lines) if row]


def _parse(line: bytes) -> dict[str, Any] | None:
    """Parse one row; return None if the line is no row."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _labels(names: Sequence[str], height: int, top: int) -> UInt8[Tensor, "3 Y X"]:
    """Draw the names of rows on white, each centred in its row of `height` pixels, from `top` down."""
    font = ImageFont.load_default(max(12, height // 8))
    width = math.ceil(max(font.getlength(name) for name in names)) + 2 * TEXT_GAP
    strip = Image.new("RGB", (width, top + height * len(names)), "white")
    pen = ImageDraw.Draw(strip)
    for row, name in enumerate(names):
        middle = top + row * height + height // 2
        pen.text((width - TEXT_GAP, middle), name, fill="black", font=font, anchor="rm")
    return torch.from_numpy(np.array(strip)).permute(2, 0, 1)


def _grid(rows: Sequence[Float[Tensor, "K 3 H W"]]) -> UInt8[Tensor, "3 Y X"]:
    """Arrange batches as rows of tiles on white; all rows are cut to the length of the shortest."""
    columns = min(len(row) for row in rows)
    size = rows[0].shape[-2:]
    lines = []
    for row in rows:
        tiles = row[:columns].detach().cpu().float()
        if tiles.shape[-2:] != size:
            tiles = F.interpolate(tiles, size=size, mode="bilinear", antialias=True)
        tiles = F.pad(tiles.nan_to_num(0).clamp(0, 1), (0, _GAP, 0, _GAP), value=1)
        lines.append(torch.cat(list(tiles), dim=2))
    page = F.pad(torch.cat(lines, dim=1), (_GAP, 0, _GAP, 0), value=1)
    return (page * 255).round().byte()
