"""Settings and fixtures for all tests."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, settings

# Keras takes TensorFlow unless it is told otherwise, and that is not installed here.
os.environ.setdefault("KERAS_BACKEND", "torch")

# One thread for each process: the loader tests run several at once on few cores.
torch.set_num_threads(1)

# The same examples in every run; HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile(
    "default", max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", max_examples=500, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def seed() -> None:
    """Start every test from the same state of torch's global generator."""
    torch.manual_seed(0)


@pytest.fixture
def command(monkeypatch, capsys):
    """Run `styleaug` in this process: torch is imported already."""
    from styleaug.cli.main import main

    def run(*args: object, code: int = 0) -> SimpleNamespace:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["styleaug", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            main()
        told = capsys.readouterr()
        assert (end.value.code or 0) == code, told
        return SimpleNamespace(stdout=told.out, stderr=told.err)

    return run


@pytest.fixture
def cuda() -> torch.device:
    """Give the GPU, or skip."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch finds none")
    return torch.device("cuda")


@pytest.fixture(scope="session")
def data() -> Path:
    """Give the folder of real images, or skip."""
    folder = os.environ.get("STYLEAUG_DATA")
    if not folder:
        pytest.skip("needs real images; set STYLEAUG_DATA to the folder that holds wbc/, content/, ...")
    if not Path(folder).is_dir():
        pytest.skip(f"needs real images, and STYLEAUG_DATA={folder} is no folder")
    return Path(folder)
