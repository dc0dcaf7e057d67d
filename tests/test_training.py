"""The loop: exact resumption after any end, two processes, clear errors, the best step as the result."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from specimens import photo
from workshop import RECIPES, loss_networks, newest, run, tiny, two_sides

from styleaug import ConfigError, FileError, StyleAugment, TrainError, WeightsError, load_bank, load_generator
from styleaug.training.base import AbstractRecipe
from styleaug.training.recipes import PatchGANRecipe

LIGHT = ["patchgan", "cut"]
"""Recipes for what is the same with all."""


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> Path:
    """A folder of loss networks in the files' own format, with random weights."""
    return loss_networks(tmp_path_factory.mktemp("networks"))


@pytest.fixture(scope="module")
def sides(tmp_path_factory) -> tuple[Path, Path]:
    """Pictures and their negatives."""
    return two_sides(tmp_path_factory.mktemp("sides"))


def rows(folder: Path, event: str = "losses") -> list[dict]:
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row for row in log if row["event"] == event]


def assert_equal_runs(one: Path, other: Path) -> None:
    first, second = newest(one), newest(other)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
    for name in ("generator.safetensors", "reverse.safetensors", "bank.safetensors"):
        assert (one / name).exists() == (other / name).exists()
    assert torch.equal(*(next(iter(load_file(p / "generator.safetensors").values())) for p in (one, other)))


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_broken_run_ends_where_an_unbroken_one_does(name, sides, networks, tmp_path, monkeypatch):
    config = tiny(name)
    torch.manual_seed(1)
    whole = run(config, sides, tmp_path / "whole", networks=networks)
    assert whole.finished and whole.step == 10
    update, taken = AbstractRecipe.update, []

    def crash(self, which, losses):
        taken.append(which)
        if which == "generator" and taken.count(which) == 7:  # after the checkpoint of step 5
            raise KeyboardInterrupt
        return update(self, which, losses)

    monkeypatch.setattr(AbstractRecipe, "update", crash)
    torch.manual_seed(2)  # what happens around the run must not matter
    with pytest.raises(KeyboardInterrupt):
        run(config, sides, tmp_path / "broken", networks=networks)
    torch.manual_seed(3)
    assert run(config, sides, tmp_path / "broken", networks=networks, resume=True).finished
    assert_equal_runs(tmp_path / "whole", tmp_path / "broken")
    assert rows(tmp_path / "broken", "scores")[-1]["score"] == rows(tmp_path / "whole", "scores")[-1]["score"]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_finished_run_is_a_generator(name, sides, networks, tmp_path):
    outcome = run(tiny(name, steps=2, score_every=1), sides, tmp_path, networks=networks)
    assert outcome.finished and "lowest held-out score of 2" in outcome.why
    generator = load_generator(tmp_path)
    styled = StyleAugment(generator=tmp_path, p=1.0, strength=1.0)(photo(20, 28))
    assert styled.shape == (3, 20, 28) and styled.isfinite().all()
    if generator.code_length:
        assert load_bank(tmp_path).provenance.fingerprint == generator.fingerprint
        assert StyleAugment(tmp_path, p=1.0)(photo(20, 28)).shape == (3, 20, 28)
    for file in ("config.json", "log.jsonl", "report.html"):
        assert (tmp_path / file).stat().st_size > 0
    assert len(list((tmp_path / "samples").glob("*.png"))) == 2


PROBE = """
import sys
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
from pathlib import Path
from styleaug.training import base
from workshop import run, tiny
if {slow}:
    step = base.AbstractRecipe.update
    def slower(self, which, losses):
        import time
        time.sleep(0.05)
        return step(self, which, losses)
    base.AbstractRecipe.update = slower
outcome = run(tiny("cut", **{options!r}), (Path({a!r}), Path({b!r})), Path({folder!r}), resume={resume})
print("finished" if outcome.finished else f"stopped at {{outcome.step}}: {{outcome.why}}")
"""


def probe(sides, folder: Path, *, resume: bool = False, slow: bool = False, **options) -> list[str]:
    text = PROBE.format(
        paths=[p for p in sys.path if p], slow=slow, options=options, a=str(sides[0]), b=str(sides[1]),
        folder=str(folder), resume=resume,
    )  # fmt: skip
    return [sys.executable, "-c", text]


def wait_for(path: Path, process: subprocess.Popen) -> None:
    """Wait until a file is there."""
    for _ in range(2000):
        if path.exists():
            return
        assert process.poll() is None, "the run ended too early"
        time.sleep(0.05)
    raise AssertionError(f"{path} did not come")


@pytest.mark.slow
def test_kill_9_and_resume(sides, tmp_path):
    whole = run(tiny("cut", steps=40), sides, tmp_path / "whole")
    broken = tmp_path / "broken"
    with subprocess.Popen(probe(sides, broken, slow=True, steps=40)) as process:
        wait_for(broken / "checkpoints" / "step-00000010.safetensors", process)
        process.kill()
    assert process.returncode == -signal.SIGKILL and not (broken / "generator.safetensors").exists()
    with pytest.raises(ConfigError, match="go on with --resume"):
        run(tiny("cut", steps=40), sides, broken)
    with pytest.raises(WeightsError, match="not finished"):
        load_generator(broken)
    ended = run(tiny("cut", steps=40), sides, broken, resume=True)
    assert (ended.finished, ended.scores) == (True, whole.scores)
    assert_equal_runs(tmp_path / "whole", broken)
    assert [row["step"] for row in rows(broken, "scores")] == list(range(5, 45, 5)), "nothing told twice"


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_signals_finish_the_step_and_save(kind, sides, tmp_path):
    command = probe(sides, tmp_path, slow=True, steps=400)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        wait_for(tmp_path / "checkpoints" / "step-00000005.safetensors", process)
        process.send_signal(kind)
        told, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and told.startswith("stopped at") and "asked to" in told
    step = int(told.split()[2].rstrip(":"))
    assert (tmp_path / "checkpoints" / f"step-{step:08d}.safetensors").exists()


@pytest.mark.slow
def test_two_processes_share_a_batch(sides, tmp_path, names=("cut", "vaegan")):
    options = {"steps": 6, "diffaugment": "off"}
    text = (
        f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}\n"
        "from pathlib import Path\nfrom workshop import run, tiny\n"
        "from styleaug.training import loop\n"
        "loop.SECONDS = 0.02 * (1 + int(__import__('os').environ['RANK']))  # clocks that do not agree\n"
        f"sides = ({str(sides[0])!r}, {str(sides[1])!r})\n"
        f"for name in {names}:\n"
        f"    run(tiny(name, **{options!r}), sides, Path({str(tmp_path)!r}, name, 'two'))\n"
    )
    script = tmp_path / "train.py"
    script.write_text(text)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=240)
    for name in names:
        folder = tmp_path / name
        run(tiny(name, **options), sides, folder / "one")
        one, two = newest(folder / "one"), newest(folder / "two")
        for key, value in one.items():
            if key.startswith("networks/"):
                torch.testing.assert_close(value, two[key], atol=2e-4, rtol=0, msg=key)  # Adam: 2e-4 a step
        last, shared = rows(folder / "one")[-1], rows(folder / "two")[-1]
        for loss in ("adversarial", "discriminator"):
            assert shared[loss] == pytest.approx(last[loss], rel=2e-3)


@pytest.mark.slow
def test_minutes_stop_a_run_and_the_next_call_goes_on(sides, tmp_path):
    config = tiny("patchgan", steps=3)
    first = run(config, sides, tmp_path, minutes=0)
    assert (first.finished, first.step, first.why) == (False, 1, "time is up")
    assert run(config, sides, tmp_path, minutes=0, resume=True).step == 2
    assert run(config, sides, tmp_path, minutes=0, resume=True).finished
    with pytest.raises(ConfigError, match=r"made with seed=0.*another run folder"):
        run(tiny("patchgan", steps=3, seed=4), sides, tmp_path, resume=True)
    assert run(tiny("patchgan", steps=3, keep=5), sides, tmp_path, resume=True).finished


@pytest.mark.slow
def test_the_last_checkpoints_and_the_best_are_kept(sides, tmp_path):
    run(tiny("patchgan", steps=8, save_every=1, score_every=2, keep=3), sides, tmp_path)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best-generator.safetensors", *(f"step-{n:08d}.safetensors" for n in (6, 7, 8))]
    scores = {row["step"]: row["score"] for row in rows(tmp_path, "scores")}
    assert sorted(scores) == [2, 4, 6, 8]
    chosen = min(scores, key=lambda step: scores[step])
    assert f"step {chosen} of 8" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_a_full_disk_leaves_the_checkpoints_before(sides, tmp_path, monkeypatch):
    written = []
    write_bytes = Path.write_bytes

    def full(self, content):
        if self.name.startswith(".step-") and self.suffix == ".safetensors":
            written.append(self)
            if len(written) == 2:
                write_bytes(self, content[: len(content) // 2])
                raise OSError(28, "No space left on device")
        return write_bytes(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(FileError, match="No space left"):
        run(tiny("patchgan"), sides, tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").glob("*step*")] == ["step-00000005.safetensors"]
    monkeypatch.undo()
    assert run(tiny("patchgan"), sides, tmp_path, resume=True).finished


@pytest.mark.slow
@pytest.mark.parametrize("name", LIGHT)
def test_a_run_that_diverges_says_so_and_keeps_its_checkpoints(name, sides, tmp_path):
    config = tiny(name, learning_rate=1e9, momentum=0.0, optimiser="sgd", steps=60, save_every=1)
    with pytest.raises(TrainError, match=r"became (nan|inf|-inf).*lower learning_rate"):
        run(config, sides, tmp_path)
    assert all(value.isfinite().all() for value in newest(tmp_path).values())
    assert "diverged" in rows(tmp_path, "alarm")[-1]["text"]


@pytest.mark.slow
def test_corrupt_checkpoints_are_named(sides, tmp_path):
    run(tiny("patchgan", steps=1), sides, tmp_path)
    checkpoint = tmp_path / "checkpoints" / "step-00000001.safetensors"
    good = checkpoint.read_bytes()
    for content in (b"", b"hello", b"\xff" * 100, good[: len(good) // 2]):
        checkpoint.write_bytes(content)
        with pytest.raises(WeightsError, match=r"step-00000001\.safetensors is damaged"):
            run(tiny("patchgan", steps=1), sides, tmp_path, resume=True)


def test_unusable_run_folders_are_named(sides, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileError, match="cannot write to"):
        run(tiny("patchgan"), sides, tmp_path / "file" / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"optimiser": "rmsprop"},
        {"optimiser": "sgd", "momentum": 0.9},
        {"precision": "bf16-mixed"},
        {"spectral": True, "loss": "hinge"},
        {"loss": "logistic", "r1": 10.0, "r1_every": 2},
        {"diffaugment": "on"},
        {"clip": 1.0, "warm_up": 2, "schedule": "cosine", "discriminator_rate": 4e-4},
        {"edge_weight": 1.0, "schedule": "constant", "turn": True, "flip": False},
    ],
)
def test_options_train_and_resume(options, sides, tmp_path):
    for name in LIGHT:
        config = tiny(name, steps=4, save_every=2, score_every=4, **options)
        run(config, sides, tmp_path / name / "whole")
        assert not run(config, sides, tmp_path / name / "parts", minutes=0).finished
        assert run(config, sides, tmp_path / name / "parts", resume=True).finished
        assert_equal_runs(tmp_path / name / "whole", tmp_path / name / "parts")
        logged = rows(tmp_path / name / "whole")[-1]
        assert ("edges" in logged) == bool(options.get("edge_weight"))


@pytest.mark.slow
def test_r1_is_lazy(sides, tmp_path, monkeypatch):
    from styleaug.training import base

    calls, penalty = [], base.r1_penalty
    monkeypatch.setattr(base, "r1_penalty", lambda *x: calls.append(1) or penalty(*x))
    run(tiny("patchgan", steps=9, r1=1.0, r1_every=4), sides, tmp_path)
    assert len(calls) == 3, "steps 0, 4 and 8"


@pytest.mark.slow
def test_a_generator_is_trained_further(sides, tmp_path, networks):
    first = run(tiny("cut", steps=2), sides, tmp_path / "one")
    config = tiny("cut", steps=1, learning_rate=1e-6, init=str(first.run), ema=0.0)
    run(config, sides, tmp_path / "two")
    before, after = (load_file(tmp_path / name / "generator.safetensors") for name in ("one", "two"))
    for key, value in before.items():
        torch.testing.assert_close(after[key].float(), value.float(), atol=2e-3, rtol=0)
    with pytest.raises(ConfigError, match="Give the options that made it"):
        run(tiny("cut", width=6, init=str(first.run)), sides, tmp_path / "three")


@pytest.mark.slow
def test_weights_that_are_not_finite_are_not_saved(sides, tmp_path, monkeypatch):
    """The losses of a step are those before its update, which may have broken the weights."""
    step = PatchGANRecipe.step

    def breaking(self, source, target):
        losses = step(self, source, target)
        if self.steps_taken == 6:
            next(self.generator.parameters()).data.fill_(float("nan"))
        return {name: torch.zeros_like(loss) for name, loss in losses.items()}

    monkeypatch.setattr(PatchGANRecipe, "step", breaking)
    with pytest.raises(TrainError, match="weights are no longer finite"):
        run(tiny("patchgan", score_every=100), sides, tmp_path)
    assert all(value.isfinite().all() for value in newest(tmp_path).values())


@pytest.mark.slow
def test_other_images_are_refused(tmp_path):
    sides, config = two_sides(tmp_path), tiny("patchgan", steps=2)
    assert not run(config, sides, tmp_path / "run", minutes=0).finished
    moved = tmp_path / "elsewhere"
    sides[0].rename(moved)
    assert run(config, (moved, sides[1]), tmp_path / "copy", minutes=0).step == 1
    next(moved.glob("*.png")).unlink()
    with pytest.raises(ConfigError, match="trained on other images"):
        run(config, (moved, sides[1]), tmp_path / "run", resume=True)
