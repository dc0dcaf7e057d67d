"""The two sides of a training run: lists of images, crops of each step, held-out images."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from styleaug.errors import FileError, ImageError, name_bytes, reason_of
from styleaug.images import resized
from styleaug.io.lists import ImageList, list_images
from styleaug.io.pixels import read_pixels
from styleaug.training.config import TrainConfig

__all__ = ["Crop", "TrainingData", "is_held_out", "read_image", "square"]

_CACHE_BYTES = 4 * 2**30
"""Bytes of images that each side keeps in memory. Further images are read again for each draw."""
MOST_JUDGED = 128
"""Largest number of held-out images of a side that the scores use."""
LEAST_HELD_OUT = 2
"""Least number of held-out images of a side, needed by the scores."""
MOST_ASPECT = 32
"""Largest ratio of long to short side. A narrower image would fill the memory at a crop's size."""
_CLASS_GAP = 0.1
"""Largest difference of a class's share between the two sides without a warning."""


def match_pairs(source: ImageList, target: ImageList) -> tuple[ImageList, ImageList]:
    """Keep the images that have a partner with the same key, in the same order.

    If the two sides share no key, only the last part of the keys is compared: the folders may differ.

    Raises:
        FileError: two images with the same key, or no pair at all.
    """
    places = []
    if not set(source.keys) & set(target.keys):
        source, target = by_last_part(source), by_last_part(target)
    for images in (source, target):
        place = {key: row for row, key in enumerate(images.keys)}
        if len(place) < len(images):
            twice = next(key for key, count in Counter(images.keys).items() if count > 1)
            raise FileError(
                f"two images are called {twice!r}, so pairs by name are not unique. List them in a CSV file "
                "with a column 'key'."
            )
        places.append(place)
    shared = [key for key in source.keys if key in places[1]]
    if not shared:
        raise FileError(
            f"no image of the source has a partner of the same name in the target: {source.paths[0].name}, "
            f"... against {target.paths[0].name}, ... Give pairs the same names, or a 'key' column."
        )
    return source.at([places[0][key] for key in shared]), target.at([places[1][key] for key in shared])


def pair_warning(source: int, target: int) -> str | None:
    """Return a warning about images without a partner; None if there are none."""
    told = f"{source} images of the source and {target} of the target have no partner of the same name"
    return f"{told}, and are left out." if source or target else None


def by_last_part(images: ImageList) -> ImageList:
    """Remove the folders from the keys."""
    return replace(images, keys=tuple(Path(key).name for key in images.keys))


def is_held_out(name: str, share: float = 0.05) -> bool:
    """Return whether an image belongs to the `share` that no training run may read, by its name."""
    return digest_of(name)[0] < 256 * share


def digest_of(name: str) -> bytes:
    """Hash a name, so that adding or removing images does not change which others are held out."""
    return hashlib.sha256(name_bytes(name)).digest()


def split(names: list[str], share: float) -> tuple[list[int], list[int]]:
    """Split rows into training and held-out rows.

    At least two rows are held out. Up to two rows are both, trained on and held out.
    """
    order = sorted(range(len(names)), key=lambda row: digest_of(names[row]))
    if len(order) <= LEAST_HELD_OUT:
        return order, order
    count = max(sum(is_held_out(name, share) for name in names), LEAST_HELD_OUT)
    count = min(count, len(order) - 1)
    return sorted(order[count:]), sorted(order[:count])


def class_warning(source: ImageList, target: ImageList, *, balance: bool) -> str | None:
    """Return a warning if classes differ in frequency, as a GAN would invent or erase findings."""
    counts = [Counter(side.classes) for side in (source, target)]
    shares = [{k: 1 / len(c) if balance else n / c.total() for k, n in c.items()} for c in counts]
    names = sorted(shares[0].keys() | shares[1].keys())
    if min(map(len, shares)) < 2 or not shares[0].keys() & shares[1].keys():
        return None
    gap = 0.5 * sum(abs(shares[0].get(name, 0) - shares[1].get(name, 0)) for name in names)
    lacking = [name for name in names if not all(name in side for side in shares)]
    if gap <= _CLASS_GAP:
        return None
    worst = max(names, key=lambda name: abs(shares[0].get(name, 0) - shares[1].get(name, 0)))
    told = ", ".join(f"{side.get(worst, 0):.0%}" for side in shares)
    advice = f"leave out {', '.join(lacking)}" if lacking else "set balance"
    return (
        f"the classes are not equally frequent on both sides (most apart: {worst!r}, {told} of the images); "
        f"a generator trained without pairs will turn one class into another to make up for it: {advice}."
    )


def read_image(path: Path, short_side: int) -> Shaped[Tensor, "3 H W"]:
    """Read an image as RGB, resized to `short_side`; uint8, or float16 for more than 8 bits.

    Raises:
        FileError, ImageError: the image cannot be read; the message names the file.
    """
    pixels = read_pixels(path, short_side=short_side, blank=False)
    height, width = pixels.shape[-2:]
    if max(height, width) > MOST_ASPECT * min(height, width):
        raise ImageError(f"{path} has {width} x {height} pixels, too narrow for a crop; cut it into tiles.")
    scale = short_side / min(height, width)
    size = (max(short_side, round(height * scale)), max(short_side, round(width * scale)))
    images = resized(pixels, size).expand(-1, 3, -1, -1)[0]
    return images.half() if pixels.dtype != torch.uint8 else (images * 255).round().byte()


def as_floats(image: Shaped[Tensor, "*B 3 H W"]) -> Float[Tensor, "*B 3 H W"]:
    """Convert images as `read_image` returns them to floats in [0, 1]."""
    return image.float() / 255 if image.dtype == torch.uint8 else image.float()


def square(image: Shaped[Tensor, "3 H W"], size: int) -> Float[Tensor, "1 3 S S"]:
    """Crop the square in the middle and resize it to `size` pixels."""
    return Crop(1.0, 0.5, 0.5).cut(image, size)


@dataclass(frozen=True)
class Crop:
    """Position and side of a crop, as shares in [0, 1] of the free space, and its orientation."""

    side: float
    """Side of the square: 0 is the crop's own size, 1 the whole short side."""
    top: float
    left: float
    mirror: bool = False
    quarters: int = 0

    @classmethod
    def draw(cls, rng: torch.Generator, config: TrainConfig) -> "Crop":
        """Draw position and side, and mirroring and turning if the configuration has them."""
        side, top, left, mirror, turn = torch.rand(5, generator=rng, dtype=torch.float64).tolist()
        return cls(side, top, left, config.flip and mirror < 0.5, int(4 * turn) if config.turn else 0)

    def cut(self, image: Shaped[Tensor, "3 H W"], size: int) -> Float[Tensor, "1 3 S S"]:
        """Cut a square and resize it to `size` pixels."""
        height, width = image.shape[-2:]
        short = min(height, width)
        side = min(short, size + round(self.side * max(0, short - size)))
        top, left = round(self.top * (height - side)), round(self.left * (width - side))
        crop = as_floats(image[:, top : top + side, left : left + side])[None]
        if side != size:
            crop = F.interpolate(crop, size=(size, size), mode="bilinear", antialias=True).clamp_(0, 1)
        crop = crop.flip(-1) if self.mirror else crop
        return torch.rot90(crop, self.quarters, (2, 3)) if self.quarters else crop


class Side:
    """The images of one side: read when they are needed, and kept in memory while there is room."""

    images: ImageList
    short_side: int
    room: int

    def __init__(self, images: ImageList, short_side: int, *, balance: bool):
        self.images, self.short_side = images, short_side
        self.failed: dict[Path, str] = {}
        self.cache: dict[Path, Tensor] = {}
        self.room = _CACHE_BYTES
        groups: dict[str, list[int]] = {}
        for row, name in enumerate(images.classes if balance else [""] * len(images)):
            groups.setdefault(name, []).append(row)
        self.groups: list[list[int]] = [groups[name] for name in sorted(groups)]

    def __len__(self) -> int:
        return len(self.images)

    def draw(self, rng: torch.Generator) -> int:
        """Draw a row: first a class, then one of its images."""
        one, two = torch.rand(2, generator=rng, dtype=torch.float64).tolist()
        rows = self.groups[int(one * len(self.groups))]
        return rows[int(two * len(rows))]

    def read(self, row: int) -> Tensor | None:
        """Read an image; return None and add it to `failed` if it cannot be read."""
        path = self.images.paths[row]
        if path in self.failed:
            return None
        if path in self.cache:
            return self.cache[path]
        try:
            image = read_image(path, self.short_side)
        except Exception as error:  # one bad image must not end a run
            self.failed[path] = reason_of(path, error)
            return None
        if image.nbytes <= self.room:
            self.room -= image.nbytes
            self.cache[path] = image
        return image

    def readable(self, limit: int) -> Iterator[tuple[int, Tensor]]:
        """Yield readable images and their rows: all in order, or `limit` of them at random."""
        rows = range(len(self))
        if len(self) > limit:  # lists are sorted by class, so the first images would be of one class
            rows = torch.randperm(len(self), generator=torch.Generator().manual_seed(0)).tolist()
        found = ((row, self.read(row)) for row in rows)
        return islice(((row, image) for row, image in found if image is not None), limit)


class TrainingData:
    """Crops of two sides, paired by name or not. They depend on the seed and the step's number only.

    Args:
        source: folder or list of images that the generator changes.
        target: folder or list of images in the wanted style.
        config: configuration of the run.
        paired: whether images of the same name are pairs, with the same crops.

    Raises:
        FileError: no images, no pairs, or no image that can be read.
    """

    config: TrainConfig
    paired: bool

    def __init__(self, source: str | Path, target: str | Path, config: TrainConfig, *, paired: bool = False):
        self.config, self.paired = config, paired
        lists = [list_images(source), list_images(target)]
        self.warning = None if paired else class_warning(*lists, balance=config.balance)
        if paired:
            whole, lists = lists, [*match_pairs(*lists)]
            self.warning = pair_warning(*(len(side) - len(lists[0]) for side in whole))
        short_side = round(config.zoom * config.size)
        self.train: list[Side] = []
        self.held: list[Side] = []
        for index, images in enumerate(lists):
            # Both images of a pair are held out, or neither.
            names = [path.name for path in (lists[0] if paired else images).paths]
            rows = split(names, config.held_out)
            for sides, kept in zip((self.train, self.held), rows, strict=True):
                balance = config.balance and (not paired or index == 0)
                sides.append(Side(images.at(kept), short_side, balance=balance))
        self.skipped: dict[Path, str] = {path: why for images in lists for path, why in images.skipped}
        self.left_out: list[str] = [images.left_out for images in lists if images.left_out]
        self.target_images: ImageList = lists[1]
        self.fingerprint: str = _fingerprint(lists)

    def describe(self) -> dict[str, int]:
        """Count the images on each side."""
        names = ("source", "target")
        told = {name: len(side) for name, side in zip(names, self.train, strict=True)}
        return told | {f"{name} held out": len(side) for name, side in zip(names, self.held, strict=True)}

    @property
    def failed(self) -> dict[Path, str]:
        """Return the files that could not be read so far, with the reasons."""
        return self.skipped | {
            path: why for side in (*self.train, *self.held) for path, why in side.failed.items()
        }

    def batch(self, step: int, rows: range, *, target: bool = True) -> list[Float[Tensor, "B 3 S S"]]:
        """Cut the crops of some rows of a step's batch.

        Args:
            step: number of the step; together with the seed it determines all draws.
            rows: rows of the batch; each process of a run takes some of them.
            target: whether to return the target's crops as well.

        Returns:
            Source and target crops, `(B, 3, size, size)` in [0, 1].
        """
        crops = [self.row(step, row, target=target) for row in rows]
        return [torch.cat(column) for column in zip(*crops, strict=True)]

    def row(self, step: int, row: int, *, target: bool) -> list[Tensor]:
        """Cut the source and target crop of one row, with a random state of its own."""
        config = self.config
        rng = torch.Generator().manual_seed((config.seed * 1_000_003 + step) * 4099 + row)
        if self.paired:
            images, crop = self.pair(rng), Crop.draw(rng, config)
            return [crop.cut(image, config.size) for image in images]
        sides = self.train if target else self.train[:1]
        return [Crop.cut(*self.draw(side, rng), config.size) for side in sides]

    def draw(self, side: Side, rng: torch.Generator) -> tuple[Crop, Tensor]:
        """Draw a crop and an image that can be read."""
        for _ in range(1000):
            image = side.read(side.draw(rng))
            if image is not None:
                return Crop.draw(rng, self.config), image
        raise nothing_readable(side)

    def pair(self, rng: torch.Generator) -> list[Tensor]:
        """Draw a pair of images; the second is resized to the first."""
        source, target = self.train
        for _ in range(1000):
            row = source.draw(rng)
            images = [source.read(row), target.read(row)]
            if images[0] is not None and images[1] is not None:
                return [images[0], _like(images[1], images[0])]
        raise nothing_readable(source, target)

    def judged(self) -> list[Float[Tensor, "N 3 S S"]]:
        """Return the held-out images of both sides as squares of the crops' size; pairs in the same order."""
        columns = [list(side.readable(MOST_JUDGED)) for side in self.held]
        if self.paired:
            source, target = map(dict, columns)
            rows = sorted(source.keys() & target.keys())
            columns = [[(r, source[r]) for r in rows], [(r, _like(target[r], source[r])) for r in rows]]
        for side, column in zip(self.held, columns, strict=True):
            if not column:
                raise nothing_readable(*self.held) if self.paired else nothing_readable(side)
        size = self.config.size
        return [torch.cat([square(image, size) for _, image in column]) for column in columns]


def _like(image: Tensor, other: Tensor) -> Tensor:
    """Resize an image to the height and width of another."""
    if image.shape == other.shape:
        return image
    size = tuple(other.shape[-2:])
    resized = F.interpolate(as_floats(image)[None], size=size, mode="bilinear", antialias=True)
    return resized[0].clamp_(0, 1).half()


def _fingerprint(lists: list[ImageList]) -> str:
    """Hash all that determines which image is drawn: number, order, keys and classes of both sides."""
    digest = hashlib.blake2b(digest_size=8)
    for images in lists:
        digest.update(repr((images.keys, images.classes)).encode())
    return digest.hexdigest()


def nothing_readable(side: Side, partner: Side | None = None) -> FileError:
    """Return the error for a side, or a side and its partner, without readable images."""
    reasons = [why for images in (side, partner) if images for why in images.failed.values()]
    what = "pairs" if partner else "images"
    return FileError(f"none of the {len(side)} {what} drawn can be read; the first: {reasons[0]}")
