"""The recorded public names: to add or remove one, change `golden/public_names.txt` in the same commit."""

import inspect
from importlib import import_module
from pathlib import Path

import pytest

import styleaug

RECORD = Path(__file__).parent / "golden" / "public_names.txt"


def test_public_names_are_those_recorded():
    recorded = RECORD.read_text().split()
    assert styleaug.__all__ == recorded == sorted(recorded)
    assert dir(styleaug) == recorded
    assert set(styleaug.HOMES) == set(recorded)


@pytest.mark.parametrize("name", styleaug.__all__)
def test_public_names_are_at_home(name):
    value = getattr(styleaug, name)
    home = import_module(f"styleaug.{styleaug.HOMES[name]}")
    assert value is getattr(home, name) and name in home.__all__
    assert value.__module__ == home.__name__
    assert inspect.getdoc(value)


@pytest.mark.parametrize("name", styleaug.__all__)
def test_arguments_are_annotated_and_named(name):
    value = getattr(styleaug, name)
    if inspect.isclass(value) and issubclass(value, Exception | styleaug.AbstractGenerator):
        return
    parameters = [p for p in inspect.signature(value).parameters.values() if p.name != "self"]
    for parameter in parameters:
        assert parameter.annotation is not inspect.Parameter.empty, parameter
    if name != "Provenance":  # a record: its fields in order are its meaning
        positional = [p for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        assert len(positional) <= 2, "everything after the first two arguments is keyword-only"


def test_type_checkers_see_the_same_names():
    source = Path(styleaug.__file__).read_text()
    block = source.split("if TYPE_CHECKING:")[1].split("HOMES")[0]
    imported = {
        word.strip(" (),") for line in block.splitlines() for word in line.split("import")[-1].split(",")
    }
    assert set(styleaug.__all__) <= imported


def test_unknown_names():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        styleaug.nonsense  # noqa: B018


@pytest.mark.parametrize("name", [name for name in styleaug.__all__ if name.endswith("Error")])
def test_errors_are_ours_and_a_builtin(name):
    error = getattr(styleaug, name)
    assert issubclass(error, styleaug.StyleAugError)
    if name != "StyleAugError":
        assert issubclass(error, ValueError | OSError | RuntimeError)
