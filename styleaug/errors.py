"""Every exception that styleaug raises on purpose.

    StyleAugError
    ├── ImageError    (ValueError)    pixels, shapes, dtypes or ranges that no generator can take
    ├── FileError     (OSError)       a file or folder that is missing, unreadable or too large
    ├── BankError     (ValueError)    a style bank that is damaged, or made by another generator
    ├── WeightsError  (ValueError)    generator weights that are damaged, unknown or do not fit
    ├── ConfigError   (ValueError)    an argument outside its range
    │   └── MissingExtraError (ImportError)  a feature needs a library that is not installed
    ├── TrainError    (RuntimeError)  a training run that diverged
    └── DeviceError   (RuntimeError)  a device that cannot be used here

Each is also the builtin in brackets, so code that does not know styleaug can catch it.
`LabelWarning` is a warning: an image seems to be a label map.
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
"""Unicode categories that are escaped: controls, formats such as bidi overrides, surrogates, line ends."""
SYNTAX = re.compile(r"[\\`*|]|(?<=\])\(")
"""Characters with a meaning inside a line or table cell of Markdown."""


def printable(text: object) -> str:
    r"""Return text as one line, with control characters written as escapes such as `\x1b`.

    A second call changes nothing.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(escaped(letter) if category(letter) in OBEYED else letter for letter in text)


def escaped(letter: str) -> str:
    """Return the escape that Python writes for a character."""
    return letter.encode("unicode_escape").decode("ascii")


def name_bytes(name: str) -> bytes:
    """Return a file name as UTF-8 bytes, also if the name is not valid UTF-8; different names differ."""
    return name.encode("utf-8", "surrogatepass")


def markdown(text: object) -> str:
    """Return text escaped so that Markdown shows it as it is: no HTML, links or table cells."""
    return escape(SYNTAX.sub(r"\\\g<0>", printable(text)), quote=False)


def code(text: object) -> str:
    """Return text as inline code in Markdown."""
    return f"`{printable(text).replace('`', chr(39))}`"


class LabelWarning(UserWarning):
    """An image that is about to be styled seems to be a label map."""


class StyleAugError(Exception):
    """Base class of all errors of this library."""

    def __str__(self) -> str:
        """Return the message as one line without control characters, safe for a terminal."""
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
    """A feature needs a library that is not installed; the message says how to install it."""


class TrainError(StyleAugError, RuntimeError):
    """A training run that diverged."""


class DeviceError(StyleAugError, RuntimeError):
    """A device that cannot be used here."""


def missing_extra(what: str, library: str, extra: str) -> MissingExtraError:
    """Return the error that says which extra to install, from PyPI and in a clone.

    Args:
        what: the feature that needs the library.
        library: name of the library, for the message.
        extra: name of the extra in `pyproject.toml`.
    """
    return MissingExtraError(
        f'{what} needs {library}: pip install "styleaug[{extra}]", or in a clone of the repository '
        f'pip install -e ".[{extra}]" (with uv: uv sync --extra {extra}).'
    )


def first_line(error: BaseException) -> str:
    """Return the message of any error as one line that ends with a full stop."""
    text = (str(error).strip().splitlines() or [""])[0][:300].rstrip(".: ")
    known = isinstance(error, OSError | ValueError | RuntimeError | StyleAugError)
    return (text if text and known else f"{type(error).__name__}: {text}".rstrip(": ")) + "."


def reason_of(path: Path, error: Exception) -> str:
    """Return a message that names the file and what is wrong with it."""
    text = str(error) if isinstance(error, StyleAugError) else first_line(error)
    return text if printable(path) in text or str(path) in text else f"{path}: {text}"
