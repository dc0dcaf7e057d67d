"""The layout: imports point one way, optional libraries stay home, a name means one thing."""

import ast
import subprocess
import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from inspect import getdoc, isclass, isfunction
from pathlib import Path

import pytest

import styleaug

PACKAGE = Path(styleaug.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip("."): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

LEVELS = [
    {"errors"},
    {"checks"},
    {"images", "samplers"},
    {"io"},
    {"bank", "generators"},
    {"weights"},
    {"transforms", "fitting", "perceptual"},
    {"training"},
    {"sheets", "export", "offline", "video", "robustness"},
    {"evaluation", "demo", "sharing"},
    {"cli"},
    {"__main__"},
]
"""From the bottom up: a part may import those below its level, and itself."""

CORE = {"torch", "torchvision", "numpy", "PIL", "safetensors", "jaxtyping"}
AT_HOME = {  # what is imported in some parts only
    "click": {name for name in MODULES if name.startswith("cli.")},
    "rich": {"cli.console"},
    "albumentations": {"transforms.albumentations", "robustness.arms"},
    "keras": {"transforms.keras"},
    "kornia": {"transforms.kornia"},
    "monai": {"transforms.monai", "robustness.segmenters", "robustness.segmenter_training"},
    "segmentation_models_pytorch": {"robustness.segmenters"},
    "timm": {"transforms.timm", "robustness.classifiers"},
    "nnunetv2": {"transforms.nnunet"},
    "batchgeneratorsv2": {"transforms.nnunet"},
    "lightning": {"transforms.lightning"},
    "ray": {"offline.ray_cluster"},
    "pyarrow": {"io.shards"},
    "lightning_fabric": {"training.fabric"},
    "tensorboard": {"training.monitor"},
    "huggingface_hub": {"io.hub"},
    "pydicom": {"io.dicom"},
    "nibabel": {"io.volumes"},
    "tifffile": {"io.tiff"},
    "openslide": {"io.slides"},
    "zarr": {"io.ome_zarr"},
    "imagecodecs": {"io.dicom", "io.png"},
    "onnx": {"export"},
    "onnxruntime": {"export", "evaluation.identity", "transforms.keras"},
    "onnxscript": {"export"},
    "cv2": {"video.flow"},
    "av": {"video.clip_writing"},
    "dlib": {"transforms.faces"},
}


@cache
def imports(name: str) -> list[tuple[str, bool]]:
    """List what a module imports, and whether it does so at its top."""
    tree = ast.parse(MODULES[name].read_text())
    top = set()
    for node in tree.body:
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        top |= set() if typing_only else {id(inner) for inner in ast.walk(node)} - inside_functions(node)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            found.append((str(node.module), id(node) in top))
            if node.module == "styleaug":  # `from styleaug import samplers`
                modules = [f"styleaug.{alias.name}" for alias in node.names if alias.name != "importer"]
                found += [(module, id(node) in top) for module in modules]
    return found


def inside_functions(node: ast.AST) -> set[int]:
    functions = [n for n in ast.walk(node) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {id(inner) for function in functions for inner in ast.walk(function)}


def level(part: str) -> int:
    (found,) = [index for index, parts in enumerate(LEVELS) if part in parts]
    return found


PARTS = [name for name in MODULES if name]


def test_every_part_has_a_level():
    known = set.union(*LEVELS)
    assert {name.split(".")[0] for name in PARTS} <= known
    assert not any(len(path.relative_to(PACKAGE).parts) > 2 for path in MODULES.values()), "one folder level"


@pytest.mark.parametrize("name", PARTS)
def test_imports_point_one_way(name):
    part = name.split(".")[0]
    for module, _ in imports(name):
        if not module.startswith("styleaug."):
            continue
        other = module.split(".")[1]
        if other == part:
            continue
        assert level(other) < level(part), f"{name} imports {module}"


def test_the_root_has_few_modules():
    assert len([path for path in MODULES.values() if path.parent == PACKAGE]) <= 12


def test_no_module_imports_itself_by_way_of_others():
    graph = {name: {m.removeprefix("styleaug.") for m, _ in imports(name)} & set(PARTS) for name in PARTS}
    left = dict(graph)
    while leaves := {name for name, needs in left.items() if not needs & set(left) - {name}}:
        left = {name: needs for name, needs in left.items() if name not in leaves}
    assert not left, f"these import each other, or are imported by such: {sorted(left)}"


def test_the_package_itself_imports_nothing_but_what_is_at_hand():
    modules = {module for module, top in imports("") if top}
    assert modules == {"collections.abc", "importlib", "importlib.util", "types", "typing"}


@pytest.mark.parametrize("name", PARTS)
def test_libraries_stay_at_home(name):
    for module, _ in imports(name):
        library = module.split(".")[0]
        if library in AT_HOME:
            assert name in AT_HOME[library], f"{name} imports {library}"
        else:
            assert library in CORE | sys.stdlib_module_names | {"styleaug", "__future__"}, (
                f"{name}: {library}"
            )


@pytest.mark.parametrize("name", MODULES)
def test_files_have_names_that_say_what_is_in_them(name):
    text = MODULES[name].read_text()
    assert "from __future__ import annotations" not in text
    assert MODULES[name].stem not in {"utils", "helpers", "common", "misc"}


@pytest.mark.parametrize("name", [name for name in PARTS if name != "__main__"])
def test_public_names_exist_and_are_explained(name):
    if name == "transforms.nnunet" and find_spec("nnunetv2") is None:
        pytest.skip("nnU-Net is in an environment of its own")
    module = import_module(f"styleaug.{name}")
    assert module.__doc__
    for public in getattr(module, "__all__", ()):
        value = getattr(module, public)
        if isclass(value) or isfunction(value):
            assert getdoc(value), f"{name}.{public} has no docstring"


def names_of(path: Path) -> set[str]:
    """Return the names that a module defines at its top, those with a leading underscore excepted."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def test_a_name_means_one_thing():
    # Some transforms of albumentations, Keras, kornia and MONAI share names, as each host's user expects.
    homes: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for name in names_of(path) - {"StyleAugment", "StyleNormalize"}:
            homes.setdefault(name, []).append(module)
    twice = {name: modules for name, modules in homes.items() if len(modules) > 1}
    assert not twice, f"rename them, or begin those that are private with an underscore: {twice}"


def test_no_public_name_is_also_a_module():
    # Importing the module would put it in the name's place.
    assert not set(styleaug.__all__) & set(MODULES)


@pytest.mark.parametrize("library", ["torch", "numpy", "PIL", "torchvision", "click", "rich"])
def test_importing_styleaug_imports_no(library):
    probe = (
        f"import styleaug, sys; styleaug.StyleAugError, dir(styleaug); sys.exit({library!r} in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", probe]).returncode == 0
