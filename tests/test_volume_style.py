"""Videos and volumes: one style for all frames, by statistics of all, in chunks, without flicker."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from specimens import GENERATORS, Spy, bank_of, generator, photos
from torch import Tensor

from styleaug import Splice, load_generator
from styleaug.generators.base import AbstractGenerator
from styleaug.transforms import groups as frames
from styleaug.transforms.augment import StyleAugment

SHIPPED = ["adain", "photo", "patchswap"]
UNTRAINED = {"tiny-cyclegan", "tiny-vaegan"}
"""Random weights that answer to the noise of a slice as strongly as to a style."""

TWO_DYES = {"macenko", "vahadane"}
"""In grey there are no two dyes: it comes back as it is."""

HEIGHT, WIDTH = 48, 56


def specimen(name: str) -> AbstractGenerator:
    return load_generator(name) if name in SHIPPED else generator(name)


def stylizer(name: str, **options) -> StyleAugment:
    network = specimen(name)
    return StyleAugment(bank_of(network), generator=network, **{"p": 1.0, **options})


def volume(slices: int = 16) -> Tensor:
    """Make slices `(T, 1, H, W)` of a ball with an organ in it, which change slowly, with noise."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, HEIGHT), torch.linspace(-1, 1, WIDTH), indexing="ij")
    made = []
    for z in torch.linspace(-1, 1, slices):
        ball = torch.sigmoid(8 * (0.9 - z * z * 0.5 - x * x - y * y))
        organ = torch.sigmoid(20 * (0.08 - (x - 0.3 * z).square() - (y + 0.2).square()))
        made.append(0.15 + 0.4 * ball + 0.25 * organ)
    noise = torch.randn(slices, 1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    return (torch.stack(made)[:, None] + 0.03 * noise).clamp(0, 1)


def one_map(before: Tensor, after: Tensor, bins: int = 48) -> Tensor:
    """Give what the best map of grey levels, common to all slices, makes of them."""
    place = (before * (bins - 1)).round().long().flatten()
    sums = torch.zeros(bins).index_add_(0, place, after.flatten())
    return (sums / torch.bincount(place, minlength=bins).clamp_min(1))[place].view_as(after)


def style_variance(before: Tensor, after: Tensor) -> float:
    """Measure how brightness and contrast of slices vary beyond what one common map does to them.

    By differences of neighbours, as flicker is: where anatomy changes slowly, so may what a network
    makes of it.
    """
    mapped = one_map(before, after)
    rest = torch.stack(
        [
            after.mean(dim=(1, 2, 3)) - mapped.mean(dim=(1, 2, 3)),
            after.std(dim=(1, 2, 3)) - mapped.std(dim=(1, 2, 3)),
        ]
    )
    return float(rest.diff(dim=1).square().mean(dim=1).sum()) / 2


@pytest.fixture(params=["at once", "in chunks"])
def chunks(request, monkeypatch) -> str:
    """Let a volume be stylised at once, or 5 slices at a time with the statistics of 6 of them."""
    if request.param == "in chunks":
        monkeypatch.setattr("styleaug.transforms.augment.CPU_CHUNK_PIXELS", 5 * HEIGHT * WIDTH)
        monkeypatch.setattr("styleaug.transforms.groups.SURVEY_PIXELS", 1)
        monkeypatch.setattr("styleaug.transforms.groups.SURVEY_FRAMES", (6, 6))
    return request.param


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*GENERATORS, *SHIPPED} - UNTRAINED - TWO_DYES))
def test_style_variance_is_under_a_tenth_of_independent_draws(name, chunks):
    # Networks without a style differ between draws by their strength alone.
    augment, slices = stylizer(name, strength=(0.5, 1.0)), volume()
    shared, apart = [], []
    for seed in range(3):
        rng = torch.Generator().manual_seed(seed)
        shared.append(style_variance(slices, augment.apply(slices[None], augment.draw(1, rng))[0]))
        apart.append(style_variance(slices, augment.apply(slices, augment.draw(len(slices), rng))))
    # A filter that keeps mean and deviation varies by 1e-7 with any draw, which nobody sees.
    assert sum(shared) < max(0.1 * sum(apart), 1e-6), (shared, apart)


@pytest.mark.parametrize("name", [*GENERATORS, *SHIPPED])
def test_all_chunks_get_the_same_map(name, chunks):
    """A slice that stands in two chunks looks alike in both."""
    slices = volume(12)
    slices[11] = slices[0]
    styled = stylizer(name, strength=0.8)(slices[None])[0]
    torch.testing.assert_close(styled[11], styled[0], atol=2e-3, rtol=0)
    assert styled.shape == slices.shape and styled.min() >= 0 and styled.max() <= 1
    change = (styled - slices).abs().mean()
    assert change < 1e-6 if name in TWO_DYES else change > 1e-3


@pytest.mark.parametrize("name", ["reinhard-rgb", "reinhard-lab", "histogram"])
def test_statistics_are_those_of_all_slices(name, chunks):
    """Slices that get brighter still do so after: by their own statistics all would have one mean."""
    rise = torch.linspace(0.2, 0.7, 12)[:, None, None, None]
    slices = (rise + 0.05 * torch.randn(12, 1, HEIGHT, WIDTH)).clamp(0, 1)
    augment = stylizer(name, strength=1.0)
    means = augment(slices[None])[0].mean(dim=(1, 2, 3))
    assert (means.diff() > 0).all() and means[-1] - means[0] > 0.03
    alone = augment.apply(slices, augment.draw(1).copy() | repeated(augment, 12)).mean(dim=(1, 2, 3))
    assert alone.std() < 0.3 * means.std()


def repeated(augment: StyleAugment, count: int) -> dict[str, Tensor]:
    """Draw one style for as many rows."""
    one = augment.draw(1)
    assert one["codes"] is not None
    codes, strength = one["codes"].expand(count, -1), one["strength"].expand(count)
    return {"rows": torch.arange(count), "codes": codes, "strength": strength}


@pytest.mark.parametrize("name", ["reinhard-lab", "histogram", "tiny-photo"])
def test_all_slices_surveyed_in_chunks_are_the_volume_at_once(name, monkeypatch):
    augment, slices = stylizer(name), volume(11)
    params = augment.draw(1)
    wanted = augment.apply(slices[None], params)
    monkeypatch.setattr("styleaug.transforms.augment.CPU_CHUNK_PIXELS", 4 * HEIGHT * WIDTH)
    views = torch.arange(11)
    monkeypatch.setattr(
        "styleaug.transforms.groups.frames_to_survey", lambda count, pixels, seen: torch.cat([views, views])
    )
    torch.testing.assert_close(augment.apply(slices[None], params), wanted, atol=2e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [[0, 1, 2], [1]])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("channels", ["auto", "independent"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.float16])
def test_volumes_of_a_batch_are_apart(rows, count, channels, dtype, chunks):
    top = {torch.uint8: 255, torch.uint16: 4095, torch.int16: 1000}.get(dtype, 1)
    whole = (volume(9) * top)[None, :, None] * torch.linspace(1, 0.6, 3 * count).view(3, 1, count, 1, 1, 1)
    whole = whole.squeeze(3)
    batch = whole.round().to(torch.int32).to(dtype) if top > 1 else whole.to(dtype)
    value_range = (0, top) if top > 1 else None
    augment = stylizer("reinhard-lab", channels=channels, value_range=value_range)
    each = count if channels == "independent" else 1
    params = augment.draw(3 * each)
    picked = [row in rows for row in (params["rows"] // each).tolist()]
    params = {key: None if value is None else value[picked] for key, value in params.items()}
    before = batch.clone()
    styled = augment.apply(batch, params)
    assert styled.shape == batch.shape and styled.dtype == dtype
    assert torch.equal(batch.float(), before.float())
    for row in range(3):
        if row not in rows:
            assert torch.equal(styled[row].float(), batch[row].float())
            continue
        mine = [at // each == row for at in params["rows"].tolist()]
        alone = {key: None if value is None else value[mine] for key, value in params.items()}
        alone["rows"] = alone["rows"] - row * each
        wanted = augment.apply(batch[row : row + 1], alone)[0]
        torch.testing.assert_close(
            styled[row].float(), wanted.float(), atol=1.01 if top > 1 else 2e-3, rtol=0
        )
        assert (styled[row].float() - batch[row].float()).abs().max() > 0.02 * top


@pytest.mark.parametrize("splice", ["fields", "halves", "mask"])
def test_spliced_volumes(splice, chunks):
    slices = volume(9)
    augment = stylizer("reinhard-rgb", splice=Splice(splice, keep=True), strength=1.0)
    masks = torch.zeros(9, HEIGHT, WIDTH, dtype=torch.uint8)
    masks[:5, :20], masks[5:, 30:] = 1, 1
    params = augment.draw(1)
    styled = augment.apply(slices[None], params, masks=masks if splice == "mask" else None)[0]
    changed = (styled - slices).abs().flatten(1).amax(1)
    assert (changed > 0.01).all()
    if splice == "mask":
        assert torch.equal(styled[:5, :, :18], slices[:5, :, :18])
        assert torch.equal(styled[5:, :, 32:], slices[5:, :, 32:])
    else:
        still = slices[:1].expand(9, -1, -1, -1)
        one = augment.apply(still[None].contiguous(), params)[0]
        torch.testing.assert_close(one, one[:1].expand_as(one), atol=1e-5, rtol=0)


def test_blending_the_colour_keeps_the_brightness_of_volumes(chunks):
    slices = volume(9)
    torch.testing.assert_close(stylizer("reinhard-rgb", blend="color")(slices[None])[0], slices)


def test_auto_range_is_the_volumes(chunks):
    slices = volume(11)
    augment = stylizer("reinhard-rgb", value_range="auto")
    params = augment.draw(1)
    wanted = augment.apply(slices[None], params)
    scaled = (slices * 3000 - 700).round().to(torch.int16)
    styled = augment.apply(scaled[None], params)
    torch.testing.assert_close((styled.float() + 700) / 3000, wanted, atol=2e-3, rtol=0)


def test_the_style_of_another_volume_is_that_of_its_middle():
    spy = Spy()
    batch = torch.rand(2, 5, 1, 8, 8)
    given: list[Tensor] = []
    spy.register_forward_pre_hook(lambda module, args: given.append(args[1]))
    augment = StyleAugment("batch", generator=spy, p=1.0)
    augment(batch)
    wanted = batch[:, 2].mean(dim=(1, 2, 3)).flip(0)
    torch.testing.assert_close(torch.cat(given)[:, 0].view(2, 5), wanted[:, None].expand(2, 5))


def test_gradients_reach_volumes(chunks):
    slices = volume(11).requires_grad_()
    stylizer("reinhard-rgb").apply(
        slices[None], stylizer("reinhard-rgb").draw(1), differentiable=True
    ).sum().backward()
    assert slices.grad is not None and (slices.grad.flatten(1).abs().amax(1) > 0).all()


def test_few_frames_are_painted_once():
    spy = Spy()
    augment = StyleAugment(bank_of(spy), generator=spy, p=1.0)
    augment(photos(6)[None])
    assert spy.rows == 6


def test_frames_to_survey_are_spread_and_bounded():
    for count, size in [(2, 64), (40, 64), (500, 64), (500, 512), (500, 3000)]:
        views = frames.frames_to_survey(count, torch.empty(1, 1, size, size, device="meta"), size**2)
        assert views[0] >= 0 and views[-1] < count and (views.diff() > 0).all()
        assert views.diff().max() - views.diff().min() <= 1 if len(views) > 1 else True
        assert len(views) <= frames.SURVEY_FRAMES[1]
        assert len(views) * size**2 <= frames.SURVEY_PIXELS or len(views) == min(
            count, frames.SURVEY_FRAMES[0]
        )


MEMORY = """
import re, sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from specimens import bank_of, generator
from styleaug.transforms.augment import StyleAugment
torch.set_num_threads(1)
for dtype in (torch.float16, torch.int16):
    whole = torch.rand(1, 160, 1, 512, 512, dtype=torch.float16).mul_(1000).to(dtype)
    network = generator("reinhard-rgb")
    augment = StyleAugment(bank_of(network), generator=network, p=1.0, value_range={value_range})
    augment(whole[:, :2, :, :32, :32])
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew, at what is held now
    read = lambda name: int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
    before = read("VmRSS")
    styled = augment(whole)
    print((read("VmHWM") - before) / 1024, whole.nbytes / 2**20)
    del styled
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_a_volume_is_never_float_as_a_whole():
    script = MEMORY.format(tests=str(Path(__file__).parent), value_range="(0, 1000)")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        added, size = map(float, re.split(r"\s+", line.strip()))
        # The result, and some slices: 1 to 1.6 times its size, and once 2.3, in CI, of unknown cause. Held
        # whole as float32 it would be more than 3 in one channel and 7 in three.
        assert size == 80 and added < 3 * size, done.stdout
