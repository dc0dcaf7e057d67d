"""An adapter without its library says how to install it; a module is found without an import of its own."""

import ast
import json
import os
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import pytest

import styleaug
from styleaug.errors import ConfigError, MissingExtraError, StyleAugError, missing_extra

ADAPTERS = ["albumentations", "keras", "kornia", "lightning", "monai", "nnunet", "timm"]
OTHERS = {
    "export": ("onnx", "styleaug.export_onnx('fourier', 'a.onnx')"),
    "video": ("av", "styleaug.video.clips.import_av()"),
    "slides": ("openslide", "styleaug.io.slides.import_openslide('a.svs')"),
    "parquet": ("pyarrow", "styleaug.io.shards.open_parquet('a', 'b').__enter__()"),
    "ray": ("ray", "styleaug.offline.ray_cluster.import_ray()"),
    "faces": ("dlib", "styleaug.transforms.faces.import_dlib()"),
}
BLOCKED = """
import json, sys
for name in {libraries}:
    sys.modules[name] = None
import styleaug
told = {{}}
for key, code in {codes}.items():
    try:
        exec(code)
    except ImportError as error:
        assert isinstance(error, styleaug.MissingExtraError | styleaug.ConfigError), error
        told[key] = str(error)
print(json.dumps(told))
"""


def run(program: str) -> str:
    """Run a program in a process of its own; give what it prints."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_error_is_ours_and_an_import_error():
    error = missing_extra("this", "that", "monai")
    for kind in (MissingExtraError, ConfigError, StyleAugError, ValueError, ImportError):
        assert isinstance(error, kind)
    assert 'pip install "styleaug[monai]"' in str(error) and 'pip install -e ".[monai]"' in str(error)
    assert styleaug.MissingExtraError is MissingExtraError


@pytest.mark.slow
def test_what_lacks_its_library_says_how_to_get_it():
    codes = {name: f"import styleaug.transforms.{name}" for name in ADAPTERS}
    codes |= {f"{name} looked at": f"styleaug.transforms.{name}" for name in ADAPTERS}
    codes |= {name: code for name, (_, code) in OTHERS.items()}
    codes |= {
        "step": "styleaug.robustness.classifiers.import_timm('x')",
        "cv2": "styleaug.video.flow.import_cv2('dis')",
    }
    libraries = [*ADAPTERS, *(library for library, _ in OTHERS.values()), "cv2"]
    told = json.loads(run(BLOCKED.format(libraries=libraries, codes=codes)))
    assert told.keys() == codes.keys()
    for extra in (*ADAPTERS, *OTHERS):
        assert (
            f'pip install "styleaug[{extra}]"' in told[extra]
            and f'pip install -e ".[{extra}]"' in told[extra]
        )
        assert f"uv sync --extra {extra}" in told[extra]
    for name in ADAPTERS:
        assert told[name].startswith(f"styleaug.transforms.{name} needs ")
        assert told[f"{name} looked at"] == told[name]


def test_every_extra_that_is_named_exists():
    named = []
    for path in Path(styleaug.__file__).parent.rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        named += [
            ast.literal_eval(call.args[2]) for call in calls if ast.unparse(call.func) == "missing_extra"
        ]
    assert len(named) >= 13 and set(named) <= set(metadata("styleaug").get_all("Provides-Extra") or [])


@pytest.mark.slow
def test_modules_are_found_without_an_import_of_their_own_and_not_before():
    told = run(
        "import sys, styleaug; print('torch' in sys.modules, 'styleaug.transforms' in sys.modules); "
        "import styleaug.transforms, styleaug.generators, styleaug.training, styleaug.evaluation; "
        "print([name for name in ('torch', 'albumentations', 'monai') if name in sys.modules]); "
        "print(styleaug.generators.color.__name__, styleaug.transforms.huggingface.__name__); "
        "print(styleaug.transforms.kornia.RandomStyle.__name__, styleaug.io.png.__name__)"
    )
    assert told.splitlines() == [
        "False False",
        "[]",
        "styleaug.generators.color styleaug.transforms.huggingface",
        "RandomStyle styleaug.io.png",
    ]


@pytest.mark.parametrize("package", [styleaug, styleaug.transforms, styleaug.generators])
@pytest.mark.parametrize("name", ["nonsense", "a.b", "__wrapped__", "_private", "é!"])
def test_what_is_no_module_is_an_attribute_error(package, name):
    with pytest.raises(AttributeError, match="has no attribute"):
        getattr(package, name)
    assert not hasattr(package, name)


def test_the_package_says_that_it_is_typed():
    assert (Path(styleaug.__file__).parent / "py.typed").is_file()


@pytest.mark.slow
def test_types_are_complete(tmp_path):
    root, folder = Path(styleaug.__file__).parents[1], Path(sys.executable).parent
    found = {"PATH": os.pathsep.join([str(folder), os.environ["PATH"]]), "PYTHONPATH": str(root)}
    done = subprocess.run(
        [folder / "pyright", "--verifytypes", "styleaug", "--ignoreexternal", "--outputjson"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | found,
    )
    symbols = [each for each in json.loads(done.stdout)["typeCompleteness"]["symbols"] if each["isExported"]]
    unknown = {each["name"] for each in symbols if not each["isTypeKnown"] or each["isTypeAmbiguous"]}
    # albumentations and nnU-Net publish no types, and a class derived from theirs has none for that reason.
    hosted = {
        "styleaug.transforms.albumentations.StyleAugment",
        "styleaug.transforms.nnunet.StyleTrainer",
        "styleaug.transforms.nnunet.StyleTransform",
    }
    assert len(symbols) > 4000 and unknown <= hosted
