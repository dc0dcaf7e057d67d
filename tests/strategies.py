"""Hypothesis strategies: images in every form that a user may have, and samples that hold them."""

from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image
from specimens import pil
from torch import Tensor
from torchvision import tv_tensors

INTEGERS = {torch.uint8: 255, torch.uint16: 65535}
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

seeds = st.integers(0, 2**31 - 1)
sides = st.integers(1, 24)
shares = st.floats(0, 1, width=32)


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Fill a tensor over its dtype's whole range, ends included."""
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 1.2 - 0.1
    values = values.clamp(0, 1)
    if dtype in INTEGERS:
        return (values * INTEGERS[dtype]).round().to(torch.int32).to(dtype)
    return values.to(dtype)


def lay_out(image: Tensor, layout: str) -> Tensor:
    """Keep an image's values and change its strides."""
    if layout == "channels last":
        return image.movedim(-3, -1).contiguous().movedim(-1, -3)
    if layout == "transposed":
        return image.mT.contiguous().mT
    if layout == "window":  # a view into something larger, as a crop is
        around = torch.zeros((*image.shape[:-2], image.shape[-2] + 3, image.shape[-1] + 2), dtype=image.dtype)
        window = around[..., 1:-2, 1:-1]
        window.copy_(image)
        return window
    return image


@st.composite
def tensors(draw: st.DrawFn, axes: tuple[int, ...] = (3, 4), most_rows: int = 4) -> Tensor:
    """Draw image tensors of any dtype, size and layout.

    Args:
        draw: hypothesis's.
        axes: how many axes they may have: 3 is (C, H, W), 4 (B, C, H, W), 5 (B, T, C, H, W).
        most_rows: the longest batch.
    """
    count = draw(st.sampled_from(axes))
    leading = tuple(draw(st.integers(1, most_rows)) for _ in range(count - 3))
    shape = (*leading, draw(st.sampled_from([1, 3])), draw(sides), draw(sides))
    dtype = draw(st.sampled_from([*INTEGERS, *FLOATS]))
    layout = draw(st.sampled_from(["contiguous", "channels last", "transposed", "window"]))
    return lay_out(random_tensor(shape, dtype, draw(seeds)), layout)


@st.composite
def pil_images(draw: st.DrawFn) -> Image.Image:
    """Draw PIL images of every mode that can be stylised."""
    mode = draw(st.sampled_from(["L", "LA", "RGB", "RGBA", "I;16"]))
    return pil(mode, (draw(sides), draw(sides)), seed=draw(seeds))


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Draw arrays (H, W), (H, W, C) and (N, H, W, C), foreign byte orders among them."""
    leading = draw(st.sampled_from([(), (), (1,), (3,)]))
    channels = draw(st.sampled_from([(1,), (3,)] if leading else [(), (1,), (3,)]))
    shape = (*leading, draw(sides), draw(sides), *channels)
    dtype = np.dtype(draw(st.sampled_from(["u1", "<u2", ">u2", "<f2", "<f4", ">f4", "<f8"])))
    values = np.random.default_rng(draw(seeds)).random(shape)
    if dtype.kind == "u":
        return (values * np.iinfo(dtype).max).round().astype(dtype)
    return values.astype(dtype)


@st.composite
def images_of_a_sample(draw: st.DrawFn) -> Any:
    """Draw what v2 takes for the image of a sample."""
    kind = draw(st.sampled_from(["image", "video", "pil"]))
    if kind == "pil":
        return draw(pil_images())
    if kind == "video":
        return tv_tensors.Video(draw(tensors(axes=(4,))))
    return tv_tensors.Image(draw(tensors(axes=(3,))))


def keypoints(size: tuple[int, int]) -> list[Any]:
    """Make keypoints, where torchvision has them (from 0.23)."""
    kind = getattr(tv_tensors, "KeyPoints", None)
    return [kind(torch.tensor([[0.5, 0.5]]), canvas_size=size)] if kind else []


@st.composite
def companions(draw: st.DrawFn) -> Any:
    """Draw what stands beside the image, and must come back as the same object."""
    size = (draw(sides), draw(sides))
    return draw(
        st.sampled_from(
            [
                tv_tensors.Mask(torch.randint(0, 5, size, dtype=torch.uint8)),
                tv_tensors.Mask(torch.rand(2, *size)),
                tv_tensors.BoundingBoxes(torch.tensor([[0, 0, 1, 1]]), format="XYXY", canvas_size=size),
                *keypoints(size),
                torch.tensor(3),
                torch.arange(4),
                torch.rand(3, *size),  # beside an Image, Video or PIL image this is a feature, no image
                np.arange(3),
                "a name.png",
                7,
                None,
            ]
        )
    )


@st.composite
def samples(draw: st.DrawFn) -> tuple[Any, Any]:
    """Draw nested samples: the sample, and the image somewhere in it."""
    image = draw(images_of_a_sample())
    others = draw(st.lists(companions(), max_size=4))
    place = draw(st.integers(0, len(others)))
    flat = [*others[:place], image, *others[place:]]
    match draw(st.sampled_from(["alone", "tuple", "list", "dict", "deep"])):
        case "alone":
            return image, image
        case "tuple":
            return tuple(flat), image
        case "list":
            return flat, image
        case "dict":
            return {str(index): value for index, value in enumerate(flat)}, image
        case _:
            half = len(flat) // 2
            return {"a": tuple(flat[:half]), "b": [{"c": flat[half:]}]}, image
