"""`StyleCallback` in Lightning's Trainer."""

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import contract
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, ModelSummary
from lightning.pytorch.utilities import CombinedLoader
from specimens import bank, bank_of, generator, photo, photos, tiny_adain
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from styleaug import ConfigError, ImageError, StyleAugment, StyleLoader
from styleaug.transforms.lightning import StyleCallback

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),  # the loaders here are tiny
    # What Lightning 2.6 and torchdata call has an announced end in torch 2.12.
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
]

LENGTH, BATCH = 8, 2
STEPS = LENGTH // BATCH


def callback(**options: Any) -> StyleCallback:
    network = tiny_adain()
    return StyleCallback(
        StyleAugment(bank_of(network), generator=network, **{"p": 1.0, "strength": (0.3, 1.0), **options})
    )


class SamePhoto(Dataset[tuple[Tensor, int]]):
    """One photo over and over, with its index: what differs is the style."""

    def __init__(self, *, seed: int = 0):
        self.seed = seed

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return photo(8, 8, seed=self.seed), index


class Model(LightningModule):
    """A classifier that keeps the images it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 8 * 8, 2)
        self.seen: dict[str, list[Any]] = {"train": [], "validate": [], "test": [], "predict": []}

    def keep(self, stage: str, batch: Any) -> Tensor:
        self.seen[stage].append(batch)
        images = batch[0] if isinstance(batch, list) else batch["a"][0]
        return self.layer(images.flatten(1)).square().mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        torch.rand(3)  # dropout
        return self.keep("train", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)

    def images(self, stage: str = "train") -> Tensor:
        return torch.cat([images for images, _ in self.seen[stage]])


class Validated(Model):
    """A model that is not only trained."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.keep("validate", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.keep("test", batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.keep("predict", batch)


class Normalising(Model):
    """A model with a hook of its own."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [(batch[0] - 0.5) / 0.2, batch[1]]


class Data(LightningDataModule):
    """Training data, without a hook."""

    def train_dataloader(self) -> DataLoader:
        return loader()


class HalvingData(Data):
    """Training data with a hook."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] / 2, batch[1]]


def loader(**options: Any) -> DataLoader:
    return DataLoader(SamePhoto(), BATCH, **options)


def trainer(*callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        callbacks=[*callbacks],
        **{
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **options,
        },
    )


def fit(model: Model, *callbacks: Callback, data: Any = None, seed: int = 1, **options: Any) -> Model:
    seed_everything(seed, verbose=False)
    trainer(*callbacks, **options).fit(model, loader() if data is None else data)
    return model


def unlike(images: Tensor) -> int:
    return len({image.numpy().tobytes() for image in images})


@pytest.mark.parametrize("check", contract.TRANSFORM_CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    class Training:
        training, global_rank, train_dataloader = True, 0, None

    def make(*args: Any, **options: Any) -> Any:
        made = StyleCallback(StyleAugment(*args, **options))

        def run(images: Tensor) -> Tensor:
            made.training, made.seed, made.batches = True, int(torch.randint(2**31, ())), 0
            return made.stylise(Training, images)

        return run

    check(make, bank("reinhard-rgb"), generator("reinhard-rgb"))


def test_training_is_styled_and_all_else_is_not():
    model, runner = Validated(), trainer(callback(), num_sanity_val_steps=1, max_epochs=2)
    runner.fit(model, loader(), loader())
    assert unlike(model.images()) == 2 * LENGTH
    assert torch.cat([labels for _, labels in model.seen["train"]]).tolist() == [*range(LENGTH)] * 2
    runner.validate(model, loader())
    runner.test(model, loader())
    runner.predict(model, loader())
    assert len(model.seen["validate"]) == 1 + 3 * STEPS
    for stage in ("validate", "test", "predict"):
        assert unlike(model.images(stage)) == 1 and torch.equal(model.images(stage)[0], photo(8, 8))


def test_styles_follow_seed_everything_and_the_number_of_the_batch_alone():
    images = fit(Model(), callback()).images()
    assert torch.equal(fit(Model(), callback()).images(), images)
    assert not torch.equal(fit(Model(), callback(), seed=2).images(), images)


@pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer` in `LightningModule` but")
@pytest.mark.parametrize("data", [None, Data()], ids=["loader", "datamodule"])
def test_the_models_own_hook_runs_after_styling(data):
    styled = fit(Model(), callback()).images()
    model = fit(Normalising(), callback(), data=data)
    torch.testing.assert_close(model.images(), (styled - 0.5) / 0.2)


@pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer` in both")
@pytest.mark.parametrize("kind", [Model, Normalising])
def test_the_datamodules_own_hook_is_the_one_that_counts(kind):
    styled = fit(Model(), callback()).images()
    torch.testing.assert_close(fit(kind(), callback(), data=HalvingData()).images(), styled / 2)


@pytest.mark.parametrize("stop", [None, "fit", "setup"])
def test_hooks_are_as_they_were_afterwards(stop):
    class Stops(Callback):
        def setup(self, *args: Any, **options: Any) -> None:
            if stop == "setup":
                raise ValueError("stop")

        def on_train_batch_end(self, *args: Any) -> None:
            assert not torch.equal(model.seen["train"][-1][0][0], photo(8, 8))
            if stop == "fit":
                raise ValueError("stop")

    model, data, runner = Model(), HalvingData(), trainer(callback(), Stops())
    try:
        runner.fit(model, data)
    except ValueError:
        assert stop
    for owner in (model, data):
        assert "on_after_batch_transfer" not in vars(owner)
    halved = data.on_after_batch_transfer([photo(8, 8), 0], 0)[0]
    assert torch.equal(halved, photo(8, 8) / 2)


def test_a_hook_that_another_callback_put_there_is_kept():
    def double(batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] * 2, batch[1]]

    model = Model()
    model.on_after_batch_transfer = double
    images = fit(model, callback()).images()
    assert vars(model)["on_after_batch_transfer"] is double
    torch.testing.assert_close(images, 2 * fit(Model(), callback()).images())


@pytest.mark.parametrize("mode", ["max_size_cycle", "max_size", "min_size"])
def test_each_of_several_loaders_is_styled(mode):
    short = DataLoader(SamePhoto(seed=1), LENGTH)
    model = fit(Model(), callback(), data=CombinedLoader({"a": loader(), "b": short}, mode))
    assert len(model.seen["train"]) == (1 if mode == "min_size" else STEPS)
    for number, batch in enumerate(model.seen["train"]):
        assert unlike(batch["a"][0]) == BATCH
        if mode == "max_size" and number:
            assert batch["b"] is None
        else:
            assert unlike(batch["b"][0]) == LENGTH
            assert batch["b"][1].tolist() == list(range(LENGTH))


def test_loaders_whose_batches_the_model_joins_are_one_batch():
    class Joining(Model):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [torch.cat([images for images, _ in batch]), batch[0][1]]

    model = fit(Joining(), callback(), data=(loader(), loader()))
    assert unlike(model.images()) == 2 * LENGTH


class PicklesModel(Callback):
    """Copies the model in the middle of training, as some callbacks do."""

    def on_train_batch_end(self, runner: Trainer, model: Any, *args: Any) -> None:
        for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
            (image, _) = again.on_after_batch_transfer([photo(8, 8), 0], 0)
            assert torch.equal(image, (photo(8, 8) - 0.5) / 0.2), "the copy's own hook, without style"
        file = io.BytesIO()
        torch.save(model, file)


def test_the_model_can_be_copied_while_it_is_trained():
    fit(Normalising(), callback(), PicklesModel())
    again = pickle.loads(pickle.dumps(callback()))
    assert torch.equal(fit(Model(), again).images(), fit(Model(), copy.deepcopy(again)).images())


def test_the_style_network_is_no_part_of_the_model(tmp_path):
    class Looks(Callback):
        def on_train_batch_end(self, runner: Trainer, model: Any, *args: Any) -> None:
            assert [name for name, _ in model.named_parameters()] == ["layer.weight", "layer.bias"]
            assert {type(module) for module in model.modules()} == {Model, nn.Linear}

    fit(Model(), callback(), Looks(), ModelCheckpoint(tmp_path, filename="end"), enable_checkpointing=True)
    checkpoint = torch.load(tmp_path / "end.ckpt", weights_only=True)
    assert set(checkpoint["state_dict"]) == {"layer.weight", "layer.bias"}
    assert checkpoint["callbacks"]["StyleCallback"]["batches"] == STEPS


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists")
@pytest.mark.parametrize(
    ("step", "every"), [(1, {"every_n_train_steps": 1}), (6, {"every_n_train_steps": 1}), (4, {})]
)
def test_a_resumed_run_goes_on_with_the_same_styles(tmp_path, step, every):
    def run(*, seed: int, path: Path | None = None) -> Model:
        seed_everything(seed, verbose=False)
        model = Model()
        data = StatefulDataLoader(SamePhoto(), BATCH) if every else loader()
        saving = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, **every)
        runner = trainer(callback(), saving, max_epochs=2, enable_checkpointing=True)
        runner.fit(model, data, ckpt_path=path, weights_only=False if path else None)
        return model

    wanted = run(seed=1).images()
    resumed = run(seed=2, path=tmp_path / f"step={step}.ckpt").images()
    assert torch.equal(resumed, wanted[step * BATCH :])


def test_a_style_loader_around_a_plain_loader_does_not_stop_checkpoints(tmp_path):
    styled = StyleLoader(loader(), callback().augment)
    model = fit(Model(), ModelCheckpoint(tmp_path), data=styled, enable_checkpointing=True)
    assert unlike(model.images()) == LENGTH


def test_an_example_input_is_no_training_batch():
    class HasExample(Model):
        example_input_array = photos(1, 8, 8) * 9  # would be refused

        def forward(self, images: Tensor) -> Tensor:
            return self.layer(images.flatten(1))

    class Transfers(Callback):
        def on_train_epoch_end(self, runner: Trainer, model: Any) -> None:
            model._apply_batch_transfer_handler(model.example_input_array)

    assert unlike(fit(HasExample(), callback(), ModelSummary(), Transfers()).images()) == LENGTH


@pytest.mark.filterwarnings("ignore:.*`dataloader_iter`")
def test_a_step_that_fetches_its_batches_itself_is_refused():
    class Fetching(Model):
        def training_step(self, dataloader_iter: Any) -> Tensor:  # pyright: ignore
            return self.keep("train", next(dataloader_iter)[0])

    with pytest.raises(ConfigError, match=r"did not pass on_after_batch_transfer.*dataloader_iter"):
        fit(Fetching(), callback())


def test_images_that_were_normalised_are_named():
    normalised = DataLoader([(photo(8, 8) * 4 - 2, 0)], 1)  # pyright: ignore
    with pytest.raises(ImageError, match=r"must lie in \[0, 1\].*do it in training_step"):
        fit(Model(), callback(), data=normalised)


class WritesImages(Callback):
    """Writes down what each process trained on."""

    def __init__(self, folder: Path):
        self.folder = folder

    def on_train_end(self, runner: Trainer, model: Any) -> None:
        parameters = [name for name, _ in runner.model.named_parameters()]  # pyright: ignore
        torch.save((model.images(), parameters), self.folder / f"{runner.global_rank}.pt")


ONE_RUN = """
import sys, warnings
sys.path.insert(0, {tests!r})
warnings.simplefilter("ignore")
from test_lightning import Model, Path, WritesImages, callback, fit
fit(Model(), callback(), WritesImages(Path({out!r})), devices=2, strategy="ddp_fork")
"""


# Neither reads the images of the other: gradients are all they share.
@pytest.mark.slow
def test_processes_seeded_alike_draw_styles_of_their_own(tmp_path):
    ranks = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        # In a process of its own: where autograd had threads, as in other tests, none can be forked.
        run = ONE_RUN.format(tests=str(Path(__file__).parent), out=str(tmp_path / name))
        done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        ranks.append([torch.load(tmp_path / name / f"{rank}.pt") for rank in range(2)])
    (one, names), (two, _) = ranks[0]
    assert len(one) == len(two) == LENGTH // 2 and unlike(torch.cat([one, two])) == LENGTH
    assert all(name.endswith(("layer.weight", "layer.bias")) for name in names) and len(names) == 2
    for first, second in zip(*ranks, strict=True):
        assert torch.equal(first[0], second[0])
