"""Generators without a bank, run folders, and which bank goes with which generator."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from specimens import bank, bank_of, photos, tiny_adain
from torch import Tensor, nn

from styleaug import (
    BankError,
    ConfigError,
    Splice,
    StyleAugment,
    Weighted,
    WeightsError,
    apply_folder,
    load_bank,
    load_generator,
    preview,
)
from styleaug.bank import Provenance, StyleBank
from styleaug.generators.base import AbstractGenerator, per_row
from styleaug.io.files import save_image
from styleaug.weights import LEARNED_GENERATORS, find_styles, save_generator


class Tint(AbstractGenerator):
    """Add colours that a code names: a generator with a prior, for codes of any length."""

    name = "tint"
    has_prior = True

    def __init__(self, length: int = 4) -> None:
        super().__init__()
        self.code_length = length
        self.colours = nn.Parameter(torch.linspace(-1, 1, 3 * length).view(length, 3))
        self.fixed = nn.Parameter(torch.tensor([0.5, 0.0, -0.5]))

    def settings(self) -> dict[str, int]:
        """Give the length."""
        return {"length": self.code_length}

    @classmethod
    def from_settings(cls, settings: dict) -> "Tint":
        """Build again."""
        return cls(**settings)

    def encode_style(self, images: Tensor) -> Tensor:
        """Read the mean as often as needed."""
        return images.mean(dim=(1, 2, 3))[:, None].expand(-1, self.code_length)

    def forward(self, images: Tensor, codes: Tensor, strength: Tensor) -> Tensor:
        """Tint."""
        colours = (codes @ self.colours + self.fixed)[..., None, None]
        return (images + per_row(strength) * colours).clamp(0, 1)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(LEARNED_GENERATORS, "tint", Tint)


def frozen(generator: AbstractGenerator) -> AbstractGenerator:
    return generator.eval().requires_grad_(False)


def make_run(folder: Path, generator: AbstractGenerator, *, fitted: bool) -> Path:
    """Write what `styleaug train` leaves."""
    save_generator(generator, folder / "generator.safetensors")
    (folder / "config.json").write_text("{}")
    if fitted:
        bank_of(load_generator(folder)).save(folder / "bank.safetensors")
    return folder


@pytest.mark.parametrize("length", [0, 4])
def test_a_generator_with_a_prior_needs_no_bank(length):
    augment, images = StyleAugment(generator=frozen(Tint(length)), p=1.0), photos(5)
    params = augment.make_params(images, rng=(rng := torch.Generator().manual_seed(0)))
    assert params["codes"].shape == (5, length) and params["sources"].shape == params["shares"].shape == (
        5,
        0,
    )
    again = torch.Generator().manual_seed(0)
    torch.rand(5, generator=again), torch.rand(5, generator=again)
    assert torch.equal(params["codes"], torch.randn(5, length, generator=again))
    assert torch.equal(rng.get_state(), again.get_state())
    styled = augment.apply(images, params)
    assert torch.equal(augment.apply(images, params), styled) and not torch.equal(styled, images)
    assert "standard normal codes" in repr(augment)
    assert StyleAugment(generator=frozen(Tint(length)), p=0.0)(images) is images


def test_codes_of_the_prior_are_standard_normal():
    codes = StyleAugment(generator=frozen(Tint()), p=1.0).draw(20_000, torch.Generator().manual_seed(0))[
        "codes"
    ]
    assert codes is not None
    torch.testing.assert_close(codes.mean(0), torch.zeros(4), atol=0.04, rtol=0)
    torch.testing.assert_close(torch.cov(codes.T), torch.eye(4), atol=0.06, rtol=0)


def test_the_prior_takes_no_sampler():
    for options in ({"sampler": "gaussian"}, {"sampler": Weighted([1.0])}):
        with pytest.raises(ConfigError, match=r"'tint' without a bank draws .*leave out sampler"):
            StyleAugment(generator=frozen(Tint()), **options)


@pytest.mark.parametrize("splice", ["halves", "fields"])
@pytest.mark.parametrize("length", [0, 4])
def test_the_prior_can_be_spliced(splice, length):
    kept, images = Splice(splice, keep=True), photos(3)
    augment = StyleAugment(generator=frozen(Tint(length)), p=1.0, splice=kept)
    styled = augment(images)
    same = (styled - images).abs().amax(1) < 1e-3
    assert 0.1 < same.float().mean() < 0.9


def test_a_bank_given_is_the_bank_used():
    network = frozen(Tint())
    augment = StyleAugment(bank_of(network), generator=network, p=1.0, sampler="mix")
    assert augment.make_params(photos(2))["sources"].shape == (2, 2)


def test_defaults():
    art = load_bank("art")
    assert find_styles(None, None) == (art, "adain")
    assert find_styles(None, "adain") == (art, "adain"), "the first shipped bank by name"
    assert find_styles(None, "photo") == (load_bank("photo-tones"), "photo")
    network = load_generator("adain")
    assert find_styles(None, network) == (art, network)
    assert StyleAugment().bank == art
    assert find_styles("texture", None) == (load_bank("texture"), "adain")


def test_a_generator_that_no_bank_is_known_for_says_how_to_fit_one(tmp_path):
    with pytest.raises(BankError, match=r"no bank is known.*'adain'.*fit-style FOLDER --generator adain"):
        StyleAugment(generator=tiny_adain())
    run = make_run(tmp_path, tiny_adain(), fitted=False)
    for options in ({"bank": run}, {"generator": run}):
        with pytest.raises(BankError, match=f"fit-style FOLDER --generator {run}"):
            StyleAugment(**options)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_run_folder_gives_generator_and_bank(kind, tmp_path):
    run = kind(make_run(tmp_path, tiny_adain(), fitted=True))
    assert load_generator(run).fingerprint == load_bank(run).provenance.fingerprint
    for augment in (
        StyleAugment(run, p=1.0),
        StyleAugment(generator=run, p=1.0),
        StyleAugment(run, generator=run, p=1.0),
    ):
        assert augment.bank == load_bank(run)
        assert not torch.equal(augment(photos(2)), photos(2))
    with pytest.raises(BankError, match="with other weights"):
        StyleAugment(run, generator=tiny_adain(seed=1))


def test_a_run_with_a_prior_works_with_and_without_a_bank(tmp_path):
    bare = make_run(tmp_path / "bare", Tint(), fitted=False)
    fitted = make_run(tmp_path / "fitted", Tint(), fitted=True)
    for augment in (
        StyleAugment(bare, p=1.0),
        StyleAugment(generator=bare, p=1.0),
        StyleAugment(generator=fitted, p=1.0),
    ):
        assert augment.make_params(photos(2))["sources"].shape == (2, 0)
        assert not torch.equal(augment(photos(2)), photos(2))
    assert StyleAugment(fitted, p=1.0).make_params(photos(2))["sources"].shape == (2, 1)
    with pytest.raises(BankError, match=r"this run has no bank\.safetensors"):
        load_bank(bare)


@pytest.mark.parametrize("trace", ["checkpoints/step-10.safetensors", "checkpoint.safetensors"])
def test_a_run_that_is_not_finished(tmp_path, trace):
    (tmp_path / trace).parent.mkdir(exist_ok=True)
    (tmp_path / trace).write_bytes(b"")
    advice = "this run is not finished; go on with: styleaug train"
    with pytest.raises(WeightsError, match=advice):
        load_generator(tmp_path)
    with pytest.raises(WeightsError, match=advice):
        StyleAugment(generator=tmp_path)
    with pytest.raises(WeightsError, match=advice):
        StyleAugment(tmp_path)


def test_folders_that_are_no_run(tmp_path):
    with pytest.raises(WeightsError, match=r"is a folder without generator\.safetensors"):
        load_generator(tmp_path)
    with pytest.raises(BankError, match=r"is a folder without bank\.safetensors.*fit-style FOLDER"):
        load_bank(tmp_path)
    with pytest.raises(BankError, match=r"is a folder without bank\.safetensors.*fit-style FOLDER"):
        StyleAugment(tmp_path)


@pytest.mark.parametrize("length", [0, 4])
def test_folders_and_contact_sheets_take_a_generator(length, tmp_path):
    run = make_run(tmp_path / "run", Tint(length), fitted=False)
    save_image(Image.new("RGB", (20, 16), "grey"), tmp_path / "in/a.png")
    for options in ({"bank": run}, {"generator": run}):
        out = tmp_path / next(iter(options))
        assert apply_folder(tmp_path / "in", out, **options).written == 1
        settings, row = map(json.loads, (out / "manifest.jsonl").read_text().splitlines())
        assert settings["settings"]["generator"] == "tint" and row["styles"] == []
        assert settings["settings"]["bank"] == load_generator(run).fingerprint
        assert apply_folder(tmp_path / "in", out, **options).skipped == 1
        sheet = preview([tmp_path / "in"], tmp_path / "sheet.png", styles=3, size=16, **options)
        with Image.open(sheet) as image:
            assert image.width == (4 if length else 2) * 20 + 4, "without a code there is one style"
    with pytest.raises(ConfigError, match="other settings"):
        other = make_run(tmp_path / "other", frozen(Tint(7)), fitted=False)
        apply_folder(tmp_path / "in", tmp_path / "bank", bank=other)
    for function in (
        lambda: apply_folder(tmp_path / "in", tmp_path / "x", bank="batch"),
        lambda: preview(bank="batch"),
    ):
        with pytest.raises(ConfigError, match="batch"):
            function()


def test_preview_shows_spliced_columns(tmp_path):
    path = preview(out=tmp_path / "a.png", bank=bank("fourier"), splice="fields", styles=2, size=32, most=1)
    with Image.open(path) as sheet:
        assert sheet.size == (3 * 36 + 4, 36 + 4 + 14)
    with pytest.raises(ConfigError, match="neither batches nor masks"):
        preview(out=tmp_path / "b.png", bank=bank("fourier"), splice="mask")


def test_a_bank_finds_the_shipped_generator_that_made_it():
    network = load_generator("cell-stains")
    codes = torch.zeros(2, network.code_length)
    bank = StyleBank(codes, Provenance(network.name, network.fingerprint, 2))
    assert find_styles(bank, None)[1] == "cell-stains"
    strange = StyleBank(codes, Provenance(network.name, "0" * 16, 2))
    with pytest.raises(BankError, match=r"not shipped.*generator=RUN"):
        find_styles(strange, None)
