"""The transform that every adapter delegates to: whatever comes in comes back, with other pixels."""

import pickle
from copy import deepcopy

import numpy as np
import pytest
import torch
from contract import TRANSFORM_CHECKS
from hypothesis import given
from hypothesis import strategies as st
from specimens import GENERATORS, Spy, bank, bank_of, generator, photo, photos, pil
from strategies import INTEGERS, arrays, lay_out, pil_images, random_tensor, seeds, shares, tensors
from torch import Tensor, nn

from styleaug import ConfigError, StyleAugment, Weighted, load_generator
from styleaug.generators.adain import AdaIN
from styleaug.images import from_float
from styleaug.transforms.params import StyleParams
from styleaug.weights import save_generator


def tiny(make: type = StyleAugment, **options):
    """Make a transform over the tiny AdaIN that stylises all rows."""
    options = {"p": 1.0, "generator": generator("tiny-adain"), **options}
    return make(options.pop("bank", bank()), **options)


def spied(**options) -> tuple[StyleAugment, Spy]:
    spy = Spy()
    return StyleAugment(bank_of(spy), generator=spy, **options), spy


def unit(image: Tensor) -> Tensor:
    """Scale any dtype to [0, 1]."""
    return image.double() / INTEGERS.get(image.dtype, 1)


def bits(image: Tensor) -> bytes:
    return image.contiguous().view(torch.uint8).numpy().tobytes() if image.numel() else b""


@pytest.mark.parametrize("check", TRANSFORM_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", GENERATORS)
def test_contract(name, check):
    check(StyleAugment, bank(name), generator(name))


@given(image=tensors(), seed=seeds)
def test_tensors_come_back_as_they_came(image, seed):
    augment, before = tiny(), image.clone()
    torch.manual_seed(seed)
    styled = augment(image)
    assert type(styled) is Tensor and styled is not image
    assert (styled.shape, styled.dtype, styled.device) == (image.shape, image.dtype, image.device)
    assert styled.stride() == before.stride(), "the memory format is the one that `clone` keeps"
    assert bits(image) == bits(before)
    values = unit(styled)
    assert values.isfinite().all() and values.min() >= 0 and values.max() <= 1
    torch.manual_seed(seed)
    assert bits(augment(image)) == bits(styled)


@given(image=tensors(axes=(5,), most_rows=3))
def test_frames_share_their_rows_style(image):
    augment = tiny(strength=(0.1, 1.0))
    params = augment.make_params(image)
    assert params["rows"].tolist() == list(range(len(image)))
    styled = augment.apply(image, params)
    assert styled.shape == image.shape and styled.dtype == image.dtype
    still = image[:, :1].expand(-1, 3, -1, -1, -1).contiguous()  # its statistics are those of one frame
    alone = augment.apply(image[:, 0], params)
    for frame in augment.apply(still, params).unbind(1):
        torch.testing.assert_close(unit(alone), unit(frame), atol=1e-2, rtol=0)


@given(image=arrays())
def test_arrays_come_back_as_they_came(image):
    before = image.copy()
    augment = tiny()
    styled = augment.apply(image, augment.make_params(image))
    assert isinstance(styled, np.ndarray) and styled.shape == image.shape
    assert styled.dtype == image.dtype.newbyteorder("=")
    assert np.array_equal(image, before)


@given(image=pil_images())
def test_pil_images_come_back_as_they_came(image):
    before = image.copy()
    styled = tiny()(image)
    assert (styled.mode, styled.size) == (image.mode, image.size)
    assert image.tobytes() == before.tobytes()
    if "A" in image.getbands():
        assert styled.getchannel("A").tobytes() == image.getchannel("A").tobytes()


def test_pil_styling_is_that_of_tensors():
    augment = tiny()
    image = pil("RGB")
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    params = augment.make_params(image)
    styled = augment.apply(tensor, params)
    assert np.array_equal(np.asarray(augment.apply(image, params)), styled.permute(1, 2, 0).numpy())
    assert not torch.equal(styled, tensor)


@given(
    image=tensors(axes=(4,), most_rows=6),
    p=shares,
    ends=st.tuples(shares, shares),
    sampler=st.sampled_from(["uniform", "mix", "gaussian", "weighted", "slerp", "batch"]),
    seed=seeds,
)
def test_replay_is_exact_and_other_rows_are_untouched(image, p, ends, sampler, seed):
    kind = {"bank": "batch"} if sampler == "batch" else {"sampler": sampler}
    if sampler == "weighted":
        kind = {"sampler": Weighted([1, 2, 0, 1, 5])}
    if sampler == "batch":
        kind["generator"] = None
    augment = tiny(p=p, strength=sorted(ends), **kind)
    params = augment.make_params(image, rng=torch.Generator().manual_seed(seed))
    styled = augment.apply(image, params)
    assert bits(augment.apply(image, params)) == bits(styled)
    assert bits(pickle.loads(pickle.dumps(augment)).apply(image, params)) == bits(styled)
    torch.manual_seed(seed)
    assert bits(augment(image)) == bits(styled)
    picked = set(params["rows"].tolist())
    for row in range(len(image)):
        if row not in picked:
            assert bits(styled[row]) == bits(image[row])
    if not picked:
        assert styled is image


@given(count=st.integers(0, 30), p=shares, seed=seeds)
def test_only_picked_rows_are_computed(count, p, seed):
    augment, spy = spied(p=p)
    spy.encoded = 0
    images = random_tensor((count, 3, 4, 5), torch.uint8, seed)
    params = augment.make_params(images)
    styled = augment.apply(images, params)
    assert spy.rows == len(params["rows"])
    if len(params["rows"]):
        torch.testing.assert_close(torch.cat(spy.seen), images[params["rows"]] / 255)
    assert spy.encoded == 0, "a bank's codes need no encoder"
    assert styled.shape == images.shape


def test_batches_larger_than_a_chunk_are_styled_whole(monkeypatch):
    monkeypatch.setattr("styleaug.transforms.augment.CPU_CHUNK_PIXELS", 3 * 24 * 32)
    images, (augment, spy) = photos(8), spied(p=1.0, strength=1.0)
    torch.testing.assert_close(augment(images), 1 - images)
    assert [len(seen) for seen in spy.seen] == [3, 3, 2]


def test_strength_is_drawn_per_row_from_its_range():
    augment, images = tiny(strength=(0.25, 0.75)), torch.rand(500, 1, 2, 2)
    strength = augment.make_params(images)["strength"]
    assert strength.min() >= 0.25 and strength.max() <= 0.75
    assert len(strength.unique()) > 400 and abs(strength.mean() - 0.5) < 0.05
    assert tiny(strength=0.3).make_params(images)["strength"].unique().tolist() == [pytest.approx(0.3)]


def test_strength_zero_gives_the_pixels_back():
    for images in (photos(2), (photos(2) * 255).byte()):
        assert torch.equal(tiny(strength=0.0)(images), images)


def test_batch_mode_takes_styles_from_other_rows():
    augment, images = StyleAugment("batch", p=1.0, strength=1.0), photos(6)
    params = augment.make_params(images)
    assert params["codes"] is None
    sources = params["sources"][:, 0]
    assert (sources != params["rows"]).all()
    lab = generator("reinhard-lab")
    wanted = lab(images, lab.encode_style(images[sources]), torch.ones(6))
    torch.testing.assert_close(augment.apply(images, params), wanted)
    alone = augment(images[:1])
    torch.testing.assert_close(alone, images[:1], atol=2e-3, rtol=0)


def test_batch_mode_refuses_what_it_cannot_use():
    for options in ({"sampler": "mix"}, {"sampler": Weighted([1, 2])}):
        with pytest.raises(ConfigError, match="leave out sampler"):
            StyleAugment("batch", **options)


def test_batch_mode_encodes_each_source_once():
    spy = Spy()
    augment = StyleAugment("batch", generator=spy, p=1.0)
    augment.apply(photos(4), {**augment.draw(4), "sources": torch.tensor([[1], [0], [1], [1]])})
    assert spy.encoded == 2


def test_grey_stays_grey_and_changes():
    grey = photos(2, channels=1)
    styled = tiny(strength=1.0)(grey)
    assert styled.shape == grey.shape and (styled - grey).abs().mean() > 0.01


def test_channels_last_batches_stay_so():
    images = photos(4, 40, 40).contiguous(memory_format=torch.channels_last)
    assert tiny()(images).is_contiguous(memory_format=torch.channels_last)
    assert tiny()(images.contiguous()).is_contiguous()
    torch.testing.assert_close(
        tiny(strength=1.0, bank=bank().select([0]))(images),
        tiny(strength=1.0, bank=bank().select([0]))(lay_out(images, "contiguous").contiguous()),
        atol=1e-5,
        rtol=0,
    )


def test_carries_no_state():
    augment = tiny()
    augment(photos(2))
    assert not augment.state_dict()
    assert not list(augment.parameters()) and not list(augment.buffers())
    network = generator("tiny-adain")
    assert not any(module is network for module in augment.modules())
    augment.train()
    assert not network.training
    augment.requires_grad_(True)
    assert not any(p.requires_grad for p in network.parameters())
    assert "p=1.0" in repr(augment)


def test_lives_in_a_module_tree():
    touched = []
    nn.Sequential(nn.Conv2d(3, 3, 1), tiny()).apply(touched.append)
    assert any(isinstance(module, nn.Conv2d) for module in touched)
    assert any(isinstance(module, StyleAugment) for module in touched)


def test_copies_are_alike_and_apart():
    augment, images = tiny(p=0.5), photos(4)
    augment(images)
    for copy in (deepcopy(augment), pickle.loads(pickle.dumps(augment))):
        torch.manual_seed(5)
        wanted = augment(images)
        torch.manual_seed(5)
        assert torch.equal(copy(images), wanted)


def test_a_generator_known_by_path_is_not_copied_with_the_transform(tmp_path):
    path = save_generator(AdaIN(), tmp_path / "g.safetensors")
    augment = StyleAugment(bank_of(load_generator(path)), generator=path)
    augment(photos(2))
    assert len(pickle.dumps(augment)) < 20_000
    images = photos(2)
    params = augment.make_params(images)
    assert torch.equal(
        pickle.loads(pickle.dumps(augment)).apply(images, params), augment.apply(images, params)
    )


def test_gradients_do_not_flow_through_it_but_through_the_model():
    images = photos(2).requires_grad_()
    styled = tiny()(images)
    assert not styled.requires_grad and images.grad is None
    model = nn.Conv2d(3, 2, 3)
    model(styled).square().mean().backward()
    assert model.weight.grad is not None and model.weight.grad.abs().sum() > 0
    assert StyleAugment(bank(), generator=generator("tiny-adain"), p=0.0)(images) is images


def test_under_inference_mode_and_autocast():
    augment, images = tiny(), photos(2)
    params = augment.make_params(images)
    wanted = augment.apply(images, params)
    with torch.inference_mode():
        torch.testing.assert_close(augment.apply(images, params), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        styled = augment.apply(images, params)
    assert styled.dtype == torch.float32
    torch.testing.assert_close(styled, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.uint16])
def test_every_dtype_is_computed_in_float32(dtype):
    augment, images = tiny(), random_tensor((2, 3, 20, 20), dtype, 0)
    params = augment.make_params(images)
    wanted = augment.apply(unit(images).float(), params).double()
    steps = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.uint8: 1 / 255, torch.uint16: 1 / 65535}
    torch.testing.assert_close(
        unit(augment.apply(images, params)), wanted, atol=steps.get(dtype, 1e-6), rtol=0
    )


def test_empty_batches_pass():
    empty = torch.rand(0, 3, 8, 8)
    assert tiny()(empty) is empty


def test_one_image_at_a_time_is_the_batch():
    augment = tiny(strength=(0.2, 1.0))
    images = photos(4)
    params = augment.make_params(images)
    styled = augment.apply(images, params)
    for row in range(4):
        one = {key: value[row : row + 1] for key, value in params.items() if key not in ("rows", "fields")}
        alone = augment.apply(photo(seed=row), {**one, "rows": torch.tensor([0]), "fields": None})
        torch.testing.assert_close(alone, styled[row], atol=1e-5, rtol=0)


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [1, 2], [3], [0, 2], [2, 0], [0, 0, 2], [3, 2, 1, 0]])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_any_rows_in_any_order(rows, dtype):
    """Rows that count up by one are taken as a slice, others are not; nobody can tell."""
    stylizer = StyleAugment(bank("reinhard-rgb"), p=1.0, strength=0.7)
    images = from_float(photos(4, 9, 11), dtype)
    code = stylizer.draw(1)["codes"].expand(len(rows), -1)  # alike, as a row may stand there twice
    strength, none = torch.full((len(rows),), 0.7), torch.empty(len(rows), 0)
    params = StyleParams(
        rows=torch.tensor(rows), strength=strength, codes=code, sources=none.long(), shares=none, fields=None
    )
    styled = stylizer.apply(images, params)
    for row in range(4):
        alone = {**params, "rows": torch.tensor([0]), "codes": code[:1], "strength": strength[:1]}
        wanted = stylizer.apply(images[row], alone) if row in rows else images[row]
        torch.testing.assert_close(styled[row].float(), wanted.float(), atol=1e-5, rtol=0)
