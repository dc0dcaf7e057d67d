"""White background: the glass of a slide keeps its colour, and decides nothing."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from styleaug import ConfigError, StyleAugment, StyleBank, WeightsError, load_generator
from styleaug.bank import Provenance
from styleaug.cli.main import main
from styleaug.offline.slides import stylise_slide
from styleaug.weights import COLOR_GENERATORS, STAIN_GENERATORS

ABLE = [*COLOR_GENERATORS, *STAIN_GENERATORS]
ABLE = [name for name in ABLE if name not in ("fourier", "fourier-full", "macenko", "vahadane")]


def tissue(height: int = 96, width: int = 96, seed: int = 0) -> np.ndarray:
    """Draw pink and violet blobs."""
    random = np.random.default_rng(seed)
    amounts = random.random((2, height // 8, width // 8)).repeat(8, axis=1).repeat(8, axis=2)
    amounts += 0.1 * random.random((2, height, width))
    dyes = np.array([[0.65, 0.70, 0.29], [0.20, 0.90, 0.40]])
    density = np.einsum("d...,dc->...c", amounts + 0.3, dyes)
    return (255 * np.exp(-density)).round().astype(np.uint8)


def glass(height: int = 96, width: int = 96, seed: int = 1) -> np.ndarray:
    """Draw white with the noise of a camera."""
    return np.random.default_rng(seed).integers(232, 256, (height, width, 3)).astype(np.uint8)


def batch(*arrays: np.ndarray) -> torch.Tensor:
    return torch.stack([torch.from_numpy(array).permute(2, 0, 1) / 255 for array in arrays])


def style_of(generator, count: int) -> torch.Tensor:
    """Read the codes of something bluish and darker; of generators with a prior some of its codes."""
    if generator.has_prior:
        return torch.full((count, generator.code_length), 1.5)
    other = (0.7 * tissue(seed=5)[..., ::-1]).astype(np.uint8)
    return generator.encode_style(batch(other)).expand(count, -1)


@pytest.mark.parametrize("name", ABLE)
@torch.inference_mode()
def test_glass_stays_and_decides_nothing(name):
    plain, able = load_generator(name), load_generator(f"{name}-tissue")
    half = np.concatenate([tissue(), glass()], axis=1)
    images = batch(half, np.full_like(half, 255), glass(96, 192))
    codes, strength = style_of(plain, 3), torch.ones(3)
    styled = able(images, codes, strength)
    assert torch.equal(styled[1:], images[1:]) and torch.equal(styled[0, :, :, 96:], images[0, :, :, 96:])
    # The tissue takes what it takes alone.
    alone = able(batch(tissue()), codes[:1], strength[:1])
    assert (styled[:1, :, :, :96] - alone).abs().max() < 0.01
    usual = plain(batch(tissue()), codes[:1], strength[:1])
    assert (alone - usual).abs().mean() < 0.02 < (alone - batch(tissue())).abs().mean()
    if "luminance" not in name:
        tinted = plain(images, codes, strength)
        assert (tinted[1] - images[1]).abs().max() > 0.02, "which is what the name is for"


@pytest.mark.parametrize("name", ABLE)
@torch.inference_mode()
def test_styles_are_read_from_tissue(name):
    able = load_generator(f"{name}-tissue")
    half = np.concatenate([tissue(), glass()], axis=1)
    with_glass, alone, blank = (able.encode_style(batch(array)) for array in (half, tissue(), glass()))
    room = 0.02 * (able.code_bounds()[1] - able.code_bounds()[0])
    assert ((with_glass - alone).abs() <= room).all() and blank.isfinite().all()


@pytest.mark.parametrize("name", ABLE)
def test_codes_are_the_same_kind(name):
    plain, able = load_generator(name), load_generator(f"{name}-tissue")
    assert plain.fingerprint == able.fingerprint and able.name == f"{name}-tissue" and not plain.tissue
    assert able.on_tissue() is able and load_generator(f"{name}-tissue") is able
    for one, other in ((plain, able), (able, plain)):
        provenance = Provenance(one.name, one.fingerprint, images=1)
        bank = StyleBank(style_of(one, 1).clone(), provenance)
        bank.check(other)
        images = batch(glass(64, 64))
        assert torch.equal(StyleAugment(bank, generator=able, p=1.0)(images), images)


@pytest.mark.parametrize("name", ["adain", "photo", "fourier", "patchswap", "macenko"])
def test_generators_that_cannot(name):
    with pytest.raises(ConfigError, match="cannot leave background alone"):
        load_generator(f"{name}-tissue")


def test_unknown_names():
    with pytest.raises(WeightsError, match="no generator 'nobody-tissue'"):
        load_generator("nobody-tissue")


@pytest.mark.parametrize("name", ["reinhard-lab", "histogram", "randstainna", "hed-jitter"])
def test_slides_keep_their_glass(name, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    image = np.concatenate([glass(128, 256), np.concatenate([tissue(128, 128), glass(128, 128)], axis=1)])
    tifffile.imwrite(tmp_path / "a.tif", image, tile=(64, 64), photometric="rgb", compression="zlib")
    plain, able = load_generator(name), load_generator(f"{name}-tissue")
    codes = style_of(plain, 1).clone()
    bank = None if plain.has_prior else StyleBank(codes, Provenance(plain.name, plain.fingerprint, images=1))
    stylizer = StyleAugment(bank, generator=plain, p=1.0, strength=1.0)
    params = stylizer.draw(1, torch.Generator().manual_seed(0))
    stylise_slide(stylizer, tmp_path / "a.tif", tmp_path / "b.tif", params)
    styled = tifffile.imread(tmp_path / "b.tif")
    assert np.array_equal(styled[:128], image[:128]) and np.array_equal(styled[128:, 128:], image[128:, 128:])
    whole = StyleAugment(bank, generator=able, p=1.0, strength=1.0).apply(image, params)
    assert np.abs(whole.astype(int) - styled).max() <= 1, "the statistics of the whole image, in each tile"


def test_through_the_commands(tmp_path, monkeypatch, capfd):
    for folder, made in (("stain", [tissue(seed=7), tissue(seed=8)]), ("in", [tissue(), glass()])):
        (tmp_path / folder).mkdir()
        for number, values in enumerate(made):
            Image.fromarray(values).save(tmp_path / folder / f"{number}.png")
    bank, out = tmp_path / "bank.safetensors", tmp_path / "out"
    for command in (
        ["fit-style", str(tmp_path / "stain"), "-o", str(bank), "--min-images", "1",
         "--generator", "reinhard-lab-tissue"],
        ["apply", str(tmp_path / "in"), "--bank", str(bank), "-o", str(out)],
    ):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["styleaug", *command])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code, capfd.readouterr().err
    same = [
        np.array_equal(np.asarray(Image.open(out / path.name)), np.asarray(Image.open(path)))
        for path in sorted(Path(tmp_path / "in").iterdir())
    ]
    assert same == [False, True]
