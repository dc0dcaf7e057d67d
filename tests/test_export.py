"""Generators leave Python whole: compiled, exported by torch, and as ONNX files in ONNX Runtime."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import jaxtyping
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto
from specimens import GENERATORS, Spy, bank, bank_of, generator, photos, tiny_adain, tiny_pix2pix
from torch import Tensor

from styleaug import (
    BankError,
    ConfigError,
    FileError,
    WeightsError,
    export,
    fit_style,
    load_bank,
    load_generator,
)
from styleaug.cli.main import cli
from styleaug.export import Exported, Graph, batch_of, export_onnx, open_program, read_samples, similarity
from styleaug.generators.base import AbstractGenerator
from styleaug.weights import save_generator

SIZES = [(3, 21, 30), (1, 33, 47), (2, 64, 16), (1, 200, 131)]
SMALL = [(1, 1, 1), (2, 7, 1), (2, 1, 9), (1, 2, 3)]
TOLERANCE = 1e-4
FOLDER = TemporaryDirectory()
each_generator = pytest.mark.parametrize("name", GENERATORS)
LEARNED = [name for name in GENERATORS if name.startswith("tiny-")]
FAMILIES = ["reinhard-lab", "histogram", "fourier", "macenko", "vahadane", "randstainna", "randconv", "gin"]
"""One of each kind of graph among those without weights; `test_compiles_as_one_graph` takes them all."""


@cache
def exported(name: str, **options) -> Exported:
    """Export a specimen or a shipped generator, once for all tests."""
    source = generator(name) if name in LEARNED else name
    return export_onnx(source, Path(FOLDER.name) / f"{name}-{len(options)}.onnx", **options)


@lru_cache(maxsize=1)
def opened(path: Path) -> onnxruntime.InferenceSession:
    """Open an ONNX file, once for calls in a row: that takes longer than to run it."""
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(file: Exported | Path, **inputs: Tensor) -> Tensor:
    """Run an ONNX file."""
    session = opened(file.path if isinstance(file, Exported) else file)
    assert {item.name for item in session.get_inputs()} == set(inputs)
    return torch.from_numpy(session.run(None, {key: value.numpy() for key, value in inputs.items()})[0])


def inputs_of(network: AbstractGenerator, count: int, height: int, width: int) -> dict[str, Tensor]:
    """Make images, codes of other pictures, and strengths from 1 down."""
    codes = network.encode_style(1 - photos(count, 18, 18))
    strength = torch.linspace(1, 0.3, count)
    return {"images": photos(count, height, width), "codes": codes, "strength": strength}


def known(file: Exported, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: inputs[name] for name in file.inputs}


@pytest.fixture
def unchecked():
    """Take the shape checks off, which are no part of the library and which nothing can compile."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
    torch.compiler.reset()


@pytest.mark.slow
@each_generator
def test_compiles_as_one_graph(name, unchecked):
    network = generator(name)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    for count, height, width in SIZES[:2]:  # the second time with open sizes
        inputs = inputs_of(network, count, height, width).values()
        torch.testing.assert_close(compiled(*inputs), network(*inputs), atol=TOLERANCE, rtol=0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_inductor_gives_the_same(unchecked):
    network, inputs = generator("reinhard-lab"), inputs_of(generator("reinhard-lab"), 2, 21, 30).values()
    styled = torch.compile(network, fullgraph=True)(*inputs)
    torch.testing.assert_close(styled, network(*inputs), atol=TOLERANCE, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reinhard-lab", "histogram", "fourier", *LEARNED])
def test_torch_exports_open_sizes(name):
    network = generator(name)
    if name == "tiny-pix2pix":  # whose innermost map may be one pixel; see `open_program`
        program = open_program(Graph(network), torch.zeros(1, 0))[0].module()
        module = lambda images, codes, strength: program({"images": images, "strength": strength})  # noqa: E731
    else:
        batch, *sides = (torch.export.Dim(name, min=1, max=4096) for name in ("batch", "height", "width"))
        sizes = ({0: batch, 2: sides[0], 3: sides[1]}, {0: batch}, {0: batch})
        example = tuple(inputs_of(network, 2, 21, 30).values())
        module = torch.export.export(network, example, dynamic_shapes=sizes).module()
    for count, height, width in SIZES:
        inputs = inputs_of(network, count, height, width).values()
        torch.testing.assert_close(module(*inputs), network(*inputs), atol=TOLERANCE, rtol=0)
    for count, height, width in SMALL:
        inputs = inputs_of(network, count, height, width)
        assert module(*inputs.values()).shape == inputs["images"].shape


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FAMILIES, *LEARNED])
def test_onnx_runtime_gives_the_same(name):
    network, file = generator(name), exported(name)
    assert file.largest <= TOLERANCE and file.similarity > 0.9999
    for count, height, width in SIZES:
        inputs = inputs_of(network, count, height, width)
        styled = run(file, **known(file, inputs))
        assert styled.dtype == torch.float32
        torch.testing.assert_close(styled, network(*inputs.values()), atol=TOLERANCE, rtol=0)
    for count, height, width in SMALL:  # rounding errors may grow, and nothing else
        inputs = inputs_of(network, count, height, width)
        styled = run(file, **known(file, inputs))
        assert styled.shape == inputs["images"].shape and styled.min() >= 0 and styled.max() <= 1
        inputs["strength"][:] = 0
        assert torch.equal(run(file, **known(file, inputs)), inputs["images"])


def test_what_cannot_be_exported_is_refused_at_once(tmp_path):
    with pytest.raises(ConfigError, match="'fourier-full' cannot be exported to ONNX"):
        export_onnx("fourier-full", tmp_path / "a.onnx")


@pytest.mark.slow
def test_inputs_follow_the_generator():
    assert exported("tiny-adain").inputs == ("images", "codes", "strength")
    assert exported("tiny-cyclegan").inputs == exported("tiny-pix2pix").inputs == ("images", "strength")
    session = onnxruntime.InferenceSession(exported("tiny-adain").path)
    shapes = {item.name: item.shape for item in session.get_inputs() + session.get_outputs()}
    images, codes = ["batch", 3, "height", "width"], ["batch", generator("tiny-adain").code_length]
    assert shapes == {"images": images, "codes": codes, "strength": ["batch"], "styled": images}


@pytest.mark.slow
def test_a_bank_goes_into_the_file():
    styles, network = load_bank("art"), load_generator("adain")
    file = exported("adain", bank="art")
    rows, images = torch.tensor([200, 0, 31]), photos(3, 90, 70)
    wanted = network(images, styles.codes[rows], torch.ones(3))
    styled = run(file, images=images, style=rows, strength=torch.ones(3))
    torch.testing.assert_close(styled, wanted, atol=TOLERANCE, rtol=0)
    with pytest.raises(Exception, match="out of data bounds"):
        run(file, images=images, style=torch.tensor([0, 1, 256]), strength=torch.ones(3))
    facts = metadata(file.path)
    assert facts["bank"]["styles"] == 256 and facts["bank"]["generator"] == "adain"
    assert facts["bank"]["licence"] == styles.provenance.licence


def metadata(path: Path) -> dict:
    (entry,) = onnx.load(path).metadata_props
    assert entry.key == "styleaug"
    return json.loads(entry.value)


@pytest.mark.slow
def test_metadata_say_what_it_is():
    facts = metadata(exported("photo", precision="int8").path)
    assert facts["name"] == facts["generator"] == "photo" and facts["licence"] == "Apache-2.0"
    assert facts["fingerprint"] == load_generator("photo").fingerprint
    assert facts["precision"] == "int8" and facts["bank"] is None and facts["code_length"] == 102
    mine = metadata(exported("tiny-adain").path)
    assert mine["name"] is None and mine["licence"] == "" and mine["generator"] == "adain"
    assert metadata(exported("histogram").path)["licence"] == "Apache-2.0"


def test_files_name_no_files():
    for file in (exported("tiny-adain"), exported("histogram"), exported("photo", precision="int8")):
        assert file.path.stat().st_size == file.size
        model = onnx.load(file.path)
        for tensor in model.graph.initializer:
            tensor.raw_data = b""
        text = str(model)
        for trace in ("/", ".py", "styleaug.generators", "torch"):
            assert trace not in text, (file.path, trace)
    assert {path.suffix for path in Path(FOLDER.name).iterdir()} == {".onnx"}, "no weights beside the file"


@pytest.mark.slow
def test_equal_calls_give_equal_bytes_and_change_nothing(tmp_path):
    state, network = torch.get_rng_state(), tiny_pix2pix().train().requires_grad_(True)
    again = export_onnx(network, tmp_path / "again.onnx", precision="int8")
    assert again.path.read_bytes() == exported("tiny-pix2pix", precision="int8").path.read_bytes()
    assert network.training and all(p.requires_grad for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_float16_is_half_inside():
    network, file = load_generator("photo"), exported("photo", precision="float16")
    kinds = {item.data_type for item in onnx.load(file.path).graph.initializer if len(item.dims) == 4}
    assert kinds == {TensorProto.FLOAT16}
    inputs = inputs_of(network, 3, 61, 45)
    styled = run(file, **known(file, inputs))
    assert styled.dtype == torch.float32
    assert (styled - network(*inputs.values())).abs().max() < 0.01
    assert 0 < file.mean < 1e-4 and file.largest < 0.01 and file.similarity > 0.999


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mean", "alike"), [("tiny-pix2pix", 2, 0.99), ("adain", 1, 0.995), ("photo", 0.2, 0.999)]
)
def test_int8_stays_close(name, mean, alike):
    network = generator(name) if name in LEARNED else load_generator(name)
    file = exported(name, precision="int8")
    assert 255 * file.mean < mean and file.similarity > alike
    inputs = inputs_of(network, 3, 61, 45)
    inputs["strength"][0] = 0
    styled, images = run(file, **known(file, inputs)), inputs["images"]
    assert torch.equal(styled[0], images[0])
    assert 255 * (styled - network(*inputs.values())).abs().mean() < 2 * mean


@pytest.mark.slow
def test_int8_is_inside_the_blocks_alone():
    graph = onnx.load(exported("adain", precision="int8").path).graph
    kinds = {item.name: item.data_type for item in graph.initializer}
    short = {name for name, kind in kinds.items() if kind == TensorProto.INT8 and "quantized" in name}
    assert len(short) == 8 and all("block" in name for name in short), short
    assert {item.type.tensor_type.elem_type for item in (*graph.input, *graph.output)} == {TensorProto.FLOAT}
    assert exported("adain", precision="int8").size < 0.6 * exported("adain", bank="art").size


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reinhard-lab", "fourier", "tiny-adain"])
def test_encoders_read_codes(name):
    network, file = generator(name), exported(name, part="encoder")
    assert file.inputs == ("images",) and file.output == "codes"
    for count, height, width in SIZES:
        images = photos(count, height, width)
        torch.testing.assert_close(run(file, images=images), network.encode_style(images), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_sizes_and_operators_can_be_fixed(tmp_path):
    ticks = []
    report = lambda *tick: ticks.append(tick)  # noqa: E731
    file = export_onnx("reinhard-rgb", tmp_path / "fixed.onnx", size=(20, 36), opset=20, report=report)
    assert onnx.load(file.path).opset_import[0].version == 20
    assert onnxruntime.InferenceSession(file.path).get_inputs()[0].shape == ["batch", 3, 20, 36]
    inputs = inputs_of(generator("reinhard-rgb"), 3, 20, 36)
    wanted = generator("reinhard-rgb")(*inputs.values())
    torch.testing.assert_close(run(file, **inputs), wanted, atol=TOLERANCE, rtol=0)
    assert ticks == [(done, 4) for done in range(5)]


@pytest.mark.slow
def test_runs_can_be_exported(tmp_path):
    save_generator(generator("tiny-photo"), tmp_path / "run" / "generator.safetensors")
    facts = metadata(export_onnx(tmp_path / "run", tmp_path / "new" / "a.onnx").path)
    assert facts["fingerprint"] == generator("tiny-photo").fingerprint and facts["name"] is None


@pytest.mark.slow
def test_the_users_own_images_are_compared(tmp_path):
    with pytest.raises(FileError, match="no folder"):
        export_onnx("reinhard-rgb", tmp_path / "a.onnx", samples=tmp_path / "none")
    np.save(tmp_path / "grey.npy", np.full((20, 30), 0.5, dtype=np.float32))
    assert [picture.shape for picture in read_samples(tmp_path)] == [(1, 3, 20, 30)]
    assert batch_of(read_samples(), 5, 3, (9, 7)).shape == (3, 3, 9, 7)
    file = export_onnx("reinhard-rgb", tmp_path / "a.onnx", samples=tmp_path)
    assert file.path.exists()


def test_similarity():
    images = photos(2, 40, 40)
    torch.testing.assert_close(similarity(images, images), torch.ones(2))
    noisy = (images + 0.1 * torch.randn_like(images)).clamp(0, 1)
    assert (similarity(images, noisy) < 0.9).all() and (similarity(images, 1 - images) < 0.2).all()


def translated(name: str) -> Callable[..., bytes]:
    """Stand in for `export.translate`, with what it gave before."""
    content = exported(name).path.read_bytes()
    return lambda *args: content


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["network", "limit", "nan"])
def test_files_that_differ_are_not_written(wrong, monkeypatch, tmp_path):
    given = translated("reinhard-lab" if wrong == "network" else "reinhard-rgb")
    monkeypatch.setattr(export, "_translate", given)
    if wrong == "limit":
        monkeypatch.setitem(export.LIMITS, "float32", (1e-12, 1.0))
    elif wrong == "nan":
        monkeypatch.setattr(export, "_compare", lambda *args: (float("nan"), 0.0, 1.0))
    out = tmp_path / "a.onnx"
    out.write_bytes(b"before")
    with pytest.raises(WeightsError, match="'reinhard-rgb' in float32 differs from torch by"):
        export_onnx("reinhard-rgb", out)
    assert out.read_bytes() == b"before" and list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("largest", [0.04, 0.2])
def test_rounding_that_nobody_sees_is_no_reason_to_refuse(largest):
    export.check_difference("macenko", "float32", 0.005 / 255, largest / 255, 1.0, codes=False)
    for mean, most in ((0.02, largest), (0.005, 0.3), (float("nan"), largest), (0.005, float("nan"))):
        with pytest.raises(WeightsError, match=r"0\.01 and 0\.25 levels of 255 are allowed"):
            export.check_difference("macenko", "float32", mean / 255, most / 255, 1.0, codes=False)
    with pytest.raises(WeightsError, match=r"0\.0001 and 0\.0001 are allowed"):
        export.check_difference("photo", "float32", 1e-5, 2e-4, 1.0, codes=True)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", ["macenko", "vahadane", "reinhard-hed", "randstainna"])
def test_banks_fitted_to_slides_are_exported(name, data, tmp_path):
    for folder in ("wbc/bccd", "colon/site_a"):
        bank = fit_style(data / folder, generator=name, max_styles=64).bank
        made = export_onnx(name, tmp_path / "a.onnx", bank=bank)
        assert 255 * made.largest < 0.25


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        ("nonsense", {}, WeightsError, "no generator 'nonsense'"),
        (Path("missing.safetensors"), {}, WeightsError, "cannot open missing.safetensors"),
        ("adain", {"bank": "photo-tones"}, BankError, "made by generator 'photo'"),
        ("adain", {"bank": "nonsense"}, BankError, "no bank 'nonsense'"),
        ("cell-stain", {"bank": "art"}, ConfigError, "one fixed target domain.*leave out the bank"),
        ("adain", {"precision": "int4"}, ConfigError, "precision must be one of float32, float16, int8"),
        ("adain", {"part": "decoder"}, ConfigError, "part must be one of generator, encoder"),
        ("adain", {"opset": 17}, ConfigError, "opset must be at least 18, got 17"),
        ("adain", {"size": (0, 8)}, ConfigError, "size must be height and width from 1"),
        ("histogram", {"precision": "float16"}, ConfigError, "'histogram' has no weights; its precision"),
        ("patchswap", {"part": "encoder"}, ConfigError, "'patchswap' reads codes as ONNX cannot"),
        ("cell-stain", {"part": "encoder"}, ConfigError, "'cyclegan' has no codes"),
        ("adain", {"part": "encoder", "bank": "art"}, ConfigError, "an encoder takes no bank"),
    ],
)
def test_refusals(source, options, error, message, tmp_path):
    with pytest.raises(error, match=message):
        export_onnx(source, tmp_path / "a.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_more_refusals(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"must end in \.onnx, got '.*a\.pt'"):
        export_onnx("adain", tmp_path / "a.pt")
    with pytest.raises(BankError, match="other weights"):
        export_onnx(tiny_adain(1), tmp_path / "a.onnx", bank=bank("tiny-adain"))
    with pytest.raises(ConfigError, match="'spy' cannot be exported"):
        export_onnx(Listing(), tmp_path / "a.onnx", bank=bank_of(Listing()))
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r'needs onnx, onnxruntime, onnxscript: pip install "styleaug\[export\]"'
    ):
        export_onnx("adain", tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


class Listing(Spy):
    """Does what no graph can hold."""

    def forward(self, images: Tensor, codes: Tensor, strength: Tensor) -> Tensor:
        """Look at a value."""
        return images if images.mean().item() > 0.5 else 1 - images


@pytest.mark.slow
def test_command(tmp_path):
    out = tmp_path / "a.onnx"
    command = [sys.executable, "-m", "styleaug", "export", "reinhard-rgb", "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "", done
    first, second = done.stderr.splitlines()
    assert first.startswith(f"{out}: ") and first.endswith("from images, codes, strength to styled")
    assert second.startswith("differs from torch by ") and "of 255 on average" in second
    assert out.read_bytes() == exported("reinhard-rgb").path.read_bytes(), "another process, the same bytes"
    refused = CliRunner().invoke(cli, ["export", "photo", "-o", str(tmp_path / "b.onnx"), "--bank", "art"])
    assert isinstance(refused.exception, BankError)
    assert CliRunner().invoke(cli, ["export", "photo"]).exit_code == 2
    assert "a row of the bank" in CliRunner().invoke(cli, ["export", "--help"]).output
    assert list(tmp_path.iterdir()) == [out]
