"""Every exception that styleaug raises on purpose.

    StyleAugError
    ├── ImageError    (ValueError)    pixels, shapes, dtypes or ranges that no generator can take
    ├── FileError     (OSError)       a file or folder that is missing, unreadable or too large
    ├── BankError     (ValueError)    a style bank that is damaged, or made by another generator
    ├── WeightsError  (ValueError)    generator weights that are damaged, unknown or do not fit
    ├── ConfigError   (ValueError)    an argument outside its range
    ├── TrainError    (RuntimeError)  a training run that diverged
    └── DeviceError   (RuntimeError)  a device that cannot be used where it was asked for

Each is also the builtin in brackets, so that code which knows nothing of styleaug can catch it.
`LabelWarning` is no error: it says that an image seems to be a label map.
"""

__all__ = [
    "BankError",
    "ConfigError",
    "DeviceError",
    "FileError",
    "ImageError",
    "LabelWarning",
    "StyleAugError",
    "TrainError",
    "WeightsError",
]


class LabelWarning(UserWarning):
    """An image that is about to be styled seems to hold labels."""


class StyleAugError(Exception):
    """Base of all errors of this library."""


class ImageError(StyleAugError, ValueError):
    """Pixels, shapes, dtypes or ranges that no generator can take."""


class FileError(StyleAugError, OSError):
    """A file or folder that is missing, unreadable or too large."""


class BankError(StyleAugError, ValueError):
    """A style bank that is damaged, or was made by another generator."""


class WeightsError(StyleAugError, ValueError):
    """Generator weights that are damaged, unknown or do not fit."""


class ConfigError(StyleAugError, ValueError):
    """An argument outside its range."""


class TrainError(StyleAugError, RuntimeError):
    """A training run that diverged."""


class DeviceError(StyleAugError, RuntimeError):
    """A device that cannot be used where it was asked for."""
