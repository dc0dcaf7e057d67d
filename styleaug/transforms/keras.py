"""`StyleLayer`, a Keras 3 layer for any backend, and for `tf.data`."""

import hashlib
import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch

from styleaug.bank import StyleBank
from styleaug.checks import check_seed, check_share
from styleaug.errors import (
    BankError,
    ConfigError,
    FileError,
    ImageError,
    WeightsError,
    first_line,
    missing_extra,
    printable,
)
from styleaug.generators import colorspace as c
from styleaug.generators.color import MAX_GAIN, ChannelStats
from styleaug.generators.layers import EPS
from styleaug.io.hub import pinned
from styleaug.io.paths import check_path, check_regular
from styleaug.transforms.augment import chunk_images
from styleaug.transforms.options import STRENGTH, P, check_range_option, check_strength
from styleaug.transforms.painting import Painter, area_seen, enlarged, finite
from styleaug.weights import as_bank, load_generator, maker_of

if find_spec("keras") is None:
    raise missing_extra("styleaug.transforms.keras", "keras", "keras")
try:
    import keras
except ImportError as _error:  # its backend is missing: without KERAS_BACKEND that is TensorFlow
    raise ConfigError(
        f"Keras could not be imported: {first_line(_error)} Install its backend, or choose another one "
        'before Keras is imported: os.environ["KERAS_BACKEND"] = "torch", "jax" or "tensorflow".'
    ) from _error

__all__ = ["StyleLayer"]

ops: Any = keras.ops
"""Without Keras's own types, which have no arithmetic."""
DRAWING = Lock()
"""Held while a call of `tf.data` draws: it calls from several threads."""
OVERSHOOT = 1e-3
"""Share of the value range by which images may leave it, as bicubic resizing and rounding do."""


@keras.saving.register_keras_serializable(package="styleaug")
class StyleLayer(keras.layers.Layer):
    """Stylise images after a bank, at random; labels, masks and boxes stay as they are.

    Each image has a gate, a style and a strength of its own. Place it in a model, as Keras's own random
    layers: it works in training only. Or call it in `tf.data`, with any backend of Keras:
    `dataset.map(lambda images, labels: (style(images), labels))`.

    Banks of `reinhard-rgb`, `-lab`, `-ycbcr`, `-hsv`, `-hed` and `-luminance` are computed by Keras itself,
    on its device, compiled or not. Other generators come as the file that `styleaug export NAME -o NAME.onnx`
    writes. ONNX Runtime runs it on the CPU, also within compiled JAX and graphs of TensorFlow, on picked
    images only; gradients do not flow through it.

    Args:
        bank: a path, a run folder, `"hf:OWNER/NAME"`, a shipped name, or a `StyleBank`. A layer with a
            `StyleBank` cannot be saved.
        generator: an `.onnx` file without a bank in it; None computes the colour generator of the bank.
        p: chance of each image to be stylised.
        strength: how much of the style, in [0, 1]: a number, or `(low, high)` between which it is drawn.
        value_range: what is black and what is white in the images.
        data_format: `"channels_last"` or `"channels_first"`; None is that of `keras.config`.
        seed: of all draws, as in Keras: the same on each run of one backend.
        options: of `keras.layers.Layer`: `name`, `dtype`.

    Shape:
        `(B, H, W, 3)` or `(H, W, 3)`, with `"channels_first"` `(B, 3, H, W)` or `(3, H, W)`; or a dict with
        these as `"images"`, whose other entries are passed on. Integers or floats within `value_range`. The
        result has the layer's compute dtype (float32), as of Keras's own layers, and the same range.

    Raises:
        BankError: the bank is damaged, unknown, or made by another generator; or it has changed since the
            layer was saved.
        ConfigError: an argument outside its range, or a generator that Keras cannot compute.
        WeightsError: the `.onnx` file is damaged, or not one of `styleaug export`.
        ImageError: when called with another number of channels or axes; with values outside `value_range`,
            where they can be read: not within a compiled graph, and not on a GPU.

    Example:
        >>> model = keras.Sequential([StyleLayer("tones.safetensors", p=0.5), *layers])  # doctest: +SKIP
    """

    def __init__(
        self,
        bank: str | Path | StyleBank,
        *,
        generator: str | Path | None = None,
        p: float = P,
        strength: float | Sequence[float] = STRENGTH,
        value_range: Sequence[float] = (0, 255),
        data_format: str | None = None,
        seed: int | None = None,
        **options: Any,
    ):
        super().__init__(autocast=False, **options)
        self.p, self.strength = check_share("p", p), check_strength(strength)
        self.value_range = check_ends(value_range)
        self.data_format = check_format(data_format)
        self.seed = None if seed is None else check_seed(seed)
        self.seed_generator = keras.random.SeedGenerator(self.seed)
        self.bank, self.generator = pinned(bank), generator
        styles = as_bank(self.bank)
        if generator is not None and is_graph(generator):
            painter, content = open_graph(check_path(generator), styles)
            self.paint = partial(on_host, painter=painter, axis=self.axis)
            self.supports_jit = keras.backend.backend() != "tensorflow"  # XLA cannot leave its graph
        else:
            self.paint = partial(match_moments, space=space_of(styles, generator), axis=self.axis)
            content = b""
        self.codes = styles.codes.float().numpy()
        self.sha256 = {"bank": digest(self.codes.tobytes()), "generator": digest(content)}

    @property
    def axis(self) -> int:
        """The axis of the channels in a batch."""
        return 1 if self.data_format == "channels_first" else 3

    def __call__(self, data: Any, *args: Any, **options: Any) -> Any:
        """Stylise a batch or an image. TensorFlow's own tensors are taken with every backend."""
        images = data.get("images") if isinstance(data, Mapping) else data
        if keras.backend.backend() == "tensorflow" or not type(images).__module__.startswith("tensorflow."):
            return super().__call__(data, *args, **options)
        training = args[0] if args else options.get("training", True)
        styled = self.from_tensorflow(images, training=training is not False)
        return {**data, "images": styled} if isinstance(data, Mapping) else styled

    def call(self, data: Any, training: bool = True) -> Any:
        """Draw and stylise; with `training=False` cast the images only."""
        if isinstance(data, Mapping):
            if "images" not in data:
                raise ImageError(f'a dict must hold "images", got {", ".join(map(str, data))}.')
            return {**data, "images": self.call(data["images"], training)}
        if not training:
            return ops.cast(data, self.compute_dtype)
        return self.apply(data, self.make_params(data))

    def make_params(self, images: Any) -> dict[str, Any]:
        """Draw what is random: for each image `style`, a row of the bank, and `strength`, 0 if not picked."""
        count = 1 if len(self.check_form(images)) == 3 else ops.shape(images)[0]
        seed = self.seed_generator
        picked = keras.random.uniform((count,), dtype="float32", seed=seed) < self.p
        strength = keras.random.uniform((count,), *self.strength, dtype="float32", seed=seed)
        style = keras.random.randint((count,), 0, len(self.codes), dtype="int32", seed=seed)
        return {"style": style, "strength": strength * ops.cast(picked, "float32")}

    def apply(self, images: Any, params: Mapping[str, Any]) -> Any:
        """Stylise by parameters from `make_params`; nothing here is random."""
        self.check(images)
        single = len(images.shape) == 3
        images = ops.expand_dims(images, 0) if single else images
        low, high = self.value_range
        unit = ops.clip((ops.cast(images, "float32") - low) / (high - low), 0, 1)
        codes = ops.take(ops.convert_to_tensor(self.codes), params["style"], axis=0)
        strength = ops.cast(ops.convert_to_tensor(params["strength"]), "float32")
        styled = ops.cast(self.paint(unit, codes, strength) * (high - low) + low, self.compute_dtype)
        picked = ops.reshape(strength, (-1, 1, 1, 1)) > 0
        result = ops.where(picked, styled, ops.cast(images, self.compute_dtype))
        return ops.squeeze(result, 0) if single else result

    def from_tensorflow(self, images: Any, *, training: bool) -> Any:
        """Stylise a tensor of TensorFlow with another backend, as a step of `tf.data`."""
        tf = sys.modules["tensorflow"]
        if not training:
            return tf.cast(images, self.compute_dtype)
        self.check(images)

        def style(pixels: np.ndarray) -> np.ndarray:
            taken = ops.convert_to_tensor(pixels)
            with DRAWING:
                params = self.make_params(taken)
            return ops.convert_to_numpy(ops.cast(self.apply(taken, params), "float32"))

        styled = tf.ensure_shape(tf.numpy_function(style, [images], tf.float32), images.shape)
        return tf.cast(styled, self.compute_dtype)

    def check_form(self, images: Any) -> tuple[int | None, ...]:
        """Check the axes and channels of images, and return their shape."""
        try:
            shape = tuple(images.shape)
        except ValueError:  # of TensorFlow
            raise ImageError(
                "these images have an unknown number of axes; read them with "
                "tf.io.decode_image(..., channels=3, expand_animations=False), or use tf.ensure_shape."
            ) from None
        if len(shape) not in (3, 4) or shape[self.axis - 4] != 3:
            wanted = "(B, 3, H, W) or (3, H, W)" if self.axis == 1 else "(B, H, W, 3) or (H, W, 3)"
            raise ImageError(
                f"with data_format={self.data_format!r} images must be {wanted}, got {shape}. Repeat the "
                "channel of grey images: keras.ops.repeat(images, 3, axis)."
            )
        return shape

    def check(self, images: Any) -> None:
        """Check the form of images and, where they can be read, their values."""
        self.check_form(images)
        if ends := ends_of(images):
            low, high = self.value_range
            least, most = ends
            slack = OVERSHOOT * (high - low)
            if not low - slack <= least <= most <= high + slack:  # written so that NaN fails too
                raise ImageError(
                    f"images must lie in value_range ({low:g}, {high:g}), got [{least:.3g}, {most:.3g}]. "
                    "Stylise before Normalization, or give their range: StyleLayer(..., value_range=...)."
                )
            if (low, high) == (0, 255) and 0 < most <= 1 and is_float(images):
                warnings.warn(
                    f"images lie in [0, {most:.3g}] under value_range (0, 255), so all are nearly black. "
                    "If 1 is white, give value_range=(0, 1).",
                    stacklevel=2,
                )

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the images: it is kept."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return what is needed to make the layer again: names and paths, and hashes of what they hold."""
        if not isinstance(self.bank, str | Path):
            raise ConfigError(
                "this layer holds a StyleBank, of which no file is known. Save it, and make the layer from "
                'the file: StyleLayer(bank.save("bank.safetensors")).'
            )
        return {
            **super().get_config(),
            "bank": str(self.bank),
            "generator": None if self.generator is None else str(self.generator),
            "p": self.p,
            "strength": list(self.strength),
            "value_range": list(self.value_range),
            "data_format": self.data_format,
            "seed": self.seed,
            "sha256": dict(self.sha256),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "StyleLayer":
        """Make the layer of `get_config`.

        Raises:
            BankError: the bank or the generator has changed.
        """
        config = dict(config)
        known = config.pop("sha256", {})
        config.pop("autocast", None)
        layer = super().from_config(config)
        for name, found in layer.sha256.items():
            if known.get(name, found) != found:
                raise BankError(
                    f"{name} {config[name]!r} has changed since this layer was saved. Put the old file back, "
                    "or make the layer again."
                )
        return layer


def check_ends(value_range: Any) -> tuple[float, float]:
    """Check the two ends of a value range."""
    ends = check_range_option(value_range)
    if ends is None or isinstance(ends, str):
        raise ConfigError(f"value_range must be (low, high), as (0, 255) or (0, 1), got {value_range!r}.")
    return ends


def check_format(data_format: str | None) -> str:
    """Check where the channels are; None is what Keras is set to."""
    found = data_format or keras.config.image_data_format()
    if found not in ("channels_last", "channels_first"):
        raise ConfigError(f'data_format must be "channels_last" or "channels_first", got {data_format!r}.')
    return found


def is_graph(generator: str | Path) -> bool:
    """Return whether this is the path of an ONNX file."""
    if not isinstance(generator, str | Path):
        raise ConfigError(
            f"generator must be None, a name or the path of an .onnx file, got {type(generator).__name__}. "
            'Write one: styleaug.export_onnx(generator, "NAME.onnx").'
        )
    return Path(generator).suffix.lower() == ".onnx"


def is_float(images: Any) -> bool:
    """Return whether images are floats."""
    return "float" in keras.backend.standardize_dtype(images.dtype)


def ends_of(images: Any) -> tuple[float, float] | None:
    """Return the least and the greatest value of images; None where they cannot be read at once."""
    if getattr(getattr(images, "device", None), "type", "cpu") != "cpu" or 0 in tuple(images.shape):
        return None
    try:
        return float(ops.min(images)), float(ops.max(images))
    except (TypeError, NotImplementedError):  # what JAX and TensorFlow raise while they trace a graph
        return None


def digest(content: bytes) -> str:
    """Return the SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def space_of(bank: StyleBank, generator: str | Path | None) -> str:
    """Return the colour space in which the bank's generator matches means and deviations.

    Raises:
        ConfigError: it is another kind of generator.
        BankError: another generator made the bank.
    """
    source = maker_of(bank) if generator is None else generator
    network = load_generator(source)
    bank.check(network)
    if type(network) is ChannelStats and not network.tissue:
        return network.space
    told = f"Keras cannot compute {network.name!r}, which runs in torch."
    if not network.exports:
        raise ConfigError(f"{told} It cannot be exported, either: style arrays before with StyleAugment.")
    raise ConfigError(
        f"{told} Export it once: styleaug export {printable(source)} -o {network.name}.onnx, and give the "
        f'file: StyleLayer(bank, generator="{network.name}.onnx"). Banks of reinhard-lab need no file.'
    )


SplitPlanes = list[Any]
"""Three planes `(B, H, W)` of a batch, or the only one of `luminance`."""


def match_moments(images: Any, codes: Any, strength: Any, *, space: str, axis: int) -> Any:
    """Compute what `ChannelStats` computes, in Keras: images in [0, 1] with channels at `axis`."""
    planes = ops.unstack(images, 3, axis=axis)
    split, join = SPACES[space]
    old = split(planes)
    new = []
    for index, plane in enumerate(old):
        mean, std = (codes[:, place, None, None] for place in (index, len(old) + index))
        std = ops.maximum(std, 0)
        own_mean = ops.mean(plane, axis=(1, 2), keepdims=True)
        centred = plane - own_mean
        own_std = ops.sqrt(ops.mean(ops.square(centred), axis=(1, 2), keepdims=True) + EPS)
        hue = space == "hsv" and index == 0
        new.append(centred * (std / ops.maximum(own_std, std if hue else std / MAX_GAIN)) + mean)
    styled = ops.clip(ops.stack(join(planes, old, new), axis=axis), 0, 1)
    return images + ops.reshape(strength, (-1, 1, 1, 1)) * (styled - images)


def weighted_sum(planes: SplitPlanes, weights: Sequence[float]) -> Any:
    """Compute the weighted sum of planes."""
    return planes[0] * weights[0] + planes[1] * weights[1] + planes[2] * weights[2]


def curved(plane: Any, power: float, knee: float, slope: float) -> Any:
    """Compute a power law that goes on as a line below `knee`, of this slope."""
    return ops.power(ops.maximum(plane, knee), power) + (ops.minimum(plane, knee) - knee) * slope


def to_lab(planes: SplitPlanes) -> SplitPlanes:
    """Convert sRGB to CIELAB."""
    linear = [
        ops.power((ops.maximum(plane, c.GAMMA_KNEE) + 0.055) / 1.055, 2.4)
        + (ops.minimum(plane, c.GAMMA_KNEE) - c.GAMMA_KNEE) * c.GAMMA_SLOPE
        for plane in planes
    ]
    x, y, z = (
        curved(weighted_sum(linear, row), 1 / 3, c.LAB_KNEE**3, 1 / c.LAB_SLOPE) for row in c.RGB_TO_XYZ
    )
    return [116 * y - 16, 500 * (x - y), 200 * (y - z)]


def from_lab(planes: SplitPlanes, old: SplitPlanes, new: SplitPlanes) -> SplitPlanes:
    """Convert CIELAB to sRGB."""
    light, a, b = new
    y = (light + 16) / 116
    xyz = [curved(plane, 3, c.LAB_KNEE, c.LAB_SLOPE) for plane in (y + a / 500, y, y - b / 200)]
    linear = [weighted_sum(xyz, row) for row in c.XYZ_TO_RGB]
    return [
        1.055 * ops.power(ops.maximum(plane, c.LINEAR_KNEE), 1 / 2.4)
        - 0.055
        + (ops.minimum(plane, c.LINEAR_KNEE) - c.LINEAR_KNEE) / c.GAMMA_SLOPE
        for plane in linear
    ]


def to_ycbcr(planes: SplitPlanes) -> SplitPlanes:
    """Convert RGB to YCbCr."""
    y = weighted_sum(planes, c.LUMA)
    return [y, (planes[2] - y) / c.CB_SPAN + 0.5, (planes[0] - y) / c.CR_SPAN + 0.5]


def from_ycbcr(planes: SplitPlanes, old: SplitPlanes, new: SplitPlanes) -> SplitPlanes:
    """Convert YCbCr to RGB."""
    y, cb, cr = new
    red, blue = y + (cr - 0.5) * c.CR_SPAN, y + (cb - 0.5) * c.CB_SPAN
    return [red, (y - red * c.LUMA[0] - blue * c.LUMA[2]) / c.LUMA[1], blue]


def to_hsv(planes: SplitPlanes) -> SplitPlanes:
    """Convert RGB to HSV; hue is 0 at green, as in `colorspace.rgb_to_hsv`."""
    red, green, blue = planes
    value = ops.maximum(ops.maximum(red, green), blue)
    chroma = value - ops.minimum(ops.minimum(red, green), blue)
    over = 1 / ops.maximum(6 * chroma, 1e-12)
    by_green = (blue - red) * over
    by_green = by_green + ops.cast(by_green < 0, "float32")
    hue = ops.where(blue >= value, (red - green) * over + 1 / 3, by_green)
    hue = ops.where(red >= value, (green - blue) * over + 2 / 3, hue)
    return [hue, chroma / ops.maximum(value, 1e-12), value]


def from_hsv(planes: SplitPlanes, old: SplitPlanes, new: SplitPlanes) -> SplitPlanes:
    """Convert HSV of `to_hsv` to RGB."""
    hue, saturation, value = (ops.clip(plane, 0, 1) for plane in new)
    swing = value * saturation
    places = [ops.mod(6 * hue + start, 6) for start in (1, 5, 3)]
    return [value - swing * ops.clip(ops.minimum(place, 4 - place), 0, 1) for place in places]


def to_hed(planes: SplitPlanes) -> SplitPlanes:
    """Convert RGB to amounts of haematoxylin, eosin and DAB."""
    density = [-ops.log(ops.maximum(plane, c.HED_FLOOR)) for plane in planes]
    return [weighted_sum(density, row) for row in c.DENSITY_TO_HED]


def from_hed(planes: SplitPlanes, old: SplitPlanes, new: SplitPlanes) -> SplitPlanes:
    """Convert amounts of haematoxylin, eosin and DAB to RGB."""
    return [ops.exp(-weighted_sum(new, row)) for row in c.HED_TO_DENSITY]


SPACES: dict[
    str,
    tuple[
        Callable[[SplitPlanes], SplitPlanes], Callable[[SplitPlanes, SplitPlanes, SplitPlanes], SplitPlanes]
    ],
] = {
    "rgb": (lambda planes: planes, lambda planes, old, new: new),
    "lab": (to_lab, from_lab),
    "ycbcr": (to_ycbcr, from_ycbcr),
    "hsv": (to_hsv, from_hsv),
    "hed": (to_hed, from_hed),
    "luminance": (
        lambda planes: [weighted_sum(planes, c.LUMA)],
        lambda planes, old, new: [plane + (new[0] - old[0]) for plane in planes],
    ),
}
"""For each space of `ChannelStats`, how planes are split and joined."""


def open_graph(path: Path, bank: StyleBank) -> tuple[Painter, bytes]:
    """Open a file of `styleaug export`; return what paints by it, and its bytes.

    Raises:
        FileError: there is no such file.
        WeightsError: it is damaged, or not a generator that `styleaug export` wrote without a bank.
        BankError: another generator made the bank.
    """
    if find_spec("onnxruntime") is None:
        raise missing_extra("an exported generator in Keras", "onnxruntime", "keras")
    import onnxruntime

    try:
        content = check_regular(path).read_bytes()
    except OSError as error:
        raise FileError(f"cannot open {printable(path)}: {error.strerror or error}.") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        facts = json.loads(session.get_modelmeta().custom_metadata_map["styleaug"])
        made_by = [facts[name] for name in ("generator", "fingerprint", "least_side", "minimum")]
    except Exception as error:  # ONNX Runtime raises errors of many kinds
        raise WeightsError(
            f"{printable(path)} is damaged, or no file of this version's `styleaug export`. "
            f"{first_line(error)} Write it again: styleaug export NAME -o NAME.onnx"
        ) from None
    if [entry.name for entry in session.get_inputs()] != ["images", "codes", "strength"]:
        raise WeightsError(
            f"{printable(path)} must take images, codes and strength. Export the generator without --bank "
            "and --part; StyleLayer holds the bank."
        )
    name, fingerprint, least_side, minimum = made_by
    if bank.provenance.fingerprint != fingerprint or bank.codes.shape[1] != facts["code_length"]:
        raise BankError(
            f"this bank was made by {bank.provenance.generator!r} ({bank.provenance.fingerprint}), and "
            f"{printable(path)} holds {name!r} ({fingerprint}). Export the generator of the bank."
        )

    def run(images: torch.Tensor, codes: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
        feed = {"images": images.numpy(), "codes": codes.numpy(), "strength": strength.numpy()}
        return torch.from_numpy(session.run(None, feed)[0])

    painter = enlarged(finite(run, name), least_side, minimum)
    return partial(by_parts, painter=painter, least_side=least_side, minimum=minimum), content


def by_parts(
    images: torch.Tensor,
    codes: torch.Tensor,
    strength: torch.Tensor,
    *,
    painter: Painter,
    least_side: int,
    minimum: int,
) -> torch.Tensor:
    """Paint images with a strength above 0, in parts that fit into memory; return all."""
    seen = area_seen(images.shape[2:], least_side, minimum)
    result = images.clone()
    for rows in strength.nonzero()[:, 0].split(chunk_images(seen, images.device)):
        result[rows] = painter(images[rows].contiguous(), codes[rows], strength[rows])
    return result


def on_host(images: Any, codes: Any, strength: Any, *, painter: Painter, axis: int) -> Any:
    """Paint on the CPU, outside of the graph of Keras's backend: images in [0, 1], channels at `axis`."""

    def paint(*tensors: torch.Tensor) -> torch.Tensor:
        pixels, codes, strength = tensors
        with torch.inference_mode():
            return painter(pixels.movedim(axis, 1), codes, strength).movedim(1, axis).contiguous()

    def paint_arrays(*arrays: Any) -> np.ndarray:
        return paint(*(torch.from_numpy(np.array(array, dtype=np.float32)) for array in arrays)).numpy()

    backend, given = keras.backend.backend(), (ops.stop_gradient(images), codes, strength)
    if backend == "torch":
        return paint(*(tensor.cpu() for tensor in given)).clone().to(images.device)
    if backend == "jax":
        jax = sys.modules["jax"]
        return jax.pure_callback(paint_arrays, jax.ShapeDtypeStruct(images.shape, images.dtype), *given)
    if backend == "tensorflow":
        tf = sys.modules["tensorflow"]
        return tf.ensure_shape(tf.numpy_function(paint_arrays, given, tf.float32), images.shape)
    return ops.convert_to_tensor(paint_arrays(*given))
