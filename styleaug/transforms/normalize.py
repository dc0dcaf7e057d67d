"""`StyleNormalize`: each image in the mean style of a bank, for testing."""

from copy import copy
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from styleaug.bank import StyleBank
from styleaug.checks import check_share
from styleaug.errors import ConfigError
from styleaug.generators.ambient import as_usual
from styleaug.generators.base import AbstractGenerator
from styleaug.images import ValueRange
from styleaug.transforms.augment import StyleAugment
from styleaug.transforms.bands import Bands
from styleaug.transforms.base import AbstractAugment
from styleaug.transforms.blends import Blend
from styleaug.transforms.guard import Preserve
from styleaug.transforms.options import Channels, Precision
from styleaug.transforms.params import StyleParams
from styleaug.transforms.splice import Splice

__all__ = ["StyleNormalize", "home_style"]


class StyleNormalize(AbstractAugment):
    """Bring each image to the mean style of a bank. Nothing is random.

    It is the dual of `StyleAugment`. Fit a bank to the images that a network was trained on, and place this
    transform before the network when it sees images from elsewhere. It takes the same inputs; labels, masks
    and boxes are not touched. Each image is painted as `StyleAugment` would paint it in this style.

    The style is the mean of the bank's codes. Where codes do not average (`generator.codes_average` is
    False, as for `patchswap`), it is the style of the bank that is nearest to the mean, with each entry
    divided by its standard deviation. A translator to one domain has no codes and takes no bank.

    It helps where the shift is one of colour, stain or light. It can harm: it removes colours that tell
    classes apart, and a network that was trained with augmentation may need no normalising.

    Args:
        bank: of the images that the network knows: a shipped name, a path, a run folder, or a `StyleBank`.
        generator: a name, a path to weights, a run folder, or a generator. None takes the one that made the
            bank.
        strength: share of the style in [0, 1]; 1 is all of it.
        blend: see `StyleAugment`, as for all options that follow.
        bands: which frequencies of the change are kept.
        value_range: values of black and white.
        channels: which channels are grey images.
        preserve: least structure that is kept.
        least_side: least short side at which the generator sees an image.
        precision: type of a network's weights.

    Shape:
        That of the input, with its dtype, range, device and memory format.

    Raises:
        BankError: the bank is damaged, unknown, or made by another generator.
        WeightsError: the generator is damaged or unknown.
        ConfigError: an argument outside its range, `bank="batch"`, or a generator that draws its styles.
        ImageError: when called with what is no image; see `StyleAugment`.

    Example:
        >>> from torchvision import transforms
        >>> test = transforms.Compose([
        ...     StyleNormalize("hospital_a.safetensors"), transforms.ToTensor()])  # doctest: +SKIP
    """

    code: Tensor
    row: int | None
    p: float
    splice: Splice | None
    within_batch: bool
    channels: Channels
    value_range: ValueRange
    most_channels: int
    code_length: int

    @as_usual(for_autograd=True)
    def __init__(
        self,
        bank: str | Path | StyleBank | None = None,
        *,
        generator: str | Path | AbstractGenerator | None = None,
        strength: float = 1.0,
        blend: Blend | None = None,
        bands: Bands | None = None,
        value_range: ValueRange = None,
        channels: Channels = "auto",
        preserve: float | Preserve | None = None,
        least_side: int | None = None,
        precision: Precision = "auto",
    ):
        super().__init__()
        if bank is None and generator is None:
            raise ConfigError(
                "StyleNormalize needs the bank of a network's training images. Fit one: styleaug fit-style "
                "FOLDER -o home.safetensors"
            )
        self.strength: float = check_share("strength", strength)
        self.augment: StyleAugment = StyleAugment(
            bank,
            generator=generator,
            p=1.0,
            strength=self.strength,
            blend=blend,
            bands=bands,
            value_range=value_range,
            channels=channels,
            preserve=preserve,
            least_side=least_side,
            precision=precision,
        )
        self.code, self.row = home_style(self.augment)
        self.p, self.splice, self.within_batch = 1.0, None, False
        self.channels, self.value_range = self.augment.channels, self.augment.value_range
        self.most_channels, self.code_length = self.augment.most_channels, self.augment.code_length
        self.protects_by_mask: bool = self.augment.protects_by_mask

    @property
    def fingerprint(self) -> str:
        """The generator's."""
        return self.augment.fingerprint

    @property
    def style(self) -> str | int:
        """Which style it is: `"mean"`, or a row of the bank."""
        return "mean" if self.row is None else self.row

    def with_networks(self) -> Self:
        """Return a copy that holds its generator."""
        twin = copy(self)
        twin._modules = {"augment": self.augment.with_networks()}  # those of the copy alone
        return twin

    def settings(self) -> dict[str, Any]:
        """Return the arguments that make this transform again, under the key `"normalize"`."""
        own = self.augment.settings()
        kept = {name: own[name] for name in own.keys() - {"p", "sampler", "splice", "compiled"}}
        return {"normalize": {**kept, "strength": self.strength}}

    def extra_repr(self) -> str:
        """Format the style and the strength."""
        return f"style={self.style!r}, strength={self.strength}"

    def draw(self, count: int, rng: torch.Generator | None = None) -> StyleParams:
        """Return the parameters of `count` rows, which are all the same. Nothing is drawn."""
        return self.draw_rows(torch.arange(count, device="cpu"), count, rng)

    @as_usual(for_autograd=True)
    def draw_rows(self, rows: Int[Tensor, " K"], count: int, rng: torch.Generator | None) -> StyleParams:
        """Return the parameters of these rows. Nothing is drawn."""
        sources = [] if self.row is None else [self.row]
        return StyleParams(
            rows=rows,
            strength=torch.full((len(rows),), self.strength),
            codes=self.code.expand(len(rows), -1),
            sources=torch.tensor(sources, dtype=torch.long).expand(len(rows), -1),
            shares=torch.ones(len(rows), len(sources)),
            fields=None,
        )

    def apply(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, images: Any, params: Any = None, *, masks: Any = None, differentiable: bool = False
    ) -> Any:
        """Normalise `images` with parameters from `make_params`; see `StyleAugment.apply`."""
        if params is None:
            return nn.Module.apply(self, images)
        return self.augment.apply(images, params, masks=masks, differentiable=differentiable)


def home_style(augment: StyleAugment) -> tuple[Float[Tensor, "1 S"], int | None]:
    """Return the code of the mean style, and its row in the bank if it is one of the bank's styles.

    Raises:
        ConfigError: there are no styles to average.
    """
    if augment.bank is None:
        if augment.code_length or augment.within_batch:
            raise ConfigError(
                f"StyleNormalize needs a bank for {augment.generator_name!r}. Fit one: styleaug fit-style "
                f"FOLDER --generator {augment.generator_name} -o bank.safetensors"
            )
        return torch.zeros(1, 0), None
    codes = augment.bank.codes.double()
    mean = codes.mean(dim=0, keepdim=True)
    if augment.home.codes_average:
        return mean.float(), None
    spread = codes.std(dim=0, correction=0)
    standard = (codes - mean) / spread.where(spread > 0, 1.0)
    row = int(standard.square().sum(dim=1).argmin())
    return augment.bank.codes[row : row + 1].float(), row
