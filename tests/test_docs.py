"""What README and docs say is so: tables as measured, code that compiles, commands and options that exist."""

import ast
import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import click
import pytest

from styleaug.cli.main import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")] + sorted((ROOT / "docs").rglob("*.md"))
PAGES = [page for page in PAGES if "measured" not in page.parts]  # copies, made when the site is built


def blocks(kinds: str) -> list:
    """Find the fenced blocks of these languages on all pages."""
    found = []
    for page in PAGES:
        texts = re.findall(
            rf"^```(?:{kinds})\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        )
        found += [pytest.param(text, id=f"{page.stem}-{number}") for number, text in enumerate(texts)]
    return found


def commands() -> list:
    """Find the calls of `styleaug` on all pages."""
    found = {}
    for param in blocks("sh|shell|bash"):
        text = str(param.values[0]).replace("\\\n", " ")
        for line in text.splitlines():
            call = re.search(r"(?:^|\s)styleaug (?!=)(.*)", line.partition(" #")[0])
            if call and not line.startswith("pip") and "..." not in line and "|" not in line:
                found[call[1].strip()] = None
    return list(found)


def load_tables():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_those_of_the_results():
    tables = load_tables()
    wrong = [page.name for page in tables.pages() if tables.filled(page.read_text()) != page.read_text()]
    assert not wrong, "run: python docs/tables.py"


def test_a_table_follows_its_result():
    tables = load_tables()
    text = '<!-- table: {"from": "quality", "columns": {"LPIPS": "lpips"}} -->\nold\n<!-- /table -->'
    assert "old" not in tables.filled(text) and "| adain | 0.459 |" in tables.filled(text)


@pytest.mark.parametrize("code", blocks("python"))
def test_python_compiles_and_its_names_exist(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "styleaug":
            if str(node.module).endswith("nnunet"):
                pytest.importorskip("nnunetv2", reason="nnU-Net is in an environment of its own")
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


@pytest.mark.parametrize("call", commands())
def test_commands_and_their_options_exist(call):
    words = [word for word in shlex.split(call.replace("[", "").replace("]", "")) if word != "\\"]
    command: click.Command = cli
    while isinstance(command, click.Group) and words:
        name = words.pop(0)
        if name.isupper():
            return  # stands for any of them
        assert name in command.commands, f"there is no command {name!r}"
        command = command.commands[name]
    known = {option for param in command.params for option in (*param.opts, *param.secondary_opts)} | {
        "-h",
        "--help",
    }
    assert {word.partition("=")[0] for word in words if word.startswith("-")} <= known


def test_readme_links_to_files_that_are_there():
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target
