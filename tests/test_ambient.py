"""What a program sets for torch as a whole changes nothing, and spoils nothing for afterwards."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from threading import Barrier
from typing import Any

import pytest
import torch
from specimens import bank_of, photos, tiny_adain, tiny_patchswap, tiny_photo
from torch import Tensor

from styleaug import StyleAugment, StyleBank, load_bank, load_generator, weights
from styleaug.generators.ambient import as_usual, float32
from styleaug.generators.base import AbstractGenerator

NAMES = ["reinhard-rgb", "photo", "adain", "randstainna", "patchswap"]
SLOW = ["adain", "patchswap"]
"""Large networks, which are tried in fewer surroundings; tiny ones of their kinds in all."""


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SURROUNDINGS: dict[str, Callable[[], Any]] = {
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "gradients off": lambda: torch.set_grad_enabled(False),
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "default device": lambda: default_device("meta"),
    "device context": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "deterministic": deterministic,
}
FEW = ["inference mode", "float64", "device context", "autocast"]
CASES = [(name, kind) for name in NAMES for kind in (FEW if name in SLOW else SURROUNDINGS)]


@pytest.fixture
def unloaded() -> Callable[[], None]:
    """Forget what was loaded by name."""

    def forget() -> None:
        for once in (weights.named_generator, weights.tissue_generator, weights.named_bank):
            once.cache_clear()

    forget()
    return forget


def restyle(styles: Any, generator: Any, images: Tensor, **options: Any) -> tuple[StyleAugment, Tensor]:
    torch.manual_seed(3)
    augment = StyleAugment(styles, generator=generator, p=1.0, strength=(0.5, 1.0), **options)
    return augment, augment(images)


def differentiates(augment: StyleAugment, images: Tensor) -> bool:
    given = images.clone().requires_grad_()
    params = augment.make_params(given)
    augment.apply(given, params, differentiable=True).sum().backward()
    return given.grad is not None and bool(given.grad.isfinite().all())


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_what_is_first_loaded_there_is_as_elsewhere(name, kind, unloaded):
    images = photos(2, 24, 24)
    styles = bank_of(load_generator(name), 3)
    _, wanted = restyle(styles, name, images)
    unloaded()
    with SURROUNDINGS[kind]():
        augment, found = restyle(styles, name, images)
        network = load_generator(name)
    for value in (*network.parameters(), *network.buffers()):
        assert not value.is_inference() and value.device.type == "cpu"
        assert value.dtype in (torch.float32, torch.int64)
    assert found.dtype == torch.float32 and torch.equal(found, wanted), "the same bits"
    assert differentiates(augment, images)
    assert torch.equal(restyle(styles, name, images)[1], wanted)


TINY: dict[str, Callable[[], AbstractGenerator]] = {
    "adain": tiny_adain,
    "photo": tiny_photo,
    "patchswap": tiny_patchswap,
}


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("kind", SURROUNDINGS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sampler": "mix"},
        {"sampler": "gaussian"},
        {"splice": "fields"},
        {"splice": "halves", "preserve": 0.9},
        {"channels": "independent", "value_range": "auto"},
        {"precision": "bfloat16", "least_side": 40},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_options(name, kind, options):
    images, network = photos(2, 24, 24), TINY[name]()
    styles = bank_of(network, 3)
    _, wanted = restyle(styles, network, images, **options)
    with SURROUNDINGS[kind]():
        _, found = restyle(styles, network, images, **options)
    assert found.dtype == wanted.dtype and torch.equal(found, wanted)


@pytest.mark.parametrize("kind", SURROUNDINGS)
def test_styles_of_the_batch_and_banks(kind, unloaded):
    images = photos(3, 24, 24)
    _, wanted = restyle("batch", "reinhard-lab", images)
    with SURROUNDINGS[kind]():
        augment, found = restyle("batch", "reinhard-lab", images)
        styles: StyleBank = load_bank("art")
    assert torch.equal(found, wanted) and differentiates(augment, images)
    assert not styles.codes.is_inference() and styles.codes.dtype == torch.float32


@pytest.mark.parametrize("kind", SURROUNDINGS)
def test_parameters_made_there_can_be_used_elsewhere(kind):
    images, network = photos(2, 24, 24).requires_grad_(), tiny_adain()
    stylizer = StyleAugment(bank_of(network, 3), generator=network, p=1.0)
    with SURROUNDINGS[kind]():
        params = stylizer.make_params(images)
    stylizer.apply(images, params, differentiable=True).sum().backward()
    assert images.grad is not None


def test_networks_and_banks_that_a_user_made_in_inference_mode():
    images = photos(2, 24, 24)
    with torch.inference_mode():
        network = tiny_adain()
        styles = bank_of(network, 3)
        augment = StyleAugment(styles, generator=network, p=1.0)
        augment(images)
    assert next(network.parameters()).is_inference()
    assert differentiates(augment, images)
    assert differentiates(StyleAugment(styles, generator=network, p=1.0), images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_compiled_in_inference_mode(dtype, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)  # what fails is beside the compiler
    network, images = tiny_adain(), photos(2, 24, 24)
    images = images if dtype.is_floating_point else (images * 255).to(dtype)
    styles = bank_of(network, 3)
    _, wanted = restyle(styles, network, images, compiled=True)
    with torch.inference_mode():
        for given in (images, images.clone()):
            _, found = restyle(styles, network, given, compiled=True)
            assert torch.equal(found, wanted)


@pytest.mark.slow
def test_really_compiled_in_inference_mode():
    images, network = photos(2, 24, 24), tiny_adain()
    styles = bank_of(network, 3)
    with torch.inference_mode():
        augment, found = restyle(styles, network, images.clone(), compiled=True, precision="float32")
    plain = restyle(styles, network, images, precision="float32")[1]
    torch.testing.assert_close(found, plain, atol=1e-4, rtol=0)
    assert torch.equal(augment(images).isfinite(), torch.ones_like(images, dtype=torch.bool))


# Threads and forks


def at_once(count: int, call: Callable[[int], Any]) -> list[Any]:
    """Call from several threads that start together."""
    barrier = Barrier(count)

    def run(number: int) -> Any:
        barrier.wait()
        return call(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


@pytest.mark.parametrize("name", ["reinhard-rgb", "photo", "randstainna", "reinhard-lab-tissue"])
def test_threads_that_load_at_once_get_one_generator(name, unloaded):
    networks = at_once(8, lambda _: load_generator(name))
    assert len({id(network) for network in networks}) == 1


def test_threads_that_stylise_with_one_transform():
    network, images = tiny_adain(), photos(2, 24, 24)
    stylizer = StyleAugment(bank_of(network, 3), generator=network, p=1.0, precision="bfloat16")
    params = [stylizer.draw(2, torch.Generator().manual_seed(seed)) for seed in range(8)]
    found = at_once(8, lambda number: stylizer.apply(images, params[number]))
    for number in range(8):
        assert torch.equal(found[number], stylizer.apply(images, params[number]))
    assert len(stylizer._placed) == 1


def test_threads_leave_the_default_type_as_it_was():
    with default_dtype(torch.float64):

        def enter(_: int) -> list[torch.dtype]:
            seen = []
            for _ in range(200):
                with as_usual():
                    seen.append(torch.get_default_dtype())
            return seen

        assert {dtype for seen in at_once(4, enter) for dtype in seen} == {torch.float32}
        assert torch.get_default_dtype() == torch.float64 and float32.inside == 0


def test_an_error_leaves_everything_as_it_was():
    with default_dtype(torch.float64), torch.device("meta"), torch.inference_mode():
        with pytest.raises(ZeroDivisionError), as_usual(for_autograd=True):
            assert not torch.is_inference_mode_enabled() and torch.zeros(1).dtype == torch.float32
            assert torch.zeros(1).device.type == "cpu"
            1 / 0  # noqa: B018
        assert torch.is_inference_mode_enabled() and torch.zeros(1).dtype == torch.float64
        assert torch.zeros(1).device.type == "meta"
    with torch.no_grad(), as_usual(for_autograd=True):
        assert not torch.is_grad_enabled()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_a_fork_after_loading():
    network, images = tiny_adain(), photos(2, 24, 24)
    augment, wanted = restyle(bank_of(network, 3), network, images)
    with default_dtype(torch.float64):
        child = os.fork()
        if child == 0:
            torch.manual_seed(3)
            os._exit(0 if torch.equal(augment(images), wanted) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("kind", [None, *SURROUNDINGS])
def test_hosts_draw_there_what_they_draw_elsewhere(kind):
    kornia = pytest.importorskip("styleaug.transforms.kornia")
    monai = pytest.importorskip("styleaug.transforms.monai")
    network, images = tiny_photo(), photos(2, 24, 24)
    styles = bank_of(network, 3)
    style = monai.RandStyle(styles, generator=network, prob=1.0)
    batch = kornia.RandomStyle(styles, generator=network, p=1.0)

    def run() -> list[Tensor]:
        style.set_random_state(4)
        torch.manual_seed(4)
        params = batch._param_generator(images.shape)
        return [style(images[0]), *(value for value in params.values() if isinstance(value, Tensor))]

    wanted = run()
    with SURROUNDINGS[kind]() if kind else nullcontext():
        found = run()
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
