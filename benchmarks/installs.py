"""Does the package install and work by itself? Wheel and sdist, each Python, each extra, newest and lowest.

    python benchmarks/installs.py [newest lowest] [--pythons 3.11 3.12 3.13] [--extras core kornia ...]

`newest` makes an environment for each Python with the wheel alone ("core"), with the sdist, and with one
extra at a time, of the newest versions that the registry has, and runs what a user of that extra runs
first. `lowest` takes Python 3.11 and the lowest versions that `pyproject.toml` promises, and runs the tests
of the library and of that host on them. A Python that is not on this machine is said to be missing. Results
go to `benchmarks/results/installs_{newest,lowest}.{json,md}`; rows that are not asked for again are kept.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

from machine import publish

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
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
rows.set_transform(StyleColumn("art", p=1.0))
assert len(rows[:2]["image"]) == 2
""",
    "hub": """
import huggingface_hub, styleaug
try:
    styleaug.StyleBank.from_pretrained("nobody/nothing-at-all")
except styleaug.StyleAugError as error:
    print(error)
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
apply_folder("in", "out", "art")
""",
    "export": "import styleaug; styleaug.export_onnx('fourier', 'a.onnx')",
    "keras": "import os; os.environ['KERAS_BACKEND'] = 'torch'; import keras, onnxruntime, styleaug",
    "medical": f"""{DRAW}
import nibabel, os, pydicom, tifffile
os.mkdir("scans")
volume = nibabel.Nifti1Image(images[0, 0].numpy()[..., None].repeat(4, -1), numpy.eye(4))
nibabel.save(volume, "scans/a.nii.gz")
tifffile.imwrite("scans/c.tif", (images[0, 0].numpy() * 60000).astype("uint16"), compression="zlib")
import styleaug
styleaug.apply_folder("scans", "out", "gin", value_range="auto")
""",
    "slides": f"""{DRAW}
import openslide, os, zarr
from styleaug import apply_folder
os.makedirs("in/a.zarr")
group = zarr.open_group("in/a.zarr", mode="w", zarr_format=2)
group.create_array("0", data=(images[0].numpy() * 255).astype("uint8"))
axes = [{{"name": axis}} for axis in "cyx"]
group.attrs["multiscales"] = [{{"version": "0.4", "axes": axes, "datasets": [{{"path": "0"}}]}}]
assert apply_folder("in", "out", "gin").failed == []
""",
    "train": "import lightning.fabric, tensorboard, styleaug.training",
    "evaluation": "import lpips, segmentation_models_pytorch; from styleaug import evaluate_robustness",
    "faces": f"""{DRAW}
from styleaug import Preserve, StyleAugment
from styleaug.evaluation.identity import load_network
assert StyleAugment("art", preserve=Preserve(protect="faces"))(images).shape == images.shape
load_network("dlib")
""",
    "video": f"""{DRAW}
import av, cv2
from styleaug import StyleVideo
assert StyleVideo("art", flow="dis")(images[:1].expand(3, -1, -1, -1)).shape == (3, 3, 64, 48)
""",
}  # fmt: skip
"""The first thing that a user of an extra does."""
TESTS = {
    "core": "test_torchvision test_transforms test_generators test_samplers test_bank test_weights "
    "test_one_of test_random_networks test_color test_fit test_apply test_cli test_normalize test_blends",
    "albumentations": "test_albumentations",
    "kornia": "test_kornia",
    "monai": "test_monai",
    "timm": "test_timm",
    "nnunet": "test_nnunet",
    "lightning": "test_lightning",
    "huggingface": "test_huggingface",
    "hub": "test_hub",
    "ray": "test_ray",
    "parquet": "test_shards",
    "export": "test_export",
    "medical": "test_dicom test_tiff test_studies test_scan",
    "slides": "test_slides test_slide_copies test_ome_zarr",
    "train": "test_training test_recipes",
    "evaluation": "test_metrics test_segmentation",
    "faces": "test_faces test_identity",
    "video": "test_video test_flow test_clips",
}
"""Tests that run on the lowest versions. Hosts of the quick tests alone; `keras` has only an example."""
TOOLS = ("pytest>=8.3", "pytest-timeout>=2.3", "hypothesis>=6.115", "scikit-image>=0.24", "scipy>=1.11")


def uv() -> str:
    """Return the path of uv, or stop."""
    found = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    return found or sys.exit("installs: uv is needed; pip install uv")


def interpreter(version: str) -> str | None:
    """Return the interpreter of a version, if this machine has one."""
    done = subprocess.run(
        [uv(), "python", "find", "--no-python-downloads", version], capture_output=True, text=True
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


def environment(folder: Path, python: str, what: str, *extra: str) -> tuple[Path, str]:
    """Make an environment with a package; return its interpreter and the reason of a failure."""
    made = folder / "env" / "bin" / "python"
    failed = call(uv(), "venv", "-q", "--python", python, folder / "env", cwd=folder) or call(
        uv(), "pip", "install", "-q", "--python", made, what, *extra, cwd=folder
    )
    return made, failed


def built(folder: Path) -> tuple[Path, Path]:
    """Build wheel and sdist of this checkout."""
    if failed := call(uv(), "build", "-q", ROOT, "-o", folder, cwd=folder):
        sys.exit(f"installs: uv build: {failed}")
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


def try_newest(what: str, python: str, extra: str) -> str:
    """Install a wheel or an sdist with the newest versions, and use it; return the reason of a failure."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        made, failed = environment(folder, python, what)
        if failed:
            return f"cannot be installed: {failed}"
        script = folder / "smoke.py"
        script.write_text(SMOKE.get(extra, CORE))
        failed = call(made, "-I", script, cwd=folder)
        for arguments in COMMANDS if extra not in SMOKE else ():
            failed = failed or call(made.with_name("styleaug"), *arguments, cwd=folder)
        return failed


def try_lowest(wheel: Path, python: str, extra: str) -> tuple[str, dict[str, str]]:
    """Run the tests of an extra on the lowest versions; return the reason of a failure, and the versions."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        what = f"styleaug[{extra}] @ {wheel.as_uri()}" if extra != "core" else str(wheel)
        made, failed = environment(folder, python, what, *TOOLS, "--resolution", "lowest-direct")
        if failed:
            return f"cannot be installed: {failed}", {}
        for name in ("tests", "benchmarks", "examples", "docs", "pyproject.toml", "README.md"):
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
        listed = subprocess.run(
            [uv(), "pip", "list", "-q", "--python", str(made), "--format", "json"],
            capture_output=True,
            text=True,
        )
        versions = {each["name"]: each["version"] for each in json.loads(listed.stdout)}
        files = [f"tests/{name}.py" for name in TESTS[extra].split()]
        return call(made, "-m", "pytest", "-q", "-x", *files, cwd=folder, seconds=1200), versions


def promised(extra: str) -> list[str]:
    """Return the names that `pyproject.toml` promises a lowest version of, for the core or an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] if extra == "core" else project["optional-dependencies"][extra]
    return [line.split(">=")[0].split("==")[0].partition("[")[0].lower() for line in wanted]


def kept(name: str) -> dict[str, dict]:
    """Return the rows of an earlier result."""
    path = RESULTS / f"installs_{name}.json"
    return json.loads(path.read_text())["rows"] if path.exists() else {}


def newest(args: argparse.Namespace, wheel: Path, sdist: Path) -> None:
    """Try every extra on every Python with the newest versions."""
    rows = kept("newest")
    for version in args.pythons:
        python = interpreter(version)
        for extra in args.extras or ["core", "sdist", *SMOKE]:
            what = str(sdist if extra == "sdist" else wheel)
            what = f"styleaug[{extra}] @ {wheel.as_uri()}" if extra in SMOKE else what
            began = time.monotonic()
            failed = try_newest(what, python, extra) if python else "no such Python on this machine"
            rows.setdefault(extra, {})[version] = failed or "works"
            print(f"{version} {extra}: {failed or 'works'} ({time.monotonic() - began:.0f} s)", flush=True)
            publish(RESULTS / "installs_newest.json", "Each extra by itself, newest versions", rows)


def lowest(args: argparse.Namespace, wheel: Path) -> None:
    """Run the tests of every extra on the lowest versions."""
    rows = kept("lowest")
    python = interpreter(args.pythons[0]) or sys.exit(f"installs: no Python {args.pythons[0]} here")
    for extra in args.extras or TESTS:
        began = time.monotonic()
        failed, versions = try_lowest(wheel, python, extra)
        named = ", ".join(f"{name} {versions[name]}" for name in promised(extra) if name in versions)
        rows[extra] = {"tests": failed or "pass", "versions": named}
        print(f"lowest {extra}: {failed or 'pass'} ({time.monotonic() - began:.0f} s; {named})", flush=True)
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
