"""Files that are whole or not there at all."""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

from styleaug.errors import FileError
from styleaug.paths import check_path

__all__ = ["atomic", "remove_parts"]

PART = ".part"
LEFT_BEHIND = re.compile(r"\.(.*)\.[a-z0-9_]{8}\.part(\.\w+)?", re.DOTALL)  # as `atomic` names them
STEM = 40
"""How much of the target's name a part has in its own."""


@contextmanager
def atomic(target: Path) -> Iterator[Path]:
    """Give a path beside `target` to write to; rename it over `target` when the block succeeds.

    Whatever happens, `target` is afterwards either what it was or the whole new file.

    Raises:
        FileError: the folder cannot be made or written to.
    """
    target = check_path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(
            dir=target.parent, prefix=f".{target.stem[:STEM]}.", suffix=PART + target.suffix, delete=False
        ) as handle:
            part = Path(handle.name)
    except OSError as error:
        raise FileError(f"cannot write to {target.parent}: {error.strerror}.") from None
    try:
        yield part
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)  # temporary files are private; the target is an ordinary file
        os.replace(part, target)
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"cannot write {target}: {error.strerror or error}.") from None
    finally:
        part.unlink(missing_ok=True)


def remove_parts(folder: Path, *, keep: Iterable[Path] = ()) -> None:
    """Delete what writes that were killed left behind below `folder`, and nothing else.

    Args:
        folder: searched with all below it.
        keep: targets that other processes write at this time.
    """
    others = {(target.parent, target.stem[:STEM], target.suffix) for target in keep}
    for part in Path(folder).rglob(f".*{PART}*"):
        name = LEFT_BEHIND.fullmatch(part.name)
        if name and (part.parent, name[1], name[2] or "") not in others:
            part.unlink(missing_ok=True)
