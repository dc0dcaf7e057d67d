"""How Sphinx builds the site: `sphinx-build -W docs site`."""

import os
import re
import shutil
from pathlib import Path

import styleaug.errors  # noqa: F401  (the reference is made from what is imported here)

os.environ.setdefault("KERAS_BACKEND", "torch")  # its own default, TensorFlow, is not in the extra `dev`
ROOT = Path(__file__).parents[1]

project = "styleaug"
author = "The styleaug authors"
project_copyright = "The styleaug authors, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
exclude_patterns = ["*.py"]
html_theme = "furo"
html_title = "styleaug"
html_copy_source = False
default_role = "code"
smartquotes = False  # it turns `--option` into a dash

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autoclass_content = "class"
napoleon_google_docstring = True
napoleon_custom_sections = [("Shape", "returns_style")]


def copy_pages() -> None:
    """Put pages that stand elsewhere in the repository where pages of `docs` link to them."""
    measured = ROOT / "docs" / "measured"
    shutil.rmtree(measured, ignore_errors=True)
    measured.mkdir()
    pages = {f"measured/{path.name}": path for path in (ROOT / "benchmarks" / "results").glob("*.md")}
    pages["measured/rules.md"] = ROOT / "benchmarks" / "README.md"
    pages["measured/pretrained.md"] = ROOT / "pretrained" / "README.md"
    pages["measured/changelog.md"] = ROOT / "CHANGELOG.md"
    pages["measured/contributing.md"] = ROOT / "CONTRIBUTING.md"
    index = sorted(path.stem for path in (ROOT / "benchmarks" / "results").glob("*.md"))
    contents = "\n".join(["rules", "pretrained", "changelog", "contributing", *index])
    (measured / "index.md").write_text(f"# Measured, shipped, changed\n\n```{{toctree}}\n{contents}\n```\n")
    for name, path in pages.items():
        text = path.read_text(encoding="utf-8")
        # Links to files of the repository have no target on the site.
        (ROOT / "docs" / name).write_text(without_links(text), encoding="utf-8")


def without_links(text: str) -> str:
    """Turn relative links of a copied page into code, and leave pictures out."""
    text = re.sub(r"!\[[^\]]*\]\((?!https?:)[^)]*\)\n?", "", text)
    return re.sub(r"\[([^\]]*)\]\((?!https?:|#)([^)]*)\)", r"\1 (`\2`)", text)


copy_pages()
