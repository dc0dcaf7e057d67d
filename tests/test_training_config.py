"""Training configurations: every option's bounds and help, presets, files, what a resumed run may change."""

import json
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin

import pytest
from workshop import RECIPES

from styleaug import ConfigError
from styleaug.training.config import PRESETS, TrainConfig, preset, read_config

OPTIONS = [(name, item) for name in RECIPES for item in fields(preset(name)) if item.name != "recipe"]
FLOATS = [(name, item.name) for name, item in OPTIONS if item.type is float]


def refused(config: TrainConfig, name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} must be {message}"):
        config.with_options({name: value})


def near(value: float, step: float, kind: Any) -> Any:
    """Go one step from a bound."""
    return kind(value + (step if kind is int else 1e-9 * step))


@pytest.mark.parametrize("name", RECIPES)
def test_every_option_holds_its_bounds(name):
    config = preset(name)
    bounded = 0
    for item in fields(config):
        least, below = item.metadata.get("least"), item.metadata.get("below")
        if least is not None:
            refused(config, item.name, near(least, -1, item.type), f"at least {least}")
            refused(config, item.name, item.type(-1e6), "at least")
            bounded += 1
        if below is not None:
            refused(config, item.name, item.type(below), f"below {below}")
            if item.name != "depth":  # which bounds the size as well
                config.with_options({item.name: near(below, -1, item.type)})
    assert bounded > 15


def test_bounds_can_be_reached():
    for name in RECIPES:
        config = preset(name)
        for item in fields(config):
            least = item.metadata.get("least")
            if least is not None and config.multiple <= 8:
                wanted = {item.name: item.type(least)}
                assert config.with_options(wanted).to_dict()[item.name] == least


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_are_finite(value):
    for name, option in FLOATS:
        refused(preset(name), option, value, "(a finite number|at least)")


WRONG: dict[Any, list[Any]] = {
    int: ["1", 1.0, 2.5, None, True, [1], float("nan")],
    float: ["1", None, False, [1.0]],
    bool: ["yes", 1, 0, None],
    str: [1, None, True, ["a"]],
}


@pytest.mark.parametrize("name", RECIPES)
def test_wrong_types_are_refused(name):
    config = preset(name)
    for item in fields(config):
        if get_origin(item.type) is Literal:
            choices = get_args(item.type)
            wrong = ["nonsense", None, 1000, True, [choices[0]]]
            wrong += [float(choice) for choice in choices if isinstance(choice, int)]
            message = f"one of {', '.join(map(str, choices))}, got"
        else:
            assert item.type in WRONG
            wrong, message = WRONG[item.type], f"of type {item.type.__name__}, got"
        for value in wrong:
            refused(config, item.name, value, message)


def test_choices_are_taken():
    for name, item in OPTIONS:
        if get_origin(item.type) is Literal:
            for choice in get_args(item.type):
                assert preset(name).with_options({item.name: choice}).to_dict()[item.name] == choice


def test_whole_numbers_are_floats_too():
    assert preset("cut").with_options({"learning_rate": 1, "r1": 0}).learning_rate == 1


@pytest.mark.parametrize(
    ("name", "options", "multiple"),
    [
        ("adain", {"size": 100}, 8),
        ("patchgan", {"size": 48}, 32),
        ("patchgan", {"size": 128, "depth": 8}, 256),
        ("cut", {"size": 60}, 8),
        ("cyclegan", {"size": 50, "fold": 1}, 4),
        ("vaegan", {"size": 33}, 8),
    ],
)
def test_sizes_that_a_generator_cannot_halve_are_refused(name, options, multiple):
    with pytest.raises(ConfigError, match=f"size must be a multiple of {multiple}, got {options['size']}"):
        preset(name).with_options(options)


def test_processes_share_a_batch_equally():
    assert preset("cut").with_options({"batch": 6, "devices": 3}).devices == 3
    with pytest.raises(ConfigError, match="batch must be a multiple of devices, got 4 and 3"):
        preset("cut").with_options({"devices": 3})


def test_seeds_fit_the_generators_of_all_rows():
    refused(preset("cut"), "seed", 2**32, "below")
    refused(preset("cut"), "seed", -1, "at least 0")
    largest = preset("cut").with_options({"seed": 2**32 - 1})
    assert (largest.seed * 1_000_003 + 10**9) * 4099 + 4098 < 2**64, "see TrainingData.row"


def test_every_option_has_a_line_of_help():
    for name, item in OPTIONS:
        text = item.metadata["help"]
        assert 5 < len(text) < 90 and text.endswith("."), (name, item.name)
        assert item.name in TrainConfig.__dataclass_fields__ or text[0].isupper() or text[0].isdigit()


# Presets


@pytest.mark.parametrize("size", PRESETS)
def test_every_recipe_has_presets(size):
    assert sorted(PRESETS[size]) == sorted(RECIPES)
    for name in RECIPES:
        assert preset(name, size).to_dict()["recipe"] == name
        assert preset(name, size).with_options({}) == preset(name, size)


def shown(name: str, *options: str) -> tuple:
    values = preset(name, "paper").to_dict()
    return tuple(values[option] for option in options)


def test_the_paper_preset_has_the_papers_figures():
    common = ("batch", "size", "learning_rate", "momentum", "width", "discriminator_width", "patch")
    # Isola et al. 2017, appendix 6.2; Zhu et al. 2017, sec. 4 and appendix; Park et al. 2020, appendix C.
    for name in ("patchgan", "cyclegan", "cut", "vaegan"):
        assert shown(name, *common) == (1, 256, 2e-4, 0.5, 64, 64, 70)
        assert shown(name, "optimiser", "schedule", "diffaugment") == ("adam", "linear", "off")
    losses = [shown(name, "loss") for name in ("patchgan", "cyclegan", "cut", "vaegan")]
    assert losses == [("logistic",), ("lsgan",), ("lsgan",), ("lsgan",)]
    assert shown("patchgan", "l1_weight", "depth", "dropout", "conditional") == (100.0, 8, 0.5, True)
    assert shown("cyclegan", "cycle_weight", "identity_weight", "pool", "blocks") == (10.0, 5.0, 50, 9)
    assert shown("cut", "nce_weight", "identity_weight", "patches", "temperature") == (1.0, 1.0, 256, 0.07)
    # Zhu et al. 2017b, sec. 4.
    assert shown("vaegan", "latent", "l1_weight", "latent_weight", "kl_weight") == (8, 10.0, 0.5, 0.01)
    for name in ("cyclegan", "cut", "vaegan"):
        assert shown(name, "fold", "skip") == (1, False), "the networks of the papers have neither"
    # Huang & Belongie 2017, sec. 6: 160 000 steps of 8 at 256 pixels, learning rate 1e-4.
    assert shown("adain", "steps", "batch", "size", "learning_rate") == (160_000, 8, 256, 1e-4)


@pytest.mark.parametrize(("names", "wrong"), [(("cut", "huge"), "huge"), (("pix", "small"), "pix")])
def test_unknown_presets_are_named(names, wrong):
    with pytest.raises(ConfigError, match=f"unknown .*'{wrong}'; choose from .*(small|cut)"):
        preset(*names)


# Files


def toml(values: dict[str, Any]) -> str:
    return "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items())


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("size", PRESETS)
def test_options_survive_files(name, size, tmp_path):
    config = preset(name, size).with_options({"seed": 12, "init": 'ä "run"', "ema": 0.9, "flip": False})
    values = config.to_dict()
    for file, write in (("a.json", json.dumps), ("a.toml", toml), ("b.TOML", toml)):
        (tmp_path / file).write_text(write(values), encoding="utf-8")
        again = preset(name).with_options(read_config(tmp_path / file))
        assert again == config and again.to_dict() == config.to_dict(), file


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("a.json", b""),
        ("a.json", b"{'steps': 1}"),
        ("a.json", b"steps = 1"),
        ("a.json", b"\xff\xfe\x00"),
        ("a.json", b"[" * 100_000),
        ("a.toml", b"steps: 1"),
        ("a.toml", b"\x89PNG\0"),
        ("a.yaml", b"steps: 1"),
    ],
)
def test_files_that_cannot_be_read(file, content, tmp_path):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ConfigError, match=f"cannot read the options in .*{file}.*Give a .json or .toml file"):
        read_config(tmp_path / file)


def test_files_that_hold_no_options(tmp_path):
    for missing in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ConfigError, match="cannot read the options"):
            read_config(missing)
    (tmp_path / "a.json").write_text("[1, 2]")
    with pytest.raises(ConfigError, match=r"a.json must hold one table of options, got list"):
        read_config(tmp_path / "a.json")


def test_unknown_options_are_named():
    with pytest.raises(
        ConfigError, match=r"unknown training options \['nonsense', 'pool'\]; known are .*steps"
    ):
        preset("cut").with_options({"pool": 3, "nonsense": 1, "steps": 2})


def test_only_what_changes_nothing_may_differ():
    config = preset("cut")
    other = config.with_options({"device": "cpu", "devices": 2, "save_every": 7, "keep": 9})
    assert config.differs_from(other) == []
    changed = other.with_options({"seed": 1, "nce_weight": 2.0})
    assert config.differs_from(changed) == changed.differs_from(config) == ["nce_weight", "seed"]
    assert "recipe" in config.differs_from(preset("cyclegan"))
    ignored = {"device", "devices", "save_every", "keep"}
    for item in fields(config):
        if item.type is bool:
            flipped = config.with_options({item.name: not getattr(config, item.name)})
            assert config.differs_from(flipped) == [item.name]
        assert item.name not in ignored or item.metadata["help"]
