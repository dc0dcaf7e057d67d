"""Count the files, classes, functions and lines that one call of a transform runs through.

    python benchmarks/reading.py [--out benchmarks/results/reading.json] [--list]

Other libraries are measured in the same way. A call is made twice, and the second one, with everything
loaded, is traced. It counts the entered functions of the package, with their full spans of lines including
decorators and docstrings (a line in two functions counts once), their classes and their files. `--list` names
them. For our own calls, the row without the generator leaves out `styleaug/generators/`.
"""

import argparse
import ast
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import publish
from PIL import Image

Span = tuple[int, int]


@dataclass
class Reading:
    """What a traced call entered: spans of lines by file, and the names of functions and classes."""

    spans: dict[Path, set[Span]] = field(default_factory=dict)
    functions: set[str] = field(default_factory=set)
    classes: set[str] = field(default_factory=set)

    def counts(self) -> dict[str, int]:
        lines = sum(len({n for a, b in spans for n in range(a, b + 1)}) for spans in self.spans.values())
        return {
            "files": len(self.spans), "classes": len(self.classes), "functions": len(self.functions),
            "lines": lines,
        }  # fmt: skip


@cache
def definitions(path: Path) -> dict[tuple[str, int], tuple[str, str, Span]]:
    """Map (name, first line) of each function of a file to its qualified name, its class and its span."""
    found: dict[tuple[str, int], tuple[str, str, Span]] = {}

    def walk(node: ast.AST, scope: list[str], owner: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                walk(child, [*scope, child.name], child.name)
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([child.lineno, *(d.lineno for d in child.decorator_list)])
                name = ".".join([*scope, child.name])
                found[child.name, first] = (name, owner, (first, child.end_lineno or first))
                walk(child, [*scope, child.name], "")
            else:
                walk(child, scope, owner)

    walk(ast.parse(path.read_text(encoding="utf-8")), [], "")
    return found


def read(call: Callable[[], Any], package: Path, *, without: tuple[str, ...] = ()) -> Reading:
    """Trace one call, and note what it enters of the files below `package`."""
    codes: set[Any] = set()

    def note(frame: Any, event: str, _: Any) -> None:
        if event == "call":
            codes.add(frame.f_code)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    reading = Reading()
    for code in codes:
        path = Path(code.co_filename)
        if not path.is_relative_to(package) or set(path.relative_to(package).parts) & set(without):
            continue
        entry = definitions(path).get((code.co_name, code.co_firstlineno))
        if entry is None:
            continue  # a comprehension or lambda, whose lines are its function's
        name, owner, span = entry
        reading.spans.setdefault(path, set()).add(span)
        reading.functions.add(f"{path.relative_to(package)}:{name}")
        if owner:
            reading.classes.add(f"{path.relative_to(package)}:{owner}")
    return reading


def home(package: str) -> Path:
    spec = find_spec(package)
    assert spec and spec.origin
    return Path(spec.origin).parent


def calls() -> dict[str, tuple[Callable[[], Any], Path, tuple[str, ...]]]:
    """Make the calls: a plain transform of each library, on one image of its own kind."""
    from styleaug import StyleAugment

    generator = torch.Generator().manual_seed(0)
    pixels = (torch.rand(3, 96, 96, generator=generator) * 255).byte()
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    floats, array = pixels / 255, np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
    art = StyleAugment("art", p=1)
    ours, plain = home("styleaug"), partial(art, picture)
    found: dict[str, tuple[Callable[[], Any], Path, tuple[str, ...]]] = {
        'styleaug `StyleAugment("art")`, without the generator': (
            lambda: art(picture),
            ours,
            ("generators",),
        ),
        'styleaug `StyleAugment("art")`': (plain, ours, ()),
    }
    from torchvision.transforms import v2

    jitter = v2.ColorJitter(0.4, 0.4, 0.4, 0.1)
    found["torchvision `v2.ColorJitter`"] = (lambda: jitter(picture), home("torchvision"), ())
    try:
        import albumentations

        chain = albumentations.Compose([albumentations.ColorJitter(p=1)])
        found["albumentations `ColorJitter` in `Compose`"] = (
            lambda: chain(image=array), home("albumentations"), (),
        )  # fmt: skip
    except ImportError:
        pass
    try:
        import kornia.augmentation as kornia

        jiggle = kornia.ColorJiggle(0.4, 0.4, 0.4, 0.1, p=1.0)
        found["kornia `ColorJiggle`"] = (lambda: jiggle(floats[None]), home("kornia"), ())
    except ImportError:
        pass
    try:
        from monai.transforms import RandAdjustContrast

        contrast = RandAdjustContrast(prob=1.0)
        found["MONAI `RandAdjustContrast`"] = (lambda: contrast(floats), home("monai"), ())
    except ImportError:
        pass
    try:
        import torchio

        gamma = torchio.RandomGamma()
        found["TorchIO `RandomGamma`"] = (lambda: gamma(floats[..., None]), home("torchio"), ())
    except ImportError:
        pass
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--list", action="store_true", help="Name what was entered, too.")
    args = parser.parse_args()
    torch.manual_seed(0)
    rows = {}
    for name, (call, package, without) in calls().items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
            reading = read(call, package, without=without)
        rows[name] = reading.counts()
        if args.list:
            print(
                f"\n{name}",
                *sorted(reading.classes),
                *(f"  {f}" for f in sorted(reading.functions)),
                sep="\n",
            )
    print(publish(args.out, "What one call leads a reader through", rows))


if __name__ == "__main__":
    main()
