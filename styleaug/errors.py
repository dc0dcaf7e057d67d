"""Every exception that styleaug raises on purpose.

    StyleAugError
    ├── ImageError    (ValueError)    pixels, shapes, dtypes or ranges that no generator can take
    ├── FileError     (OSError)       a file or folder that is missing, unreadable or too large
    ├── BankError     (ValueError)    a style bank that is damaged, or made by another generator
    ├── WeightsError  (ValueError)    generator weights that are damaged, unknown or do not fit
    ├── ConfigError   (ValueError)    an argument outside its range
    │   └── MissingExtraError (ImportError)  what was asked for needs a library that is not installed
    ├── TrainError    (RuntimeError)  a training run that diverged
    └── DeviceError   (RuntimeError)  a device that cannot be used where it was asked for

Each is also the builtin in brackets, so that code which knows nothing of styleaug can catch it.
`LabelWarning` is no error: it says that an image seems to be a label map.
"""

import re
from html import escape
from pathlib import Path
from unicodedata import category

__all__ = [
    "BankError",
    "ConfigError",
    "DeviceError",
    "FileError",
    "ImageError",
    "LabelWarning",
    "MissingExtraError",
    "StyleAugError",
    "TrainError",
    "WeightsError",
    "code",
    "first_line",
    "markdown",
    "missing_extra",
    "name_bytes",
    "printable",
    "reason_of",
]

OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Kinds of characters that are not shown: controls, formats such as bidi overrides, surrogates, line ends."""
SYNTAX = re.compile(r"[\\`*|]|(?<=\])\(")
"""What means something inside a line or cell of Markdown."""


def printable(text: object) -> str:
    r"""Return text as one line without control characters; in their place are escapes such as `\x1b`.

    Applied again, it changes nothing.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(escaped(letter) if category(letter) in OBEYED else letter for letter in text)


def escaped(letter: str) -> str:
    """Return the escape that Python writes for a character."""
    return letter.encode("unicode_escape").decode("ascii")


def name_bytes(name: str) -> bytes:
    """Return bytes that tell any name from others: UTF-8, also where a file's name is none."""
    return name.encode("utf-8", "surrogatepass")


def markdown(text: object) -> str:
    """Return text that Markdown shows as it is: no HTML, no links, and no new cell of a table."""
    return escape(SYNTAX.sub(r"\\\g<0>", printable(text)), quote=False)


def code(text: object) -> str:
    """Return text as Markdown's code, in which nothing but a backtick means anything."""
    return f"`{printable(text).replace('`', chr(39))}`"


class LabelWarning(UserWarning):
    """An image that is about to be styled seems to hold labels."""


class StyleAugError(Exception):
    """Base of all errors of this library."""

    def __str__(self) -> str:
        """Return the message as one line that any terminal may show, whatever names it quotes."""
        return printable(super().__str__())


class ImageError(StyleAugError, ValueError):
    """Pixels, shapes, dtypes or ranges that no generator can take."""


class FileError(StyleAugError, OSError):
    """A file or folder that is missing, unreadable or too large."""


class BankError(StyleAugError, ValueError):
    """A style bank that is damaged, or was made by another generator."""


class WeightsError(StyleAugError, ValueError):
    """Generator weights that are damaged, unknown or do not fit."""


class ConfigError(StyleAugError, ValueError):
    """An argument outside its range."""


class MissingExtraError(ConfigError, ImportError):
    """What was asked for needs a library that is not installed: the message says how to get it."""


class TrainError(StyleAugError, RuntimeError):
    """A training run that diverged."""


class DeviceError(StyleAugError, RuntimeError):
    """A device that cannot be used where it was asked for."""


def missing_extra(what: str, library: str, extra: str) -> MissingExtraError:
    """Return the error that says which extra to install, from PyPI and in a clone.

    Args:
        what: needs the library.
        library: as people call it.
        extra: of `pyproject.toml`.
    """
    return MissingExtraError(
        f'{what} needs {library}: pip install "styleaug[{extra}]", or in a clone of the repository '
        f'pip install -e ".[{extra}]" (with uv: uv sync --extra {extra}).'
    )


def first_line(error: BaseException) -> str:
    """Return what an error of any library says, in a line that ends with a full stop."""
    text = (str(error).strip().splitlines() or [""])[0][:300].rstrip(".: ")
    known = isinstance(error, OSError | ValueError | RuntimeError | StyleAugError)
    return (text if text and known else f"{type(error).__name__}: {text}".rstrip(": ")) + "."


def reason_of(path: Path, error: Exception) -> str:
    """Return what is wrong with a file, naming it, whatever a library raised over it."""
    text = str(error) if isinstance(error, StyleAugError) else first_line(error)
    return text if printable(path) in text or str(path) in text else f"{path}: {text}"
