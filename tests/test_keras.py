"""`StyleLayer` in Keras: equal to the generators, draws, training, files; on torch, JAX and TensorFlow."""

import json
import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from specimens import bank, generator, photos

from styleaug import (
    BankError,
    ConfigError,
    FileError,
    ImageError,
    Provenance,
    StyleAugment,
    StyleBank,
    WeightsError,
    export_onnx,
)
from styleaug.transforms.painting import enlarged

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
keras = pytest.importorskip("keras")

# Keras reads the signature of `__init__`, which the wrapper that checks shapes in tests would hide.
with pytest.MonkeyPatch.context() as patch:
    unwrapped = [finder for finder in sys.meta_path if not type(finder).__module__.startswith("jaxtyping")]
    patch.setattr(sys, "meta_path", unwrapped)
    sys.modules.pop("styleaug.transforms.keras", None)
    adapter = import_module("styleaug.transforms.keras")
StyleLayer = adapter.StyleLayer

# Keras calls NumPy in an old way, for tensors of torch.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
BACKEND = keras.backend.backend()
OTHERS = [name for name in ("jax", "tensorflow") if name != BACKEND]
LAB = "reinhard-lab"
PARAMS = {"style": np.array([4, 1, 2, 0]), "strength": np.array([1, 0.5, 0.8, 0], dtype=np.float32)}


def pixels(count: int = 4, height: int = 20, width: int = 26) -> np.ndarray:
    """Photographs `(B, H, W, 3)`, uint8."""
    return (255 * photos(count, height, width)).round().byte().permute(0, 2, 3, 1).numpy()


def array(images: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(images)


def expected(name: str, images: np.ndarray) -> np.ndarray:
    """What the generator makes of uint8 images with `PARAMS`, in 0 to 255."""
    planes = torch.from_numpy(images).movedim(3, 1) / 255
    codes, strength = bank(name).codes[PARAMS["style"]], torch.from_numpy(PARAMS["strength"])
    painter = StyleAugment(bank(name), generator=generator(name), precision="float32").painter_on(
        torch.device("cpu")
    )
    return 255 * painter(planes, codes, strength).movedim(1, 3).numpy()


def flat_colour(images: Any, codes: Any, strength: Any) -> Any:
    """What the graph of `write_graph` computes: a style is one colour."""
    return images + strength[:, None, None, None] * (codes[:, :, None, None] - images)


def write_graph(path: Path, *, style: str = "codes", **facts: Any) -> Path:
    """Write a file as `export_onnx` does, by hand, which takes no seconds."""
    tensor, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    floats = onnx.TensorProto.FLOAT
    nodes = [
        node("Reshape", [style, "wide"], ["colour"]),
        node("Reshape", ["strength", "wide_one"], ["share"]),
        node("Sub", ["colour", "images"], ["change"]),
        node("Mul", ["share", "change"], ["part"]),
        node("Add", ["images", "part"], ["styled"]),
    ]
    inputs = [
        tensor("images", floats, ["b", 3, "h", "w"]),
        tensor(style, floats, ["b", 3]),
        tensor("strength", floats, ["b"]),
    ]
    shapes = [
        onnx.numpy_helper.from_array(np.array([-1, width, 1, 1]), name)
        for name, width in (("wide", 3), ("wide_one", 1))
    ]
    graph = onnx.helper.make_graph(nodes, "g", inputs, [tensor("styled", floats, None)], shapes)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    known = {"generator": "flat", "fingerprint": "f", "code_length": 3, "least_side": 1, "minimum": 1}
    onnx.helper.set_model_props(model, {"styleaug": json.dumps(known | facts)})
    onnx.save(model, path)
    return path


COLOURS = StyleBank(torch.rand(5, 3, generator=torch.Generator().manual_seed(1)), Provenance("flat", "f", 5))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder with `lab.safetensors`, and a graph with its bank: `net.onnx`, `net.safetensors`."""
    folder = tmp_path_factory.mktemp("files")
    bank(LAB).save(folder / "lab.safetensors")
    COLOURS.save(folder / "net.safetensors")
    write_graph(folder / "net.onnx")
    return folder


def layer(files: Path, kind: str, **options: Any) -> Any:
    graph = {"generator": files / "net.onnx"} if kind == "net" else {}
    return StyleLayer(files / f"{kind}.safetensors", **graph, **options)


kinds = pytest.mark.parametrize("kind", ["lab", "net"])


@pytest.mark.parametrize("space", adapter.SPACES)
def test_colours_are_those_of_the_generator(space):
    images, name = pixels(), f"reinhard-{space}"
    images[1, :, :, 2], images[2] = 7, 90  # nearly without blue; flat
    wanted = expected(name, images)
    assert array(StyleLayer(bank(name)).apply(images, PARAMS)) == pytest.approx(wanted, abs=255e-4)
    first = StyleLayer(bank(name), data_format="channels_first", value_range=(0, 1))
    styled = array(first.apply(images.transpose(0, 3, 1, 2).astype("float32") / 255, PARAMS))
    assert styled.transpose(0, 2, 3, 1) == pytest.approx(wanted / 255, abs=1e-4)


@pytest.mark.parametrize("least_side", [1, 32])
def test_a_graph_paints_as_its_generator_would(least_side, tmp_path):
    style = StyleLayer(COLOURS, generator=write_graph(tmp_path / "a.onnx", least_side=least_side))
    planes, strength = torch.from_numpy(pixels()).movedim(3, 1) / 255, torch.from_numpy(PARAMS["strength"])
    painter = enlarged(flat_colour, least_side, 1)
    wanted = painter(planes, COLOURS.codes[PARAMS["style"]], strength).movedim(1, 3).numpy()
    styled = array(style.apply(pixels(), PARAMS))
    assert styled == pytest.approx(255 * wanted, abs=255e-4)
    assert (styled[3] == pixels()[3]).all() and (styled[:3] != pixels()[:3]).any(axis=(1, 2, 3)).all()


@pytest.mark.slow
def test_an_exported_generator_is_the_generator(monkeypatch, tmp_path):
    network = generator("tiny-adain")
    monkeypatch.setattr(network, "least_side", 32)
    export_onnx(network, tmp_path / "net.onnx")
    style = StyleLayer(bank("tiny-adain"), generator=tmp_path / "net.onnx")
    for size in ((20, 26), (5, 3), (40, 50)):
        images = pixels(4, *size)
        wanted = expected("tiny-adain", images)
        assert array(style.apply(images, PARAMS)) == pytest.approx(wanted, abs=255e-4)


def test_negative_deviations_are_none():
    styles = bank("reinhard-rgb")
    styles.codes[:, 3:] = -1
    styled = array(StyleLayer.apply(made := StyleLayer(bank("reinhard-rgb")), pixels(), PARAMS))
    assert styled.std() > 1
    made.codes = styles.codes.numpy()
    full = PARAMS | {"strength": np.ones(4, dtype=np.float32)}
    assert array(made.apply(pixels(), full)).std(axis=(1, 2)) == pytest.approx(0, abs=0.01)


def test_each_image_draws_for_itself():
    style, images = StyleLayer(bank(LAB), p=0.7, strength=(0.3, 0.6), seed=1), np.zeros((2000, 1, 1, 3))
    params = {name: array(value) for name, value in style.make_params(images).items()}
    picked = params["strength"] > 0
    assert 0.65 < picked.mean() < 0.75
    assert 0.3 <= params["strength"][picked].min() < 0.32 and 0.58 < params["strength"].max() <= 0.6
    assert np.bincount(params["style"]).min() > 300 and len(np.bincount(params["style"])) == 5
    again = {name: array(value) for name, value in style.make_params(images).items()}
    assert (again["style"] != params["style"]).any() and (again["strength"] != params["strength"]).any()


@kinds
def test_a_seed_gives_the_same_images(files, kind):
    one, two, other = (layer(files, kind, seed=seed, strength=(0.5, 1)) for seed in (3, 3, 4))
    first = array(one(pixels()))
    assert (first == array(two(pixels()))).all() and (first != array(other(pixels()))).any()
    second = array(one(pixels()))
    assert (first != second).any() and (second == array(two(pixels()))).all()


@kinds
def test_rows_that_are_not_picked_are_the_images(files, kind):
    images = pixels(16)
    style = layer(files, kind, p=0.5, seed=2)
    same = (array(style(images)) == images).all(axis=(1, 2, 3))
    assert 0 < same.sum() < 16
    assert (array(layer(files, kind, p=0)(images)) == images).all()
    assert (array(layer(files, kind, p=1)(images)) != images).any(axis=(1, 2, 3)).all()


@kinds
def test_without_training_nothing_changes(files, kind):
    style = layer(files, kind, p=1)
    model = keras.Sequential([style])
    for still in (style(pixels(), training=False), model(pixels(), training=False)):
        assert (array(still) == pixels()).all()
    assert (model.predict(pixels(), verbose=0) == pixels()).all()
    assert (array(model(pixels(), training=True)) != pixels()).any()


@kinds
def test_a_model_trains_is_saved_and_loaded(files, kind, tmp_path):
    images, labels = pixels(16, 12, 12), np.arange(16) % 2
    size = [keras.layers.Flatten(), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((12, 12, 3)), layer(files, kind, seed=1), *size])
    assert model.layers[0].output.shape == (None, 12, 12, 3)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(images, labels, batch_size=5, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert (loaded.predict(images, verbose=0) == model.predict(images, verbose=0)).all()
    assert loaded.layers[0].get_config() == model.layers[0].get_config()


@pytest.mark.parametrize("name", ["net.safetensors", "net.onnx"])
def test_a_changed_file_is_an_error(files, name):
    config = layer(files, "net").get_config()
    part = "bank" if name.endswith("tensors") else "generator"
    assert StyleLayer.from_config(config).get_config() == config
    config["sha256"] = config["sha256"] | {part: "0" * 64}
    with pytest.raises(BankError, match=f"{part} '.*{name}' has changed since this layer was saved"):
        StyleLayer.from_config(config)


def test_a_bank_without_a_file_cannot_be_saved():
    with pytest.raises(ConfigError, match=r"bank\.save\("):
        StyleLayer(bank(LAB)).get_config()


@kinds
def test_shapes_dtypes_and_labels_are_kept(files, kind):
    style, image = layer(files, kind, p=1), pixels()[0]
    assert array(style(image)).shape == image.shape and (array(style(image)) != image).any()
    styled = style({"images": pixels(), "labels": np.arange(4)})
    assert (array(styled["labels"]) == np.arange(4)).all() and array(styled["images"]).shape == (4, 20, 26, 3)
    first = layer(files, kind, p=1, data_format="channels_first")
    assert array(first(image.transpose(2, 0, 1))).shape == (3, 20, 26)
    half = layer(files, kind, dtype="mixed_float16")(pixels())
    assert keras.backend.standardize_dtype(half.dtype) == "float16"


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (np.zeros((2, 4, 4, 1)), {}, r"must be \(B, H, W, 3\) .* got \(2, 4, 4, 1\)"),
        (np.zeros((2, 4, 4, 3)), {"data_format": "channels_first"}, r"must be \(B, 3, H, W\)"),
        (np.zeros((4, 3)), {}, "must be"),
        (np.full((4, 4, 3), 256.0), {}, r"must lie in value_range \(0, 255\), got \[256, 256\]"),
        (np.full((4, 4, 3), np.nan), {}, r"got \[nan, nan\]"),
        (np.full((4, 4, 3), 200, dtype="uint8"), {"value_range": (0, 1)}, r"value_range \(0, 1\), got"),
    ],
)
def test_images_that_are_refused(images, options, message):
    with pytest.raises(ImageError, match=message):
        StyleLayer(bank(LAB), **options)(images)


def test_a_dict_without_images():
    with pytest.raises(ImageError, match='must hold "images", got pixels'):
        StyleLayer(bank(LAB))({"pixels": pixels()})


def test_a_range_that_is_probably_wrong():
    with pytest.warns(UserWarning, match=r"give value_range=\(0, 1\)"):
        StyleLayer(bank(LAB))(pixels() / np.float32(255))


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        (LAB, {"p": 1.5}, ConfigError, "p must be"),
        (LAB, {"strength": (1, 0)}, ConfigError, "low <= high"),
        (LAB, {"value_range": "auto"}, ConfigError, r"value_range must be \(low, high\)"),
        (LAB, {"data_format": "NCHW"}, ConfigError, "data_format must be"),
        (LAB, {"seed": "1"}, ConfigError, "seed must be"),
        (LAB, {"generator": generator(LAB)}, ConfigError, "export_onnx"),
        (LAB, {"generator": "reinhard-rgb"}, BankError, "was made by generator 'reinhard-lab'"),
        (LAB, {"generator": "reinhard-lab-tissue"}, ConfigError, "styleaug export reinhard-lab-tissue -o"),
        (LAB, {"generator": "no.onnx"}, FileError, r"no\.onnx"),
        (LAB, {"generator": f"{__file__}/../junk.onnx"}, FileError, "junk"),
        ("histogram", {}, ConfigError, "styleaug export histogram -o histogram.onnx"),
        ("fourier-full", {}, ConfigError, "style arrays before with StyleAugment"),
    ],
)
def test_what_is_refused(name, options, error, message):
    with pytest.raises(error, match=message):
        StyleLayer(bank(name), **options)


def test_files_that_are_no_generator(files, tmp_path):
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(WeightsError, match=r"junk\.onnx is damaged, or no file of this version"):
        StyleLayer(COLOURS, generator=tmp_path / "junk.onnx")
    with pytest.raises(BankError, match="this bank was made by 'reinhard-lab'"):
        StyleLayer(bank(LAB), generator=files / "net.onnx")
    model = onnx.load(files / "net.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(WeightsError, match=r"other\.onnx is damaged, or no file"):
        StyleLayer(COLOURS, generator=tmp_path / "other.onnx")
    with pytest.raises(WeightsError, match="without --bank"):
        StyleLayer(COLOURS, generator=write_graph(tmp_path / "rows.onnx", style="style"))


@kinds
def test_tf_data(files, kind):
    tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    pairs = tf.data.Dataset.from_tensor_slices((pixels(16), np.arange(16))).batch(8)
    style, same, parallel = (layer(files, kind, p=0.5, seed=1) for _ in range(3))
    styled = pairs.map(lambda images, labels: (style(images), labels))
    assert styled.element_spec[0].shape == (None, 20, 26, 3)
    assert styled.element_spec[0].dtype == tf.float32
    (first, labels), (second, _) = styled
    assert (labels.numpy() == np.arange(8)).all() and (first.numpy() != pixels(16)[:8]).any()
    again = [batch.numpy() for batch in pairs.map(lambda images, labels: same(images))]
    assert (again[0] == first.numpy()).all() and (again[1] == second.numpy()).all()
    assert (next(iter(styled))[0].numpy() != first.numpy()).any(), "another epoch, other draws"
    batches = pairs.repeat(8).map(lambda images, labels: parallel(images), num_parallel_calls=4)
    assert len({batch.numpy().tobytes() for batch in batches}) == 16, "no draw is given to two calls"
    still = pairs.map(lambda images, labels: style(images, training=False))
    assert (next(iter(still)).numpy() == pixels(16)[:8]).all()
    alone = pairs.unbatch().map(lambda images, labels: style({"images": images, "labels": labels})).batch(16)
    assert (next(iter(alone))["labels"].numpy() == np.arange(16)).all()
    with pytest.raises(Exception, match="unknown number of axes"):  # TensorFlow wraps it
        pairs.map(lambda images, labels: style(tf.ensure_shape(tf.io.decode_image(""), None)))


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "torch", reason="runs on another backend already")
@pytest.mark.parametrize("backend", OTHERS)
def test_on_another_backend(backend):
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        command, env={**os.environ, "KERAS_BACKEND": backend}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:]
