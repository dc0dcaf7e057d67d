"""Check shape annotations while the tests run: `--jaxtyping-packages=styleaug,shapes.check_shapes`.

beartype would check every other annotation too, and so hide the errors of our own that wrong arguments
raise; and it cannot read `Self` in a method or a plain `Protocol`.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from types import UnionType
from typing import Any, Union, get_args, get_origin

import jaxtyping
from torch import Tensor


def check_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compare each tensor that enters or leaves a call with its jaxtyping annotation."""
    signature = inspect.signature(function)
    hints = {name: p.annotation for name, p in signature.parameters.items() if has_shape(p.annotation)}
    hints |= {"return": signature.return_annotation} if has_shape(signature.return_annotation) else {}
    if not hints:
        return function

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        values = signature.bind(*args, **kwargs).arguments
        values["return"] = function(*args, **kwargs)
        for name, hint in hints.items():
            if not fits(values.get(name), hint):
                found = tuple(getattr(values[name], "shape", ()))
                raise TypeError(f"{function.__qualname__}: {name} is {found}, expected {hint}")
        return values["return"]

    return checked


def is_array(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray)


def has_shape(hint: Any) -> bool:
    return is_array(hint) or any(has_shape(part) for part in get_args(hint))


def fits(value: Any, hint: Any) -> bool:
    """Tell whether tensors in `value` have the shapes in `hint`; other values always fit."""
    if is_array(hint):
        return not isinstance(value, Tensor) or isinstance(value, hint)
    if get_origin(hint) in (Union, UnionType):
        return any(fits(value, part) for part in get_args(hint) if part is not type(None))
    if get_origin(hint) is tuple and isinstance(value, tuple):
        return all(fits(x, part) for x, part in zip(value, get_args(hint), strict=False))
    return True
