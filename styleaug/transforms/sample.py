"""Which values of a sample or a batch are its images: by type, by key, or as the only candidate."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import PIL.Image
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten_with_path, tree_map, tree_unflatten
from torchvision import tv_tensors

from styleaug.errors import ConfigError, ImageError

__all__ = [
    "IMAGE_KEYS",
    "LABEL_KEYS",
    "ImageKey",
    "calling",
    "check_image_key",
    "describe",
    "find_images",
    "flatten",
    "unwrapped",
]

ImageKey = str | int | Sequence[str | int] | None
"""Where the image of a batch is: a key, an index, or a path of them such as `(0, "image")`."""

IMAGE_KEYS = ("image", "images", "img", "imgs", "pixel_values", "video", "videos", "clip", "clips")
"""Keys that name the image where several values could be one."""

LABEL_KEYS = ("mask", "masks", "label", "labels", "target", "targets")
"""Keys whose plain tensors and PIL images are never the image."""

GREY_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "F")
"""PIL modes that label maps are stored in."""

Keys = tuple[Any, ...]


def flatten(sample: Any) -> tuple[list[tuple[Keys, Any]], TreeSpec]:
    """Return each value of a sample with the keys that lead to it, and the structure."""
    leaves, spec = tree_flatten_with_path(sample)
    return [(tuple(map(key_of, path)), value) for path, value in leaves], spec


def key_of(entry: Any) -> Any:
    """Return a step of a path as a user writes it: a key, an index, or a field's name."""
    for name in ("key", "idx", "name"):
        if hasattr(entry, name):
            return getattr(entry, name)
    return str(entry)


def find_images(
    leaves: list[tuple[Keys, Any]], *, wrapped: tuple[type, ...], plain: Callable[[Any], bool]
) -> list[int]:
    """Find the images of a sample; see `styleaug.StyleAugment` for the rule.

    Args:
        leaves: from `flatten`.
        wrapped: types that are images wherever they stand; PIL's is one only outside of `LABEL_KEYS`.
        plain: tells whether a plain tensor can be an image.

    Returns:
        The images' places among the leaves; none if there is no image.

    Raises:
        ImageError: several values could be the image, and nothing says which of them is.
    """
    free = [at for at, (keys, _) in enumerate(leaves) if not has_key(keys, LABEL_KEYS)]
    named = {at for at in free if has_key(leaves[at][0], IMAGE_KEYS)}
    certain = [
        at
        for at, (_, value) in enumerate(leaves)
        if isinstance(value, wrapped) and not isinstance(value, PIL.Image.Image)
    ]
    pictures = [at for at in free if isinstance(leaves[at][1], PIL.Image.Image)]
    pictures = pictures if PIL.Image.Image in wrapped else []
    grey = [at for at in pictures if leaves[at][1].mode in GREY_MODES]
    if grey and len(grey) < len(certain) + len(pictures):  # a label map beside its image, or a depth map
        if not named.intersection([*certain, *pictures]):
            raise ambiguous([leaves[at] for at in sorted([*certain, *pictures])])
        pictures = [at for at in pictures if at in named]
    if certain or pictures:
        return sorted([*certain, *pictures])
    rivals = [
        at
        for at in free
        if plain(leaves[at][1])
        or (is_array(leaves[at][1], axes=2) if at in named else is_pixel_array(leaves[at][1]))
    ]
    if len(rivals) > 1:
        chosen = [at for at in rivals if at in named]
        if len(chosen) != 1:
            raise ambiguous([leaves[at] for at in rivals])
        rivals = chosen
    return [at for at in rivals if isinstance(leaves[at][1], Tensor)]


def has_key(keys: Keys, names: tuple[str, ...]) -> bool:
    """Return whether any key on the way to a value is one of the names, in upper or lower case."""
    return any(isinstance(key, str) and key.lower() in names for key in keys)


def is_array(value: Any, *, axes: int) -> bool:
    """Return whether a value is a plain tensor or an array of at least this many axes."""
    plain = isinstance(value, np.ndarray) or (
        isinstance(value, Tensor) and not isinstance(value, tv_tensors.TVTensor)
    )
    return plain and value.ndim >= axes


def is_pixel_array(value: Any) -> bool:
    """Return whether a value is an array that could be the image, though it is no tensor."""
    return isinstance(value, np.ndarray) and value.ndim >= 3 and value.dtype.kind in "uf"


def ambiguous(leaves: list[tuple[Keys, Any]]) -> ImageError:
    """Make the error for a sample in which several values could be the image."""
    found = ", ".join(f"{written(keys)} is {describe(value)}" for keys, value in leaves)
    return ImageError(
        f"the sample holds {len(leaves)} values that could be its image: {found}. Say which one is: wrap it "
        "in the sample, tv_tensors.Image(image), and masks in tv_tensors.Mask(mask); or call it 'image' in a "
        "dict; or give its key or index to StyleLoader, StyleCollate or StyleCallback, as image='image' or "
        "image=0."
    )


def written(keys: Keys) -> str:
    """Format keys as Python indexes with them."""
    return "".join(f"[{key!r}]" for key in keys) or "the sample"


def describe(value: Any) -> str:
    """Name a value's kind for a message."""
    if isinstance(value, Tensor):
        return f"{type(value).__name__} {tuple(value.shape)} {value.dtype}"
    if isinstance(value, np.ndarray):
        return f"array {value.shape} {value.dtype}"
    return type(value).__name__


def check_image_key(image: Any) -> Keys | None:
    """Check the `image` argument of a loader and return it as a path.

    Raises:
        ConfigError: neither None, a key, an index, nor a path of them.
    """
    if image is None:
        return None
    path = tuple(image) if isinstance(image, (list, tuple)) else (image,)
    if not path or not all(isinstance(key, (str, int)) and not isinstance(key, bool) for key in path):
        raise ConfigError(
            "image must be the key or the index of the image in a batch, such as 'image' or 0, or a path of "
            f"them such as (0, 'image'); got {image!r}."
        )
    return path


def marked(batch: Any, path: Keys) -> tuple[Any, bool]:
    """Wrap the image of a batch, so that a transform knows it.

    Args:
        batch: as a loader hands it over.
        path: the keys that lead to its image.

    Returns:
        A batch of the same structure, and whether anything was wrapped.

    Raises:
        ConfigError: there is no such value, or it is no tensor.
    """
    leaves, spec = flatten(batch)
    place = _place_of(batch, path)
    found = [at for at, (keys, _) in enumerate(leaves) if keys == place]
    if not found:
        places = ", ".join(written(keys) for keys, _ in leaves[:8])
        kind = f"a {type(batch).__name__} of {places}" if leaves and leaves[0][0] else f"a {describe(batch)}"
        raise ConfigError(f"image={given(path)} names no value of the batch, which is {kind}.")
    (at,) = found
    value = leaves[at][1]
    if isinstance(value, (tv_tensors.Image, tv_tensors.Video)):
        return batch, False
    if not isinstance(value, Tensor) or value.ndim < 3:
        raise ConfigError(
            f"the value that image={given(path)} names is no image: got {describe(value)}. Images of a batch "
            "are a tensor (B, C, H, W)."
        )
    values = [other for _, other in leaves]
    values[at] = (tv_tensors.Video if value.ndim > 4 else tv_tensors.Image)(value)
    return tree_unflatten(values, spec), True


def calling(augment: Callable[[Any], Any], batch: Any, path: Keys | None) -> Any:
    """Call a transform with a batch whose image lies at `path`; None lets the transform find it."""
    if path is None:
        return augment(batch)
    sample, wrapped = marked(batch, path)
    styled = augment(sample)
    return unwrapped(styled, (tv_tensors.Image, tv_tensors.Video)) if wrapped else styled


def _place_of(batch: Any, path: Keys) -> Keys | None:
    """Return a user's path as `flatten` writes it: fields of named tuples by name, places from the front."""
    place = []
    for key in path:
        fields = getattr(batch, "_fields", None)
        try:
            if isinstance(key, int) and isinstance(batch, (list, tuple)):
                key = (fields or range(len(batch)))[key]
            batch = getattr(batch, key) if fields and isinstance(key, str) else batch[key]
        except (KeyError, IndexError, TypeError, AttributeError):
            return None
        place.append(key)
    return tuple(place)


def given(path: Keys) -> str:
    """Format a path as the user gave it."""
    return repr(path[0] if len(path) == 1 else path)


def unwrapped(batch: Any, kinds: tuple[type, ...] = (tv_tensors.TVTensor,)) -> Any:
    """Return a batch with its tensors of these kinds as plain ones."""
    return tree_map(lambda value: value.as_subclass(Tensor) if isinstance(value, kinds) else value, batch)
