"""Golden tensors: stored once, compared ever after.

`REGENERATE_GOLDEN=1 pytest tests/test_generators.py -k golden` writes them anew; look at the difference
before you commit it.
"""

import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-4


def assert_golden(name: str, tensors: dict[str, Tensor]) -> None:
    """Compare `tensors` with those stored under `name`."""
    path = GOLDEN / f"{name}.safetensors"
    if os.environ.get("REGENERATE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        path.write_bytes(save({key: value.contiguous() for key, value in tensors.items()}))
    stored = load_file(path)
    assert stored.keys() == tensors.keys()
    for key, value in tensors.items():
        assert torch.allclose(value, stored[key], atol=TOLERANCE, rtol=TOLERANCE), key
