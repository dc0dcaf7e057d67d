"""Fitting a bank from a folder: what is read, what is skipped, and that a seed decides."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from specimens import generator, photo, pil

from pretrained.textures import PATTERNS, texture, write_textures
from styleaug import ConfigError, FileError
from styleaug import fit_style as fit_style_of
from styleaug.fitting import fit as module
from styleaug.io.pixels import shrink

LAB = generator("reinhard-lab")
# Here every image is a style; styles of several images are tested in test_privacy.py.
fit_style = partial(fit_style_of, min_images=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tree of ten unlike photos."""
    folder = tmp_path_factory.mktemp("photos")
    for index in range(10):
        pixels = (photo(30 + index, 40, seed=index).permute(1, 2, 0) * 255).byte().numpy()
        path = folder / ("deep" if index % 2 else ".") / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def code_of(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None] / 255
    return LAB.encode_style(pixels)[0]


def test_codes_are_those_of_the_images(folder):
    fit = fit_style(folder, generator="reinhard-lab", licence="CC0")
    assert len(fit.bank) == 10 and fit.failed == []
    wanted = torch.stack([code_of(path) for path in sorted(folder.rglob("*.png"))])
    found = fit.bank.codes[fit.bank.codes[:, 0].argsort()]
    torch.testing.assert_close(found, wanted[wanted[:, 0].argsort()], atol=1e-2, rtol=1e-4)
    made_by = fit.bank.provenance
    assert (made_by.generator, made_by.images, made_by.licence) == ("reinhard-lab", 10, "CC0")
    fit.bank.check(LAB)


def test_max_styles_takes_a_random_part(folder):
    part = fit_style(folder, generator=LAB, max_styles=4)
    assert len(part.bank) == 4 and part.bank.provenance.images == 4
    whole = fit_style(folder, generator=LAB).bank.codes
    assert all((whole == code).all(1).any() for code in part.bank.codes)
    chosen = {fit_style(folder, generator=LAB, max_styles=2, seed=seed).bank.to_bytes() for seed in range(6)}
    assert len(chosen) > 3, "not the first ones by name"


def test_diverse_styles_cover_the_folder(tmp_path):
    crowd = np.full((60, 16, 16, 3), 100) + np.random.default_rng(0).integers(0, 5, (60, 16, 16, 3))
    for index, pixels in enumerate(crowd.astype(np.uint8)):
        Image.fromarray(pixels).save(tmp_path / f"crowd{index}.png")
    for index, colour in enumerate(["red", "green", "blue"]):
        Image.new("RGB", (16, 16), colour).save(tmp_path / f"rare{index}.png")
    whole = fit_style(tmp_path).bank
    few = fit_style(tmp_path, max_styles=6, choose="diverse").bank
    assert len(few) == 6 and few.provenance.images == 63
    assert all((whole.codes == code).all(1).any() for code in few.codes), "real styles, no averages"
    rare = whole.codes[whole.codes[:, :3].std(dim=1) > 0.1]
    assert len(rare) == 3 and all((few.codes == code).all(1).any() for code in rare)
    assert fit_style(tmp_path, max_styles=6, choose="diverse").bank.to_bytes() == few.to_bytes()
    assert len(fit_style(tmp_path, max_styles=100, choose="diverse").bank) == 63
    with pytest.raises(ConfigError, match="choose must be one of random, diverse, got 'best'"):
        fit_style(tmp_path, choose="best")


def test_long_codes_are_bounded_by_memory(folder, monkeypatch):
    monkeypatch.setattr(module, "MAX_NUMBERS", 6 * LAB.code_length + 1)
    seen = []
    few = fit_style(folder, generator=LAB, max_styles=4, choose="diverse", report=lambda *at: seen.append(at))
    assert len(few.bank) == 4 and few.bank.provenance.images == 6
    assert seen[-1] == (6, 6)
    whole = fit_style(folder, generator=LAB, max_styles=9, choose="diverse").bank
    assert len(whole) == 9, "as many as were asked for"


def test_lists_and_paths(folder, tmp_path):
    chosen = sorted(folder.rglob("*.png"))[:4]
    lines = "\n".join(f"{path},x" for path in [*chosen, tmp_path / "bad.png"])
    (tmp_path / "bad.png").write_text("no")
    (tmp_path / "list.csv").write_text(f"path,class\n{lines}\n")
    listed = fit_style(tmp_path / "list.csv", generator=LAB)
    named = fit_style([*chosen, tmp_path / "bad.png"], generator=LAB)
    assert listed.bank.to_bytes() == named.bank.to_bytes()
    assert len(named.bank) == named.bank.provenance.images == 4
    wanted, found = torch.stack([code_of(path) for path in chosen]), named.bank.codes
    torch.testing.assert_close(
        found[found[:, 0].argsort()], wanted[wanted[:, 0].argsort()], atol=1e-2, rtol=1e-4
    )
    assert [path for path, _ in listed.failed] == [path for path, _ in named.failed] == [tmp_path / "bad.png"]
    with pytest.raises(FileError, match="the list is empty"):
        fit_style([], generator=LAB)
    with pytest.raises(FileError, match=r"none of the 1 images can be read; .*missing\.png"):
        fit_style([tmp_path / "missing.png"], generator=LAB)
    with pytest.raises(FileError, match=r"cannot open .*missing\.csv"):
        fit_style(tmp_path / "missing.csv", generator=LAB)


def test_a_generator_without_codes_needs_no_bank(folder):
    with pytest.raises(ConfigError, match="pix2pix has one style and no code for it"):
        fit_style(folder, generator=generator("tiny-pix2pix"))


def test_textures_are_unlike_and_repeatable(tmp_path):
    pictures = torch.stack([texture(seed, 64) for seed in range(2 * len(PATTERNS))])
    assert pictures.min() >= 0 and pictures.max() <= 1 and pictures.isfinite().all()
    assert pictures.std(dim=(1, 2, 3)).min() > 0.005
    assert torch.cdist(pictures.flatten(1), pictures.flatten(1)).fill_diagonal_(99).min() > 5
    assert torch.equal(texture(3, 64), pictures[3])
    write_textures(tmp_path / "new", 2)
    assert len(fit_style(tmp_path / "new").bank) == 2
    with pytest.raises(ConfigError, match="exists already"):
        write_textures(tmp_path, 1)


def test_a_seed_gives_the_same_bytes(folder):
    options = {"generator": "reinhard-rgb", "patches": 3, "max_styles": 20}
    one = fit_style(folder, seed=5, **options).bank
    torch.manual_seed(99)
    assert fit_style(folder, seed=5, **options).bank.to_bytes() == one.to_bytes()
    assert fit_style(folder, seed=6, **options).bank.to_bytes() != one.to_bytes()


def test_fitting_draws_nothing_from_the_global_generator(folder):
    state = torch.get_rng_state()
    fit_style(folder, generator=LAB, patches=2)
    assert torch.equal(torch.get_rng_state(), state)


def test_patches_are_styles_of_their_own(folder):
    fit = fit_style(folder, generator=LAB, patches=4)
    assert len(fit.bank) == 40 and fit.bank.provenance.images == 10
    assert len(fit.bank.codes.unique(dim=0)) > 35
    cut = fit_style(folder, generator=LAB, patches=4, max_styles=6)
    assert len(cut.bank) == 6 and cut.bank.provenance.images == 2


def test_report_counts_up_to_the_end(folder):
    seen = []
    fit_style(folder, generator=LAB, patches=2, max_styles=7, report=lambda *at: seen.append(at))
    assert [done for done, _ in seen] == [2, 4, 6, 7] and {total for _, total in seen} == {7}


def test_bad_files_are_skipped_and_listed(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "mixed")
    bad = {
        "empty.png": b"",
        "text.jpg": b"hello",
        "half.png": (folder / "0.png").read_bytes()[:200],
    }
    for name, content in bad.items():
        (tmp_path / "mixed" / name).write_bytes(content)
    pil(size=(1, 1)).save(tmp_path / "mixed" / "pixel.png")
    pil(size=(40, 7)).save(tmp_path / "mixed" / "thin.png")
    np.save(tmp_path / "mixed" / "nan.npy", np.full((20, 20, 3), np.nan, np.float32))
    np.save(tmp_path / "mixed" / "five.npy", np.zeros((20, 20, 5), np.uint8))
    fit = fit_style(tmp_path / "mixed", generator=LAB)
    assert len(fit.bank) == 10 and fit.bank.provenance.images == 10
    names = [*bad, "pixel.png", "thin.png", "nan.npy", "five.npy"]
    assert [path.name for path, _ in fit.failed] == sorted(names)
    for path, reason in fit.failed:
        assert str(path) in reason
    assert "1 x 1 pixels; a style needs 8" in dict(fit.failed)[tmp_path / "mixed" / "pixel.png"]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "I;16"])
def test_images_of_every_kind(mode, tmp_path):
    image = pil(mode, (20, 16))
    if mode in ("LA", "RGBA"):
        image.putalpha(99)  # what differs in alpha does not count alike
    image.save(tmp_path / "a.png")
    (code,) = fit_style(tmp_path, generator=LAB).bank.codes
    grey = np.asarray(image).astype(np.float64) / (65535 if mode == "I;16" else 255)
    colour = (
        grey[..., :3]
        if mode == "RGBA"
        else np.repeat((grey if grey.ndim == 2 else grey[..., 0])[..., None], 3, 2)
    )
    wanted = LAB.encode_style(torch.from_numpy(colour).permute(2, 0, 1)[None].float())[0]
    torch.testing.assert_close(code, wanted, atol=1e-2, rtol=1e-4)


def test_float_arrays(tmp_path):
    np.save(tmp_path / "a.npy", photo(20, 20).permute(1, 2, 0).numpy())
    (code,) = fit_style(tmp_path, generator=LAB).bank.codes
    torch.testing.assert_close(code, LAB.encode_style(photo(20, 20)[None])[0])


def test_large_images_are_reduced_first(tmp_path):
    Image.new("RGB", (3000, 2000), (200, 30, 90)).save(tmp_path / "a.jpg")
    (code,) = fit_style(tmp_path, generator=LAB).bank.codes
    Image.new("RGB", (30, 20), (200, 30, 90)).save(tmp_path / "b.png")
    torch.testing.assert_close(code, code_of(tmp_path / "b.png"), atol=0.5, rtol=0)
    assert shrink(torch.rand(1, 3, 40, 100), 20).shape == (1, 3, 20, 50)
    assert shrink(torch.rand(1, 3, 1000, 7), 5).shape == (1, 3, 714, 5)
    small = torch.rand(1, 3, 10, 12)
    assert shrink(small, 20) is small


def test_nothing_to_fit(tmp_path):
    with pytest.raises(FileError, match=r"there is no folder .*missing"):
        fit_style(tmp_path / "missing", generator=LAB)
    with pytest.raises(FileError, match="no image in"):
        fit_style(tmp_path, generator=LAB)
    (tmp_path / "a.png").write_text("x")
    with pytest.raises(FileError, match=r"none of the 1 images can be read; the first: .*a\.png"):
        fit_style(tmp_path / "a.png", generator=LAB)
    with pytest.raises(FileError, match=r"none of the 1 images can be read; the first: .*a\.png"):
        fit_style(tmp_path, generator=LAB)


@pytest.mark.parametrize("options", [{"max_styles": 0}, {"patches": 0}, {"patches": -3}])
def test_numbers_below_one(options, folder):
    with pytest.raises(ConfigError, match="must be a whole number from 1"):
        fit_style(folder, generator=LAB, **options)


def test_images_of_any_kind_and_mixtures(folder):
    files = sorted(folder.rglob("*.png"))[:3]
    whole = fit_style(files, generator=LAB)
    pictures = [Image.open(path).convert("RGB") for path in files]
    arrays = [np.asarray(picture) for picture in pictures]
    tensors = [torch.from_numpy(array.copy()).permute(2, 0, 1) for array in arrays]
    smaller = [tensor[:, :30, :40] for tensor in tensors]
    batch = torch.stack([tensor[:, :30] for tensor in smaller])
    for source in (
        [str(path) for path in files],
        (path for path in files),
        pictures,
        arrays,
        tensors,
        [files[0], arrays[1], tensors[2]],
        [[files[0]][0], np.stack(arrays[1:2]), pictures[2]],
    ):
        fit = fit_style(source, generator=LAB)
        assert fit.failed == [] and fit.bank.provenance.images == 3
        found, wanted = (bank.codes[bank.codes[:, 0].argsort()] for bank in (fit.bank, whole.bank))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert len(fit_style(batch, generator=LAB).bank) == 3
    assert len(fit_style(batch.permute(0, 2, 3, 1).numpy(), generator=LAB).bank) == 3
    for one in (
        files[0],
        str(files[0]),
        pictures[0],
        arrays[0],
        tensors[0],
        tensors[0][:1],
        arrays[0][..., 0],
    ):
        assert len(fit_style(one, generator=LAB).bank) == 1
    assert len(fit_style([folder, arrays[0]], generator=LAB).bank) == 11
    for picture in pictures:
        picture.close()


def test_images_in_memory_are_others_and_private_as_files_are(folder):
    picture = pil()
    with pytest.raises(ConfigError, match=r"from 1 patients or files.*min_images=1"):
        fit_style_of(picture)
    with pytest.raises(ConfigError, match=r"from 1 patients or files.*min_images=1"):
        fit_style_of(sorted(folder.rglob("*.png"))[0])
    assert fit_style_of([picture] * 5).bank.provenance.min_images == 5
    with pytest.raises(ConfigError, match="group_by and class_by need files"):
        fit_style([picture], group_by="folder")


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "LA", "RGBA", "I;16", "YCbCr"])
def test_pictures_of_any_mode(mode):
    picture = pil(mode) if mode in ("LA", "RGBA", "I;16") else pil().convert(mode)
    fit = fit_style(picture, generator=LAB)
    assert len(fit.bank) == 1 and fit.failed == []


def test_what_is_no_image_is_named():
    for source, message in (
        (3, "got int"),
        (None, "got NoneType"),
        (b"bytes", "got bytes"),
        ({"image": pil()}, "got dict"),
        ([(pil(), 1)], r"got tuple. Leave out the labels: \[image for image, _ in dataset\]"),
        ([pil(), None], "got NoneType"),
    ):
        with pytest.raises(ConfigError, match=message):
            fit_style(source)
    with pytest.raises(
        FileError, match="none of the 1 images can be read; the first: <image 0>: the style image"
    ):
        fit_style(np.full((20, 20, 3), np.nan, np.float32))


def test_several_files_at_the_command_line(folder, tmp_path, command):

    files = sorted(folder.rglob("*.png"))[:5]
    command("fit-style", *files, "-o", tmp_path / "several.safetensors")
    one = command("fit-style", files[0], "-o", tmp_path / "one.safetensors", code=1)
    assert "--min-images 1" in one.stderr
    command("fit-style", files[0], "--min-images", 1, "-o", tmp_path / "one.safetensors")
    folders = command("fit-style", folder, folder, "-o", tmp_path / "two.safetensors", code=2)
    assert "give one folder, or image files" in " ".join(folders.stderr.split())
