"""What is transparent decides nothing that is seen: not in results, not in what is learned, at any depth."""

import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from specimens import GENERATORS, bank, generator

from styleaug import ImageError, apply_folder, fit_style
from styleaug.evaluation.pairs import read_mask_files
from styleaug.images import Uncovered, filled, to_pixels
from styleaug.io.files import Scan, open_image, save_image
from styleaug.io.pixels import open_style
from styleaug.offline.tiles import ArrayReader, stylise_tiles, tiles_of
from styleaug.training.data import read_image
from styleaug.transforms.augment import StyleAugment

SHAPES = {"L": (), "RGB": (3,), "LA": (), "RGBA": (3,)}


def colours(shape: tuple[int, ...], seed: int, dtype: str = "u1") -> np.ndarray:
    """Make pixels of uneven mean and spread."""
    values = np.random.default_rng(seed).random(shape) ** (1 + seed % 3)
    return (values * np.iinfo(dtype).max).astype(dtype) if dtype[0] == "u" else values.astype(dtype)


def cut_out(height: int, width: int) -> np.ndarray:
    """Make a disc with a soft edge, as alpha in [0, 1]."""
    rows, columns = np.mgrid[:height, :width]
    far = np.hypot((rows - height / 2) / height, (columns - width / 2) / width)
    return np.clip((0.4 - far) / 0.1, 0, 1)


def with_hidden(seen: np.ndarray, alpha: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Put other colours where nothing is seen."""
    clear = alpha == 0
    return np.where(clear[..., None] if seen.ndim == 3 else clear, hidden, seen)


def styled_by(stylizer: StyleAugment, image, seed: int = 0):
    return stylizer.apply(image, stylizer.draw(1, torch.Generator().manual_seed(seed)))


def style_of(name: str, strength: float = 1.0) -> StyleAugment:
    """Make a stylizer with a bank of random styles."""
    network = generator(name)
    return StyleAugment(
        bank(name) if network.code_length else None, generator=network, p=1, strength=strength
    )


@given(
    seed=st.integers(0, 999),
    dtype=st.sampled_from(["u1", "u2", "f4"]),
    shape=st.sampled_from([(), (1,), (3,)]),
    hard=st.booleans(),
)
def test_filling(seed, dtype, shape, hard):
    rng = np.random.default_rng(seed)
    size = tuple(rng.integers(1, 20, 2))
    alpha = rng.choice([0, 0, 255] if hard else [0, 7, 128, 255, 255], size).astype("u1")
    first, second = colours((*size, *shape), seed, dtype), colours((*size, *shape), seed + 1, dtype)
    second = np.where((alpha > 0).reshape(*size, *[1] * len(shape)), first, second)
    results = [filled(values, alpha) for values in (first, second)]
    for values, (seen, back) in zip((first, second), results, strict=True):
        assert seen.dtype == values.dtype and np.array_equal(back(seen), values), "back bit by bit"
        hidden = back(colours(values.shape, seed + 2, dtype))[alpha == 0]
        assert np.array_equal(hidden, values[alpha == 0]), "nor are hidden pixels styled"
    if alpha.any():
        assert np.array_equal(results[0][0], results[1][0])


@pytest.mark.parametrize("dtype", ["u1", "u2", "f8"])
def test_statistics_are_those_of_what_is_seen(dtype):
    values, alpha = colours((40, 50, 3), 1, dtype), cut_out(40, 50)
    seen, _ = filled(values, (alpha > 0.5).astype("u1"))
    visible = values[alpha > 0.5].astype(float)
    scale = float(values.max())
    np.testing.assert_allclose(seen.mean(axis=(0, 1)) / scale, visible.mean(axis=0) / scale, atol=2e-3)
    np.testing.assert_allclose(seen.std(axis=(0, 1)) / scale, visible.std(axis=0) / scale, atol=2e-3)
    soft, _ = filled(values, (255 * alpha).round().astype("u1"))
    weighted = np.average(values.reshape(-1, 3), axis=0, weights=(255 * alpha).round().ravel())
    np.testing.assert_allclose(soft.mean(axis=(0, 1)) / scale, weighted / scale, atol=5e-3)
    half, _ = filled(values, np.repeat(np.arange(50)[None] < 25, 40, axis=0))
    assert np.array_equal(half[:, :25], half[:, 25:])


@pytest.mark.parametrize("alpha", [255, 128, 1])
def test_nothing_is_filled_where_alpha_is_even(alpha):
    values = colours((5, 6, 3), 0)
    assert filled(values, np.full((5, 6), alpha, "u1"))[0] is values


@pytest.mark.parametrize("name", GENERATORS)
def test_hidden_colours_decide_nothing(name):
    stylizer = style_of(name)
    alpha = (255 * cut_out(36, 44)).round().astype("u1")
    seen = colours((36, 44, 3), 0)
    results = []
    for hidden in (np.uint8(0), np.uint8(255), colours(seen.shape, 5)):
        image = Image.fromarray(np.dstack([with_hidden(seen, alpha, hidden), alpha]))
        result = np.asarray(styled_by(stylizer, image))
        assert np.array_equal(result[..., 3], alpha)
        assert np.array_equal(result[alpha == 0], np.asarray(image)[alpha == 0])
        results.append(result[alpha > 0])
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])
    assert np.abs(results[0][:, :3].astype(int) - seen[alpha > 0]).max() > 5 or name in (
        "hed-jitter",
        "macenko",
    )


def test_soft_edges_are_styled_as_their_surroundings():
    stylizer = style_of("reinhard-rgb")
    seen = colours((40, 40, 3), 0)
    alpha = np.full((40, 40), 255, "u1")
    alpha[:, :8] = 128
    whole = np.asarray(styled_by(stylizer, Image.fromarray(seen))).astype(int)
    soft = np.asarray(styled_by(stylizer, Image.fromarray(np.dstack([seen, alpha])))).astype(int)
    assert np.abs(soft[..., :3] - whole).mean() < 8, "not mixed with other colours"


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_strength_zero_and_nothing_seen(mode):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (20, 30, len(mode)), np.uint8).squeeze())
    assert styled_by(style_of("reinhard-rgb", 0.0), image).tobytes() == image.tobytes()
    image.putalpha(0)
    assert styled_by(style_of("reinhard-rgb"), image).tobytes() == image.tobytes()


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_a_colour_that_is_transparent(mode):
    dtype = "u2" if mode == "I;16" else "u1"
    values = colours((30, 30, *SHAPES.get(mode, ())), 0, dtype)
    values[10:, :] = 77
    image = Image.fromarray(values)
    image.info["transparency"] = (77, 77, 77) if mode == "RGB" else 77
    clear = (values.reshape(30, 30, -1) == 77).all(axis=-1)
    pixels, restore = to_pixels(image)
    assert restore(pixels).tobytes() == image.tobytes()
    shown = pixels[0, 0].numpy()
    assert np.isclose(
        shown.mean() / shown.max(), values.reshape(30, 30, -1)[~clear, 0].mean() / shown.max(), atol=0.02
    )
    result = np.asarray(restore(torch.full_like(pixels, 77))).reshape(30, 30, -1)
    assert np.array_equal((result == 77).all(axis=-1), clear), "neither more nor fewer pixels are clear"


def test_styles_are_read_from_what_is_seen(tmp_path):
    """One look in every form that a file can have: channel, palette, colour key, 8 and 16 bits."""
    seen, alpha = colours((48, 48, 3), 1), (cut_out(48, 48) > 0.5) * np.uint8(255)
    seen[..., :] = seen // 64 * 64 + 3
    names = []
    for number, hidden in enumerate((np.uint8(255), np.uint8(1), colours(seen.shape, 7))):
        values = with_hidden(seen, alpha, hidden)
        rgba = Image.fromarray(np.dstack([values, alpha]))
        for ending in ("png", "tif", "webp"):
            rgba.save(
                tmp_path / f"{number}.{ending}",
                **({"lossless": True, "exact": True} if ending == "webp" else {}),
            )
            names.append(f"{number}.{ending}")
        deep = np.dstack([values, alpha]).astype("u2") * 257
        save_deep(tmp_path / f"deep{number}.png", deep)
        names.append(f"deep{number}.png")
    keyed = Image.fromarray(with_hidden(seen, alpha, np.uint8(255)))
    keyed.save(tmp_path / "key.png", transparency=(255, 255, 255))
    palette = np.unique(seen[alpha > 0], axis=0)
    names.append("key.png")
    assert (palette != 255).all()
    codes = [generator("randstainna").encode_style(open_style(tmp_path / name, 64)) for name in names]
    for name, code in zip(names, codes, strict=True):
        torch.testing.assert_close(
            code, codes[0], atol=1e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )
    mean = generator("reinhard-rgb").encode_style(open_style(tmp_path / names[0], 64))[0, :3]
    np.testing.assert_allclose(mean, seen[alpha > 0].mean(axis=0) / 255, atol=3e-3)


def save_deep(path, values: np.ndarray) -> None:
    """Write a PNG of 16 bits; of RGBA, LA, RGB or grey."""
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2]]
    path.write_bytes(png(*values.shape[1::-1], 16, kind, [row.astype(">u2").tobytes() for row in values]))


def png(
    width: int, height: int, depth: int, kind: int, rows: list[bytes], *extra: tuple[bytes, bytes]
) -> bytes:
    """Write a PNG by hand, as PIL writes few of its forms."""

    def part(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = part(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    body = part(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(part(*one) for one in extra) + body + part(b"IEND", b"")


KEYS = {  # depth, kind, row of two pixels of which the second is clear, tRNS, mode that it is opened in
    "1-bit grey": (1, 0, b"\x40", b"\0\1", "LA"),
    "2-bit grey": (2, 0, b"\x10", b"\0\1", "LA"),
    "4-bit grey": (4, 0, b"\x25", b"\0\5", "LA"),
    "8-bit grey": (8, 0, b"\x02\x05", b"\0\5", "LA"),
    "16-bit grey": (16, 0, b"\x02\x05\x03\x05", b"\3\5", "I;16"),
    "8-bit colour": (8, 2, b"\x01\x02\x03\x04\x05\x06", b"\0\4\0\5\0\6", "RGBA"),
    "16-bit colour": (
        16,
        2,
        b"\x01\x02\x03\x05\x01\x01\x07\x07\x08\x08\x09\x09",
        b"\7\7\x08\x08\x09\x09",
        "scan",
    ),
}


@pytest.mark.parametrize("name", KEYS)
def test_colour_keys_of_every_depth(name, tmp_path):
    depth, kind, row, key, mode = KEYS[name]
    path = tmp_path / "a.png"
    path.write_bytes(png(2, 3, depth, kind, [row] * 3, (b"tRNS", key)))
    picture = open_image(path)
    if isinstance(picture, Scan):
        assert mode == "scan"
        assert np.array_equal(picture.frames[..., 0, :], picture.frames[..., 1, :]), (
            "filled by the first pixel"
        )
    else:
        assert picture.mode == mode
        pixels, _ = to_pixels(picture)
        assert torch.equal(pixels[..., 0].int(), pixels[..., 1].int())
    save_image(picture, tmp_path / "b.png")
    import imagecodecs

    before, after = (imagecodecs.png_decode(p.read_bytes()) for p in (path, tmp_path / "b.png"))
    assert np.array_equal(before[..., -1] > 0, after[..., -1] > 0)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_apply_at_sixteen_bits(suffix, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    alpha = (cut_out(40, 40) * 65535).astype("u2")
    seen = colours((40, 40, 3), 0, "u2")
    (tmp_path / "in").mkdir()
    for number, hidden in enumerate((np.uint16(0), np.uint16(65535))):
        values = np.dstack([with_hidden(seen, alpha, hidden), alpha])
        if suffix == ".png":
            save_deep(tmp_path / "in" / f"{number}.png", values)
        else:
            tifffile.imwrite(
                tmp_path / "in" / f"{number}.tif", values, photometric="rgb", extrasamples=["unassalpha"]
            )
    apply_folder(
        tmp_path / "in",
        tmp_path / "out",
        bank=bank("reinhard-rgb", 1),
        generator="reinhard-rgb",
        strength=1,
    )
    results = []
    for number in range(2):
        scan = tmp_path / "out" / f"{number}{suffix}"
        if suffix == ".tif":
            found = tifffile.imread(scan)
        else:
            import imagecodecs

            found = imagecodecs.png_decode(scan.read_bytes())
        assert np.array_equal(found[..., 3], alpha) and (found[alpha == 0][:, :3] == number * 65535).all()
        results.append(found[alpha > 0])
    assert np.array_equal(*results)
    assert np.abs(results[0][:, :3].astype(int) - seen[alpha > 0]).max() > 1000


@pytest.mark.parametrize("dtype", ["u2", "f4"])
def test_colours_multiplied_by_alpha(dtype, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    top = 65535 if dtype == "u2" else 1
    alpha = cut_out(24, 30)
    seen = np.random.default_rng(0).random((24, 30, 3)) * 0.9
    values = np.dstack([seen * alpha[..., None], alpha]) * top
    values = (values.round() if dtype == "u2" else values).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=["assocalpha"])
    scan = open_image(tmp_path / "a.tif")
    assert isinstance(scan, Scan)
    shown = scan.frames[0][alpha > 0.9] / top
    np.testing.assert_allclose(shown, seen[alpha > 0.9], atol=0.1)
    save_image(scan, tmp_path / "b.tif")
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert [int(value) for value in file.pages[0].extrasamples] == [1]
        assert np.array_equal(file.asarray(), values)
    half = replace(
        scan, frames=(scan.frames // 2 if dtype == "u2" else scan.frames / 2).astype(scan.frames.dtype)
    )
    save_image(half, tmp_path / "c.tif")
    found = tifffile.imread(tmp_path / "c.tif").astype(float)
    assert np.array_equal(found[..., 3], values[..., 3])
    off = np.abs(found[alpha == 1][:, :3] - values[alpha == 1][:, :3] / 2.0) / top
    assert off.max() < 1e-3


def test_images_without_a_seen_pixel(tmp_path):
    clear = Image.new("RGBA", (32, 32), (200, 10, 10, 0))
    clear.save(tmp_path / "clear.png")
    save_deep(tmp_path / "deep.png", np.zeros((32, 32, 4), "u2"))
    Image.new("RGB", (32, 32), (9, 9, 9)).save(tmp_path / "key.png", transparency=(9, 9, 9))
    for name in ("clear.png", "deep.png", "key.png"):
        with pytest.raises(ImageError, match=f"{name} is transparent all over"):
            open_style(tmp_path / name, 64)
        with pytest.raises(ImageError, match=f"{name} is transparent all over"):
            read_image(tmp_path / name, 64)
    for number in range(3):
        Image.fromarray(colours((32, 32, 3), number)).save(tmp_path / f"{number}.png")
    fit = fit_style(tmp_path, generator="reinhard-rgb", min_images=1)
    assert len(fit.bank) == 3 and len(fit.failed) == 3


def test_masks_end_where_they_are_transparent(tmp_path):
    mask = np.zeros((16, 16, 4), np.uint8)
    mask[..., :3] = 255
    mask[:8, :, 3] = 255
    Image.fromarray(mask).save(tmp_path / "a.png")
    masks, usable = read_mask_files(tmp_path, ["a.jpg"], 16)
    assert usable.all() and masks[0, :8].all() and not masks[0, 8:].any()


@pytest.mark.parametrize("name", ["reinhard-rgb", "histogram", "tiny-adain", "tiny-photo"])
@pytest.mark.parametrize("survey", [2**24, 5000])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_slides(name, survey, dtype):
    stylizer = style_of(name)
    alpha = (cut_out(150, 170) > 0.5) * np.iinfo(dtype).max
    seen = colours((150, 170, 3), 0, dtype)
    results = []
    for hidden in (0, np.iinfo(dtype).max):
        values = np.dstack([with_hidden(seen, alpha, np.array(hidden, dtype)), alpha]).astype(dtype)
        params = stylizer.draw(1, torch.Generator().manual_seed(0))
        tiles = stylise_tiles(stylizer, ArrayReader(values, alpha=True), params, tile=64, survey=survey)
        cores = tiles_of(values.shape, 64)
        result = np.zeros_like(values)
        for tile, (top, left, high, wide) in zip(tiles, cores, strict=True):
            result[top : top + high, left : left + wide] = tile
        assert np.array_equal(result[..., 3], alpha)
        assert np.array_equal(result[alpha == 0], values[alpha == 0])
        results.append(result[alpha > 0])
    assert np.array_equal(*results) and not np.array_equal(results[0][:, :3], seen[alpha > 0])


def test_a_slide_with_little_to_see():
    values = np.zeros((300, 300, 4), np.uint8)
    values[201, 77] = 90, 120, 150, 255
    assert (Uncovered(ArrayReader(values, alpha=True)).read(0, 0, 300, 300)[..., :3] == [90, 120, 150]).all()
    values[..., 3] = 0
    assert np.array_equal(Uncovered(ArrayReader(values, alpha=True)).read(0, 0, 300, 300), values)
