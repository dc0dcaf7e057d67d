"""What every option does to an image, stored once: outputs may not move when the code is arranged anew.

`REGENERATE_GOLDEN=1 pytest tests/test_options_golden.py` writes them anew. With `STYLEAUG_EXACT=1` the
comparison is to the bit, which holds on the kind of processor that stored them.
"""

import os

import numpy as np
import pytest
import torch
from golden_files import GOLDEN
from PIL import Image
from safetensors.torch import load_file, save
from torchvision import tv_tensors

from styleaug import Preserve, Splice, StyleAugment

HEIGHT, WIDTH = 16, 20


def floats(*shape: int) -> torch.Tensor:
    """Draw a smooth image with some noise: flat noise alone has no structure to keep."""
    rng = torch.Generator().manual_seed(5)
    coarse = torch.rand(*shape[:-2], 4, 5, generator=rng)
    flat = coarse.reshape(-1, 1, 4, 5)
    smooth = torch.nn.functional.interpolate(flat, shape[-2:], mode="bicubic", align_corners=True)
    noise = torch.rand(shape, generator=rng)
    return (0.8 * smooth.reshape(shape) + 0.2 * noise).clamp(0, 1)


BATCH = floats(4, 3, HEIGHT, WIDTH)
MASK = (floats(4, 1, HEIGHT, WIDTH) > 0.5).to(torch.uint8)
BYTES = (BATCH * 255).round().byte()
GREY = (BATCH[:, :1] * 255).round().byte()
HU = (BATCH[:, :1] * 2000 - 1000).round().to(torch.int16)
FOUR = floats(3, 4, HEIGHT, WIDTH)
FRAMES = floats(2, 3, 3, HEIGHT, WIDTH)
DEEP = (BATCH * 65535).round().to(torch.int32).to(torch.uint16)


def picture(mode: str) -> Image.Image:
    """Make a PIL image of a mode."""
    rgb = Image.fromarray(BYTES[0].permute(1, 2, 0).numpy())
    if mode == "RGBA":
        rgb.putalpha(Image.fromarray(np.full((HEIGHT, WIDTH), 200, np.uint8)))
        return rgb
    return rgb.convert(mode)


CASES = {
    "adain": (dict(bank="art"), BATCH),
    "adain, bytes": (dict(bank="art", strength=(0.3, 0.9)), BYTES),
    "photo, grey bytes": (dict(bank="photo-tones"), GREY),
    "patchswap": (dict(bank="art-patches"), BATCH[:2]),
    "prior": (dict(generator="hed-jitter"), BATCH),
    "batch": (dict(bank="batch"), BYTES),
    "mix": (dict(bank="photo-tones", sampler="mix"), BATCH),
    "slerp": (dict(bank="art", sampler="slerp"), BATCH[:2]),
    "gaussian": (dict(bank="photo-tones", sampler="gaussian"), BATCH),
    "colour blended": (dict(bank="art", blend="color"), BATCH[:2]),
    "halves": (dict(bank="photo-tones", splice=Splice("halves", parts=3)), BATCH),
    "fields, first part kept": (dict(bank="photo-tones", splice=Splice("fields", keep=True)), BATCH),
    "by mask": (dict(bank="photo-tones", splice="mask"), BATCH),
    "preserved": (dict(bank="art", preserve=0.9), BATCH[:2]),
    "protected": (dict(bank="photo-tones", preserve=Preserve(protect="mask")), BATCH),
    "in a range": (dict(bank="photo-tones", value_range=(-160.0, 240.0)), HU),
    "in its own range": (dict(bank="photo-tones", value_range="auto"), HU),
    "channels shared": (dict(bank="photo-tones", channels="shared"), FOUR),
    "channels independent": (dict(bank="photo-tones", channels="independent"), FOUR),
    "frames": (dict(bank="art"), FRAMES),
    "enlarged": (dict(bank="photo-tones", least_side=64), DEEP),
    "at its size": (dict(bank="art", least_side=1), BATCH[:2]),
    "picture": (dict(bank="photo-tones"), picture("RGB")),
    "picture with alpha": (dict(bank="photo-tones"), picture("RGBA")),
    "some of the rows": (dict(bank="photo-tones", p=0.5), BATCH),
}


@pytest.fixture(scope="module")
def stored() -> dict[str, torch.Tensor]:
    """Read what is stored, after it was written anew where that is wanted."""
    path = GOLDEN / "options.safetensors"
    if os.environ.get("REGENERATE_GOLDEN"):
        path.write_bytes(save({name: painted(name) for name in CASES}))
    return load_file(path)


def painted(name: str) -> torch.Tensor:
    """Stylise a case as a user would, seeded by torch."""
    options, images = CASES[name]
    augment = StyleAugment(**{"p": 1.0, "precision": "float32", **options})
    torch.manual_seed(11)
    if augment.by_mask:
        result, mask = augment(tv_tensors.Image(images), tv_tensors.Mask(MASK[:, 0]))
        assert torch.equal(mask, MASK[:, 0])
    else:
        result = augment(images)
    if isinstance(result, Image.Image):
        result = torch.from_numpy(np.asarray(result).copy())
    result = result.as_subclass(torch.Tensor)
    return result.to(torch.int32) if result.dtype == torch.uint16 else result.contiguous()


@pytest.mark.parametrize("name", CASES)
def test_option_golden(name, stored):
    result, before = painted(name), stored[name]
    assert result.shape == before.shape and result.dtype == before.dtype
    if os.environ.get("STYLEAUG_EXACT"):
        assert torch.equal(result, before)
        return
    step = 0 if result.dtype.is_floating_point else 1  # a value between two levels may round either way
    assert torch.allclose(result.double(), before.double(), atol=step + 1e-4, rtol=1e-4)
