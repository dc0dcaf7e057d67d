"""`stylize`: one image in the style of another, of every kind, and from file to file."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from specimens import generator, photo, pil

import styleaug
from styleaug import ConfigError, FileError, ImageError, stylize
from styleaug.offline.stylizing import Reduced, stylize_file

STYLE = 1 - photo(40, 50, seed=7)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A photo and a painting."""
    folder = tmp_path_factory.mktemp("files")
    for name, seed in (("photo.png", 1), ("painting.jpg", 2)):
        pixels = (photo(30, 40, seed=seed).permute(1, 2, 0) * 255).byte().numpy()
        Image.fromarray(pixels).save(folder / name)
    return folder


def colours(image: torch.Tensor) -> torch.Tensor:
    return image.mean(dim=(-1, -2))


def test_an_image_gets_the_colours_of_the_style():
    content = photo(32, 48, seed=1)
    styled = stylize(content, STYLE, generator="reinhard-rgb")
    assert (colours(styled) - colours(STYLE)).abs().max() < 0.05
    assert (colours(content) - colours(STYLE)).abs().max() > 0.1
    assert torch.equal(stylize(content, STYLE, generator="reinhard-rgb", strength=0), content)
    half = stylize(content, STYLE, generator="reinhard-rgb", strength=0.5)
    torch.testing.assert_close(half, (content + styled) / 2)


def test_the_default_paints_with_adain_and_nothing_is_random():
    content = photo(32, 32, seed=1)
    state = torch.get_rng_state()
    one, other = stylize(content, STYLE), stylize(content, STYLE)
    assert torch.equal(one, other) and torch.equal(torch.get_rng_state(), state)
    assert (one - content).abs().mean() > 0.01
    assert torch.equal(one, stylize(content, STYLE, generator=styleaug.load_generator("adain")))


KINDS = {
    **{f"pil {mode}": lambda mode=mode: pil(mode) for mode in ("L", "LA", "RGB", "RGBA", "I;16")},
    "pil F": lambda: Image.fromarray(photo(24, 32)[0].numpy()),
    **{
        f"pil {mode} converted": lambda mode=mode: pil("RGB").convert(mode)
        for mode in ("1", "P", "CMYK", "YCbCr")
    },
    **{
        f"{kind} {dtype} {shape}": lambda kind=kind, dtype=dtype, shape=shape: held(kind, dtype, shape)
        for kind in ("array", "tensor")
        for dtype in ("uint8", "uint16", "float32", "float16", "float64")
        for shape in ((1,), (3,), (2,), (4,), (2, 3), (2, 4))
    },
    "array of grey": lambda: held("array", "uint8", (1,))[..., 0],
}


def held(kind: str, dtype: str, shape: tuple[int, ...]):
    """Make an image or a batch with these leading axes: rows and channels."""
    values = torch.rand(*shape, 20, 24, generator=torch.Generator().manual_seed(3)).numpy()
    if kind == "array":
        values = np.moveaxis(values, -3, -1)
    whole = dtype.startswith("uint")
    values = (values * np.iinfo(dtype).max).astype(dtype) if whole else values.astype(dtype)
    return torch.from_numpy(values) if kind == "tensor" else values


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(KINDS)),
    st.sampled_from(sorted(KINDS)),
    st.sampled_from(["reinhard-lab", "tiny-adain"]),
)
def test_every_kind_comes_back_as_it_was(content, style, name):
    image, other = KINDS[content](), KINDS[style]()
    if getattr(other, "ndim", 0) == 4 and len(other) != (len(image) if getattr(image, "ndim", 0) == 4 else 1):
        with pytest.raises(ConfigError, match="one style for all, or one for each image; got 2 styles for 1"):
            stylize(image, other, generator=generator(name))
        return
    styled = stylize(image, other, generator=generator(name))
    assert type(styled) is type(image) or isinstance(styled, Image.Image)
    if isinstance(image, Image.Image):
        assert styled.size == image.size
        assert styled.mode == {"1": "L", "P": "RGB", "CMYK": "RGB", "YCbCr": "RGB"}.get(
            image.mode, image.mode
        )
        return
    assert styled.shape == image.shape and styled.dtype == image.dtype
    last = (Ellipsis, -1) if isinstance(image, np.ndarray) else (Ellipsis, -1, slice(None), slice(None))
    if image.ndim > 2 and image.shape[-1 if isinstance(image, np.ndarray) else -3] in (2, 4):
        assert (styled[last] == image[last]).all(), "transparency stays"


def test_lists_and_batches_have_a_style_for_each():
    contents = [photo(16, 20, seed=seed) for seed in range(3)]
    styles = [pil(seed=5), STYLE, photo(9, 30, seed=9)]
    lab = generator("reinhard-lab")
    alone = [stylize(image, style, generator=lab) for image, style in zip(contents, styles, strict=True)]
    assert all(map(torch.equal, stylize(contents, styles, generator=lab), alone))
    torch.testing.assert_close(stylize(torch.stack(contents), styles, generator=lab), torch.stack(alone))
    shared = stylize(contents, STYLE, generator=lab)
    torch.testing.assert_close(stylize(torch.stack(contents), [STYLE], generator=lab), torch.stack(shared))
    with pytest.raises(ConfigError, match="got 2 styles for 3 images"):
        stylize(contents, styles[:2], generator=lab)
    with pytest.raises(ConfigError, match="got 3 styles for 1 images"):
        stylize(contents[0], styles, generator=lab)
    with pytest.raises(ConfigError, match="list is empty"):
        stylize(contents[0], [], generator=lab)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 5)])
def test_tiny_images(size):
    for name in ("adain", "reinhard-lab", "photo"):
        assert stylize(pil(size=size), STYLE, generator=name).size == size


def test_large_images_are_painted_reduced_and_keep_their_detail():
    network = generator("tiny-adain")
    content = photo(96, 128, seed=4)
    styled = stylize(content, STYLE, generator=network, size=32)
    assert styled.shape == content.shape
    whole = stylize(content, STYLE, generator=network, size=4000)
    assert not torch.equal(styled, whole), "strokes of another size"
    assert torch.equal(whole, stylize(content, STYLE, generator=network, size=4001))
    # Detail finer than the reduced copy is the content's own.
    fine = lambda x: x - torch.nn.functional.avg_pool2d(x[None], 5, 1, 2)[0]  # noqa: E731
    speckled = (content + 0.1 * torch.randn(content.shape, generator=torch.Generator().manual_seed(0))).clamp(
        0.1, 0.9
    )
    kept = fine(stylize(speckled, STYLE, generator=network, size=32, strength=0.3))
    assert torch.corrcoef(torch.stack([fine(speckled).flatten(), kept.flatten()]))[0, 1] > 0.7
    # Colours go by the pixel, so that nothing is reduced.
    lab = generator("reinhard-lab")
    assert torch.equal(
        stylize(content, STYLE, generator=lab, size=16), stylize(content, STYLE, generator=lab)
    )


def test_reduced_networks_never_see_less_than_their_least_side():
    network = generator("tiny-adain")
    seen = []

    class Watch(torch.nn.Module):
        def forward(self, images, codes, strength):
            seen.append(tuple(images.shape[-2:]))
            return images

    painter = Reduced(network, 16)
    painter.least_side = 24
    painter.network = Watch()
    for size in ((40, 400), (30, 30), (10, 12)):
        painter(torch.rand(1, 3, *size), torch.zeros(1, network.code_length), torch.ones(1))
    assert seen == [(24, 240), (24, 24), (10, 12)]


def test_blending_the_colour_takes_the_colours_only():
    content = photo(32, 32, seed=1)
    styled = stylize(content, STYLE, generator="reinhard-rgb", blend="color")
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    torch.testing.assert_close((styled * luma).sum(0), (content * luma).sum(0), atol=1e-4, rtol=0)
    with pytest.raises(ConfigError, match="the option keep_luminance has gone; write blend='color'"):
        stylize(content, STYLE, keep_luminance=True)


def test_files_are_written_beside_what_is_read(files, tmp_path):
    before = hashlib.sha256((files / "photo.png").read_bytes()).hexdigest()
    out = stylize_file(
        files / "photo.png", files / "painting.jpg", tmp_path / "out.png", generator="reinhard-lab"
    )
    with Image.open(out) as image, Image.open(files / "photo.png") as source:
        assert image.size == source.size and image.mode == source.mode
        in_memory = stylize(source.copy(), files / "painting.jpg", generator="reinhard-lab")
        assert np.array_equal(np.asarray(image), np.asarray(in_memory))
    (tmp_path / "link.png").symlink_to(files / "photo.png")
    (tmp_path / "hard.png").hardlink_to(files / "photo.png")
    for name in (files / "photo.png", tmp_path / "link.png", tmp_path / "hard.png", files / "painting.jpg"):
        with pytest.raises(FileError, match="is one of the files that are read; write to another file"):
            stylize_file(files / "photo.png", files / "painting.jpg", name)
    assert hashlib.sha256((files / "photo.png").read_bytes()).hexdigest() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hard.png", "link.png", "out.png"]


def test_files_keep_their_bits_and_transparency(files, tmp_path):
    deep = np.random.default_rng(0).integers(0, 65535, (20, 24)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    pil("RGBA").save(tmp_path / "clear.png")
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((20, 24, 3), dtype=np.float32))
    style = files / "painting.jpg"
    for name in ("deep.png", "clear.png"):
        with Image.open(stylize_file(tmp_path / name, style, tmp_path / "out.png")) as image:
            assert image.mode == {"deep.png": "I;16", "clear.png": "RGBA"}[name]
    assert np.load(stylize_file(tmp_path / "a.npy", style, tmp_path / "b.npy")).dtype == np.float32
    assert isinstance(stylize(tmp_path / "a.npy", style), np.ndarray)
    for suffix in ("jpg", "jpeg", "bmp"):
        with pytest.raises(
            FileError, match=rf"has transparency, which \.{suffix} cannot hold; write a \.png"
        ):
            stylize_file(tmp_path / "clear.png", style, tmp_path / f"out.{suffix}")


def test_what_is_no_image_is_refused(files):
    content = photo(16, 16)
    with pytest.raises(ConfigError, match="'art' is a bank"):
        stylize(content, "art")
    with pytest.raises(FileError, match=r"no file nothing\.png"):
        stylize(content, "nothing.png")
    with pytest.raises(FileError, match=r"no file nothing\.png"):
        stylize("nothing.png", STYLE)
    with pytest.raises(ConfigError, match="got int"):
        stylize(content, 3)
    with pytest.raises(ConfigError, match=r"got tuple. Leave out the labels"):
        stylize(content, [(STYLE, 1)])
    with pytest.raises(ImageError, match="expected a PIL image, tensor or array, got dict"):
        stylize({"image": content}, STYLE)
    with pytest.raises(ImageError, match="StyleVideo styles clips"):
        stylize(torch.rand(1, 2, 3, 16, 16), STYLE)
    with pytest.raises(ConfigError, match="pix2pix' has one style and takes no other"):
        stylize(content, STYLE, generator=generator("tiny-pix2pix"))
    with pytest.raises(ConfigError, match="strength must be"):
        stylize(content, STYLE, strength=1.5)


def test_the_command(files, tmp_path, command):
    done = command(
        "stylize", files / "photo.png", "--style", files / "painting.jpg", "-o", tmp_path / "out.png"
    )
    with Image.open(tmp_path / "out.png") as image:
        assert "out.png written" in done.stderr and image.size == (40, 30)
    folder = command("stylize", files, "--style", files / "painting.jpg", "-o", tmp_path / "x.png", code=1)
    assert "is a folder" in folder.stderr and "styleaug apply" in folder.stderr
