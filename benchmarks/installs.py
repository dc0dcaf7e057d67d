"""Does the package install and work by itself? Wheel and sdist, each Python, each extra, newest and lowest.

    python benchmarks/installs.py [newest lowest] [--pythons 3.11 3.12 3.13 3.14] [--extras core kornia ...]

`newest` makes an environment for each Python with the wheel alone ("core"), with the sdist, and with one
extra of `pyproject.toml` at a time, of the newest versions that the registry has, and runs what a user of
that extra runs first; an extra without an entry in `SMOKE` imports its packages. `lowest` takes Python 3.11
and the lowest versions that `pyproject.toml` promises, and runs the tests of the library and of that host on
them. An extra is added to a copy of the core's environment, which is deleted before the next. A Python that
is not on this machine is said to be missing. Results go to
`benchmarks/results/installs_{newest,lowest}.{json,md}`; rows that are not asked for again are kept.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from machine import publish

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PARTS = ["core", *(name for name in PROJECT["optional-dependencies"] if name != "dev")]
"""The core and each extra; `.ci/run` makes an environment of `dev`."""
DRAW = "import numpy, torch; torch.manual_seed(0); images = torch.rand(2, 3, 64, 48);"
CORE = f"""{DRAW}
import styleaug
styled = styleaug.StyleAugment("art", p=1.0)(images)
assert styled.shape == images.shape and not torch.equal(styled, images)
assert styleaug.StyleAugment.preset("unknown")(images).shape == images.shape
from PIL import Image
import os
os.mkdir("photos")
for number in range(6):
    Image.fromarray(numpy.full((40, 50, 3), 40 * number, numpy.uint8)).save(f"photos/{{number}}.png")
"""
COMMANDS = (
    ("--version",),
    ("apply", "photos", "-o", "styled", "--bank", "art"),
    ("fit-style", "photos", "-o", "bank.safetensors", "--generator", "reinhard-lab"),
)
"""What is run in the shell after `CORE`."""
SMOKE = {
    "albumentations": f"""{DRAW}
import albumentations
from styleaug.transforms.albumentations import StyleAugment
image = (images[0].numpy().transpose(1, 2, 0) * 255).astype("uint8")
assert albumentations.Compose([StyleAugment("art", p=1.0)])(image=image)["image"].shape == image.shape
""",
    "kornia": f"""{DRAW}
from kornia.augmentation import AugmentationSequential
from styleaug.transforms.kornia import RandomStyle
assert AugmentationSequential(RandomStyle("art", p=1.0), data_keys=["input"])(images).shape == images.shape
""",
    "monai": f"""{DRAW}
from monai.transforms import Compose
from styleaug.transforms.monai import RandStyled
styled = Compose([RandStyled(keys="image", bank="art", prob=1.0)])({{"image": images[0]}})
assert styled["image"].shape == images[0].shape
""",
    "timm": f"""{DRAW}
from styleaug.transforms.timm import StylePrefetchLoader
import timm
assert timm.create_model("resnet10t", num_classes=2)(images).shape == (2, 2)
""",
    "nnunet": f"""{DRAW}
from styleaug.transforms.nnunet import StyleTransform
assert StyleTransform("gin", p=1.0)(image=images[0])["image"].shape == images[0].shape
""",
    "lightning": f"""{DRAW}
import lightning
from styleaug.transforms.lightning import StyleCallback
StyleCallback("art")
""",
    "huggingface": f"""{DRAW}
import datasets
from PIL import Image
from styleaug.transforms.huggingface import StyleColumn
picture = Image.new("RGB", (40, 30), "red")
rows = datasets.Dataset.from_dict({{"image": [picture] * 2}}).cast_column("image", datasets.Image())
import styleaug
rows.set_transform(StyleColumn(styleaug.StyleAugment("art", p=1.0)))
assert len(rows[:2]["image"]) == 2
""",
    "hub": """
import os; os.environ["HF_HUB_OFFLINE"] = "1"
import huggingface_hub, styleaug
try:
    styleaug.StyleBank.from_pretrained("nobody/nothing-at-all")
except styleaug.StyleAugError as error:
    assert "nobody/nothing-at-all" in str(error)
else:
    raise AssertionError("a bank came from nowhere")
""",
    "ray": f"""{DRAW}
import ray
from styleaug.transforms.ray import StyleBatch
batch = {{"image": images.permute(0, 2, 3, 1).numpy()}}
assert StyleBatch("art", p=1.0)(batch)["image"].shape == (2, 64, 48, 3)
""",
    "parquet": """
import io, pyarrow, pyarrow.parquet
from PIL import Image
from styleaug import apply_folder
content = io.BytesIO(); Image.new("RGB", (40, 30), "red").save(content, "PNG")
import os; os.mkdir("in")
images = [{"bytes": content.getvalue(), "path": "a.png"}]
pyarrow.parquet.write_table(pyarrow.table({"image": images}), "in/a.parquet")
apply_folder("in", "out", bank="art")
""",
    "export": "import styleaug; styleaug.export_onnx('fourier', 'a.onnx')",
    "keras": f"""{DRAW}
import os; os.environ["KERAS_BACKEND"] = "torch"
import keras, onnxruntime, styleaug
styleaug.fit_style(list(images), generator="reinhard-rgb", min_images=1).bank.save("bank.safetensors")
from styleaug.transforms.keras import StyleLayer
pixels = (images.permute(0, 2, 3, 1).numpy() * 255).astype("uint8")
assert StyleLayer("bank.safetensors", p=1.0)(pixels, training=True).shape == pixels.shape
""",
    "medical": f"""{DRAW}
import nibabel, os, pydicom, tifffile
os.mkdir("scans")
volume = nibabel.Nifti1Image(images[0, 0].numpy()[..., None].repeat(4, -1), numpy.eye(4))
nibabel.save(volume, "scans/a.nii.gz")
tifffile.imwrite("scans/c.tif", (images[0, 0].numpy() * 60000).astype("uint16"), compression="zlib")
import styleaug
styleaug.apply_folder("scans", "out", generator="gin")
""",
    "slides": f"""{DRAW}
import openslide, os, zarr
from styleaug import apply_folder
os.makedirs("in/a.zarr")
group = zarr.open_group("in/a.zarr", mode="w", zarr_format=2)
pixels = (images[0].numpy() * 255).astype("uint8")
group.create_array("0", shape=pixels.shape, dtype=pixels.dtype)[:] = pixels
axes = [{{"name": axis}} for axis in "cyx"]
group.attrs["multiscales"] = [{{"version": "0.4", "axes": axes, "datasets": [{{"path": "0"}}]}}]
assert apply_folder("in", "out", generator="gin").failed == []
""",
    "train": """
import tensorboard
from styleaug.training.config import preset
from styleaug.training.fabric import make_fabric
make_fabric(preset("cyclegan"))
""",
    "evaluation": """
import segmentation_models_pytorch
from styleaug.perceptual import read_linear
assert read_linear(None)
""",
    "faces": f"""{DRAW}
from styleaug import Preserve, StyleAugment
from styleaug.evaluation.identity import load_network
assert StyleAugment("art", preserve=Preserve(protect="faces"))(images).shape == images.shape
load_network("dlib")
""",
    "bench": """
import matplotlib.pyplot
from styleaug.robustness.corruptions import frost_photographs
assert len(frost_photographs()) == 5
""",
    "video": f"""{DRAW}
import av, cv2
from styleaug import StyleVideo
assert StyleVideo("art", flow="dis")(images[:1].expand(3, -1, -1, -1)).shape == (3, 3, 64, 48)
""",
}  # fmt: skip
"""The first thing that a user of an extra does."""
IMPORTS = """
from importlib import import_module, metadata
import styleaug
wanted = set({names})
for module, owners in metadata.packages_distributions().items():
    found = wanted & {{owner.lower().replace("_", "-") for owner in owners}}
    if found and module.isidentifier() and not module.startswith("_"):
        import_module(module)
        wanted -= found
assert not wanted, f"no module of {{wanted}}"
"""
"""What is run for an extra that is not in `SMOKE`."""
TESTS = {
    "core": "test_torchvision test_transforms test_generators test_samplers test_bank test_weights "
    "test_images test_random_networks test_blends test_dataloader test_splice test_options_golden "
    "test_fit test_fitting test_stylizing test_resuming test_cli test_quality test_shift "
    "test_robustness test_translators",
    "docs": "",
    "hub": "",  # its tests point each call to a server of their own, which huggingface-hub 2 can do
    "parquet": "test_shards test_apply",
    "medical": "test_dicom test_tiff test_studies test_scan test_volumes test_label_maps test_rasters",
    "slides": "test_slides test_slide_copies test_ome_zarr",
    "train": "test_training test_recipes test_monitor test_cli_training",
    "evaluation": "test_metrics test_segmentation",
    "faces": "test_faces test_identity",
    "video": "test_video test_flow test_clips test_film test_track",
}
"""Files of tests that run on the lowest versions; for other extras `test_NAME.py`, where there is one."""
TOOLS = ("pytest>=8.3", "pytest-timeout>=2.3", "hypothesis>=6.115", "scikit-image>=0.24", "scipy>=1.11")
BESIDE = {
    "keras": ("onnx>=1.17", "onnxscript>=0.3"),
    "faces": ("onnx>=1.17", "onnxscript>=0.3", "onnxruntime>=1.20"),
    "lightning": ("torchdata>=0.10",),
    "ray": ("webdataset>=0.2.100",),
    "parquet": ("webdataset>=0.2.100",),
}
"""What the tests of an extra need beside it."""


def uv() -> str:
    """Return the path of uv, or stop."""
    found = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    return found or sys.exit("installs: uv is needed; pip install uv")


def interpreter(version: str) -> str | None:
    """Return the interpreter of a version, if this machine has one; also one that pyenv keeps for itself."""
    found = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin"))
    path = os.pathsep.join([os.environ["PATH"], *map(str, found)])
    done = subprocess.run(
        [uv(), "python", "find", "--no-python-downloads", version],
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": path},
    )
    return done.stdout.strip() or None if done.returncode == 0 else None


def call(*command: object, cwd: Path, seconds: float = 600) -> str:
    """Run a command; return the reason of its failure in a line, or nothing."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": "", "NO_ALBUMENTATIONS_UPDATE": "1"}
    try:
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, cwd=cwd, env=env, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return f"longer than {seconds:.0f} s"
    if not done.returncode:
        return ""
    lines = (done.stderr.strip() or done.stdout.strip() or f"exit {done.returncode}").splitlines()
    told = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return " ".join((told or lines)[-1].split())[:300]


class Environments:
    """Environments of one Python: the core, which is made once, and copies of it with one extra each.

    A copy shares its files with the core's by hard links, takes its place, and is deleted after use.

    Args:
        folder: where they are made, one after another.
        python: the interpreter.
        built: a wheel or an sdist.
        lowest: take the lowest versions that `pyproject.toml` promises, not the newest.
    """

    def __init__(self, folder: Path, python: str, built: Path, *, lowest: bool = False):
        self.folder, self.built, self.lowest = folder, built, lowest
        self.kept, self.env = folder / "kept", folder / "env"
        self.made = self.env / "bin" / "python"
        self.failed = call(uv(), "venv", "-q", "--python", python, self.env, cwd=folder)
        self.failed = self.failed or self.install() or smoke(self.made, "core", folder)
        self.env.rename(self.kept)

    def install(self, extra: str = "") -> str:
        """Install styleaug, or an extra beside it; return the reason of a failure."""
        steps = [[f"styleaug[{extra}] @ {self.built.as_uri()}" if extra else str(self.built)]]
        if self.lowest:
            # What a wheel needs counts as indirect, and uv would take its newest versions.
            named = ["-r", str(ROOT / "pyproject.toml"), *(["--extra", extra] if extra else TOOLS)]
            floors = self.folder / "floors.txt"
            floors.write_text("\n".join(lowest_of(extra or "core")))  # else uv may settle for newer ones
            steps = [["--resolution", "lowest-direct", "-c", floors, *named, *BESIDE.get(extra, ())]]
            steps += [] if extra else [["--no-deps", str(self.built)]]
        for packages in steps:
            command = (uv(), "pip", "install", "-q", "--python", self.made, *packages)
            if failed := call(*command, cwd=self.folder, seconds=1800):
                return f"cannot be installed: {failed}"
        return call(uv(), "pip", "check", "-q", "--python", self.made, cwd=self.folder)

    @contextmanager
    def of(self, extra: str) -> Iterator[str]:
        """Make an environment of the core or with an extra; yields the reason of a failure."""
        subprocess.run(["cp", "-al", self.kept, self.env], check=True)
        try:
            yield self.failed or (self.install(extra) if extra in PROJECT["optional-dependencies"] else "")
        finally:
            shutil.rmtree(self.env)


def versions(made: Path, extra: str) -> str:
    """Name the versions that an environment has of what the core or an extra asks for."""
    told = subprocess.run(
        [uv(), "pip", "list", "-q", "--python", made, "--format", "json"], capture_output=True, text=True
    )
    has = {each["name"].lower(): each["version"] for each in json.loads(told.stdout or "[]")}
    return ", ".join(f"{name} {has[name]}" for name in promised(extra) if name in has)


def built(folder: Path) -> tuple[Path, Path]:
    """Build wheel and sdist of this checkout."""
    if failed := call(uv(), "build", "-q", ROOT, "-o", folder, cwd=folder):
        sys.exit(f"installs: uv build: {failed}")
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


def promised(extra: str) -> list[str]:
    """Return the names of what `pyproject.toml` asks for, for the core or an extra."""
    extras = PROJECT["optional-dependencies"]
    wanted = extras[extra] if extra in extras else PROJECT["dependencies"]
    return [re.split(r"[\[<>=!~; ]", line)[0].lower().replace("_", "-") for line in wanted]


def lowest_of(extra: str) -> list[str]:
    """Return the lowest versions that `pyproject.toml` promises, as constraints: `numpy==1.26.*`."""
    extras = PROJECT["optional-dependencies"]
    wanted = extras[extra] if extra in extras else PROJECT["dependencies"]
    found = [re.match(r"([\w.-]+)[^;]*>=([\d.]+)", line) for line in wanted]
    return [f"{each[1]}=={each[2]}.*" for each in found if each]


def smoke(made: Path, extra: str, folder: Path) -> str:
    """Do what a user of the core or of an extra does first; return the reason of a failure."""
    core = extra not in PROJECT["optional-dependencies"]
    script = folder / "smoke.py"
    script.write_text(CORE if core else SMOKE.get(extra, IMPORTS.format(names=promised(extra))))
    failed = call(made, "-I", script, cwd=folder)
    for arguments in COMMANDS if core else ():
        failed = failed or call(made.with_name("styleaug"), *arguments, cwd=folder)
    return failed


def try_sdist(sdist: Path, python: str) -> str:
    """Install the sdist by itself and use it; return the reason of a failure."""
    with tempfile.TemporaryDirectory() as folder:
        return Environments(Path(folder), python, sdist).failed


def try_tests(environments: Environments, extra: str, folder: Path) -> str:
    """Run the tests of an extra in its environment; return the reason of a failure."""
    for name in ("tests", "benchmarks", "examples", "docs", "pretrained", "pyproject.toml", "README.md"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    files = [f"tests/{name}.py" for name in TESTS.get(extra, f"test_{extra}").split()]
    if not any((folder / name).exists() for name in files):
        return ""
    return call(environments.made, "-m", "pytest", "-q", "--maxfail=5", *files, cwd=folder, seconds=1500)


def kept(name: str) -> dict[str, dict]:
    """Return the rows of an earlier result."""
    path = RESULTS / f"installs_{name}.json"
    return json.loads(path.read_text())["rows"] if path.exists() else {}


def newest(args: argparse.Namespace, wheel: Path, sdist: Path) -> None:
    """Try every extra on every Python with the newest versions."""
    rows = kept("newest")

    def told(version: str, extra: str, failed: str, began: float) -> None:
        rows.setdefault(extra, {})[version] = failed or "works"
        print(f"{version} {extra}: {failed or 'works'} ({time.monotonic() - began:.0f} s)", flush=True)
        publish(RESULTS / "installs_newest.json", "Each extra by itself, newest versions", rows)

    for version in args.pythons:
        python, began = interpreter(version), time.monotonic()
        extras = args.extras or ["sdist", *PARTS]
        if python is None:
            for extra in extras:
                told(version, extra, "no such Python on this machine", began)
            continue
        if "sdist" in extras:
            told(version, "sdist", try_sdist(sdist, python), began)
        with tempfile.TemporaryDirectory() as work:
            began = time.monotonic()
            environments = Environments(Path(work), python, wheel)
            for extra in extras:
                if extra != "sdist":
                    with environments.of(extra) as failed, tempfile.TemporaryDirectory() as folder:
                        failed = failed or (extra != "core" and smoke(environments.made, extra, Path(folder)))
                        rows.setdefault(extra, {})["versions"] = versions(environments.made, extra)
                        told(version, extra, failed or "", began)
                    began = time.monotonic()


def lowest(args: argparse.Namespace, wheel: Path) -> None:
    """Run the tests of every extra on the lowest versions."""
    rows = kept("lowest")
    python = interpreter(args.pythons[0]) or sys.exit(f"installs: no Python {args.pythons[0]} here")
    with tempfile.TemporaryDirectory() as work:
        environments = Environments(Path(work), python, wheel, lowest=True)
        for extra in args.extras or PARTS:
            began = time.monotonic()
            with environments.of(extra) as failed, tempfile.TemporaryDirectory() as folder:
                failed = failed or try_tests(environments, extra, Path(folder))
                failed = failed or (extra != "core" and smoke(environments.made, extra, Path(folder)))
                named = versions(environments.made, extra)
            rows[extra] = {"tests": failed or "pass", "versions": named}
            print(
                f"lowest {extra}: {failed or 'pass'} ({time.monotonic() - began:.0f} s; {named})", flush=True
            )
            publish(RESULTS / "installs_lowest.json", "Tests on the lowest versions that are promised", rows)


def main() -> None:
    """Try what is named."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="*", default=["newest", "lowest"], help="newest, lowest")
    parser.add_argument("--pythons", nargs="+", default=["3.11", "3.12", "3.13", "3.14"])
    parser.add_argument("--extras", nargs="+", help="core, sdist and names of extras; all")
    args = parser.parse_args()
    if unknown := set(args.what) - {"newest", "lowest"}:
        parser.error(f"unknown: {', '.join(unknown)}; newest and lowest are there")
    with tempfile.TemporaryDirectory() as folder:
        wheel, sdist = built(Path(folder))
        if "newest" in args.what:
            newest(args, wheel, sdist)
        if "lowest" in args.what:
            lowest(args, wheel)


if __name__ == "__main__":
    main()
