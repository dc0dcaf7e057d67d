"""Rows stem from several origins, banks hold no identifiers, and the noise is what it claims to be."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from specimens import generator, photos

from styleaug import ConfigError, StyleBank, fit_style, load_generator
from styleaug.fitting import privacy as differential
from styleaug.fitting.privacy import (
    Pool,
    Privacy,
    clip,
    covariance_sensitivity,
    delta_of,
    frame_of,
    loss_of,
    mean_sensitivity,
    microaggregate,
    origins_needed,
    private_styles,
    private_summary,
)
from styleaug.fitting.studies import origin_of

RGB = generator("reinhard-rgb")
budgets = st.tuples(st.floats(0.01, 50), st.floats(1e-12, 0.1))


def save_photos(folder: Path, count: int, *, first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(photos(count + first, 16, 16)[first:]):
        pixels = (image.permute(1, 2, 0) * 255).byte().numpy()
        Image.fromarray(pixels).save(folder / f"{first + index}.png")
    return folder


# Aggregation


@given(count=st.integers(1, 60), least=st.integers(1, 9), width=st.integers(1, 4), seed=st.integers(0, 99))
def test_groups_are_neither_small_nor_large_and_hold_every_code_once(count, least, width, seed):
    codes = torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    if count < least:
        return
    groups = microaggregate(codes, least)
    assert sorted(torch.cat(groups).tolist()) == list(range(count))
    assert all(least <= len(group) <= max(1, 2 * least - 1) for group in groups)
    assert len(groups) == count // least


def test_groups_are_of_neighbours():
    centres = torch.tensor([[0.0, 0], [10, 0], [0, 10], [10, 10]])
    codes = (centres[:, None] + 0.1 * torch.randn(4, 5, 2)).flatten(0, 1)[torch.randperm(20)]
    for group in microaggregate(codes, 5):
        assert torch.cdist(codes[group], codes[group]).max() < 2
    equal = microaggregate(torch.ones(11, 3), 4)
    assert sorted(map(len, equal)) == [4, 7]


def test_many_codes_are_parted_first(monkeypatch):
    from styleaug.fitting import privacy as clusters

    monkeypatch.setattr(clusters, "_BLOCK", 50)
    codes = torch.randn(407, 3)
    groups = microaggregate(codes, 5)
    assert sorted(torch.cat(groups).tolist()) == list(range(407))
    assert all(5 <= len(group) <= 9 for group in groups)
    spread = torch.stack([codes[group].var(dim=0).mean() for group in groups]).mean()
    assert spread < 0.4 * codes.var(dim=0).mean()


@given(
    origins=st.lists(st.integers(0, 12), min_size=1, max_size=80),
    least=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_every_row_stems_from_enough_origins_each_once(origins, least, seed):
    """Each code marks its origin, so that a row tells which origins are in it, and how much of each."""
    pool = Pool(least)
    for origin in origins:
        pool.add(f"patient {origin}", torch.nn.functional.one_hot(torch.tensor(origin), 13).float())
    assert pool.origins == len(set(origins)) and pool.codes == len(origins)
    wanted = [sum(count > turn for count in Counter(origins).values()) // least for turn in range(80)]
    assert pool.rows == sum(wanted)
    if pool.rows:
        rows = pool.aggregate()
        assert len(rows) == pool.rows
        assert ((rows > 0).sum(dim=1) >= least).all()
        assert (rows <= 1 / least + 1e-6).all(), "no origin weighs more than one in least"
        torch.testing.assert_close(rows.sum(dim=1), torch.ones(len(rows)))


def test_each_origin_has_one_mean():
    pool = Pool(2)
    for origin, value in (("a", 1.0), ("b", 5.0), ("a", 3.0), ("a", 8.0)):
        pool.add(origin, torch.tensor([value]))
    assert pool.by_origin().flatten().tolist() == [4.0, 5.0]


def test_rows_of_a_bank_are_means_of_images(tmp_path):
    folder = save_photos(tmp_path / "photos", 12)
    single = fit_style(folder, min_images=1).bank
    bank = fit_style(folder).bank
    assert len(single) == 12 and len(bank) == 2
    assert bank.provenance.min_images == 5 and bank.provenance.images == 12
    sizes = [5, 7]
    mean = sum(row * size for row, size in zip(bank.codes, sizes, strict=True)) / 12
    other = sum(row * size for row, size in zip(bank.codes, sizes[::-1], strict=True)) / 12
    wanted = single.codes.mean(dim=0)
    assert torch.allclose(mean, wanted, atol=1e-5) or torch.allclose(other, wanted, atol=1e-5)
    assert torch.cdist(bank.codes, single.codes).min() > 1e-3, "no row is an image's code"
    assert StyleBank.load(bank.save(tmp_path / "b.safetensors")) == bank
    assert fit_style(folder).bank.to_bytes() == bank.to_bytes()
    assert len(fit_style(folder, max_styles=1, choose="diverse").bank) == 1
    few = fit_style(folder, min_images=3, max_styles=2).bank
    assert len(few) == 2 and few.provenance.images == 6, "no more are read than are needed"


def test_crops_of_one_image_count_once(tmp_path):
    folder = save_photos(tmp_path / "photos", 4)
    with pytest.raises(ConfigError, match=r"come from 4 patients or files.*at least 5.*min_images=4"):
        fit_style(folder, patches=50)
    assert len(fit_style(folder, patches=10, min_images=4).bank) == 10


def test_copies_under_one_name_count_once(tmp_path):
    (path,) = save_photos(tmp_path / "photos", 1).iterdir()
    (tmp_path / "link.png").symlink_to(path)
    with pytest.raises(ConfigError, match="come from 1 patients or files"):
        fit_style([path, path, tmp_path / "link.png"], min_images=2)


def test_generators_whose_codes_cannot_be_averaged(tmp_path):
    folder = save_photos(tmp_path / "photos", 5)
    network = generator("tiny-patchswap")
    for options in ({}, {"min_images": 2}):
        with pytest.raises(ConfigError, match=r"'patchswap' cannot be averaged.*min_images=1"):
            fit_style(folder, generator=network, **options)
    assert len(fit_style(folder, generator=network, min_images=1).bank) == 5


@pytest.mark.parametrize("name", ["reinhard-lab", "histogram", "fourier", "tiny-adain", "tiny-photo"])
def test_means_of_codes_paint_as_well(name):
    network = generator(name)
    images = photos(6, 32, 32)
    mean = network.encode_style(images).mean(dim=0, keepdim=True)
    assert network.codes_average
    styled = network(images[:1], mean, torch.ones(1))
    assert styled.isfinite().all() and styled.std() > 0.01


# What a bank's file holds

SECRETS = {
    "PatientName": "Featherstone^Wilhelmina",
    "PatientID": "MRN-7741-XQ",
    "PatientBirthDate": "19630207",
    "StudyDate": "20190823",
    "StudyTime": "143759",
    "AccessionNumber": "ACC991823",
    "InstitutionName": "St Elsewhere Infirmary",
    "StationName": "CT-ROOM-9",
    "ReferringPhysicianName": "Strangelove^Otto",
    "StudyDescription": "Head trauma after fall",
    "OtherPatientIDs": "SSN-555-66-7777",
}


def write_dicom(path: Path, number: int, **changes: str) -> str:
    """Write a CT slice full of identifiers; give its UID."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.3680043.8.498.{number + 1}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID = "1.2.826.0.1.3680043.8.498.900"
    data.Modality, data.Rows, data.Columns = "CT", 24, 20
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.RescaleSlope, data.RescaleIntercept, data.WindowCenter, data.WindowWidth = 1, 0, 40, 400
    for keyword, value in {**SECRETS, **changes}.items():
        setattr(data, keyword, value)
    block = data.private_block(0x0011, "ACME SECRET CREATOR", create=True)
    block.add_new(0x01, "LO", "private remark on Wilhelmina")
    rng = np.random.default_rng(number)
    data.PixelData = rng.integers(-200, 300, (24, 20)).astype("<i2").tobytes()
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return str(data.SOPInstanceUID)


def test_no_identifier_of_dicom_files_is_in_the_bank(tmp_path):
    folder = tmp_path / "Featherstone Wilhelmina" / "fall 2019-08-23"
    uids = [
        write_dicom(folder / f"MRN-7741-XQ {index}.dcm", index, PatientID=f"MRN-7741-{index}")
        for index in range(6)
    ]
    before = {path: path.read_bytes() for path in folder.iterdir()}
    fit = fit_style(tmp_path, group_by="site", licence="internal")
    assert len(fit.bank) == 1 and not fit.failed
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    content = fit.bank.to_bytes()
    names = [*SECRETS.values(), *uids, "1.2.826", "ACME", "Wilhelmina", "MRN", "dcm", "fall", str(tmp_path)]
    parts = [part for name in names for part in (name, *name.replace("^", " ").split())]
    for part in {part for part in parts if len(part) > 2}:
        for encoded in (part.encode(), part.lower().encode(), part.encode("utf-16-le")):
            assert encoded not in content.lower() and encoded not in content, part
    assert len(content) < 900
    labelled = fit_style(tmp_path, group_by="site", labels=True).bank
    assert labelled.labels == ("St Elsewhere Infirmary",), "only where it was asked for"


def test_slices_of_one_patient_count_once(tmp_path):
    for index in range(10):
        write_dicom(tmp_path / f"{index}.dcm", index)
    with pytest.raises(ConfigError, match="come from 1 patients or files"):
        fit_style(tmp_path)
    assert len({origin_of(path) for path in tmp_path.iterdir()}) == 1
    for index in range(10, 16):
        write_dicom(tmp_path / f"{index}.dcm", index, PatientID=f"other {index}")
    bank = fit_style(tmp_path).bank
    assert len(bank) == 1, "7 patients, of whom one has ten slices"


# Differential privacy


@given(budgets)
def test_the_loss_spends_the_budget_and_no_more(budget):
    epsilon, delta = budget
    loss = loss_of(epsilon, delta)
    assert delta_of(epsilon, loss) <= delta
    assert delta_of(epsilon, loss) == pytest.approx(delta, rel=1e-6)


def test_the_loss_is_that_of_the_analytic_gaussian_mechanism():
    # Published by Balle & Wang's own program for sensitivity 1: sigma at (1, 1e-5) is 3.7306.
    assert 1 / loss_of(1, 1e-5) == pytest.approx(3.7306, abs=1e-4)
    for epsilon, delta in ((0.1, 1e-5), (1, 1e-5), (0.5, 1e-3)):
        classic = math.sqrt(2 * math.log(1.25 / delta)) / epsilon
        assert 1 / loss_of(epsilon, delta) < classic


def test_delta_is_the_divergence_of_two_normal_distributions():
    for epsilon, loss in ((0.3, 0.5), (1.0, 0.8), (4.0, 2.0)):
        x = torch.linspace(-30, 30, 600_001, dtype=torch.float64)
        p, q = (torch.exp(-((x - at) ** 2) / 2) / math.sqrt(2 * math.pi) for at in (loss, 0.0))
        summed = float(((p - math.exp(epsilon) * q).clamp_min(0)).sum() * 1e-4)
        assert delta_of(epsilon, loss) == pytest.approx(summed, rel=1e-4)


FRAMES = [frame_of(generator(name)) for name in ("reinhard-rgb", "reinhard-lab", "reinhard-luminance")]


@given(
    frame=st.sampled_from(FRAMES),
    count=st.integers(1, 30),
    scale=st.sampled_from([0.01, 1.0, 1e6]),
    seed=st.integers(0, 10_000),
)
def test_no_row_moves_the_summary_further_than_the_sensitivity(frame, count, scale, seed):
    rng = torch.Generator().manual_seed(seed)
    codes = scale * torch.randn(count, len(frame.centre), generator=rng)
    other = codes.clone()
    other[0] = -codes[0] if seed % 2 else scale * torch.randn(len(frame.centre), generator=rng)
    one, two = frame.coordinates(codes), frame.coordinates(other)
    assert (one.mean(dim=0) - two.mean(dim=0)).norm() <= mean_sensitivity(frame, count) * (1 + 1e-9)
    about = frame.radius * torch.randn(one.shape[1], generator=rng, dtype=torch.float64)
    spreads = [(a := clip(z - about, frame.spread)).T @ a / count for z in (one, two)]
    assert (spreads[0] - spreads[1]).norm() <= covariance_sensitivity(frame, count) * (1 + 1e-9)


def test_the_sensitivities_are_reached():
    frame = FRAMES[0]
    corners = torch.stack([torch.tensor(end) for end in RGB.code_range])
    z = frame.coordinates(corners)
    assert (z[0] - z[1]).norm() == pytest.approx(mean_sensitivity(frame, 1))
    axes = frame.spread * torch.eye(6, dtype=torch.float64)[:2]
    assert (axes[0].outer(axes[0]) - axes[1].outer(axes[1])).norm() == pytest.approx(
        covariance_sensitivity(frame, 1)
    )


@pytest.mark.slow
def test_noise_has_the_size_that_the_budget_asks_for(monkeypatch):
    """All rows are alike and in the middle, so that what is measured is the noise."""
    frame, count = FRAMES[0], 50_000
    z = torch.zeros(count, 6, dtype=torch.float64)
    loss = loss_of(1.0, 1e-5)
    means = torch.stack([private_summary(z[:200], frame, 50.0, 1e-5)[0] for _ in range(200)])
    wanted = mean_sensitivity(frame, 200) / (loss_of(50.0, 1e-5) * math.sqrt(differential.MEAN_SHARE))
    assert means.std() == pytest.approx(wanted, rel=0.1)
    assert math.hypot(math.sqrt(differential.MEAN_SHARE), math.sqrt(1 - differential.MEAN_SHARE)) == 1
    monkeypatch.setattr(differential, "noise", lambda k: torch.ones(k, dtype=torch.float64))
    mean, covariance = private_summary(z, frame, 1.0, 1e-5)
    assert mean[0] == pytest.approx(
        mean_sensitivity(frame, count) / (loss * math.sqrt(differential.MEAN_SHARE))
    )
    assert torch.equal(covariance, covariance.T) or torch.allclose(covariance, covariance.T)
    assert torch.linalg.eigvalsh(covariance).min() > -1e-12


def test_noise_comes_from_no_seed(tmp_path):
    drawn = differential.noise(4000)
    assert drawn.mean().abs() < 0.1 and drawn.std() == pytest.approx(1, abs=0.05)
    torch.manual_seed(0)
    one = differential.noise(8)
    torch.manual_seed(0)
    assert not torch.equal(one, differential.noise(8))
    folder = save_photos(tmp_path / "photos", 6)
    banks = [fit_style(folder, epsilon=1.0, seed=3, max_styles=4).bank for _ in range(2)]
    assert banks[0] != banks[1]


@pytest.mark.parametrize("name", ["reinhard-rgb", "reinhard-lab", "reinhard-ycbcr", "adain", "photo"])
def test_private_styles_near_those_of_many_origins(name):
    """With a hundred thousand origins next to no noise is left."""
    network = generator(name)
    frame = frame_of(network)
    size = frame.axes.shape[1]
    z = 0.1 * frame.spread / math.sqrt(size) * torch.randn(100_000, size, dtype=torch.float64)
    codes = frame.codes(z + 0.1)
    drawn = private_styles(codes, network, 4000, epsilon=4.0, delta=1e-6, rng=torch.Generator())
    assert drawn.shape == (4000, network.code_length) and drawn.dtype == torch.float32
    scale = codes.std(dim=0).clamp_min(1e-6)
    assert ((drawn.mean(dim=0) - codes.mean(dim=0)) / scale).abs().max() < 0.5
    assert (drawn.std(dim=0) / scale).median() == pytest.approx(1, abs=0.25)
    assert (drawn >= frame.low.float()).all() and (drawn <= frame.high.float()).all()


def test_a_private_bank_says_so(tmp_path):
    folder = save_photos(tmp_path / "photos", 8)
    bank = fit_style(folder, epsilon=2, max_styles=7, patches=3).bank
    assert len(bank) == 7 and bank.provenance.images == 8
    assert (bank.provenance.epsilon, bank.provenance.delta, bank.provenance.min_images) == (2, 1e-5, 5)
    assert StyleBank.load(bank.save(tmp_path / "b.safetensors")) == bank
    low, high = map(torch.tensor, RGB.code_range)
    assert (bank.codes >= low).all() and (bank.codes <= high).all()
    joined = bank.merge(bank).provenance
    assert (joined.epsilon, joined.delta, joined.min_images) == (4, 2e-5, 5)
    assert bank.merge(fit_style(folder).bank).provenance.epsilon is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_images": 0}, "min_images must be a whole number from 1, got 0"),
        ({"epsilon": 0}, "epsilon must be a number in \\(0, 100\\]"),
        ({"epsilon": -1}, "epsilon must be a number in \\(0, 100\\]"),
        ({"epsilon": math.nan}, "epsilon must be a number in \\(0, 100\\]"),
        ({"epsilon": 101}, "in \\(0, 100\\], got 101"),
        ({"delta": 1e-5}, "delta needs epsilon"),
        ({"epsilon": 1, "delta": 0}, "delta must be a number in \\(0, 1\\)"),
        ({"epsilon": 1, "delta": 1}, "in \\(0, 1\\), got 1"),
        ({"epsilon": 1, "delta": 0.5}, "less than one over the 6"),
        ({"epsilon": 1, "choose": "diverse"}, "leave out choose"),
        ({"epsilon": 1, "generator": "histogram"}, "'histogram' has none. Use reinhard-rgb"),
        ({"epsilon": 1, "generator": generator("tiny-adain")}, "'adain' has none"),
        ({"epsilon": 1, "min_images": 1, "generator": "patchswap"}, "'patchswap' has none"),
        ({"epsilon": 1, "min_images": 7}, "come from 6 patients or files"),
    ],
)
def test_what_cannot_be_kept_private_is_refused(options, message, tmp_path):
    folder = save_photos(tmp_path / "photos", 6)
    with pytest.raises(ConfigError, match=message):
        fit_style(folder, **options)


def test_privacy_takes_a_default_delta():
    assert Privacy(5, 1.0).delta == 1e-5 and Privacy(5).delta is None


# How many it takes


@pytest.mark.parametrize("name", ["reinhard-rgb", "reinhard-hed", "macenko", "hed-jitter", "photo"])
def test_fewer_images_are_needed_the_larger_epsilon_is(name):
    network = load_generator(name)
    needed = [origins_needed(network, epsilon, 1e-5) for epsilon in (0.5, 1, 4, 10, 100)]
    assert needed == sorted(needed, reverse=True) and needed[-1] >= 1
    assert origins_needed(network, 4, 1e-5) > origins_needed(network, 4, 1e-3)


@pytest.mark.parametrize("epsilon", [1.0, 4.0])
@pytest.mark.parametrize("name", ["reinhard-rgb", "photo"])
def test_the_number_needed_is_where_noise_and_style_are_alike(name, epsilon):
    """Of images that are all alike the styles are noise alone: with the number needed, as much as usual."""
    network = load_generator(name)
    frame, needed = frame_of(network), origins_needed(network, epsilon, 1e-5)
    for count, low, high in ((needed // 10, 1.4, 99), (needed, 0.3, 1.5), (20 * needed, 0, 0.4)):
        sizes, alike = [], torch.zeros(count, frame.axes.shape[1], dtype=torch.float64)
        for _ in range(20):
            _, covariance = private_summary(alike, frame, epsilon, 1e-5)
            sizes.append(float(torch.linalg.eigvalsh(covariance)[-1].clamp_min(0)))
        noise = (sum(sizes) / len(sizes)) ** 0.5 / frame.usual
        assert low < noise < high, (count, noise)


@pytest.mark.parametrize("grouped", [False, True])
def test_little_but_noise_is_said_with_the_number_that_it_takes(tmp_path, command, grouped):
    for name in ("a", "b") if grouped else ("a",):
        save_photos(tmp_path / "photos" / name, 6)
    options = {"group_by": "folder"} if grouped else {}
    fit = fit_style(tmp_path / "photos", epsilon=4, max_styles=8, **options)
    told = [text for text in fit.warnings if "more noise than style" in text]
    needed = origins_needed(RGB, 4, 1e-5)
    assert 500 < needed < 2000
    assert len(told) == (2 if grouped else 1)
    assert all(f"epsilon=4 the styles of {'group' if grouped else 'these images'}" in text for text in told)
    assert all(f"from 6 patients or files, and it takes {needed} at least" in text for text in told)
    assert not [text for text in fit_style(tmp_path / "photos").warnings if "noise" in text]
    said = command("fit-style", tmp_path / "photos", "--epsilon", 4, "-o", tmp_path / "b.safetensors").stderr
    assert "warning: with --epsilon 4 the styles of these images are more noise than style" in said


def test_enough_images_draw_no_warning(monkeypatch, tmp_path):
    monkeypatch.setattr("styleaug.fitting.fit.origins_needed", lambda *args: 6)
    fit = fit_style(save_photos(tmp_path / "photos", 6), epsilon=4, max_styles=2)
    assert not fit.warnings
