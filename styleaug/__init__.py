"""styleaug: neural style transfer as data augmentation.

The names below are imported on first use, so `import styleaug` costs nothing and needs no torch.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from styleaug.bank import Provenance, StyleBank
    from styleaug.errors import (
        BankError,
        ConfigError,
        DeviceError,
        FileError,
        ImageError,
        MissingExtraError,
        StyleAugError,
        TrainError,
        WeightsError,
    )
    from styleaug.export import export_onnx
    from styleaug.fitting.fit import fit_style
    from styleaug.generators.base import AbstractGenerator
    from styleaug.io.tissue import SlideTiles
    from styleaug.offline.folder import apply_folder
    from styleaug.offline.stylizing import stylize
    from styleaug.samplers import Mix, Weighted
    from styleaug.sharing.pushing import push_to_hub
    from styleaug.sheets import preview
    from styleaug.transforms.augment import StyleAugment
    from styleaug.transforms.guard import Preserve
    from styleaug.transforms.loader import StyleCollate, StyleLoader
    from styleaug.transforms.normalize import StyleNormalize
    from styleaug.transforms.one_of import OneOf
    from styleaug.transforms.splice import Splice
    from styleaug.video.transform import StyleVideo
    from styleaug.weights import bank_names, card, generator_names, load_bank, load_generator

__all__ = [
    "AbstractGenerator",
    "BankError",
    "ConfigError",
    "DeviceError",
    "FileError",
    "ImageError",
    "MissingExtraError",
    "Mix",
    "OneOf",
    "Preserve",
    "Provenance",
    "SlideTiles",
    "Splice",
    "StyleAugError",
    "StyleAugment",
    "StyleBank",
    "StyleCollate",
    "StyleLoader",
    "StyleNormalize",
    "StyleVideo",
    "TrainError",
    "Weighted",
    "WeightsError",
    "apply_folder",
    "bank_names",
    "card",
    "export_onnx",
    "fit_style",
    "generator_names",
    "load_bank",
    "load_generator",
    "preview",
    "push_to_hub",
    "stylize",
]

HOMES = {
    "AbstractGenerator": "generators.base",
    "BankError": "errors",
    "ConfigError": "errors",
    "DeviceError": "errors",
    "FileError": "errors",
    "ImageError": "errors",
    "MissingExtraError": "errors",
    "Mix": "samplers",
    "OneOf": "transforms.one_of",
    "Preserve": "transforms.guard",
    "Provenance": "bank",
    "SlideTiles": "io.tissue",
    "Splice": "transforms.splice",
    "StyleAugError": "errors",
    "StyleAugment": "transforms.augment",
    "StyleBank": "bank",
    "StyleCollate": "transforms.loader",
    "StyleLoader": "transforms.loader",
    "StyleNormalize": "transforms.normalize",
    "StyleVideo": "video.transform",
    "TrainError": "errors",
    "Weighted": "samplers",
    "WeightsError": "errors",
    "apply_folder": "offline.folder",
    "bank_names": "weights",
    "card": "weights",
    "export_onnx": "export",
    "fit_style": "fitting.fit",
    "generator_names": "weights",
    "load_bank": "weights",
    "load_generator": "weights",
    "preview": "sheets",
    "push_to_hub": "sharing.pushing",
    "stylize": "offline.stylizing",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        return importer(__name__)(name)
    value = getattr(import_module(f"styleaug.{HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


def importer(package: str) -> Callable[[str], ModuleType]:
    """Return a `__getattr__` for a package that imports `package.part` on first use.

    Args:
        package: its `__name__`.
    """

    def find(name: str) -> ModuleType:
        if name.startswith("_") or not name.isidentifier() or find_spec(f"{package}.{name}") is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return import_module(f"{package}.{name}")

    return find
