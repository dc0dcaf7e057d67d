"""Optical flow, against shifts that are known and against true flow."""

import builtins
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from video import frame_difference, warping_error

from styleaug.errors import ConfigError, ImageError, WeightsError
from styleaug.video.flow import consistency, flow_function, load_raft, optical_flow, warp

PAIRS = {
    "flyingchairs_0": ("flyingchairs_0img0.jpg", "flyingchairs_0img1.jpg", "flyingchairs_0flow.npz"),
    "flyingchairs_1": ("flyingchairs_1img0.jpg", "flyingchairs_1img1.jpg", "flyingchairs_1flow.npz"),
    "rubberwhale": ("rubberwhale_frame10.png", "rubberwhale_frame11.png", "rubberwhale_flow10.npz"),
}


def texture(height: int = 96, width: int = 128) -> Tensor:
    """Make something smooth that has no two like places."""
    noise = torch.rand(1, 3, height // 4, width // 4, generator=torch.Generator().manual_seed(0))
    return F.interpolate(noise, (height, width), mode="bicubic").clamp(0, 1)


def shift(x: float, y: float, height: int = 96, width: int = 128) -> Tensor:
    return torch.tensor([float(x), float(y)]).view(1, 2, 1, 1).expand(1, 2, height, width)


@pytest.mark.parametrize("sharp", [False, True])
def test_warping_by_whole_pixels_moves_them(sharp):
    image = texture()
    moved = warp(image, shift(3, -2), sharp=sharp)
    torch.testing.assert_close(moved[..., 2:, :-3], image[..., :-2, 3:], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        moved[..., 2:, -1], image[..., :-2, -1], atol=1e-5, rtol=0
    )  # edges are repeated


def test_warping_by_half_a_pixel_takes_the_mean():
    image = texture()
    wanted = (image[..., :-1] + image[..., 1:]) / 2
    torch.testing.assert_close(warp(image, shift(0.5, 0))[..., :-1], wanted, atol=1e-5, rtol=0)


def test_no_flow_gives_the_image_back():
    image = texture()
    for sharp in (False, True):
        torch.testing.assert_close(
            warp(image, torch.zeros(1, 2, 96, 128), sharp=sharp), image, atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("method", ["dis", "farneback"])
@pytest.mark.parametrize("move", [(0.0, 0.0), (4.0, 0.0), (-2.5, 3.5)])
def test_flow_finds_a_shift(method, move):
    one = texture()
    other = warp(one, shift(-move[0], -move[1]), sharp=True)
    flow = optical_flow(one, other, method=method)
    assert flow.shape == (1, 2, 96, 128) and flow.dtype == torch.float32
    inner = flow[..., 12:-12, 12:-12]
    assert (inner - shift(*move)[..., 12:-12, 12:-12]).abs().mean() < 0.15


def test_flow_of_reduced_images_is_in_pixels_of_the_images():
    one = texture(96, 128)
    other = warp(one, shift(-4, -2))
    flow = optical_flow(one, other, side=64)
    assert flow.shape == (1, 2, 96, 128)
    assert (flow[..., 16:-16, 16:-16] - shift(4, 2)[..., 16:-16, 16:-16]).abs().mean() < 0.3


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (33, 70)])
def test_flow_takes_any_size_and_number(size):
    for count in (0, 1, 3):
        images = torch.rand(count, 3, *size)
        for method in ("dis", "farneback"):
            assert optical_flow(images, images, method=method).shape == (count, 2, *size)


def test_flow_refuses_what_it_does_not_know():
    image = texture()
    with pytest.raises(ConfigError, match="must be one of dis, farneback, raft, got 'magic'"):
        optical_flow(image, image, method="magic")
    with pytest.raises(ConfigError, match="magic"):
        flow_function("magic")
    with pytest.raises(ImageError, match="of one size"):
        optical_flow(image, image[..., 1:])


def test_a_function_and_none_are_taken_as_they_are():
    assert flow_function(None) is None
    assert flow_function(warp) is warp


def test_opencv_that_is_missing_is_said(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "cv2":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install .styleaug\[video\]"):
        flow_function("dis")


def test_raft_without_weights_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(WeightsError, match=f"no weights for RAFT at {tmp_path}"):
        flow_function("raft")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    with pytest.raises(WeightsError, match=r"junk\.pth"):
        load_raft(tmp_path / "junk.pth")


def test_raft_runs_with_weights_from_a_file(tmp_path):
    from torchvision.models.optical_flow import raft_small

    torch.save(raft_small(weights=None).state_dict(), tmp_path / "raft.pth")
    images = torch.rand(1, 3, 20, 130)
    flow = optical_flow(images, images.flip(3), method="raft", weights=tmp_path / "raft.pth")
    assert flow.shape == (1, 2, 20, 130) and flow.isfinite().all()


def test_a_shift_there_and_back_is_consistent_but_for_what_leaves_the_image():
    held = consistency(shift(5, 0), shift(-5, 0))
    assert held[..., :-5].all() and not held[..., -5:].any()
    assert not consistency(shift(5, 0), shift(5, 0)).any()


def test_borders_of_movement_are_left_out_if_asked():
    flow = torch.zeros(1, 2, 20, 20)
    flow[:, 0, :, 10:] = 1.0  # too small a difference for the way back to tell
    back = torch.zeros(1, 2, 20, 20)
    back[:, 0, :, 11:] = -1.0
    assert not consistency(flow, back)[..., 9:11].any()
    assert consistency(flow, back, boundaries=False)[..., 9].all()


def test_unknown_flow_is_neither_followed_nor_counted():
    flow = shift(0, 0).clone()
    flow[..., 3, 4] = torch.nan
    assert not consistency(flow, shift(0, 0))[0, 0, 3, 4]
    now, before = texture(), texture()
    now[..., 3, 4] = 1 - now[..., 3, 4]
    assert warping_error(now, before, flow).item() == pytest.approx(0, abs=1e-9)


def test_warping_error_is_the_mean_square_over_what_is_visible():
    before = texture()
    now = before + 0.1
    torch.testing.assert_close(
        warping_error(now, before, shift(0, 0)), torch.tensor([0.01]), atol=1e-6, rtol=0
    )
    visible = torch.zeros(1, 1, 96, 128, dtype=torch.bool)
    assert warping_error(now, before, shift(0, 0), visible=visible).isnan().all()
    visible[..., :10, :10] = True
    now[..., 10:, :] = 7.0
    error = warping_error(now, before, shift(0, 0), visible=visible)
    torch.testing.assert_close(error, torch.tensor([0.01]), atol=1e-6, rtol=0)


def test_warping_error_of_a_moving_image_is_small_along_its_flow_only():
    before = texture()
    now = warp(before, shift(4, 1))
    assert warping_error(now, before, shift(4, 1)).item() < 1e-9
    assert warping_error(now, before, shift(0, 0)).item() > 1e-3


def test_frame_difference_is_the_mean_distance():
    torch.testing.assert_close(frame_difference(texture() + 0.25, texture()), torch.tensor([0.25]))


@pytest.mark.data
@pytest.mark.parametrize("name", PAIRS)
def test_estimates_are_near_the_truth(name, data):
    folder = data / "flow_gt"
    if not folder.is_dir():
        pytest.skip(f"needs pairs with true flow in {folder}")
    one, other, true = PAIRS[name]
    one, other = (read(folder / path) for path in (one, other))
    wanted = torch.from_numpy(np.load(folder / true)["flow"].astype(np.float32)).permute(2, 0, 1)[None]
    flow = optical_flow(one, other)
    off = (flow - wanted).norm(dim=1)
    assert off[off.isfinite()].median() < 0.3
    back = optical_flow(other, one)
    held = consistency(flow, back)[:, 0]
    good, bad = (off[part & off.isfinite()].mean() for part in (held, ~held))
    assert good < bad / 2, "what cannot be followed is where the estimate is wrong"
    visible = (one - warp(other, wanted)).abs().amax(dim=1, keepdim=True) < 0.15
    still = torch.zeros_like(wanted)
    assert warping_error(one, other, wanted, visible=visible) < warping_error(
        one, other, still, visible=visible
    )


def read(path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None].float() / 255
