"""Read and write image files: one table from suffix to codec."""

import warnings
from collections.abc import Callable, Container
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from styleaug.errors import FileError, LabelWarning, StyleAugError, first_line, printable
from styleaug.images import alpha_of, to_pixels
from styleaug.io.arrays import open_npy, save_npy
from styleaug.io.atomic import atomic
from styleaug.io.content import ANIMATED_KINDS, OPTIONAL, check_bits, head_of, image_kind
from styleaug.io.dicom import open_dicom
from styleaug.io.encoders import save_bmp, save_gif, save_pil
from styleaug.io.headers import KEY, read_header, turn_of
from styleaug.io.label_maps import warn_of_labels
from styleaug.io.limits import MAX_PIXELS, check_size
from styleaug.io.listing import Listing, list_files, stem_of, suffix_of
from styleaug.io.ome_zarr import is_zarr
from styleaug.io.paths import check_path, check_regular
from styleaug.io.png import check_pixels, is_deep, open_deep, scale_key
from styleaug.io.profiles import fits, to_rgb
from styleaug.io.rasters import open_metaimage, open_nrrd
from styleaug.io.scan import Scan, Window, make_scan, parse_window
from styleaug.io.slides import SLIDES, is_wsi, open_whole
from styleaug.io.stacks import open_stack, pil_mode
from styleaug.io.volumes import open_nifti

__all__ = [
    "MAX_PIXELS",
    "SUFFIXES",
    "Picture",
    "Scan",
    "decode_image",
    "encode_image",
    "files_below",
    "image_files",
    "is_blank",
    "list_image_files",
    "open_image",
    "save_image",
    "stem_of",
    "suffix_of",
]

Picture = Image.Image | np.ndarray | Scan
"""Result of a codec: a PIL image, an array `(H, W)` or `(H, W, C)`, or a scan in true values."""

# The mode that each PIL mode is converted to. Modes that are missing here are refused.
READ_AS = {"1": "L", "P": "RGB", "CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB", "HSV": "RGB", "PA": "RGBA"}
KEPT_MODES = {"L", "LA", "RGB", "RGBA", "I;16"}


@dataclass(frozen=True, eq=False)
class Codec:
    """Functions that open and save one file type."""

    name: str
    open: Callable[[Path, int | None, Window | None], Picture]
    save: Callable[[Image.Image | np.ndarray, BytesIO, dict], None]
    """Called with the picture, the stream to write to and the options below. Scans save themselves."""

    options: dict[str, Any]
    modes: frozenset[str] = frozenset()
    """Modes of PIL images that the type can hold; PIL silently drops transparency and bits of others."""


def image_files(folder: Path) -> list[Path]:
    """List the images in and below `folder`, sorted, without hidden files.

    Raises:
        FileError: the folder is missing, not a folder, or has no image.
    """
    return list_image_files(folder).files


def list_image_files(folder: Path) -> Listing:
    """List the images in and below `folder`, and the files that are left out.

    A folder `masks` beside a folder `images` holds labels, and is left out.

    Raises:
        FileError: the folder is missing, not a folder, or has no image.
    """
    folder = Path(folder)
    found = list_files(folder, SUFFIXES)
    beside = {
        place for path in found.files for place in path.relative_to(folder).parents if place.name == "masks"
    }
    labels = {folder / place for place in beside if (folder / place.parent / "images").is_dir()}
    kept = [path for path in found.files if labels.isdisjoint(path.parents)]
    found.others["masks"] += len(found.files) - len(kept)
    found.files, found.others = kept, +found.others
    if not found.files:
        known = " ".join(sorted(SUFFIXES))
        raise FileError(f"no image in {folder}; known file types are {known}.{found.reasons()}")
    return found


def files_below(folder: Path, suffixes: Container[str]) -> list[Path]:
    """List the files with these suffixes in and below `folder`, sorted, without hidden files.

    Raises:
        FileError: the folder is missing or not a folder.
    """
    return list_files(folder, suffixes).files


def series_of(path: Path) -> str:
    """Return a digest shared by the files of one volume, each a slice; "" for other files."""
    if SUFFIXES.get(suffix_of(path)) is not DICOM:
        return ""
    from styleaug.io import dicom

    try:
        return dicom.dicom_series(path)
    except Exception:  # the error is reported when the file is opened
        return ""


def open_image(
    path: Path,
    *,
    short_side: int | None = None,
    window: Window | str | None = None,
    to_style: bool = False,
) -> Picture:
    """Read an image, turned upright, in a form that can be stylised and saved again.

    Args:
        path: the file. Its suffix chooses the codec; for PIL's types its content does. A file without a
            suffix must be DICOM.
        short_side: short side in pixels to which the caller will reduce the image. A JPEG may then be
            decoded at a fraction of its size, and a TIFF's pyramid used; the result is never smaller.
        window: values of black and white: `"40/400"` (centre/width), `"auto"` (0.5th to 99.5th percentile),
            or `"dicom"` (the file's window, else auto). None uses the file's window; else the whole range of
            8-bit and 16-bit unsigned integers; else auto. 8-bit images and colour DICOM always use
            their whole range.
        to_style: True warns (`LabelWarning`) if the image looks like a label map.

    Returns:
        A PIL image of mode L, LA, RGB, RGBA or I;16; an array for `.npy`; or a `Scan` for DICOM, volumes,
        stacks, 16-bit colour, signed numbers, other numbers of channels, or if a window is given.

    Raises:
        FileError: the file is missing, of an unknown type, damaged, truncated, or over `MAX_PIXELS`.
        ConfigError: the window is invalid, or an optional library for this file is missing.
    """
    path = check_path(path)
    window = parse_window(window)
    if path.exists() and not is_zarr(path):
        check_regular(path)
    try:
        picture = codec_of(path).open(path, short_side, window)
        if to_style:
            warn_of_labels(picture, path)
        return picture
    except LabelWarning:  # the user turned warnings into errors
        raise
    except FileError as error:
        if printable(path) in str(error):
            raise
        raise FileError(f"{path}: {error}") from None
    except StyleAugError:
        raise
    except FileNotFoundError:
        raise FileError(f"there is no file {path}.") from None
    except UnidentifiedImageError:
        raise FileError(f"{path} is not a {path.suffix} image, or is damaged; remove it.") from None
    # On damaged files decoders raise errors of any kind: struct.error, TokenError, AttributeError, ...
    except Exception as error:
        raise FileError(
            f"cannot read {path}: {first_line(error)} Remove the file or save it again."
        ) from None


def save_image(image: Picture, path: Path, *, like: Path | None = None) -> None:
    """Write an image atomically and at high quality.

    Args:
        image: from `open_image`.
        path: path to write; its suffix chooses the type.
        like: the file that was read; if given, its content chooses the type, not the suffix.

    Raises:
        OutputError: nothing can be written there, for example on a full disk.
        FileError: the type cannot hold such an image, or this file cannot be written.
    """
    path = check_path(path)
    content = b"" if isinstance(image, Scan) else encoded(image, codec_of(like or path), path)
    with atomic(path, durable=False) as part:
        if not isinstance(image, Scan):
            part.write_bytes(content)
            return
        try:
            image.save(image.frames, part)
        except OSError as error:
            if error.errno is not None:  # reported by `atomic`
                raise
            raise FileError(f"cannot write {path}: {first_line(error)}") from None
        except Exception as error:
            raise FileError(f"cannot write {path}: {first_line(error)}") from None


def encoded(image: Image.Image | np.ndarray, codec: Codec, path: Path | str) -> bytes:
    """Return the content of an image's file.

    Raises:
        FileError: the type cannot hold such an image.
    """
    mode = image.mode if isinstance(image, Image.Image) else ""
    if mode and codec.modes and mode not in codec.modes:
        what = "transparency" if mode in ("LA", "RGBA") else f"pixels of mode {mode}"
        raise FileError(f"cannot write {path}: {codec.name} cannot hold {what}; save it as .png.")
    content = BytesIO()
    try:
        codec.save(image, content, codec.options)
    except Exception as error:
        raise FileError(f"cannot write {path}: {first_line(error)}") from None
    return content.getvalue()


def decode_image(content: bytes) -> tuple[Image.Image, str]:
    """Read an encoded image from memory, as `open_image` does from a file.

    The image is not turned upright, because boxes and masks beside it may refer to the stored pixels. EXIF
    keeps its orientation.

    Args:
        content: bytes of a JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF, JPEG 2000 or PPM file.

    Returns:
        A PIL image of mode L, LA, RGB, RGBA or I;16, and the format for `encode_image`.

    Raises:
        FileError: the content is of another type, damaged, truncated, or over `MAX_PIXELS`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(BytesIO(content), formats=list(RASTERS)) as header:
                kind = {"MPO": "JPEG"}.get(str(header.format), str(header.format))
        image = open_pil(BytesIO(content), None, upright=False)
        return image, kind
    except FileError:
        raise
    except UnidentifiedImageError:
        raise FileError(f"this is not a {', '.join(RASTERS)} image, or it is damaged.") from None
    except Exception as error:  # as in `open_image`
        raise FileError(f"the image cannot be read: {first_line(error)}") from None


def encode_image(image: Image.Image, kind: str) -> bytes:
    """Return an image's file content, in a format from `decode_image`, at high quality.

    Raises:
        FileError: the format cannot hold such an image.
    """
    return encoded(image, RASTERS[kind], f"it as {kind}")


def codec_of(path: Path) -> Codec:
    """Return the codec for a path: by its suffix, or by content if it is a file of one of PIL's types."""
    try:
        codec = SUFFIXES[suffix_of(path)]
        if codec.name in RASTERS and path.is_file():
            codec = RASTERS.get(image_kind(head_of(path)), codec)
        return SLIDE if codec is DICOM and is_wsi(path) else codec
    except KeyError:
        if not (path.suffix or path.exists()):
            raise FileError(f"there is no file {path}.") from None
        raise FileError(
            f"{path}: unknown file type {path.suffix!r}; known are {' '.join(sorted(SUFFIXES))}."
        ) from None


def open_pil(source: Path | BytesIO, short_side: int | None, *, upright: bool = True) -> Image.Image:
    """Read with PIL; the size in the header is checked before pixels are decoded."""
    path = source if isinstance(source, Path) else "the image"
    packed = None if isinstance(source, Path) else source.getbuffer().nbytes
    head = head_of(source)
    check_bits(path, head, image_kind(head))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid EXIF and TIFF tags do not matter
        try:
            image = Image.open(source, formats=list(RASTERS))
        except Image.DecompressionBombError as error:
            raise FileError(f"{path} is too large: {error}") from None
        with image:
            kind = str(image.format)
            if kind in ANIMATED_KINDS and getattr(image, "is_animated", False):
                video = "" if kind == "AVIF" else ", or style it with styleaug video"
                raise FileError(f"{path} is an animation; save its frames as separate files{video}.")
            shown = Image.getmodebands(READ_AS.get(image.mode, image.mode))
            check_size(path, image.height, image.width, 1, shown, packed=packed)
            scale_key(image)
            if short_side:
                image.draft(None, (2 * short_side, 2 * short_side))
            turn = turn_of(image)  # asked first: PIL turns TIFF images when it loads them
            image.load()
            picture = ImageOps.exif_transpose(image) if upright else image.copy()
            header = read_header(image, source, turn=turn, upright=upright)
    if picture.mode in ("1", "P", "L", "RGB") and "transparency" in picture.info:
        picture = picture.convert("LA" if picture.mode in ("1", "L") else "RGBA")
    if picture.mode in ("I", "I;16B", "I;16L"):
        picture = as_sixteen_bit(picture, path)
    if picture.mode in READ_AS:
        wanted = READ_AS[picture.mode]
        picture = to_rgb(picture) if wanted == "RGB" else picture.convert(wanted)
    if picture.mode not in KEPT_MODES:
        raise FileError(
            f"{path} has pixels of mode {picture.mode!r}; save it as 8-bit or 16-bit grey or 8-bit RGB."
        )
    if not fits(picture.info.get("icc_profile"), picture.mode):
        picture.info.pop("icc_profile", None)
    picture.info[KEY] = header
    return picture


def as_sixteen_bit(image: Image.Image, path: Path | str) -> Image.Image:
    """Convert PIL's other integer modes to I;16; the values must fit."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise FileError(f"{path} has values {values.min()} to {values.max()}; scale them to 0..65535.")
    result = Image.fromarray(values.astype(np.uint16))
    result.info.update(image.info)
    return result


def open_raster(path: Path, short_side: int | None, window: Window | None) -> Picture:
    """Read with PIL; with a window, return 16-bit grey as a scan."""
    picture = open_pil(path, short_side)
    if window is None or picture.mode != "I;16":
        return picture
    codec = codec_of(path)
    pixels, restore = to_pixels(picture)

    def save(frames: np.ndarray, part: Path) -> None:
        part.write_bytes(encoded(restore(torch.from_numpy(frames)[None]), codec, path))

    return make_scan(pixels[0].numpy(), save, window=window, whole=True, blank=is_blank(picture))


def is_blank(picture: Picture) -> bool:
    """Return True if all pixels of a picture are transparent."""
    if isinstance(picture, Scan):
        return picture.blank
    alpha = alpha_of(picture) if isinstance(picture, Image.Image) else None
    return alpha is not None and not alpha.any()


def open_png(path: Path, short_side: int | None, window: Window | None) -> Picture:
    """Read a PNG with its full bit depth."""
    check_pixels(path)
    return open_deep(path, window) if is_deep(path) else open_raster(path, short_side, window)


def open_tiff(path: Path, short_side: int | None, window: Window | None) -> Picture:
    """Read a TIFF with PIL if PIL reads all of it, else with tifffile."""
    if pil_mode(path, short_side):
        return open_raster(path, short_side, window)
    return open_stack(path, short_side, window)


def save_nothing(image: Image.Image | np.ndarray, file: BytesIO, options: dict[str, Any]) -> None:
    """Refuse to write: such files need the header of a file that was read."""
    raise ValueError("this type can only be written from a file of the same type")


_PLAIN = frozenset({"L", "RGB"})
CLEAR = _PLAIN | {"LA", "RGBA"}
DEEP = CLEAR | {"I;16"}

_JPEG = Codec("JPEG", open_raster, save_pil, {"format": "JPEG", "quality": 95, "subsampling": 0}, _PLAIN)
PNG = Codec("PNG", open_png, save_pil, {"format": "PNG"}, DEEP)
TIFF = Codec("TIFF", open_tiff, save_pil, {"format": "TIFF", "compression": "tiff_deflate"}, DEEP)
BMP = Codec("BMP", open_raster, save_bmp, {"format": "BMP"}, _PLAIN | {"RGBA"})
GIF = Codec("GIF", open_raster, save_gif, {"format": "GIF"}, CLEAR)
WEBP = Codec("WEBP", open_raster, save_pil, {"format": "WEBP", "quality": 95}, CLEAR)
AVIF = Codec("AVIF", open_raster, save_pil, {"format": "AVIF", "quality": 95, "subsampling": "4:4:4"}, CLEAR)
JPEG2000 = Codec("JPEG2000", open_raster, save_pil, {"format": "JPEG2000"}, DEEP)
PPM = Codec("PPM", open_raster, save_pil, {"format": "PPM"}, _PLAIN | {"I;16"})
TGA = Codec("TGA", open_raster, save_pil, {"format": "TGA"}, CLEAR)
NPY = Codec("NumPy", open_npy, save_npy, {"allow_pickle": False})
DICOM = Codec("DICOM", open_dicom, save_nothing, {})
NIFTI = Codec("NIfTI", open_nifti, save_nothing, {})
NRRD = Codec("NRRD", open_nrrd, save_nothing, {})
METAIMAGE = Codec("MetaImage", open_metaimage, save_nothing, {})
SLIDE = Codec("slide", open_whole, save_nothing, {})

RASTERS = {
    codec.name: codec
    for codec in (_JPEG, PNG, TIFF, BMP, GIF, WEBP, AVIF, JPEG2000, PPM, TGA)
    if OPTIONAL.get(codec.name, True)
}
"""Codecs of the formats that PIL reads and writes for us, by PIL's names."""

ENDINGS = {
    PNG: ".png .apng",
    _JPEG: ".jpg .jpeg .jpe .jfif",
    TIFF: ".tif .tiff",
    BMP: ".bmp",
    GIF: ".gif",
    WEBP: ".webp",
    AVIF: ".avif",
    JPEG2000: ".jp2 .j2k .jpf .jpx .j2c .jpc",
    PPM: ".ppm .pgm .pnm",
    TGA: ".tga",
    NPY: ".npy",
    DICOM: ".dcm .dicom .ima",
    NIFTI: ".nii .nii.gz",
    NRRD: ".nrrd",
    METAIMAGE: ".mha .mhd",
    SLIDE: " ".join((*SLIDES, ".zarr")),
}
SUFFIXES: dict[str, Codec] = {
    suffix: codec
    for codec, endings in ENDINGS.items()
    if OPTIONAL.get(codec.name, True)
    for suffix in endings.split()
}
