"""Images on disk: one table from suffix to codec."""

import re
import warnings
from collections.abc import Callable, Container
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePath

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from styleaug.atomic import atomic
from styleaug.errors import FileError, LabelWarning, StyleAugError
from styleaug.foreign import printable
from styleaug.formats.dicom import has_prefix, open_dicom
from styleaug.formats.headers import KEY, read_header, save_options, turn_of
from styleaug.formats.labels import warn_of_labels
from styleaug.formats.limits import MAX_PIXELS, check_size
from styleaug.formats.png import check_pixels, is_deep, open_deep, scale_key
from styleaug.formats.profiles import fits, to_rgb
from styleaug.formats.rasters import open_metaimage, open_nrrd
from styleaug.formats.scan import Scan, Window, make_scan, parse_window
from styleaug.formats.stacks import open_stack, pil_mode
from styleaug.formats.volumes import open_nifti
from styleaug.images import alpha_of, to_pixels
from styleaug.paths import check_path, check_regular

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

NUMBER = re.compile(r"\.\d+(-\d+)?")
"""How names of DICOM files end that have no suffix, and those of their copies."""

FORMATS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "TIFF": ".tif", "BMP": ".bmp"}
"""What `decode_image` reads, and the suffix whose codec writes it again; PIL knows many more."""


@dataclass(frozen=True)
class Codec:
    """How one file type is opened and saved."""

    open: Callable[[Path, int | None, Window | None], Picture]
    save: Callable[[Image.Image | np.ndarray, Path, dict], None]
    """Takes the picture, the path and the options that keep its quality; scans save themselves."""

    options: dict


def image_files(folder: Path) -> list[Path]:
    """List the images below `folder`, sorted, without hidden files.

    Raises:
        FileError: no such folder, not a folder, or no image in it.
    """
    found = files_below(folder, SUFFIXES)
    if not found:
        raise FileError(f"no image in {folder}; known file types are {' '.join(sorted(SUFFIXES))}.")
    return found


def files_below(folder: Path, suffixes: Container[str]) -> list[Path]:
    """List the files with these suffixes below `folder`, sorted, without hidden files.

    Raises:
        FileError: no such folder, or not a folder.
    """
    folder = check_path(folder)
    if not folder.exists():
        raise FileError(f"there is no folder {folder}.")
    if not folder.is_dir():
        raise FileError(f"{folder} is a file; give the folder that holds the images.")
    return sorted(
        path
        for path in folder.rglob("*")
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
        and suffix_of(path) in suffixes
    )


def stem_of(path: PurePath) -> str:
    """Give a file's name without its suffix: `.nii.gz` is one, and a number such as `IM.0001` has none."""
    if path.name.lower().endswith(".nii.gz"):
        return path.name[:-7]
    return path.name if NUMBER.fullmatch(path.suffix) else path.stem


def suffix_of(path: Path) -> str:
    """Give a file's suffix as a key of `SUFFIXES`, or another one in lower case.

    Where there is none, or only a number, the file's first bytes are read: DICOM is `.dcm`.
    """
    suffix = path.name[len(stem_of(path)) :].lower()
    return ".dcm" if not suffix and has_prefix(path) else suffix


def series_of(path: Path) -> str:
    """Give what the slices of one volume that are files of their own have in common, or ""."""
    if SUFFIXES.get(suffix_of(path)) is not DICOM:
        return ""
    from styleaug.formats import dicom

    try:
        return dicom.series_of(path)
    except StyleAugError:  # is said when the file is opened
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
        path: the file; its suffix chooses the codec. Without one it must be DICOM.
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
    codec = codec_of(path)
    window = parse_window(window)
    if path.exists():
        check_regular(path)
    try:
        picture = codec.open(path, short_side, window)
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
        raise FileError(f"cannot read {path}: {error}. Remove the file or save it again.") from None


def save_image(image: Picture, path: Path) -> None:
    """Write an image atomically, in the type of the path's suffix and at high quality."""
    path = check_path(path)
    codec = None if isinstance(image, Scan) else codec_of(path)
    with atomic(path) as part:
        try:
            if isinstance(image, Scan):
                image.save(image.frames, part)
            elif codec:
                codec.save(image, part, codec.options)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FileError(f"cannot write {path}: {error}.") from None


def decode_image(content: bytes) -> tuple[Image.Image, str]:
    """Read an encoded image from memory, as `open_image` does from a file.

    Args:
        content: JPEG, PNG, WebP, TIFF or BMP, told by itself.

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
            with Image.open(BytesIO(content), formats=list(FORMATS)) as header:
                kind = {"MPO": "JPEG"}.get(str(header.format), str(header.format))
        image = open_pil(BytesIO(content), None, upright=False)
        return image, kind
    except FileError:
        raise
    except UnidentifiedImageError:
        raise FileError(f"this is no {', '.join(FORMATS)} image, or it is damaged.") from None
    except Exception as error:  # as in `open_image`
        raise FileError(f"the image cannot be read: {error}.") from None


def encode_image(image: Image.Image, kind: str) -> bytes:
    """Give the content of a file of a format from `decode_image`, at high quality.

    Raises:
        FileError: the format cannot hold such an image.
    """
    content = BytesIO()
    try:
        save_pil(image, content, {**SUFFIXES[FORMATS[kind]].options, "format": kind})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileError(f"it cannot be written as {kind}: {error}.") from None
    return content.getvalue()


def codec_of(path: Path) -> Codec:
    """Look up the codec of a path's suffix."""
    try:
        return SUFFIXES[suffix_of(path)]
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd EXIF and TIFF tags; the pixels are what counts
        try:
            image = Image.open(source)
        except Image.DecompressionBombError as error:
            raise FileError(f"{path} is too large: {error}") from None
        with image:
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


def save_pil(image: Image.Image | np.ndarray, path: Path | BytesIO, options: dict) -> None:
    """Write with PIL, with what the file said that the image came from, and the profile that fits it."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    kind = options.get("format") or Image.registered_extensions().get(Path(str(path)).suffix.lower(), "")
    profile = picture.info.get("icc_profile")
    # PIL would embed the one in `info` by itself in some formats.
    options = (
        options
        | save_options(picture, kind)
        | {"icc_profile": profile if fits(profile, picture.mode) else None}
    )
    picture.save(path, **options)


def open_raster(path: Path, short_side: int | None, window: Window | None) -> Picture:
    """Read with PIL; grey of 16 bits as a scan where a window is given."""
    return windowed(open_pil(path, short_side), window)


def windowed(picture: Picture, window: Window | None) -> Picture:
    """Show a part of the range of a picture with more than 8 bits, if a window is given."""
    if window is None or not isinstance(picture, Image.Image) or picture.mode != "I;16":
        return picture
    pixels, restore = to_pixels(picture)
    return make_scan(
        pixels[0].numpy(),
        lambda frames, path: save_image(restore(torch.from_numpy(frames)[None]), path),
        window=window,
        whole=True,
        blank=is_blank(picture),
    )


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


def open_npy(path: Path, short_side: int | None, window: Window | None) -> np.ndarray | Scan:
    """Read an array `(H, W)` or `(H, W, C)`; never a pickle."""
    with np.errstate(over="ignore"):  # of the size that a damaged header claims
        array = np.lib.format.open_memmap(path, mode="r")
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise FileError(f"{path} has shape {array.shape}; expected (H, W) or (H, W, C).")
    check_size(path, *array.shape[:2], 1, array[0, 0].nbytes)
    pixels = np.array(array)
    usual = pixels.ndim == 2 or pixels.shape[2] in (1, 3)
    if pixels.dtype.kind not in "iuf" or (
        usual and pixels.dtype.kind != "i" and not (window and pixels.itemsize > 1)
    ):
        return pixels
    native = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    return make_scan(
        native[None],
        lambda frames, target: np.save(target, frames[0].astype(pixels.dtype), allow_pickle=False),
        window=window,
        own=(0.0, 1.0) if pixels.dtype.kind == "f" and window is None else None,
        whole=True,
    )


def save_npy(image: Image.Image | np.ndarray, path: Path, options: dict) -> None:
    """Write an array."""
    np.save(path, np.asarray(image), **options)


def save_nothing(image: Image.Image | np.ndarray, path: Path, options: dict) -> None:
    """Refuse: such files are written from what was read of one, with its header."""
    raise ValueError(f"a {suffix_of(path)} file is only made of another one, by styling it")


JPEG = Codec(open_raster, save_pil, {"quality": 95, "subsampling": 0})
PNG = Codec(open_png, save_pil, {})
TIFF = Codec(open_tiff, save_pil, {"compression": "tiff_deflate"})
BMP = Codec(open_raster, save_pil, {})
WEBP = Codec(open_raster, save_pil, {"quality": 95})
NPY = Codec(open_npy, save_npy, {"allow_pickle": False})
DICOM = Codec(open_dicom, save_nothing, {})
NIFTI = Codec(open_nifti, save_nothing, {})
NRRD = Codec(open_nrrd, save_nothing, {})
METAIMAGE = Codec(open_metaimage, save_nothing, {})

SUFFIXES: dict[str, Codec] = {
    ".png": PNG,
    ".jpg": JPEG,
    ".jpeg": JPEG,
    ".tif": TIFF,
    ".tiff": TIFF,
    ".bmp": BMP,
    ".webp": WEBP,
    ".npy": NPY,
    ".dcm": DICOM,
    ".dicom": DICOM,
    ".ima": DICOM,
    ".nii": NIFTI,
    ".nii.gz": NIFTI,
    ".nrrd": NRRD,
    ".mha": METAIMAGE,
    ".mhd": METAIMAGE,
}
