"""What a GPU would do with our code, on a machine without one: see `pretend_cuda`.

Devices, dtypes and shapes are right, no two devices meet, and in the hot path the host waits for nothing.
Where it may wait is listed here by name.
"""

from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kornia.augmentation import AugmentationSequential
from pretend_cuda import CUDA, Generator, HostWaits, PretendCuda, Race
from specimens import GENERATORS, TINY, bank, generator, photos
from test_timm import host
from torch import Tensor
from workshop import RECIPES, loss_networks, tiny, two_sides

import styleaug.transforms.augment as augment_module
import styleaug.transforms.placement as placement
from styleaug import (
    ConfigError,
    DeviceError,
    Mix,
    OneOf,
    Preserve,
    Splice,
    StyleAugment,
    StyleLoader,
    StyleNormalize,
    Weighted,
    load_generator,
)
from styleaug.generators.base import AbstractGenerator
from styleaug.training import losses
from styleaug.training.data import TrainingData
from styleaug.training.fabric import make_fabric
from styleaug.training.loop import Training
from styleaug.training.recipes import make_recipe
from styleaug.transforms.blends import BLENDS
from styleaug.transforms.kornia import RandomStyle
from styleaug.transforms.timm import StylePrefetchLoader
from styleaug.weights import COLOR_GENERATORS, bank_names

PLACED = {"place": "a network is copied to each device once, before its first batch"}
TRAINED = PLACED | {
    "AbstractRecipe.setup": "networks are copied once, before the first step",
    "PerceptualRecipe.prepare": "so are the loss networks; the statistics of styles are read once",
    "AbstractAdversarial.hold_back": 'diffaugment="auto": the share for the next step is drawn on the host',
    "GradScaler.step": "16-mixed: torch asks whether the gradients are finite before it takes the step",
    "GradScaler.unscale_": "16-mixed: torch makes the scale, once",
    "GradScaler.update": "the same",
}
"""Functions in which the host may wait for the device, and why. Everywhere else it is an error."""

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
DTYPES = [torch.uint8, torch.uint16, *FLOATS]

every_float = pytest.mark.parametrize("dtype", FLOATS, ids=str)


@pytest.fixture
def pretended():
    with PretendCuda(PLACED) as pretend:
        yield pretend


def batch(dtype: torch.dtype = torch.uint8, shape: tuple[int, ...] = (5, 3, 24, 32)) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda")


def assert_alike(styled: Tensor, images: Tensor) -> None:
    assert styled.device == CUDA and styled.dtype == images.dtype and styled.shape == images.shape


def assert_styles(transform: Any, images: Tensor | None = None, **options: Any) -> None:
    """Style a batch with rows that are picked, on the device and without waiting."""
    images = batch() if images is None else images
    params = transform.make_params(images)
    assert len(params["rows"]) and all(x.device.type == "cpu" for x in params.values() if x is not None)
    styled = transform.apply(images, params, **options)
    assert styled is not images
    assert_alike(styled, images)


def adain(**options: Any) -> StyleAugment:
    return StyleAugment(bank("tiny-adain"), generator=generator("tiny-adain"), **{"p": 0.7, **options})


# The double itself: what it finds.


def test_the_double_leaves_nothing_behind():
    there = torch.cuda.is_available(), torch.cuda.Stream, Tensor.pin_memory
    with PretendCuda(), torch.inference_mode():
        assert torch.cuda.is_available()
        torch.rand(3, 3, device="cuda").to(torch.float64) @ torch.rand(3, 3, device="cuda").double()
    assert there == (torch.cuda.is_available(), torch.cuda.Stream, Tensor.pin_memory)
    assert torch.ones(2).numpy().sum() == 2


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: float(x[0, 0]),
        lambda x: bool(x.any()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu", non_blocking=True),
        lambda x: torch.zeros(2, 3).copy_(x),
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: x[x > 0],
        lambda x: x[torch.tensor([0])],
        lambda x: x.__setitem__(x > 0, x.new_ones(6)),
        lambda x: torch.equal(x, x),
        lambda x: torch.ones(2, 3).to(x.device),
        lambda x: x.new_tensor([1.0, 2.0]),
        lambda x: torch.tensor([1.0], device=x.device),
        lambda x: torch.linalg.inv(x[:, :2]),
        lambda x: torch.linalg.eigh(x[:, :2]),
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_the_double_notices_each_way_to_wait(wait, inference):
    with PretendCuda() as pretend, torch.inference_mode(inference):
        images = torch.rand(2, 3, device="cuda")
        with pytest.raises(HostWaits):
            wait(images)
        with pytest.raises(RuntimeError, match="same device"):
            images + torch.ones(2, 3)
        with pytest.raises(RuntimeError, match="same device"):
            F.linear(images, torch.ones(4, 3))
        assert torch.rand(3).sum().item() > 0  # the CPU's are numbers
        assert (images + 1.0).device == CUDA and (images * torch.tensor(2.0)).device == CUDA
        assert not pretend.waits


def test_the_double_lets_listed_functions_wait():
    def listed(x: Tensor) -> float:
        return float(x.sum())

    with PretendCuda({listed.__qualname__: "because"}) as pretend:
        assert listed(torch.rand(3, device="cuda")) == 0.0
        assert pretend.waits == {listed.__qualname__}


def test_the_double_notices_races():
    with PretendCuda() as pretend:
        side, made = torch.cuda.Stream(), torch.ones(3, device="cuda")
        with torch.cuda.stream(side), pytest.raises(Race, match="does not wait"):
            made + 1
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), pytest.raises(Race, match="record_stream"):
            made + 1
        made.record_stream(side)
        with torch.cuda.stream(side):
            later = made + 1
            event = side.record_event()
        with pytest.raises(Race, match="does not wait"):
            later + 1
        pretend.main.wait_event(event)
        with torch.cuda.stream(side):
            last = made + 1
        with pytest.raises(Race, match="does not wait"):  # made after the event
            last + 1


# Generators.


SOME = [
    "reinhard-lab",
    "histogram",
    "fourier",
    "fourier-full",
    "macenko",
    "randstainna",
    "gin",
    "tone-curves",
]
"""The others in half precision are slow tests."""

EACH = [
    pytest.param(name, dtype, marks=[pytest.mark.slow] * (dtype != torch.float32 and name not in SOME))
    for name in GENERATORS
    for dtype in FLOATS
]


def taken(network: AbstractGenerator, dtype: torch.dtype) -> bool:
    """Return whether a generator takes images of this type, which is found out on the CPU."""
    images = photos(2).to(dtype)
    try:
        network(images, network.encode_style(images.float()), torch.ones(2))
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize(("name", "dtype"), EACH)
def test_generators(name, dtype, pretended):
    network = generator(name)
    if not taken(network, dtype):
        assert name in TINY and dtype != torch.float32
        pytest.skip(f"{name} takes no {dtype} images; transforms give it float32")
    network = placement.place(network, CUDA, bfloat16=False)
    images, strength = batch(dtype, (3, 3, 30, 20)), torch.rand(3, device="cuda")
    codes = network.encode_style(batch(dtype, (3, 3, 18, 25)))
    assert codes.device == CUDA and codes.shape == (3, network.code_length) and codes.dtype != torch.float64
    assert_alike(network(images, codes, strength), images)


@pytest.mark.parametrize("name", [*TINY, "macenko", "reinhard-lab", "fourier-full", "gin"])
def test_generators_in_bfloat16_and_autocast(name, pretended):
    network = placement.place(generator(name), CUDA, bfloat16=True)
    short = {x.dtype for x in network.parameters()} == {torch.bfloat16}
    assert short == (generator(name).takes_bfloat16 and any(True for _ in network.parameters()))
    images, strength = batch(torch.float32, (3, 3, 30, 20)), torch.rand(3, device="cuda")
    assert_alike(network(images, network.encode_style(images), strength), images)
    network = placement.place(generator(name), CUDA, bfloat16=False)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cuda", dtype):
            assert_alike(network(images, network.encode_style(images), strength), images)


@pytest.mark.parametrize("name", COLOR_GENERATORS)
def test_color_generators_may_stay_where_they_are_made(name):
    with PretendCuda({"FullFourier.grid": "the nodes", "FullFourier.encode_style": "the nodes"}):
        network, images = COLOR_GENERATORS[name](), batch(torch.float32)
        assert_alike(network(images, network.encode_style(images), torch.rand(5, device="cuda")), images)


@pytest.mark.slow
@pytest.mark.parametrize("name", bank_names())
def test_shipped_banks(name, pretended):
    assert_styles(StyleAugment(name, p=0.7), batch(shape=(3, 3, 224, 224)))


# StyleAugment.


@pytest.mark.parametrize("name", GENERATORS)
def test_style_augment(name, pretended):
    assert_styles(StyleAugment(bank(name), generator=generator(name), p=0.7))
    if generator(name).code_length and not generator(name).has_prior:
        assert_styles(StyleAugment("batch", generator=generator(name), p=0.7))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["tiny-adain", "gin"])
def test_images_of_every_type(name, dtype, pretended):
    assert_styles(StyleAugment(bank(name), generator=generator(name), p=0.7), batch(dtype))


def protect(images: Tensor) -> Tensor:
    return (images.mean(dim=1, keepdim=True) > 0.5).to(images)


OPTIONS: dict[str, dict[str, Any]] = {
    "p": {"p": 0.5},
    "p=1": {"p": 1.0},
    "strength": {"strength": (0.2, 0.8)},
    **{f"sampler {name}": {"sampler": name} for name in ("uniform", "mix", "gaussian", "slerp")},
    "sampler Mix": {"sampler": Mix(3)},
    "sampler Weighted": {"sampler": Weighted((1.0, 2.0, 0.0, 1.0, 1.0))},
    **{f"blend {name}": {"blend": name} for name in BLENDS},
    **{f"splice {name}": {"splice": name} for name in ("halves", "fields", "mask")},
    "three parts": {"splice": Splice("fields", parts=3, keep=True)},
    "three parts by a mask": {"splice": Splice("mask", parts=3)},
    "value_range": {"value_range": (0.0, 200.0)},
    "value_range auto": {"value_range": "auto"},
    **{f"channels {name}": {"channels": name} for name in ("auto", "shared", "independent")},
    "preserve": {"preserve": 0.9},
    "protect mask": {"preserve": Preserve(0.5, protect="mask")},
    "protect function": {"preserve": Preserve(0.9, protect=protect)},
    "least_side": {"least_side": 40},
    **{f"precision {name}": {"precision": name} for name in ("auto", "float32", "bfloat16")},
    "all": {
        "strength": (0.5, 1.0),
        "sampler": "mix",
        "blend": "soft-light",
        "splice": "halves",
        "value_range": "auto",
        "channels": "independent",
        "preserve": Preserve(0.9, protect=protect),
        "least_side": 40,
    },
}
SHAPES = {
    "images": (5, 3, 24, 32),
    "grey": (5, 1, 24, 32),
    "six channels": (2, 6, 24, 32),
    "volumes": (2, 4, 1, 24, 32),
    "video": (2, 3, 3, 24, 32),
}


FAST = {("all", "six channels"), ("splice mask", "video"), ("protect function", "volumes"), ("p", "grey")}
SHAPED = [
    "p", "splice halves", "splice mask", "value_range auto", "channels auto", "channels independent",
    "preserve", "protect function", "least_side", "all",
]  # fmt: skip
"""Options that look at more than a row or a pixel, and so meet every shape."""
CASES = [
    pytest.param(name, shape, marks=[pytest.mark.slow] * (shape != "images" and (name, shape) not in FAST))
    for name in OPTIONS
    for shape in SHAPES
    if shape == "images" or name in SHAPED
]


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_options(name, shape, pretended):
    transform, images = adain(**OPTIONS[name]), batch(shape=SHAPES[shape])
    given = {"masks": torch.zeros(len(images), 24, 32, device="cuda").long()} if transform.by_mask else {}
    torch.manual_seed(2)  # rows are picked, and not all
    assert_styles(transform, images, **given)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int16, torch.int32], ids=str)
@pytest.mark.parametrize("value_range", [(-160, 240), "auto"], ids=str)
def test_ranges_of_every_type(dtype, value_range, pretended):
    made = StyleAugment("batch", p=0.7, value_range=value_range, channels="shared")
    assert_styles(made, batch(dtype))


def test_volumes_in_pieces(pretended, monkeypatch):
    monkeypatch.setattr(augment_module, "CUDA_CHUNK_PIXELS", 128 * 171 * 2)
    for options in ({"preserve": Preserve(0.9, protect=protect)}, {"splice": "halves"}):
        assert_styles(adain(**options), batch(shape=(2, 12, 1, 24, 32)))


def test_masks_of_every_kind(pretended):
    for masks in (
        torch.zeros(24, 32, device="cuda").bool(),
        torch.zeros(5, 1, 24, 32, device="cuda"),
        torch.zeros(5, 24, 32, dtype=torch.int32, device="cuda"),
    ):
        assert_styles(adain(splice="mask"), masks=masks)


@pytest.mark.usefixtures("pretended")
def test_bytes_stay_in_half_precision_only_beside_networks_in_bfloat16():
    half, full = torch.float16, torch.float32
    for dtype, options, wanted in (
        (torch.uint8, {"precision": "bfloat16"}, half),
        (torch.uint8, {"precision": "float32"}, full),
        (torch.uint16, {"precision": "bfloat16"}, full),
        (half, {"precision": "bfloat16"}, full),
        (torch.uint8, {"precision": "bfloat16", "blend": "overlay"}, full),
        (torch.uint8, {"precision": "bfloat16", "preserve": Preserve(floor=0.5)}, full),
    ):
        transform = adain(**options)
        seen = []
        transform.generator_on(CUDA).register_forward_pre_hook(
            lambda _, args, seen=seen: seen.append(args[0].dtype)
        )
        assert_styles(transform, batch(dtype))
        assert set(seen) == {wanted}, (dtype, options)


def test_precision_follows_the_device():
    for capability, precision, wanted in (
        ((9, 0), "auto", torch.bfloat16),
        ((8, 0), "auto", torch.bfloat16),
        ((7, 5), "auto", torch.float32),
        ((7, 5), "bfloat16", torch.bfloat16),
        ((9, 0), "float32", torch.float32),
    ):
        placement.fast_bfloat16.cache_clear()
        with PretendCuda(PLACED, capability=capability) as pretend:
            transform = StyleAugment(
                bank("tiny-adain"), generator=generator("tiny-adain"), p=1.0, precision=precision
            )
            assert_styles(transform)
            network = transform.generator_on(CUDA)
            assert {(x.dtype, x.device) for x in network.parameters()} == {(wanted, CUDA)}
            assert pretend.waits == {"place"}
    placement.fast_bfloat16.cache_clear()


def test_the_network_is_copied_once(pretended):
    transform = StyleAugment(bank("tiny-adain"), generator=generator("tiny-adain"), p=1.0)
    assert_styles(transform)
    pretended.waits.clear()
    assert_styles(transform)
    assert not pretended.waits


def test_compiled_pads_rows_and_replays_graphs(pretended, monkeypatch):
    seen = []

    def compiled(network: Any, **options: Any) -> Any:
        assert options == {"dynamic": False, "mode": "reduce-overhead"}

        def run(images: Tensor, codes: Tensor, strength: Tensor) -> Tensor:
            seen.append((len(images), len(codes), len(strength)))
            return network(images, codes, strength)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    assert_styles(adain(p=1.0, compiled=True))
    assert seen == [(8, 8, 8)]


def test_gradients_reach_the_images(pretended):
    images = torch.rand(5, 3, 24, 32, device="cuda").requires_grad_()
    transform = adain(p=0.7)
    styled = transform.apply(images, transform.make_params(images), differentiable=True)
    assert styled.requires_grad and styled.device == CUDA


def test_samples(pretended):
    plain = {"image": batch(), "label": torch.zeros(5, device="cuda")}
    styled = adain(p=1.0)(plain)
    assert_alike(styled["image"], plain["image"])
    assert styled["label"] is plain["label"]


# What holds StyleAugments.


@every_float
def test_one_of(dtype, pretended):
    some = [StyleAugment(bank(name), generator=generator(name)) for name in ("tiny-adain", "gin", "fourier")]
    mixture = OneOf([*some, StyleAugment("batch")])
    torch.manual_seed(1)
    assert_styles(mixture, batch(dtype, (12, 3, 24, 32)))


@pytest.mark.parametrize("name", ["unknown", "drawings", "corruptions"])
def test_presets(name, pretended):
    transform = StyleAugment.preset(name, p=1.0)
    assert_styles(transform, batch(torch.uint8, (6, 3, 32, 32)))


@every_float
@pytest.mark.parametrize("name", ["tiny-patchswap", "reinhard-lab"])
def test_style_normalize(name, dtype, pretended):
    assert_styles(StyleNormalize(bank(name), generator=generator(name)), batch(dtype))


@every_float
@pytest.mark.parametrize("options", [{}, {"splice": "halves"}, {"channels": "independent"}], ids=str)
def test_kornia(options, dtype, pretended):
    made = RandomStyle(bank("tiny-adain"), generator=generator("tiny-adain"), p=0.7, **options)
    images = batch(dtype)
    assert_alike(made(images), images)
    batch_styles = RandomStyle("batch", p=0.7)
    assert_alike(batch_styles(images), images)
    assert_alike(AugmentationSequential(made, data_keys=["input"])(images), images)


# Global settings and seeds.


def test_a_default_device_changes_nothing(pretended):
    images, styles, network = batch(), bank("tiny-adain"), generator("tiny-adain")
    before = torch.get_default_device()
    torch.set_default_device("cuda")
    try:
        for options in ({"splice": "halves", "sampler": "mix"}, {"preserve": 0.9}):
            assert_styles(StyleAugment(styles, generator=network, p=0.7, **options), images)
        assert_styles(StyleAugment("batch", p=0.7), images)
        assert_styles(OneOf([StyleAugment("batch"), StyleAugment(generator="gin")]), images)
        load_generator("fourier-full")
    finally:
        torch.set_default_device(None if before.type == "cpu" else before)


def test_a_generator_on_cuda_is_refused(pretended):
    for made in (adain(), OneOf([adain()]), StyleAugment("batch")):
        with pytest.raises(ConfigError, match=r"on the CPU, got one on cuda:0.*torch\.Generator\(\)\.man"):
            made.make_params(batch(), rng=Generator())
        assert len(made.make_params(batch(), rng=torch.Generator())) >= 5


# Placement.


def test_small_tensors_are_pinned_and_not_waited_for(pretended):
    values = torch.arange(3.0)
    assert placement.to_device(values, CUDA).device == CUDA
    (pinned,) = pretended.pinned
    assert torch.equal(pinned, values)
    assert placement.to_device(values, torch.device("cpu")) is values


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9), (9, 0), (10, 0)])
def test_fast_bfloat16_begins_with_ampere(capability):
    placement.fast_bfloat16.cache_clear()
    with PretendCuda(capability=capability):
        assert placement.fast_bfloat16(CUDA) == (capability >= (8, 0))
    placement.fast_bfloat16.cache_clear()


def test_a_forked_worker_is_told_that_it_cannot_use_cuda(pretended, monkeypatch):
    transform, images = adain(p=1.0), batch()
    monkeypatch.setattr(augment_module, "get_worker_info", lambda: SimpleNamespace(id=0))
    monkeypatch.setattr(augment_module.multiprocessing, "get_start_method", lambda allow_none: "fork")
    with pytest.raises(DeviceError, match="cannot use CUDA"):
        transform(images)
    monkeypatch.setattr(augment_module.multiprocessing, "get_start_method", lambda allow_none: "spawn")
    assert_styles(transform, images)


# Loaders.


def batches(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    return [(torch.zeros(4, 3, 24, 32, dtype=torch.uint8), torch.arange(4)) for _ in range(count)]


def trained(loader: Any) -> int:
    """Read what a loader hands over, on the main stream, as a training step does."""
    count = 0
    for images, labels in loader:
        assert images.device == CUDA and labels.device == CUDA
        images.float().mean() + labels.sum()
        count += 1
    return count


def test_loader_copies_ahead_on_a_stream_of_its_own(pretended):
    loader = StyleLoader(batches(), adain(p=0.7), device="cuda")
    for _ in range(2):
        assert trained(loader) == 4
    (side,) = pretended.streams
    assert (
        side.log == [("synchronize",)] + [("record_event",)] * 8
    )  # copy and style of a batch, then an event
    each = [("wait_event",), ("record_stream",), ("record_stream",)]  # images and labels
    assert pretended.main.log == each * 8


def test_loader_works_ahead_of_the_training_step(pretended):
    made, events = adain(p=1.0), []

    def augment(batch: Any) -> Any:
        events.append("style")
        return made(batch)

    for _ in StyleLoader(batches(3), augment, device="cuda"):
        events.append("train")
    assert events == ["style", "style", "train", "style", "train", "train"]


def test_loader_waits_for_batches_made_on_the_device(pretended):
    def made():
        for _ in range(3):
            yield torch.zeros(4, 3, 24, 32, device="cuda"), torch.zeros(4, device="cuda")

    assert trained(StyleLoader(made(), adain(p=0.7), device="cuda")) == 3
    (side,) = pretended.streams
    assert side.log[:4] == [("wait_stream", "main"), ("record_stream",)] * 2


def test_timm_styles_on_its_own_stream(pretended):
    base = host(is_training=False, device=torch.device("cpu"))
    base.device, base.is_cuda = CUDA, True
    base.mean, base.std = (torch.ones(1, 3, 1, 1, device="cuda") for _ in range(2))
    pretended.records_needed = False  # timm's consumer waits for the stream in place of record_stream
    styled_on = []
    augment = adain(p=0.7)

    def noted(images: Tensor) -> Tensor:
        styled_on.append(torch.cuda.current_stream())
        return augment(images)

    loader = StylePrefetchLoader(base, noted)
    assert trained(loader) == 3
    (side,) = pretended.streams
    assert styled_on == [side] * 3 and loader.stream is side
    assert side.log == [("wait_stream", "main"), ("synchronize",)] + [("wait_stream", "main")] * 2
    assert pretended.main.log == [("wait_stream", "side")] * 3


# Training.


@every_float
def test_losses(dtype, pretended):
    one, other = batch(dtype, (4, 3, 32, 32)), batch(dtype, (4, 3, 32, 32))
    logits, stats = one[:, :1], torch.zeros(4, 6, dtype=dtype, device="cuda")
    found = [
        losses.style_loss([one, other], [stats, stats]),
        losses.content_loss(one, other),
        losses.edge_correlation(one, other),
        losses.edge_loss(one, other),
        losses.gamut_loss(one),
        losses.kl_loss(stats, stats),
        losses.patch_nce(one.flatten(2), other.flatten(2)),
    ]
    for kind in ("lsgan", "hinge", "logistic"):
        found += [losses.fool_loss(logits, kind), losses.discriminator_loss(logits, logits, kind)]
    shown = one.detach().requires_grad_()
    with pretended.as_fabric_sees_it():
        found.append(losses.r1_penalty(shown, shown.square()))
    assert all(loss.device == CUDA and loss.is_floating_point() for loss in found)


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studio")
    return two_sides(folder), loss_networks(folder / "networks"), folder


AT_ONCE = {
    "adain": ["32-true"],
    "patchgan all": ["bf16-mixed", "16-mixed"],
    "cyclegan auto": ["32-true"],
    "cut": ["32-true"],
    "vaegan logistic": ["16-mixed"],
}
"""The others are slow tests."""

STEPS = {recipe: {} for recipe in RECIPES} | {
    "cyclegan auto": {"diffaugment": "auto", "r1": 1.0},
    "patchgan all": {"diffaugment": "on", "edge_weight": 1.0, "clip": 1.0, "spectral": True},
    "cut hinge": {"loss": "hinge", "optimiser": "rmsprop"},
    "vaegan logistic": {"loss": "logistic", "optimiser": "sgd"},
}


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        pytest.param(name, precision, marks=[pytest.mark.slow] * (precision not in fast))
        for name in STEPS
        for fast in [AT_ONCE.get(name, ())]
        for precision in ("32-true", "bf16-mixed", "16-mixed")
    ],
)
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # deepcopy does
def test_a_step_of_every_recipe(studio, name, precision, tmp_path):
    sides, networks, _ = studio
    config = tiny(name.split()[0], device="cuda", precision=precision, **STEPS[name])
    with PretendCuda(TRAINED) as pretend, pretend.as_fabric_sees_it():
        recipe = make_recipe(config)
        data = TrainingData(*sides, config, paired=recipe.paired)
        fabric = make_fabric(config)
        assert fabric.device == CUDA
        recipe.setup(fabric)
        assert all(x.device == CUDA for network in recipe.networks.values() for x in network.parameters())
        recipe.prepare(data, tmp_path, networks)
        averages = {key: deepcopy(product) for key, product in recipe.products.items()}
        loop: Any = SimpleNamespace(config=config, recipe=recipe, step=0, averages=averages, fabric=fabric)
        pretend.waits.clear()
        crops = data.batch(0, range(config.batch), target=recipe.needs_target)
        found = Training.advance(loop, [Training.to_device(loop, each) for each in crops])
        assert found and all(loss.device == CUDA and loss.ndim == 0 for loss in found.values())
        told = getattr(config, "diffaugment", "off") == "auto"
        wanted = {"AbstractAdversarial.hold_back"} if told else set()
        scaled = {where for where in pretend.waits if where.startswith("GradScaler")}
        assert pretend.waits - scaled == wanted
        assert bool(scaled) == (precision == "16-mixed")
        assert all(x.dtype == torch.float32 for n in recipe.networks.values() for x in n.parameters())
