"""Small slides that the tests write, in a scanner's layout: an Aperio SVS, as OpenSlide recognises it."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

GLASS, TISSUE, NUCLEI = (243, 241, 244), (215, 140, 190), (90, 60, 140)


def section(height: int = 512, width: int = 768, *, seed: int = 0, tissue: float = 0.35) -> np.ndarray:
    """Draw a slide `(H, W, 3)`: a disc of stained tissue with nuclei, on noisy glass."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    out = np.empty((height, width, 3), np.float32)
    out[:] = GLASS
    inside = np.hypot(y - height / 2, x - width / 2) < tissue * width
    out[inside] = TISSUE
    spots = inside & (np.sin(y / 5 + seed) * np.sin(x / 5) > 0.6)
    out[spots] = NUCLEI
    return np.clip(out + rng.normal(0, 3, out.shape), 0, 255).astype(np.uint8)


def aperio(path: Path, pixels: np.ndarray, *, mpp: float | None = 0.5, steps: tuple[int, ...] = (4,)) -> Path:
    """Write pixels as an SVS: tiles, a thumbnail, reduced levels, a label."""
    size = f"{pixels.shape[1]}x{pixels.shape[0]}"
    said = f"Aperio Image Library v12.0\r\n{size} [0,0 {size}] (128x128)|AppMag = 20"
    said += "" if mpp is None else f"|MPP = {mpp}"
    form = {"photometric": "rgb", "compression": "zlib", "metadata": None}
    tiled = {**form, "tile": (128, 128), "description": said}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as writer:
        writer.write(pixels, **tiled)
        writer.write(np.ascontiguousarray(pixels[::8, ::8]), **form, rowsperstrip=16, description=said)
        for step in steps:
            high, wide = (side // step for side in pixels.shape[:2])
            blocks = pixels[: high * step, : wide * step].reshape(high, step, wide, step, 3)
            writer.write(blocks.mean(axis=(1, 3)).astype(np.uint8), **tiled)
        label = np.zeros((40, 40, 3), np.uint8)
        writer.write(label, **form, rowsperstrip=40, description="Aperio label 40x40", subfiletype=1)
    return path


def ome_zarr(
    path: Path,
    pixels: np.ndarray,
    *,
    axes: str = "tczyx",
    version: str = "0.4",
    levels: tuple[tuple[int, int], ...] = (),
    mpp: float | None = 0.5,
    chunk: int = 128,
    **options: Any,
) -> Path:
    """Write pixels `(H, W, C)` as OME-Zarr, with reduced levels of these sizes, and labels beside them."""
    import zarr

    group = zarr.open_group(str(path), mode="w", zarr_format=3 if version == "0.5" else 2)
    unit = {} if mpp is None else {"unit": "micrometer"}
    told = [
        {"name": axis, "type": "space", **unit} if axis in "zyx" else {"name": axis, "type": axis}
        for axis in axes
    ]
    datasets = []
    for number, size in enumerate([pixels.shape[:2], *levels]):
        rows, columns = (np.arange(new) * old // new for new, old in zip(size, pixels.shape, strict=False))
        small = pixels[rows][:, columns]
        values = small.transpose(2, 0, 1) if "c" in axes else small[..., 0]
        values = values[tuple(slice(None) if axis in "cyx" else None for axis in axes)]
        sides = zip(axes, values.shape, strict=True)
        chunks = tuple(min(chunk, side) if axis in "yx" else side for axis, side in sides)
        form = {"shape": values.shape, "dtype": values.dtype, "chunks": chunks, **options}
        array = group.create_array(str(number), **form)
        array[...] = values
        step = pixels.shape[0] / size[0] * (mpp or 1)
        scale = [step if axis in "yx" else 1.0 for axis in axes]
        datasets.append(
            {"path": str(number), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        )
    scales = [{"version": version, "name": "slide", "axes": told, "datasets": datasets}]
    facts = {"multiscales": scales, "omero": {"channels": []}}
    group.attrs.update({"ome": {"version": version, **facts}} if version == "0.5" else facts)
    labels = group.create_group("labels")
    labels.create_array("0", shape=(4, 4), dtype="u1")[...] = 7
    return path


def dicom_slide(
    folder: Path, pixels: np.ndarray, *, steps: tuple[int, ...] = (1, 2), mpp: float = 0.5
) -> Path:
    """Write the levels of one whole-slide image as DICOM files of one series, with frames of 128 pixels."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    shared = {"study": generate_uid(), "series": generate_uid(), "frame": generate_uid()}
    for number, step in enumerate((1, 2)):
        small = np.ascontiguousarray(pixels[::step, ::step])
        height, width = small.shape[:2]
        frames = []
        for top in range(0, height, 128):
            for left in range(0, width, 128):
                part = small[top : top + 128, left : left + 128]
                room = ((0, 128 - part.shape[0]), (0, 128 - part.shape[1]), (0, 0))
                content = BytesIO()
                Image.fromarray(np.pad(part, room)).save(content, "JPEG", quality=95, subsampling=0)
                frames.append(content.getvalue())
        meta, data = FileMetaDataset(), Dataset()
        meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
        meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = JPEGBaseline8Bit
        data.file_meta = meta
        data.Modality, data.PatientID = "SM", "patient"
        data.ImageType = [
            "DERIVED" if number else "ORIGINAL",
            "PRIMARY",
            "VOLUME",
            "RESAMPLED" if number else "NONE",
        ]
        data.StudyInstanceUID, data.SeriesInstanceUID = shared["study"], shared["series"]
        data.FrameOfReferenceUID, data.InstanceNumber = shared["frame"], number + 1
        data.DimensionOrganizationType, data.NumberOfFrames = "TILED_FULL", len(frames)
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "YBR_FULL_422", 0
        data.Rows = data.Columns = 128
        data.BitsAllocated = data.BitsStored = 8
        data.HighBit, data.PixelRepresentation = 7, 0
        data.TotalPixelMatrixColumns, data.TotalPixelMatrixRows = width, height
        data.ImagedVolumeWidth, data.ImagedVolumeHeight = width * step * mpp / 1e3, height * step * mpp / 1e3
        data.TotalPixelMatrixFocalPlanes, data.NumberOfOpticalPaths = 1, 1
        measures, groups, path = Dataset(), Dataset(), Dataset()
        measures.PixelSpacing = [mpp * step / 1e3] * 2
        groups.PixelMeasuresSequence = [measures]
        data.SharedFunctionalGroupsSequence = [groups]
        path.OpticalPathIdentifier = "1"
        data.OpticalPathSequence = [path]
        data.PixelData = encapsulate(frames)
        data["PixelData"].is_undefined_length = True
        data.save_as(folder / f"level-{number}.dcm", enforce_file_format=True)
    return folder / "level-0.dcm"
