"""Images on disk: one table from suffix to codec."""

import warnings
from collections.abc import Callable, Container
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

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
from styleaug.io.paths import check_path, check_regular
from styleaug.io.png import check_pixels, is_deep, open_deep, scale_key
from styleaug.io.profiles import fits, to_rgb
from styleaug.io.rasters import open_metaimage, open_nrrd
from styleaug.io.scan import Scan, Window, make_scan, parse_window
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
"""What a codec gives: a PIL image, an array `(H, W)` or `(H, W, C)`, or a scan with its true values."""

# What each PIL mode is read as. Modes that are missing here cannot be stylised and given back.
READ_AS = {"1": "L", "P": "RGB", "CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB", "HSV": "RGB", "PA": "RGBA"}
KEPT_MODES = {"L", "LA", "RGB", "RGBA", "I;16"}


@dataclass(frozen=True, eq=False)
class Codec:
    """How one file type is opened and saved."""

    name: str
    open: Callable[[Path, int | None, Window | None], Picture]
    save: Callable[[Image.Image | np.ndarray, BytesIO, dict], None]
    """Takes the picture, what to write to and the options that keep its quality; scans save themselves."""

    options: dict
    modes: frozenset[str] = frozenset()
    """Of PIL images that the type can hold; PIL drops transparency and bits of others without a word."""


def image_files(folder: Path) -> list[Path]:
    """List the images below `folder`, sorted, without hidden files.

    Raises:
        FileError: no such folder, not a folder, or no image in it.
    """
    return list_image_files(folder).files


def list_image_files(folder: Path) -> Listing:
    """List the images below `folder`, and what is left out.

    Raises:
        FileError: no such folder, not a folder, or no image in it.
    """
    found = list_files(folder, SUFFIXES)
    if not found.files:
        known = " ".join(sorted(SUFFIXES))
        raise FileError(f"no image in {folder}; known file types are {known}.{found.reasons()}")
    return found


def files_below(folder: Path, suffixes: Container[str]) -> list[Path]:
    """List the files with these suffixes below `folder`, sorted, without hidden files.

    Raises:
        FileError: no such folder, or not a folder.
    """
    return list_files(folder, suffixes).files


def series_of(path: Path) -> str:
    """Give what the slices of one volume that are files of their own have in common, or ""."""
    if SUFFIXES.get(suffix_of(path)) is not DICOM:
        return ""
    from styleaug.io import dicom

    try:
        return dicom.dicom_series(path)
    except Exception:  # is told of when the file is opened
        return ""


def open_image(
    path: Path,
    *,
    short_side: int | None = None,
    window: Window | str | None = None,
    to_style: bool = False,
) -> Picture:
    """Read an image whole, upright, in a form that can be stylised and saved again.

    Args:
        path: the file; its suffix chooses the codec, among those of PIL its content. Without a suffix it
            must be DICOM.
        short_side: the caller will reduce the image to this many pixels, so a JPEG may be decoded
            at a fraction of its size, and a TIFF's pyramid be used; the result is never smaller.
        window: what is shown as black and white: `"40/400"` (centre/width), `"auto"` (0.5th to
            99.5th percentile), or `"dicom"` (what the file says, else auto). None takes what the file
            says; the whole range of unsigned integers of 8 and 16 bits; else auto. Images of 8 bits
            and colour DICOM are always shown whole.
        to_style: it is no mask: a `LabelWarning` names it if it looks like one.

    Returns:
        A PIL image of mode L, LA, RGB, RGBA or I;16; an array for `.npy`; or a `Scan`, for DICOM,
        volumes, stacks, 16-bit colour, numbers with signs, other channels, and where a window is given.

    Raises:
        FileError: missing, unknown type, damaged, truncated, or over `MAX_PIXELS`.
        ConfigError: no such window, or an optional library that this file needs is missing.
    """
    path = check_path(path)
    window = parse_window(window)
    if path.exists():
        check_regular(path)
    try:
        picture = codec_of(path).open(path, short_side, window)
        if to_style:
            warn_of_labels(picture, path)
        return picture
    except LabelWarning:  # where the user wants warnings to be errors
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
    # On damaged files decoders raise anything: struct.error, TokenError, AttributeError, ...
    except Exception as error:
        raise FileError(
            f"cannot read {path}: {first_line(error)} Remove the file or save it again."
        ) from None


def save_image(image: Picture, path: Path, *, like: Path | None = None) -> None:
    """Write an image atomically and at high quality.

    Args:
        image: from `open_image`.
        path: its suffix chooses the type.
        like: the file that was read; its content chooses the type, whatever both are called.

    Raises:
        OutputError: nothing can be written there, such as on a full disk.
        FileError: the type cannot hold such an image, or this file alone cannot be written.
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
            if error.errno is not None:  # which `atomic` tells of
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
        raise FileError(f"cannot write {path}: {codec.name} does not hold {what}; save it as .png.")
    content = BytesIO()
    try:
        codec.save(image, content, codec.options)
    except Exception as error:
        raise FileError(f"cannot write {path}: {first_line(error)}") from None
    return content.getvalue()


def decode_image(content: bytes) -> tuple[Image.Image, str]:
    """Read an encoded image from memory, as `open_image` does from a file.

    Args:
        content: JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF, JPEG 2000 or PPM, told by itself.

    It is not turned upright, as boxes and masks beside it may be for its pixels as they are stored;
    EXIF keeps how it is to be turned.

    Returns:
        A PIL image of mode L, LA, RGB, RGBA or I;16, and the format for `encode_image`.

    Raises:
        FileError: another type, damaged, truncated, or over `MAX_PIXELS`.
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
        raise FileError(f"this is no {', '.join(RASTERS)} image, or it is damaged.") from None
    except Exception as error:  # as in `open_image`
        raise FileError(f"the image cannot be read: {first_line(error)}") from None


def encode_image(image: Image.Image, kind: str) -> bytes:
    """Give the content of a file of a format from `decode_image`, at high quality.

    Raises:
        FileError: the format cannot hold such an image.
    """
    return encoded(image, RASTERS[kind], f"it as {kind}")


def codec_of(path: Path) -> Codec:
    """Look up the codec of a path's suffix; of a file that is there and of PIL's types, of its content."""
    try:
        codec = SUFFIXES[suffix_of(path)]
        if codec.name in RASTERS and path.is_file():
            codec = RASTERS.get(image_kind(head_of(path)), codec)
        return codec
    except KeyError:
        if not (path.suffix or path.exists()):
            raise FileError(f"there is no file {path}.") from None
        raise FileError(
            f"{path}: unknown file type {path.suffix!r}; known are {' '.join(sorted(SUFFIXES))}."
        ) from None


def open_pil(source: Path | BytesIO, short_side: int | None, *, upright: bool = True) -> Image.Image:
    """Read with PIL; the header's size is checked before any pixel is decoded."""
    path = source if isinstance(source, Path) else "the image"
    packed = None if isinstance(source, Path) else source.getbuffer().nbytes
    head = head_of(source)
    check_bits(path, head, image_kind(head))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd EXIF and TIFF tags; the pixels are what counts
        try:
            image = Image.open(source, formats=list(RASTERS))
        except Image.DecompressionBombError as error:
            raise FileError(f"{path} is too large: {error}") from None
        with image:
            kind = str(image.format)
            if kind in ANIMATED_KINDS and getattr(image, "is_animated", False):
                video = "" if kind == "AVIF" else ", or style it with styleaug video"
                raise FileError(f"{path} is an animation; save its frames as files of their own{video}.")
            shown = Image.getmodebands(READ_AS.get(image.mode, image.mode))
            check_size(path, image.height, image.width, 1, shown, packed=packed)
            scale_key(image)
            if short_side:
                image.draft(None, (2 * short_side, 2 * short_side))
            turn = turn_of(image)  # asked first, for PIL turns TIFF as it loads them
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
    """Turn PIL's other integer modes into I;16, if the values fit."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise FileError(f"{path} has values {values.min()} to {values.max()}; scale them to 0..65535.")
    result = Image.fromarray(values.astype(np.uint16))
    result.info.update(image.info)
    return result


def open_raster(path: Path, short_side: int | None, window: Window | None) -> Picture:
    """Read with PIL; grey of 16 bits as a scan where a window is given."""
    picture = open_pil(path, short_side)
    if window is None or picture.mode != "I;16":
        return picture
    codec = codec_of(path)
    pixels, restore = to_pixels(picture)

    def save(frames: np.ndarray, part: Path) -> None:
        part.write_bytes(encoded(restore(torch.from_numpy(frames)[None]), codec, path))

    return make_scan(pixels[0].numpy(), save, window=window, whole=True, blank=is_blank(picture))


def is_blank(picture: Picture) -> bool:
    """Tell whether no pixel of a picture is seen, since all are transparent."""
    if isinstance(picture, Scan):
        return picture.blank
    alpha = alpha_of(picture) if isinstance(picture, Image.Image) else None
    return alpha is not None and not alpha.any()


def open_png(path: Path, short_side: int | None, window: Window | None) -> Picture:
    """Read a PNG with all its bits."""
    check_pixels(path)
    return open_deep(path, window) if is_deep(path) else open_raster(path, short_side, window)


def open_tiff(path: Path, short_side: int | None, window: Window | None) -> Picture:
    """Read a TIFF with PIL if that gives all of it, else with tifffile."""
    if pil_mode(path, short_side):
        return open_raster(path, short_side, window)
    return open_stack(path, short_side, window)


def save_nothing(image: Image.Image | np.ndarray, file: BytesIO, options: dict) -> None:
    """Refuse: such files are written from what was read of one, with its header."""
    raise ValueError("such a file is only made of another one, by styling it")


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

RASTERS = {
    codec.name: codec
    for codec in (_JPEG, PNG, TIFF, BMP, GIF, WEBP, AVIF, JPEG2000, PPM, TGA)
    if OPTIONAL.get(codec.name, True)
}
"""What this Pillow reads and writes, by PIL's names; it knows many more."""

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
}
SUFFIXES: dict[str, Codec] = {
    suffix: codec
    for codec, endings in ENDINGS.items()
    if OPTIONAL.get(codec.name, True)
    for suffix in endings.split()
}
