"""DICOM files for tests, well formed or not."""

import warnings
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.uid import ExplicitVRLittleEndian  # noqa: E402


def write(path: Path, values: np.ndarray, *, syntax=ExplicitVRLittleEndian, **tags) -> Path:
    """Write a DICOM file with these stored values."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    data.SOPInstanceUID = data.StudyInstanceUID = data.SeriesInstanceUID = "1.2.3.4"
    data.PatientID, data.Modality = "somebody", "CT"
    colour = values.ndim > 2 and values.shape[-1] == 3
    data.Rows, data.Columns = values.shape[-3:-1] if colour else values.shape[-2:]
    frames = values.shape[0] if values.ndim == 3 + colour else 1
    if frames > 1:
        data.NumberOfFrames = frames
    data.SamplesPerPixel = 3 if colour else 1
    data.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        data.PlanarConfiguration = 0
    bits = 8 * values.dtype.itemsize
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    data.PixelRepresentation = int(values.dtype.kind == "i")
    if values.dtype.kind == "f":
        data.FloatPixelData = values.tobytes()
    else:
        content = values.tobytes()
        data.add_new("PixelData", "OW" if bits > 8 else "OB", content + b"\0" * (len(content) % 2))
    for keyword, value in tags.items():
        if value is not None:
            setattr(data, keyword, value)
        elif keyword in data:
            delattr(data, keyword)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tags that are wrong on purpose
        pydicom.dcmwrite(path, data, enforce_file_format=True)
    return path
