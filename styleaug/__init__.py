"""styleaug: neural style transfer as data augmentation.

The names below are imported on first use, so `import styleaug` costs nothing and needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from styleaug.bank import StyleBank
    from styleaug.contact_sheet import preview
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
    from styleaug.folder import apply_folder
    from styleaug.generators.base import AbstractGenerator
    from styleaug.provenance import Provenance
    from styleaug.stylizing import stylize
    from styleaug.training.fit import fit_style
    from styleaug.transforms.loader import StyleCollate, StyleLoader
    from styleaug.transforms.torchvision import StyleAugment
    from styleaug.video import StyleVideo
    from styleaug.weights import bank_names, card, generator_names, load_bank, load_generator

HOMES = {
    "AbstractGenerator": "generators.base",
    "BankError": "errors",
    "ConfigError": "errors",
    "DeviceError": "errors",
    "FileError": "errors",
    "ImageError": "errors",
    "MissingExtraError": "errors",
    "Provenance": "provenance",
    "StyleAugError": "errors",
    "StyleAugment": "transforms.torchvision",
    "StyleBank": "bank",
    "StyleCollate": "transforms.loader",
    "StyleLoader": "transforms.loader",
    "StyleVideo": "video",
    "TrainError": "errors",
    "WeightsError": "errors",
    "apply_folder": "folder",
    "bank_names": "weights",
    "card": "weights",
    "export_onnx": "export",
    "fit_style": "training.fit",
    "generator_names": "weights",
    "load_bank": "weights",
    "load_generator": "weights",
    "preview": "contact_sheet",
    "stylize": "stylizing",
}

__all__ = [
    "AbstractGenerator",
    "BankError",
    "ConfigError",
    "DeviceError",
    "FileError",
    "ImageError",
    "MissingExtraError",
    "Provenance",
    "StyleAugError",
    "StyleAugment",
    "StyleBank",
    "StyleCollate",
    "StyleLoader",
    "StyleVideo",
    "TrainError",
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
    "stylize",
]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        from styleaug.parts import importer

        return importer(__name__)(name)
    value = getattr(import_module(f"styleaug.{HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
