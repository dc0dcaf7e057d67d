"""What every generator, sampler and transform keeps to: plain checks, run on each by its own test file.

`GENERATOR_CHECKS`, `SAMPLER_CHECKS` and `TRANSFORM_CHECKS` list them; a new generator, sampler or adapter
is tested by being put through its list.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from specimens import photo, photos
from torch import Tensor

from styleaug.bank import StyleBank
from styleaug.generators.base import AbstractGenerator
from styleaug.samplers import Draw, Sampler, Weighted, sample, slerp

SIZES = [(1, 1), (1, 9), (7, 1), (2, 3), (15, 16), (33, 18)]


def paint(generator: AbstractGenerator, images: Tensor, strength: float = 1.0) -> Tensor:
    """Give `images` the styles of other, fixed pictures."""
    styles = 1 - photos(len(images), 18, 18)
    return generator(images, generator.encode_style(styles), torch.full((len(images),), strength))


def shape_dtype_and_range_are_kept(generator: AbstractGenerator) -> None:
    for height, width in SIZES:
        images = photos(2, height, width)
        for strength in (0.0, 0.5, 1.0):
            painted = paint(generator, images, strength)
            assert painted.shape == images.shape
            assert painted.dtype == torch.float32 and painted.device == images.device
            assert painted.isfinite().all()
            assert painted.min() >= 0 and painted.max() <= 1


def inputs_are_not_modified(generator: AbstractGenerator) -> None:
    images, styles = photos(2), 1 - photos(2, 18, 18)
    codes, strength = generator.encode_style(styles), torch.tensor([0.3, 1.0])
    before = [x.clone() for x in (images, styles, codes, strength)]
    generator(images, codes, strength)
    generator.encode_style(styles)
    for x, y in zip((images, styles, codes, strength), before, strict=True):
        assert torch.equal(x, y)


def full_strength_changes_the_image(generator: AbstractGenerator) -> None:
    images = photos(2)
    assert (paint(generator, images) - images).abs().mean() > 0.01


def strength_zero_is_the_identity(generator: AbstractGenerator) -> None:
    for height, width in SIZES:
        images = photos(2, height, width)
        assert torch.equal(paint(generator, images, 0.0), images)
    extremes = torch.stack([torch.zeros(3, 9, 8), torch.ones(3, 9, 8)])
    assert torch.equal(paint(generator, extremes, 0.0), extremes)


def strength_is_continuous(generator: AbstractGenerator) -> None:
    images, step = photos(2), 1e-3
    for strength in (0.0, 0.1, 0.5, 1 - step):
        moved = paint(generator, images, strength + step) - paint(generator, images, strength)
        assert moved.abs().max() < 20 * step, strength
    changes = [(paint(generator, images, s) - images).abs().mean() for s in (0.0, 0.1, 0.4, 1.0)]
    assert changes == sorted(changes)


def rows_are_independent(generator: AbstractGenerator) -> None:
    images, styles = photos(4, 21, 17), 1 - photos(4, 18, 18)
    codes, strength = generator.encode_style(styles), torch.tensor([0.2, 1.0, 0.0, 0.7])
    painted = generator(images, codes, strength)
    for row in range(4):
        one = slice(row, row + 1)
        torch.testing.assert_close(generator.encode_style(styles[one]), codes[one], atol=1e-4, rtol=1e-4)
        alone = generator(images[one], codes[one], strength[one])
        torch.testing.assert_close(alone, painted[one], atol=1e-5, rtol=0)


def codes_have_their_length(generator: AbstractGenerator) -> None:
    for height, width in SIZES:
        codes = generator.encode_style(photos(3, height, width))
        assert codes.shape == (3, generator.code_length)
        assert codes.dtype == torch.float32 and codes.isfinite().all()


def flat_images_have_finite_codes(generator: AbstractGenerator) -> None:
    flat = torch.tensor([0.0, 1.0, 0.5])[:, None, None, None].expand(3, 3, 9, 10)
    codes = generator.encode_style(flat)
    assert codes.isfinite().all()
    if generator.code_length:  # with one fixed target domain all codes are the empty one
        assert not torch.equal(codes[0], codes[1])
    for images in (flat, photos(3, 9, 10)):
        painted = generator(images, codes, torch.ones(3))
        assert painted.isfinite().all() and painted.min() >= 0 and painted.max() <= 1


def same_calls_give_same_bits(generator: AbstractGenerator) -> None:
    images = photos(3)
    state = torch.get_rng_state()
    assert torch.equal(paint(generator, images), paint(generator, images))
    assert torch.equal(paint(deepcopy(generator), images), paint(generator, images))
    assert torch.equal(torch.get_rng_state(), state), "a generator must not draw random numbers"


def nothing_is_kept_for_gradients(generator: AbstractGenerator) -> None:
    assert not any(p.requires_grad for p in generator.parameters())
    assert not generator.training
    assert not paint(generator, photos(1)).requires_grad


def memory_layout_does_not_matter(generator: AbstractGenerator) -> None:
    images = photos(2, 20, 28)
    wanted = paint(generator, images)
    for same in (images.contiguous(memory_format=torch.channels_last), images.transpose(2, 3).clone().mT):
        torch.testing.assert_close(paint(generator, same), wanted, atol=1e-5, rtol=0)


def settings_rebuild_the_generator(generator: AbstractGenerator) -> None:
    if not generator.settings():  # a colour generator is made again by name
        return
    again = type(generator).from_settings(generator.settings())
    assert again.code_length == generator.code_length
    again.load_state_dict(generator.state_dict())
    assert again.fingerprint == generator.fingerprint


def fingerprint_is_stable(generator: AbstractGenerator) -> None:
    assert len(generator.fingerprint) == 16 and int(generator.fingerprint, 16) >= 0
    copy = deepcopy(generator)
    assert copy.fingerprint == generator.fingerprint
    copy.to(memory_format=torch.channels_last)
    assert copy.fingerprint == generator.fingerprint
    for weight in copy.parameters():
        weight.data += 0.01
        assert copy.fingerprint != generator.fingerprint
        break


GENERATOR_CHECKS: list[Callable[[AbstractGenerator], None]] = [
    shape_dtype_and_range_are_kept,
    inputs_are_not_modified,
    full_strength_changes_the_image,
    strength_zero_is_the_identity,
    strength_is_continuous,
    rows_are_independent,
    codes_have_their_length,
    flat_images_have_finite_codes,
    same_calls_give_same_bits,
    nothing_is_kept_for_gradients,
    memory_layout_does_not_matter,
    settings_rebuild_the_generator,
    fingerprint_is_stable,
]


def draw(kind: Sampler | type[Weighted], codes: Tensor, count: int, seed: int | None = 0) -> Draw:
    """Draw with weights filled in where they are needed."""
    rng = None if seed is None else torch.Generator().manual_seed(seed)
    sampler = Weighted(torch.arange(1.0, len(codes) + 1)) if isinstance(kind, type) else kind
    return sample(sampler, codes, count, rng)


def draws_have_the_codes_shape(kind: Sampler) -> None:
    for styles, length, count in [(5, 7, 4), (1, 7, 3), (5, 0, 2), (5, 7, 0), (2, 1, 1)]:
        codes = torch.rand(styles, length)
        before = codes.clone()
        drawn = draw(kind, codes, count)
        assert drawn.codes.shape == (count, length) and drawn.codes.dtype == torch.float32
        assert drawn.codes.isfinite().all()
        assert torch.equal(codes, before)


def draws_stay_within_the_bank(kind: Sampler) -> None:
    codes = torch.randn(6, 4)
    drawn = draw(kind, codes, 200).codes
    if kind == "slerp":  # it leaves the convex hull, but not the shell between the norms
        norms = codes.norm(dim=1)
        assert (drawn.norm(dim=1) >= norms.min() - 1e-5).all()
        assert (drawn.norm(dim=1) <= norms.max() + 1e-5).all()
        return
    assert (drawn >= codes.amin(0) - 1e-5).all() and (drawn <= codes.amax(0) + 1e-5).all()


def sources_and_shares_make_the_codes(kind: Sampler) -> None:
    codes = torch.randn(6, 4)
    drawn = draw(kind, codes, 50)
    assert drawn.sources.shape == drawn.shares.shape and len(drawn.sources) == 50
    if drawn.sources.shape[1]:
        assert drawn.sources.min() >= 0 and drawn.sources.max() < 6
        assert drawn.shares.min() >= 0
        torch.testing.assert_close(drawn.shares.sum(1), torch.ones(50))
        made = (drawn.shares[:, :, None] * codes[drawn.sources]).sum(1)
        if kind == "slerp":  # not a sum of its sources: the second's share is how far it went
            made = slerp(*codes[drawn.sources].unbind(1), drawn.shares[:, 1])
        torch.testing.assert_close(made, drawn.codes)


def draws_follow_the_seed(kind: Sampler) -> None:
    codes = torch.randn(64, 4)
    assert torch.equal(draw(kind, codes, 9, seed=1).codes, draw(kind, codes, 9, seed=1).codes)
    assert not torch.equal(draw(kind, codes, 9, seed=1).codes, draw(kind, codes, 9, seed=2).codes)
    torch.manual_seed(3)
    first = draw(kind, codes, 9, seed=None).codes
    assert not torch.equal(first, draw(kind, codes, 9, seed=None).codes)
    torch.manual_seed(3)
    assert torch.equal(first, draw(kind, codes, 9, seed=None).codes)
    state = torch.get_rng_state()
    draw(kind, codes, 9, seed=1)
    assert torch.equal(torch.get_rng_state(), state), "a given generator is the only one drawn from"


SAMPLER_CHECKS: list[Callable[[Sampler], None]] = [
    draws_have_the_codes_shape,
    draws_stay_within_the_bank,
    sources_and_shares_make_the_codes,
    draws_follow_the_seed,
]


MakeTransform = Callable[..., Any]
"""Takes a bank, `generator`, `p`, `strength`; gives a transform of tensors `(C, H, W)` or `(B, C, H, W)`."""


def p_zero_gives_the_same_object(make: MakeTransform, bank: StyleBank, network: AbstractGenerator) -> None:
    images = photos(3)
    assert make(bank, generator=network, p=0.0)(images) is images


def p_is_the_share_of_rows(make: MakeTransform, bank: StyleBank, network: AbstractGenerator) -> None:
    images = photos(1, 2, 2).repeat(400, 1, 1, 1)
    changed = (make(bank, generator=network, p=0.3)(images) != images).flatten(1).any(1)
    assert 0.2 < changed.float().mean() < 0.4


def a_seed_gives_the_same_images(make: MakeTransform, bank: StyleBank, network: AbstractGenerator) -> None:
    augment, images = make(bank, generator=network, p=0.5), photos(6)
    torch.manual_seed(1)
    first, second = augment(images), augment(images)
    torch.manual_seed(1)
    assert torch.equal(augment(images), first)
    assert torch.equal(augment(images), second)
    assert not torch.equal(first, second)


def each_row_has_its_own_style(make: MakeTransform, bank: StyleBank, network: AbstractGenerator) -> None:
    images = photo(16, 16)[None].repeat(8, 1, 1, 1)
    styled = make(bank, generator=network, p=1.0, strength=(0.2, 1.0))(images)
    assert len({row.numpy().tobytes() for row in styled}) == 8
    alike = make(bank.select([0]), generator=network, p=1.0, strength=0.7)(images)
    torch.testing.assert_close(alike, alike[:1].expand_as(alike), atol=1e-5, rtol=0)


def the_input_is_kept(make: MakeTransform, bank: StyleBank, network: AbstractGenerator) -> None:
    for images in (photo(), photos(3), (photos(3) * 255).byte()):
        before = images.clone()
        make(bank, generator=network, p=1.0)(images)
        assert torch.equal(images, before)


TRANSFORM_CHECKS: list[Callable[[MakeTransform, StyleBank, AbstractGenerator], None]] = [
    p_zero_gives_the_same_object,
    p_is_the_share_of_rows,
    a_seed_gives_the_same_images,
    each_row_has_its_own_style,
    the_input_is_kept,
]
