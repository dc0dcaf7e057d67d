"""Generators from files and names: exact round trips, hostile files, and cards that tell the truth."""

import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from specimens import photos, tiny_adain

from styleaug import BankError, WeightsError, bank_names, card, generator_names, load_bank, load_generator
from styleaug.weights import COLOR_GENERATORS, cards, file_hash, pretrained_folder, save_generator

SIZES = {"widths": [4, 4, 8], "blocks": 1, "hidden": 8}


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("weights") / "generator.safetensors"


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> bytes:
    return save_generator(tiny_adain(), tmp_path_factory.mktemp("good") / "g.safetensors").read_bytes()


def meta(**changes: object) -> dict[str, str]:
    facts = {"format": 1, "generator": "adain", "settings": SIZES, **changes}
    return {"styleaug_generator": json.dumps({k: v for k, v in facts.items() if v is not ...})}


def refuse(path: Path) -> str:
    """Load a file that is no generator; give what is said about it."""
    with pytest.raises(WeightsError) as caught:
        load_generator(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_round_trip(tmp_path):
    network = tiny_adain()
    path = save_generator(network, tmp_path / "deep" / "g.safetensors")
    back = load_generator(path)
    assert type(back) is type(network) and back.settings() == network.settings()
    assert back.fingerprint == network.fingerprint
    assert not back.training and not any(p.requires_grad for p in back.parameters())
    images, strength = photos(2), torch.ones(2)
    codes = network.encode_style(1 - images)
    torch.testing.assert_close(back.encode_style(1 - images), codes, atol=2e-3, rtol=2e-3)
    # Weights are stored in half precision.
    torch.testing.assert_close(
        back(images, codes, strength), network(images, codes, strength), atol=0.02, rtol=0
    )
    again = save_generator(back, tmp_path / "again.safetensors")
    assert again.read_bytes() == path.read_bytes()
    assert load_generator(str(again)).fingerprint == network.fingerprint


def test_names():
    assert set(COLOR_GENERATORS) <= set(generator_names())
    for name in generator_names():
        generator = load_generator(name)
        assert generator is load_generator(name), "made once"
        assert not generator.training
    with pytest.raises(WeightsError, match=r"no generator 'nonsense'\. Known names: .*fourier"):
        load_generator("nonsense")
    with pytest.raises(BankError, match=r"no bank 'nonsense'\. Shipped.*fit-style FOLDER"):
        load_bank("nonsense")
    with pytest.raises(WeightsError, match="nothing named 'nonsense' is shipped"):
        card("nonsense")


def test_every_file_has_its_card_and_every_card_its_file():
    folder = pretrained_folder()
    listed = {entry["file"] for kind in cards().values() for entry in kind.values()}
    assert len(listed) == sum(len(kind) for kind in cards().values())
    for name in listed:
        assert Path(name).name == name and (folder / name).is_file()


@pytest.mark.parametrize("name", [*cards()["generators"], *cards()["banks"]])
def test_cards_agree_with_their_files(name):
    facts = card(name)
    path = pretrained_folder() / facts["file"]
    assert facts["sha256"] == file_hash(path)
    assert facts["bytes"] == path.stat().st_size < 6 * 2**20
    for key in ("data", "command", "licence"):
        assert facts[key].strip()
    if name in generator_names():
        generator = load_generator(name)
        assert facts["fingerprint"] == generator.fingerprint
        most = 520_000 if name in ("adain", "photo") else 1_200_000  # a translator's is one domain's alone
        assert facts["parameters"] == sum(p.numel() for p in generator.parameters()) < most
        assert facts["code_length"] == generator.code_length
    if name in bank_names():
        bank = load_bank(name)
        assert bank is load_bank(name), "read once"
        assert facts["fingerprint"] == bank.provenance.fingerprint and facts["styles"] == len(bank)
        bank.check(load_generator(bank.provenance.generator))


@given(place=st.floats(0, 1, exclude_max=True))
def test_truncated_files(file, content, place):
    file.write_bytes(content[: int(place * len(content))])
    refuse(file)


@given(st.binary(max_size=300))
def test_random_files(file, noise):
    file.write_bytes(noise)
    refuse(file)


@given(place=st.integers(0, 2500), value=st.integers(0, 255))
def test_files_with_a_wrong_byte_are_refused_or_sound(file, content, place, value):
    file.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
    try:
        network = load_generator(file)
    except WeightsError as error:
        assert str(file) in str(error)
    else:
        assert all(bool(p.isfinite().all()) for p in network.parameters())


@given(
    settings=st.recursive(
        st.none() | st.booleans() | st.integers(-5, 2**40) | st.floats() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.fixed_dictionaries({"widths": inner, "blocks": inner, "hidden": inner})
            | st.dictionaries(st.sampled_from(["widths", "blocks", "hidden", "x"]), inner)
        ),
        max_leaves=6,
    )
)
def test_settings_of_any_json(file, content, settings):
    if settings == SIZES:
        return
    file.write_bytes(save(load(content), meta(settings=settings)))
    refuse(file)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "not a styleaug generator"),
        ({"other": "x"}, "not a styleaug generator"),
        (meta(format=2), "has format 2; this version of styleaug reads format 1"),
        (meta(format=...), "has format None"),
        (meta(generator="unet"), "for a generator 'unet'; known are adain"),
        (meta(generator=...), "for a generator None"),
        (meta(generator=["adain"]), "for a generator ['adain']"),
        (meta(settings=...), "cannot use: None"),
        (meta(settings={**SIZES, "blocks": 2}), "does not fit 'adain'"),
        (meta(settings={**SIZES, "hidden": 10**30}), "whole numbers from 1 to 1024"),
        (
            meta(settings={"widths": [1024] * 3, "blocks": 16, "hidden": 1024}),
            "more than 134,217,728 parameters",
        ),
        ({"styleaug_generator": "{"}, "damaged metadata"),
        ({"styleaug_generator": "[" * 100_000}, "damaged metadata"),
        ({"styleaug_generator": "[]"}, "has format None"),
    ],
)
def test_metadata_that_is_none(file, content, metadata, message):
    file.write_bytes(save(load(content), metadata))
    assert message in refuse(file)


def test_tensors_that_do_not_fit(file, content):
    tensors = load(content)
    first, *_ = sorted(tensors)
    without = {key: value for key, value in tensors.items() if key != first}
    for changed in (
        without,
        {**tensors, "more": torch.zeros(1)},
        {**tensors, first: torch.zeros(1)},
        {},
    ):
        file.write_bytes(save(changed, meta()))
        assert "does not fit 'adain'" in refuse(file)
    for wrong in (torch.nan, torch.inf):
        file.write_bytes(save({**tensors, first: torch.full_like(tensors[first], wrong)}, meta()))
        assert "not finite" in refuse(file)
    wide = torch.full(tensors[first].shape, 1e300, dtype=torch.float64)
    file.write_bytes(save({**tensors, first: wide}, meta()))
    assert "not finite" in refuse(file)


def test_diverged_weights_are_not_passed_on(tmp_path):
    network = tiny_adain()
    network.conv_half.weight.data.fill_(1e9)  # too large for half precision
    assert "not finite" in refuse(save_generator(network, tmp_path / "g.safetensors"))


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**40, 2**27])
def test_headers_of_absurd_length(file, content, length):
    file.write_bytes(struct.pack("<Q", length) + content[8:])
    assert "truncated" in refuse(file)


def test_other_files(tmp_path, file):
    for data in (b"", pickle.dumps({"a": 1}), Path(__file__).read_bytes()):
        file.write_bytes(data)
        refuse(file)
    torch.save(tiny_adain().state_dict(), file)
    refuse(file)
    assert "is a folder" in refuse(tmp_path)
    assert "No such file" in refuse(tmp_path / "missing.safetensors")
    with (tmp_path / "huge.safetensors").open("wb") as huge:
        huge.truncate(600 * 2**20)  # sparse: takes no room
    assert "has 629,145,600 bytes" in refuse(tmp_path / "huge.safetensors")
