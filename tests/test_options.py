"""The options as values, their short forms and old names, the same in every adapter."""

import copy
import json
import math
import pickle
import re
from contextlib import nullcontext
from dataclasses import FrozenInstanceError
from functools import partial
from inspect import signature

import numpy as np
import pytest
import torch
from specimens import bank

import styleaug
from styleaug import ConfigError, Mix, Preserve, Splice, StyleAugment, StyleVideo, Weighted
from styleaug.cli.options import SAMPLERS_NAMED
from styleaug.robustness.arms import STYLE_OPTIONS
from styleaug.samplers import SAMPLERS, read_sampler
from styleaug.transforms.albumentations import StyleAugment as AlbumentationsStyle
from styleaug.transforms.guard import read_preserve
from styleaug.transforms.kornia import RandomStyle
from styleaug.transforms.monai import RandStyle, RandStyled
from styleaug.transforms.options import FOLDED, CommonOptions, StyleOptions, in_short
from styleaug.transforms.ray import StyleBatch
from styleaug.transforms.splice import read_splice
from styleaug.video.film import style_film

WRONG = [
    ({"sampler": "weighted"}, r"needs weights.*write sampler=Weighted\(weights\)"),
    ({"sampler": "median"}, "unknown sampler 'median'"),
    ({"sampler": 3}, "unknown sampler 3"),
    ({"sampler": {"parts": 3}}, "sampler has no 'parts'; a dict of it may hold components"),
    ({"sampler": {"weights": [1.0] * 3}}, r"one per style, \(5,\), got \(3,\)"),
    ({"splice": "thirds"}, "splice must be None, a Splice or one of halves, fields, mask, got 'thirds'"),
    ({"splice": 3}, "splice must be None, a Splice or one of .* got 3"),
    (
        {"splice": {"kind": "halves", "part": 3}},
        "splice has no 'part'; a dict of it may hold kind, parts, keep",
    ),
    ({"blend": "hue"}, "blend must be None or one of normal, multiply, .*, luminosity, got 'hue'"),
    ({"preserve": "mask"}, r"preserve must be a number in \[0, 1\], got 'mask'"),
    ({"preserve": {"protect": "masks"}}, 'protect must be None, "mask", "faces" or a function'),
]
ADAPTERS = (StyleAugment, RandomStyle, RandStyle, AlbumentationsStyle, StyleBatch)


@pytest.mark.parametrize(("options", "message"), WRONG, ids=range(len(WRONG)))
def test_wrong_values_are_refused_by_every_adapter(options, message):
    for make in ADAPTERS:
        with pytest.raises(ConfigError, match=message):
            make(bank("reinhard-rgb"), **options)


VALUES = [
    (lambda: Weighted([1.0] * 3), None),
    (lambda: Weighted([-1.0] * 5), "none negative"),
    (lambda: Weighted([0.0] * 5), "not all zero"),
    (lambda: Weighted([math.nan] * 5), "must be finite"),
    (lambda: Weighted(["a"] * 5), "weights must be a list of numbers"),
    (lambda: Weighted([True] * 5), "weights must be a list of numbers"),
    (lambda: Weighted([[1.0], [1.0, 2.0]]), "weights must be a list of numbers"),
    (lambda: Weighted(1.0), "weights must be a list of numbers"),
    (lambda: Mix(0), "components must be a whole number from 1, got 0"),
    (lambda: Mix(2.5), "components must be a whole number from 1, got 2.5"),
    (lambda: Splice("halves", parts=1), "parts must be a whole number from 2, got 1"),
    (lambda: Splice("halves", keep="no"), "keep must be True or False, got 'no'"),
    (lambda: Preserve(math.nan), "preserve must be a number"),
    (lambda: Preserve(0.9, protect=np.ones(3)), "protect must be None"),
]


@pytest.mark.parametrize(("make", "message"), VALUES, ids=range(len(VALUES)))
def test_values_are_checked_when_they_are_made(make, message):
    with pytest.raises(ConfigError, match=message) if message else nullcontext():
        make()


def region(images):
    return images[:, :1]


@pytest.mark.parametrize(
    ("value", "written", "short"),
    [
        (Mix(), "Mix(2)", "mix"),
        (Mix(np.int64(3)), "Mix(3)", {"components": 3}),
        (Weighted(torch.tensor([1, 2])), "Weighted([1.0, 2.0])", {"weights": [1.0, 2.0]}),
        (Splice("halves"), "Splice('halves')", "halves"),
        (Splice("mask", keep=np.True_), "Splice('mask', keep=True)", {"kind": "mask", "keep": True}),
        (Preserve(), "Preserve()", None),
        (Preserve(0), "Preserve()", None),
        (Preserve(np.float32(0.5)), "Preserve(0.5)", 0.5),
        (Preserve(protect="mask"), "Preserve(protect='mask')", {"protect": "mask"}),
        (Preserve(1, protect="mask"), "Preserve(1.0, protect='mask')", {"floor": 1.0, "protect": "mask"}),
    ],
    ids=str,
)
def test_values_are_values(value, written, short):
    readers = {
        "Mix": read_sampler,
        "Weighted": read_sampler,
        "Splice": read_splice,
        "Preserve": read_preserve,
    }
    again = readers[type(value).__name__](json.loads(json.dumps(in_short(value))))
    assert repr(value) == written and in_short(value) == short
    assert value == eval(written) == pickle.loads(pickle.dumps(value)) == copy.deepcopy(value)
    assert hash(value) == hash(eval(written)) and (again == value or (again, value) == ("mix", Mix(2)))
    with pytest.raises(FrozenInstanceError):
        value.kind = "fields"
    assert value != Splice("fields", parts=7) and value != Preserve(0.25, protect=region)


def test_a_repr_is_short():
    assert repr(Weighted(range(1, 1001))) == (
        "Weighted([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, ... 1000 in all])"
    )


OLD = [
    ({"weights": torch.ones(5), "sampler": "weighted"}, "sampler=Weighted([1.0, 1.0, 1.0, 1.0, 1.0])"),
    ({"weights": [1] * 5}, '"sampler": {"weights": [1.0, 1.0, 1.0, 1.0, 1.0]}'),
    ({"weights": [1.0] * 5, "sampler": "mix"}, "weights go with no other sampler, got 'mix'"),
    ({"components": 3, "sampler": "mix"}, "the option components has gone; write sampler=Mix(3)."),
    ({"components": 3}, "components go with the sampler Mix, got 'uniform'; in Python sampler=Mix(3)."),
    ({"parts": np.int64(3), "splice": "halves"}, "write splice=Splice('halves', parts=3)."),
    ({"parts": 3, "keep": True, "splice": "fields"}, "the options parts and keep have gone; write splice="),
    ({"parts": 3, "keep": True, "splice": "fields"}, '{"kind": "fields", "parts": 3, "keep": true}'),
    (
        {"parts": 3},
        "parts and keep go with splice, got None; in Python splice=Splice('halves', parts=3).",
    ),
    (
        {"keep": True},
        "parts and keep go with splice, got None; in Python splice=Splice('halves', keep=True).",
    ),
    ({"protect": "mask", "preserve": 0.9}, "write preserve=Preserve(0.9, protect='mask')."),
    ({"protect": region}, "write preserve=Preserve(protect=<function region"),
    ({"keep_luminance": True}, "the option keep_luminance has gone; write blend='color'."),
    ({"keep_luminance": True}, 'In JSON or YAML: "blend": "color".'),
    ({"keep_luminance": False}, "made no difference here: leave out keep_luminance."),
    ({"keep_luminance": True, "blend": "screen"}, "keep_luminance is blend='color' now, got blend='screen'"),
    ({"keep_luminance": "no"}, "keep_luminance must be True or False, got 'no'"),
    ({"edges": "scharr"}, "the option edges has gone, and made no difference here: leave out edges."),
    ({"edges": None, "parts": 2, "keep": False}, "edges, parts and keep have gone, and made no difference"),
    (
        {"weights": None, "components": 2, "edges": "sobel", "parts": 3, "splice": "mask"},
        "splice=Splice('mask'",
    ),
]


@pytest.mark.parametrize(("options", "message"), OLD, ids=range(len(OLD)))
def test_old_names_say_the_new_spelling_in_every_adapter(options, message):
    keyed = partial(RandStyled, "image")
    for make in (*ADAPTERS, keyed, *([] if "preserve" in options else [StyleVideo])):
        with pytest.raises(ConfigError, match=re.escape(message)):
            make(bank("reinhard-rgb"), **options)


def test_every_adapter_shows_the_options_of_the_core():
    core = signature(StyleAugment).parameters
    assert set(core) - {"bank", "p"} == set(StyleOptions.__annotations__) and len(core) - 1 <= 13
    for name, annotation in StyleOptions.__annotations__.items():
        assert core[name].annotation == annotation, name
    for make in (RandomStyle, RandStyle, RandStyled, AlbumentationsStyle, StyleBatch):
        shown = signature(make).parameters
        assert {name: shown[name] for name in StyleOptions.__annotations__}.items() <= core.items()
    for make in (StyleVideo, style_film, styleaug.apply_folder):
        shown = signature(make).parameters
        assert {name: shown[name] for name in CommonOptions.__annotations__}.items() <= core.items()
        assert "channels" not in shown
    assert set(STYLE_OPTIONS) <= {"p", *StyleOptions.__annotations__, *FOLDED}
    assert set(SAMPLERS_NAMED) == set(SAMPLERS)


def test_names_that_there_are_not():
    for make in (RandomStyle, RandStyle, AlbumentationsStyle, StyleBatch):
        with pytest.raises(TypeError, match=r"unexpected keyword argument 'splise'\. Did you mean 'splice'"):
            make(bank("reinhard-rgb"), splise="halves")
    with pytest.raises(TypeError, match="unexpected keyword argument 'preserve'"):
        StyleVideo(bank("reinhard-rgb"), preserve=0.9)


def test_weights_of_any_library():
    for weights in (
        np.ones(5, np.float32),
        torch.ones(5, dtype=torch.int64),
        [np.float32(1)] * 5,
        (1, 1, 1, 1, 1),
    ):
        sampler = StyleAugment(bank("reinhard-rgb"), sampler=Weighted(weights)).sampler
        assert sampler == Weighted([1.0] * 5) and set(map(type, sampler.weights)) == {float}
