"""Damage to banks and weights is noticed: by their digest, by their cards, by the bounds of codes, by NaN."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load, save
from specimens import GENERATORS, bank, generator, photos, tiny_adain, tiny_photo

from styleaug import (
    BankError,
    Provenance,
    StyleAugError,
    StyleAugment,
    StyleBank,
    WeightsError,
    load_bank,
    load_generator,
)
from styleaug.fitting.unfinished import Unfinished, stored_codes
from styleaug.io.tensors import cards, pretrained_folder, warn_once
from styleaug.weights import save_generator, shipped_file


def without_digest(path: Path) -> Path:
    """Write a file as the version did that knew no digest."""
    with safe_open(path, "pt") as file:
        ((key, text),) = file.metadata().items()
    meta = json.loads(text)
    del meta["digest"]
    old = path.with_name(f"old-{path.name}")
    old.write_bytes(save(load(path.read_bytes()), {key: json.dumps(meta, sort_keys=True)}))
    return old


def grouped() -> StyleBank:
    made = bank("reinhard-rgb", styles=4)
    return StyleBank(made.codes, made.provenance, groups=torch.tensor([0, 1, 1, 0]), labels=("a", "b"))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return {
        "bank": bank("reinhard-rgb", styles=3).save(folder / "bank.safetensors"),
        "groups": grouped().save(folder / "groups.safetensors"),
        "weights": save_generator(tiny_photo(), folder / "weights.safetensors"),
    }


def content(path: Path) -> object:
    """Read what a file means, as something that compares."""
    if "weights" in path.name:
        return load_generator(path).fingerprint
    found = StyleBank.load(path)
    return found.codes.tolist(), found.provenance, found.groups, found.labels


def flipped(whole: bytes, bit: int) -> bytes:
    damaged = bytearray(whole)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def changed(path: Path, bits: list[int], expected: object) -> list[int]:
    """Flip one bit at a time; list those with which something else is accepted."""
    whole, target, wrong = path.read_bytes(), path.with_name(f"flipped-{path.name}"), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as the flip may hit the digest's own name
        for bit in bits:
            target.write_bytes(flipped(whole, bit))
            try:
                found = content(target)
            except StyleAugError:
                continue
            if str(found) != str(expected):
                wrong.append(bit)
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bank", "groups"])
def test_no_flipped_bit_of_a_bank_gives_other_styles(files, kind):
    size = 8 * files[kind].stat().st_size
    assert not changed(files[kind], list(range(0, size, 5)), content(files[kind]))


@pytest.mark.slow
def test_no_flipped_bit_of_weights_gives_other_weights(files):
    path = files["weights"]
    header = 8 * (8 + int.from_bytes(path.read_bytes()[:8], "little"))
    bits = [*range(0, header, 97), *range(header, 8 * path.stat().st_size, 211)]
    assert not changed(path, bits, content(path))


@given(place=st.integers(0, 10**6), values=st.binary(min_size=1, max_size=40))
def test_no_damage_to_a_bank_gives_other_styles(files, place, values):
    whole = files["bank"].read_bytes()
    place %= len(whole)
    target = files["bank"].with_name("torn-bank.safetensors")
    target.write_bytes((whole[:place] + values + whole[place + len(values) :])[: len(whole)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = content(target)
        except BankError:
            return
    assert str(found) == str(content(files["bank"]))


def test_tensors_of_another_file_are_noticed(files, tmp_path):
    with safe_open(files["bank"], "pt") as file:
        meta = file.metadata()
        codes = file.get_tensor("codes")
    path = tmp_path / "bank.safetensors"
    for other in (codes.flip(0), codes[:2].contiguous(), codes.double(), codes.T.contiguous()):
        path.write_bytes(save({"codes": other}, meta))
        with pytest.raises(BankError, match="is damaged: its content is not what was written"):
            StyleBank.load(path)
    path.write_bytes(save({"codes": codes}, meta))
    assert StyleBank.load(path).codes.equal(codes), "the layout of the header is no content"


@pytest.mark.parametrize("kind", ["bank", "groups", "weights"])
def test_old_files_load_with_one_warning_that_says_what_to_do(files, kind):
    old = without_digest(files[kind])
    command = "save_generator" if kind == "weights" else "styleaug bank merge"
    with pytest.warns(UserWarning, match=f"carries no digest.*{command}") as caught:
        found = content(old)
        content(old)
    assert len(caught) == 1 and str(old) in str(caught[0].message)
    assert str(found) == str(content(files[kind]))
    warn_once.cache_clear()


@pytest.mark.slow
def test_an_old_bank_is_renewed_by_the_command_that_the_warning_names(files, tmp_path):
    old, new = without_digest(files["groups"]), tmp_path / "new.safetensors"
    command = [sys.executable, "-m", "styleaug", "bank", "merge", str(old), "-o", str(new)]
    subprocess.run(command, check=True, capture_output=True)
    assert new.read_bytes() == files["groups"].read_bytes()


def test_old_metadata_with_a_flipped_name_is_damage(files, tmp_path):
    made = bank("reinhard-rgb", styles=3)
    facts = Provenance(made.provenance.generator, made.provenance.fingerprint, 20, min_images=5)
    old = without_digest(StyleBank(made.codes, facts).save(tmp_path / "bank.safetensors"))
    old.write_bytes(old.read_bytes().replace(b"min_images", b"min_images"[:-1] + b"r"))
    with pytest.raises(BankError, match="damaged"):
        StyleBank.load(old)


def test_shipped_files_are_known_by_their_cards(tmp_path):
    for name in ("texture", "photo-tones"):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes((pretrained_folder() / path.name).read_bytes())
        assert load_bank(path) == load_bank(name), "without a warning, wherever it lies"


@pytest.mark.parametrize(
    ("kind", "name", "error"), [("banks", "art", BankError), ("generators", "photo", WeightsError)]
)
def test_a_shipped_file_that_is_damaged_is_refused(kind, name, error, tmp_path, monkeypatch):
    path = tmp_path / cards()[kind][name]["file"]
    whole = (pretrained_folder() / path.name).read_bytes()
    monkeypatch.setattr("styleaug.weights.pretrained_folder", lambda: tmp_path)
    with pytest.raises(error, match=r"cannot open .*Install styleaug again"):
        shipped_file(kind, name, error)
    path.write_bytes(flipped(whole, 8 * len(whole) - 3))
    with pytest.raises(error, match=r"damaged: its sha256.*Install styleaug again"):
        shipped_file(kind, name, error)


@pytest.mark.parametrize("name", [name for name in GENERATORS if generator(name).code_length])
def test_codes_of_images_are_within_bounds_and_damage_is_not(name):
    network = generator(name)
    low, high = network.code_bounds()
    assert low.shape == high.shape == (network.code_length,) and bool((low < high).all())
    extreme = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32), *photos(2, 32, 32)])
    extreme = torch.cat([extreme, (torch.rand(2, 3, 32, 32) > 0.5).float()])
    codes = network.encode_style(extreme)
    made = Provenance(network.name, network.fingerprint, len(codes))
    StyleBank(codes, made).check(network)
    for place in (0, network.code_length - 1):
        for value in (3e38, -1e30, 1e6):
            damaged = codes.clone()
            damaged[1, place] = value
            with pytest.raises(BankError, match=f"entry {place} of style 1 .*damaged"):
                StyleBank(damaged, made).check(network)
    with pytest.raises(BankError, match="damaged"):
        StyleAugment(StyleBank(damaged, made), generator=network)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.uint16])
@pytest.mark.parametrize("options", [{}, {"blend": "color"}, {"preserve": 0.5}, {"splice": "halves"}])
def test_output_that_is_not_finite_is_an_error(dtype, options):
    network = tiny_adain()
    network.to_pixels.bias.data.fill_(torch.nan)
    codes = network.encode_style(photos(2, 32, 32)).nan_to_num(0.1)
    styles = StyleBank(codes, Provenance(network.name, network.fingerprint, 2))
    augment = StyleAugment(styles, generator=network, p=1, **options)
    images = (photos(2, 32, 32) * (255 if dtype != torch.float32 else 1)).to(dtype)
    with pytest.raises(WeightsError, match=r"'adain' gave values that are not finite"):
        augment(images)


def test_kept_codes_of_a_fit_that_are_damaged_are_read_again(tmp_path):
    kept = Unfinished(tmp_path / ".codes", "settings")
    image = tmp_path / "a.png"
    image.write_bytes(b"x")
    kept.keep(image, torch.rand(1, 6))
    kept.write()
    whole = (tmp_path / ".codes").read_bytes()
    assert len(stored_codes(tmp_path / ".codes")) == 1
    for bit in range(8, 8 * len(whole), 7):
        (tmp_path / ".codes").write_bytes(flipped(whole, bit))
        assert stored_codes(tmp_path / ".codes") == {}, bit
