"""What adapters share: joined draws, seeds, gradients through the core, errors in the host's words."""

import pytest
import torch
from specimens import GENERATORS, bank_of, generator, photos

from styleaug import ConfigError, DeviceError, ImageError, Splice
from styleaug.transforms.augment import StyleAugment
from styleaug.transforms.host import advised, needs_no_other_inputs, rng_from, seed_from
from styleaug.transforms.params import join


def stylizer(name: str = "reinhard-rgb", **options) -> StyleAugment:
    network = generator(name)
    return StyleAugment(bank_of(network), generator=network, **{"p": 1.0, **options})


@pytest.mark.parametrize("options", [{}, {"splice": Splice("fields", parts=3)}, {"sampler": "mix"}])
def test_rows_drawn_by_themselves_are_joined_to_a_batch(options):
    core, images = stylizer(**options), photos(4)
    rows = [core.draw(1, rng_from(seed)) for seed in range(4)]
    together = core.apply(images, join(rows))
    for image, row, styled in zip(images, rows, together, strict=True):
        torch.testing.assert_close(core.apply(image, row), styled, atol=1e-5, rtol=0)
    assert not torch.equal(together, images)


def test_rows_that_are_not_picked_stay_out_of_the_joined_batch():
    core, images = stylizer(p=0.5), photos(8)
    rows = [core.draw(1, rng_from(seed)) for seed in range(8)]
    picked = [index for index, row in enumerate(rows) if len(row["rows"])]
    joined = join(rows)
    assert 0 < len(picked) < 8 and joined["rows"].tolist() == picked
    changed = (core.apply(images, joined) != images).flatten(1).any(1).nonzero()[:, 0]
    assert changed.tolist() == picked


def test_seeds_are_the_same_everywhere():
    # Written down: manifests of earlier runs name copies that were drawn with them.
    assert seed_from(0, 1, "a/b.jpg") == 3698524641694668844
    assert seed_from(1, 2) == seed_from("1", "2") != seed_from(12)
    assert all(0 <= seed_from(n) < 2**63 for n in range(200))


@pytest.mark.parametrize("name", GENERATORS)
def test_gradients_pass_where_asked(name):
    core = stylizer(name, strength=0.5)
    images = photos(2, 16, 16).requires_grad_()
    params = core.make_params(images, rng=rng_from(0))
    plain = core.apply(images, params)
    assert not plain.requires_grad
    styled = core.apply(images, params, differentiable=True)
    torch.testing.assert_close(styled.detach(), plain, atol=1e-5, rtol=0)
    (gradient,) = torch.autograd.grad(styled.square().mean(), images)
    assert gradient.isfinite().all() and gradient.abs().max() > 0
    with torch.no_grad():
        assert not core.apply(images, params, differentiable=True).requires_grad


def test_gradients_are_those_of_the_generator():
    core, network = stylizer(strength=0.7), generator("reinhard-rgb")
    images = (0.4 + 0.2 * photos(3, 16, 16)).requires_grad_()  # where nothing is clamped
    params = core.make_params(images, rng=rng_from(0))
    styled = core.apply(images, params, differentiable=True)
    assert params["codes"] is not None
    direct = network(images, params["codes"], params["strength"])
    for wanted, found in zip(
        torch.autograd.grad(direct.square().sum(), images),
        torch.autograd.grad(styled.square().sum(), images),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)


def test_a_row_that_is_not_picked_has_the_identity_for_a_gradient():
    core = stylizer(p=0.5)
    images = photos(6, 8, 8).requires_grad_()
    params = core.make_params(images, rng=rng_from(1))
    (gradient,) = torch.autograd.grad(core.apply(images, params, differentiable=True).sum(), images)
    left = [row for row in range(6) if row not in params["rows"]]
    assert left and (gradient[left] == 1).all() and not (gradient == 1).all()


def test_errors_end_with_the_hosts_words():
    words = {"images": "Put it before K.Normalize.", "device": "Use ThreadDataLoader."}
    core, params = stylizer(), stylizer().draw(1)
    with (
        pytest.raises(ImageError, match=r"Stylise before Normalize.*before K\.Normalize\.$"),
        advised(**words),
    ):
        core.apply(photos(1) * 3, params)
    with pytest.raises(DeviceError, match=r"^no cuda here\. Use ThreadDataLoader\.$"), advised(**words):
        raise DeviceError("no cuda here.")
    with pytest.raises(ConfigError, match=r"^as it was$"), advised(images="advice"):
        raise ConfigError("as it was")


@pytest.mark.parametrize(("bank", "options"), [("batch", {}), (None, {"splice": "mask"})])
def test_options_that_need_other_images_are_refused(bank, options):
    core = StyleAugment(bank, **options) if bank else stylizer(**options)
    with pytest.raises(ConfigError, match=r"in MONAI|and MONAI hands over one at a time"):
        needs_no_other_inputs(core, "MONAI")
    assert needs_no_other_inputs(stylizer(), "MONAI")
