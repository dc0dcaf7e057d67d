"""Text of strangers, such as names of files, classes and groups, made safe to print and to write down.

A terminal obeys control characters: a file's name could recolour it, forge a line, or turn text around.
"""

import re
from html import escape
from unicodedata import category

__all__ = ["code", "markdown", "name_bytes", "printable"]

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
