"""A plain call of `StyleAugment` stays short to read, as `benchmarks/reading.py` counts it."""

from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import torch
from specimens import bank, pil

import styleaug
from styleaug import StyleAugment

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def read(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    package = Path(styleaug.__file__).parent
    return lambda call, **options: import_module("reading").read(call, package, **options)


@pytest.mark.parametrize(("without", "lines", "classes"), [(("generators",), 350, 2), ((), 610, 4)])
def test_a_plain_call_is_short_to_read(read, without, lines, classes):
    augment, image = StyleAugment("art", p=1.0), pil(size=(96, 96))
    augment(image)
    counts = read(lambda: augment(image), without=without).counts()
    assert 250 < counts["lines"] <= lines and 1 <= counts["classes"] <= classes


@pytest.mark.parametrize("file", ["groups.py", "guard.py", "splice.py", "sample.py", "form.py"])
def test_what_is_not_used_costs_a_plain_call_no_line(read, file):
    augment, options = StyleAugment(bank("reinhard-rgb"), p=1.0), {"splice": "halves", "preserve": 0.9}
    busy = StyleAugment(bank("reinhard-rgb"), p=1.0, **options)
    image = pil()
    assert file not in {path.name for path in read(lambda: augment(image)).spans}
    sample = {"image": image, "flat": torch.zeros(3)}
    empty = StyleAugment(bank("reinhard-rgb"), p=0.0)
    used = {path.name for call in (busy, empty) for path in read(partial(call, sample)).spans}
    assert file in used
