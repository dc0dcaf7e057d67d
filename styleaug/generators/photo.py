"""Photorealistic styles: local colour, light and tone from a bilateral grid, without strokes."""

from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from styleaug.errors import WeightsError
from styleaug.generators.base import AbstractGenerator, feature_bounds
from styleaug.generators.layers import (
    ModulatedBlock,
    channel_stats,
    conv3x3,
    initialise,
    on_cpu,
    recolour,
    whiten,
)
from styleaug.generators.shared import places, predicted

__all__ = ["Photo"]

_SMALL = 64
"""Side in pixels of the copy that the network reads, for images of any size."""
CELLS = _SMALL // 4
"""Side of the grid: number of positions along each side for which transforms are predicted."""


class Photo(AbstractGenerator):
    """Photorealistic style transfer by a bilateral grid of affine colour transforms.

    After HDRNet (Gharbi et al. 2017, secs. 3.1 to 3.4) with the style as a second input, as in Xia
    et al. 2020. A small network reads a copy of 64 x 64 pixels and both codes. For 16 x 16 positions
    and `tones` tones it predicts an affine transform of RGB. The transform of a pixel is interpolated in
    that grid at the pixel's position and tone. So the output at a pixel depends on the input at that
    pixel, and otherwise only on things that vary slowly, over a sixteenth of the image or more.
    Contours may gain or lose contrast, but they cannot move, and no strokes can appear.

    Code: means and standard deviations of the RGB image and of two encoder levels,
    `2 * (3 + sum(widths))` floats.

    Names -> paper: `grid` A (eq. 4), `position` g, `look_up` the slicing layer (eq. 5).

    Args:
        widths: encoder channels at 32 x 32 and 16 x 16.
        channels: channels of the residual blocks.
        blocks: residual blocks at 16 x 16.
        hidden: width of the layer that reads the codes.
        tones: number of tones in the grid, at least 2.
    """

    widths: tuple[int, ...]
    channels: int
    depth: int
    hidden: int
    tones: int

    name = "photo"
    takes_bfloat16 = True
    takes_float16 = True
    margin: int | None = 0

    def __init__(
        self,
        widths: tuple[int, int] = (16, 32),
        *,
        channels: int = 48,
        blocks: int = 2,
        hidden: int = 96,
        tones: int = 4,
    ):
        super().__init__()
        self.widths, self.channels, self.depth = tuple(widths), channels, blocks
        self.hidden, self.tones = hidden, tones
        self.code_length: int = 2 * (3 + sum(widths))

        self.encode_half: nn.Conv2d = conv3x3(3, widths[0], stride=2)
        self.encode_quarter: nn.Conv2d = conv3x3(widths[0], widths[1], stride=2)
        self.widen: nn.Conv2d = nn.Conv2d(widths[1], channels, 1)
        self.blocks: nn.ModuleList = nn.ModuleList(ModulatedBlock(channels) for _ in range(blocks))
        self.to_grid: nn.Conv2d = nn.Conv2d(channels, 12 * tones, 1)

        # The modulation of each block; one transform for each tone; weights and bias of the tone.
        self.parts: list[int] = [4 * channels] * blocks + [12 * tones, 4]
        first, last = nn.Linear(2 * self.code_length, hidden), nn.Linear(hidden, sum(self.parts))
        self.read_codes: nn.Sequential = nn.Sequential(first, nn.ReLU(), last)
        # Start as a plain swap of colours.
        initialise(self, quiet=[self.to_grid, last])
        with torch.no_grad():  # the tone starts as luminance (BT.601)
            last.bias[-4:] = torch.tensor([0.299, 0.587, 0.114, 0.0])

    def settings(self) -> dict[str, Any]:
        """Return the sizes of the layers."""
        return {
            "widths": list(self.widths),
            "channels": self.channels,
            "blocks": self.depth,
            "hidden": self.hidden,
            "tones": self.tones,
        }

    def code_bounds(self) -> tuple[Float[Tensor, " S"], Float[Tensor, " S"]]:
        """Return the least and greatest value that each entry of a code may have."""
        return feature_bounds(self.widths)

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        """Build a network of these sizes; each is from 1 to 1024."""
        widths = settings["widths"]
        rest = {key: settings[key] for key in ("channels", "blocks", "hidden", "tones")}
        sizes = [*widths, *rest.values()]
        if len(widths) != 2 or not all(type(size) is int and 1 <= size <= 1024 for size in sizes):
            raise WeightsError(f"sizes must be whole numbers from 1 to 1024, got {settings}.")
        if rest["tones"] < 2:
            raise WeightsError(f"tones must be at least 2, got {rest['tones']}.")
        return cls(tuple(widths), **rest)

    def encoder(self, small: Float[Tensor, "B 3 64 64"]) -> list[Tensor]:
        """Compute the features at 32 x 32 and 16 x 16.

        The features have the dtype of the weights, up to the grid. The image keeps its own dtype.
        """
        half = F.relu(self.encode_half(small.to(self.encode_half.weight.dtype)))
        return [half, F.relu(self.encode_quarter(half))]

    def encode_style(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B S"]:
        """Compute the statistics of the image's colours and of each encoder level."""
        images = images.contiguous()  # one factor per channel is slow in other memory layouts
        colours = channel_stats(images)
        levels = self.encoder(whiten(_shrink(images), colours))
        return torch.cat([colours, *(channel_stats(level) for level in levels)], dim=1)

    def forward(
        self,
        images: Float[Tensor, "B 3 H W"],
        codes: Float[Tensor, "B S"],
        strength: Float[Tensor, " B"],
    ) -> Float[Tensor, "B 3 H W"]:
        """Set the light and colours of each image to those of its code."""
        return self.paint(images, codes, strength).clamp(0, 1)

    def paint(
        self,
        images: Float[Tensor, "B 3 H W"],
        codes: Float[Tensor, "B S"],
        strength: Float[Tensor, " B"],
    ) -> Float[Tensor, "B 3 H W"]:
        """Run the network without clamping; `strength` moves the image's own code to the given one."""
        images = images.contiguous()  # one factor per channel is slow in other memory layouts
        colours = channel_stats(images)
        # All slices of a volume take the mean of their grids: a grid of each one's own would flicker.
        grid, tone, wanted = predicted(self.predict, images, colours, codes, strength)
        whitened = whiten(images, colours)
        parts = grid.to(images.dtype), whitened, tone.to(images.dtype)
        if on_cpu(images) and len(images) > 1 and places() is None:  # the maps of one image stay in the cache
            painted = torch.cat(
                [self.look_up(*row) for row in zip(*(p.split(1) for p in parts), strict=True)]
            )
        else:
            painted = self.look_up(*parts)
        return recolour(images, painted, wanted, strength)

    def predict(
        self,
        images: Float[Tensor, "B 3 H W"],
        colours: Float[Tensor, "B 6"],
        codes: Float[Tensor, "B S"],
        strength: Float[Tensor, " B"],
    ) -> tuple[Float[Tensor, "B G 16 16"], Float[Tensor, "B 4"], Float[Tensor, "B 6"]]:
        """Predict the grid, the weights and bias of the tone, and the target colours."""
        levels = self.encoder(whiten(_shrink(images), colours))
        own = torch.cat([colours, *(channel_stats(level) for level in levels)], dim=1)
        codes = torch.lerp(own, codes.float(), strength.float()[:, None])
        both = torch.cat([own, codes], dim=1).to(levels[-1].dtype)
        *modulations, everywhere, tone = self.read_codes(both).split(self.parts, dim=1)
        x = F.relu(self.widen(levels[-1]))
        for block, modulation in zip(self.blocks, modulations, strict=True):
            x = block(x, modulation)
        return self.to_grid(x) + everywhere[:, :, None, None], tone, codes[:, :6]

    def look_up(
        self, grid: Float[Tensor, "B G 16 16"], whitened: Float[Tensor, "B 3 H W"], tone: Float[Tensor, "B 4"]
    ) -> Float[Tensor, "B 3 H W"]:
        """Transform each pixel with the grid's transform for its position and tone.

        Tones are processed one by one: 12 maps of the image's size at a time, not `12 * tones`.
        """
        red, green, blue = whitened.split(1, dim=1)
        brightness = (tone[:, :3, None, None] * whitened).sum(dim=1, keepdim=True)
        position = torch.sigmoid(brightness + tone[:, 3:, None, None]) * (self.tones - 1)
        rows, columns = positions(grid, whitened)
        painted = whitened
        for index, transforms in enumerate(grid.split(12, dim=1)):
            maps = rows @ transforms @ columns.mT
            change = torch.addcmul(maps[:, 9:], maps[:, :3], red)
            change = torch.addcmul(change, maps[:, 3:6], green)
            change = torch.addcmul(change, maps[:, 6:9], blue)
            painted = torch.addcmul(painted, change, F.relu(1 - (position - index).abs()))
        return painted


def _shrink(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C 64 64"]:
    """Reduce or enlarge images of any shape to the small copy that the network reads."""
    # In float32, because there is no bfloat16 kernel for this on a CPU.
    return F.interpolate(images.float(), size=(_SMALL, _SMALL), mode="bilinear", antialias=True)


def positions(grid: Tensor, whitened: Float[Tensor, "B 3 H W"]) -> tuple[Tensor, Tensor]:
    """Return the matrices that enlarge a grid to the rows and columns of the images or tiles."""
    tiles = places()
    height, width = whitened.shape[-2:]
    if tiles is None:
        return interpolation(height, CELLS, grid), interpolation(width, CELLS, grid)
    rows = [interpolation(tile.height, CELLS, grid, part=(tile.top, height)) for tile in tiles]
    columns = [interpolation(tile.width, CELLS, grid, part=(tile.left, width)) for tile in tiles]
    return torch.stack(rows)[:, None], torch.stack(columns)[:, None]


def interpolation(
    size_out: int, size_in: int, like: Tensor, *, part: tuple[int, int] | None = None
) -> Float[Tensor, "O I"]:
    """Return the matrix that interpolates linearly between pixel centres, with repeated edges.

    With a `part` (first row, number of rows), it has only those rows. To enlarge a small grid, a product
    with this matrix takes a sixth of the time of `F.interpolate` on a CPU.
    """
    first, count = (0, size_out) if part is None else part
    at = (torch.arange(first, first + count, device=like.device) + 0.5) * (size_in / size_out) - 0.5
    distance = (at.clamp(0, size_in - 1)[:, None] - torch.arange(size_in, device=like.device)).abs()
    return F.relu(1 - distance).to(like.dtype)
