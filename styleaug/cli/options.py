"""Shared by the commands: options, old option names, and messages that name options as the shell does."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

__all__ = [
    "BLENDS_NAMED",
    "BOX",
    "NUMBERS",
    "SAMPLERS_NAMED",
    "Command",
    "NamedOption",
    "bands_option",
    "bank_option",
    "blend_option",
    "device_option",
    "mixture",
    "mixture_options",
    "normalizer",
    "shell_words",
    "style_options",
]


class NamedOption(click.Option):
    """An option that also accepts its old names; help and errors do not show them.

    Args:
        declarations: as in `click.Option`.
        old: former names, such as `--side`.
        attributes: as in `click.Option`.
    """

    opts: list[str]

    def __init__(self, declarations: Any, *, old: tuple[str, ...] = (), **attributes: Any):
        super().__init__([*declarations, *old], **attributes)
        self.old = old

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the help text, without the old names."""
        with self.new_names():
            return super().get_help_record(ctx)

    def get_error_hint(self, ctx: click.Context | None, *args: Any) -> str:
        """Return the name that errors show, without the old names."""
        with self.new_names():
            return super().get_error_hint(ctx, *args)

    @contextmanager
    def new_names(self) -> Iterator[None]:
        """Remove the old names inside a `with` block."""
        every = self.opts
        self.opts = [name for name in every if name not in self.old]
        try:
            yield
        finally:
            self.opts = every


if TYPE_CHECKING:
    _ParamType, _Choice = click.ParamType[Any], click.Choice[str]  # generic since click 8.2
else:
    _ParamType, _Choice = click.ParamType, click.Choice


class Numbers(_ParamType):
    """One number in [0, 1], or two with a comma: `0.5` or `0.5,1`."""

    name = "number[,number]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the lowest and highest number; anything else is a usage error."""
        if not isinstance(value, str):
            return value
        try:
            ends = [float(part) for part in re.split(r",|\.\.(?=[.\d])", value)]
        except ValueError:
            ends = []
        if not (0 < len(ends) < 3 and all(0 <= end <= 1 for end in ends) and ends == sorted(ends)):
            self.fail(f"{value!r} is not a number from 0 to 1, nor two such as 0.5,1.", param, ctx)
        return ends[0], ends[-1]


class BoxType(_ParamType):
    """Left, top, width and height in pixels: `40,30,64,48`."""

    name = "X,Y,W,H"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the four numbers; anything else is a usage error."""
        parts = str(value).split(",")
        if not (len(parts) == 4 and all(map(is_number, parts)) and all(float(side) for side in parts[2:])):
            self.fail(f"{value!r} is not X,Y,W,H in pixels, such as 40,30,64,48.", param, ctx)
        return tuple(map(float, parts))


NUMBERS = Numbers()
BOX = BoxType()
SAMPLERS_NAMED = ("uniform", "mix", "slerp", "gaussian")
"""Those of `samplers.SAMPLERS`, known here without torch."""
BLENDS_NAMED = (
    "normal", "multiply", "screen", "overlay", "soft-light", "hard-light", "color", "luminosity"
)  # fmt: skip
"""Those of `transforms.blends.BLENDS`, known here without torch."""


class Mode(_Choice):
    """A blend mode; a number is what `--blend` of films was."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the mode's name; anything else is a usage error."""
        if isinstance(value, str) and is_number(value):
            self.fail(f"the share of a film's previous frame is --reuse {value} now.", param, ctx)
        return super().convert(value, param, ctx)


def blend_option() -> Callable[[Any], Any]:
    """Return the option `--blend`, and one that refuses `--keep-luminance`, which it has replaced."""

    def refuse(context: click.Context, option: click.Parameter, value: bool) -> None:
        if value:
            raise click.UsageError("--keep-luminance is --blend color now.")

    blend = click.option(
        "--blend", type=Mode(BLENDS_NAMED),
        help="How the styled image is laid over the image; --strength is its opacity. color: keep the "
        "brightness of each pixel. luminosity: keep its colour.  [default: the generator mixes]",
    )  # fmt: skip
    gone = click.option(
        "--keep-luminance",
        is_flag=True,
        expose_value=False,
        hidden=True,
        callback=refuse,
        help="See --blend.",
    )
    return lambda command: blend(gone(command))


def bands_option() -> Callable[[Any], Any]:
    """Return the option `--bands`."""
    return click.option(
        "--bands", type=click.Choice(("low", "high")),
        help="Part of the change to keep. low: light and colours without texture. high: texture without "
        "colours.  [default: all of it]",
    )  # fmt: skip


class Command(click.Command):
    """A command that still accepts the old spelling `--strength 0.5 1` for `--strength 0.5,1`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Join the two numbers with a comma, then parse."""
        joined: list[str] = []
        for word in args:
            if (
                joined[-2:-1] == ["--strength"]
                and is_number(joined[-1])
                and is_number(word)
                and not Path(word).exists()
            ):
                joined[-1] += f",{word}"
            else:
                joined.append(word)
        return super().parse_args(ctx, joined)


def is_number(word: str) -> bool:
    """Return True if `word` is a number written with digits and at most one point."""
    return re.fullmatch(r"\d*\.?\d+", word) is not None


def device_option() -> Callable[[Any], Any]:
    """Return the option `--device`; the command receives None for `auto`, else the device's name."""
    return click.option(
        "--device", default="auto", show_default=True, help="auto (a GPU if there is one), cpu or cuda.",
        callback=lambda context, option, value: None if value == "auto" else value,
    )  # fmt: skip


def bank_option() -> Callable[[Any], Any]:
    """Return the option `--bank`."""
    return click.option(
        "--bank", help="Name or path of a bank, a run folder, or hf:OWNER/NAME.  [default: art]"
    )


def mixture_options(command: Any) -> Any:
    """Let a command take `--preset NAME`, and `--bank` several times; see `mixture`."""
    chosen = click.option(
        "--preset", help="Mixture for a shift, in place of a bank: unknown, drawings or corruptions."
    )
    bank = click.option(
        "--bank", multiple=True,
        help="Name or path of a bank, a run folder, or hf:OWNER/NAME. Repeated: each image gets one.  "
        "[default: art]",
    )  # fmt: skip
    return bank(chosen(command))


def mixture(banks: tuple[str, ...], preset: str | None, options: dict[str, Any]) -> Any:
    """Return what stands for the bank: None, a name, or the transform of several banks or a preset.

    Args:
        banks: names or paths; a repeated one is drawn more often.
        preset: a name.
        options: of the command; what a mixture is made of is taken out.
    """
    if preset and banks:
        raise click.UsageError("--preset has banks of its own; leave out --bank.")
    if not preset and len(banks) < 2:
        return banks[0] if banks else None
    from styleaug.transforms.augment import StyleAugment
    from styleaug.transforms.host import DEFAULTS, is_unusual
    from styleaug.transforms.one_of import OneOf

    shared = {name: options.pop(name) for name in list(options) if name in DEFAULTS}
    if not preset:
        return OneOf([StyleAugment(name, p=1.0, **shared) for name in banks])
    if own := [name.replace("_", "-") for name, value in shared.items() if is_unusual(name, value)]:
        raise click.UsageError(f"--preset has its own {own[0]}; leave out --{own[0]}.")
    return StyleAugment.preset(preset)


def normalizer(banks: tuple[str, ...], preset: str | None, options: dict[str, Any]) -> Any:
    """Return the `StyleNormalize` of a command; options that it has are taken out.

    Args:
        banks: names or paths, at most one.
        preset: a name, which is refused.
        options: of the command.
    """
    if preset or len(banks) > 1:
        raise click.UsageError("--normalize takes the one --bank of your own images, and no --preset.")
    from styleaug.transforms.normalize import StyleNormalize

    low, high = options.pop("strength")
    if low != high or options.pop("sampler") != "uniform":
        raise click.UsageError("--normalize draws nothing: give one --strength, and leave out --sampler.")
    taken = {name: options.pop(name) for name in ("generator", "blend", "bands", "preserve")}
    return StyleNormalize(banks[0] if banks else None, strength=low, **taken)


def style_options(strength: str) -> Callable[[Any], Any]:
    """Add the options that say how styles are given; the command gets them by their names in Python.

    Args:
        strength: for what one is drawn.
    """
    made = (
        click.option(
            "--generator", help="Name, weights or a run folder.  [default: the one that made the bank]"
        ),
        click.option(
            "--strength", type=NUMBERS, default="1", show_default=True,
            help="From 0 (unchanged) to 1 (full style). Two numbers, such as 0.5,1: drawn between them"
            f"{strength}.",
        ),
        click.option(
            "--sampler", type=click.Choice(SAMPLERS_NAMED), default="uniform", show_default=True,
            help="How a style is drawn: one, a mixture of several, one between two, or a new similar one.",
        ),
        blend_option(),
        bands_option(),
    )  # fmt: skip
    return lambda command: reduce(lambda inner, option: option(inner), reversed(made), command)


CALL = re.compile(r"""(?<![,:"'])\b([a-z]+(?:_[a-z]+)*)=("[^"]*"|'[^']*'|[^\s,;:()]*[^\s,;:().])""")
_NAME = re.compile(r"(?<![\w./\\'\"=-])[a-z]+(?:_[a-z]+)+(?![\w/\\'\"=(-]|\.\w)")


def shell_words(text: str, root: click.Command) -> str:
    """Rewrite Python arguments in a message as command-line options.

    `min_images=1` becomes `--min-images 1`. A call such as `StyleAugment(generator="run")` is Python code
    and stays as it is.
    """
    names = _options_of(root)

    def option(found: re.Match[str]) -> str:
        before = text[: found.start()]
        if found[1] not in names or (
            before.count("(") > before.count(")") and re.search(r"\w\([^()]*$", before)
        ):
            return found[0]
        value = found[2].strip("\"'")
        return names[found[1]] if value == "True" else f"{names[found[1]]} {value}"

    text = CALL.sub(option, text)
    return _NAME.sub(lambda found: names.get(found[0], found[0]), text)


@cache
def _options_of(root: click.Command) -> dict[str, str]:
    """Map the Python names of arguments to the names of their options."""
    found: dict[str, str] = {}
    waiting: list[click.Command] = [root]
    while waiting:
        command = waiting.pop()
        context = click.Context(command)
        waiting += command.commands.values() if isinstance(command, click.Group) else []
        for parameter in command.get_params(context):
            if isinstance(parameter, click.Option) and parameter.name:
                long = next((name for name in parameter.opts if name.startswith("--")), parameter.opts[0])
                found.setdefault(parameter.name, long)
    return found
