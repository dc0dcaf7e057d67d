"""Films on disk: real files written here by PyAV, and folders of frames."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image
from specimens import bank, generator, photo

from styleaug.errors import ConfigError, FileError
from styleaug.video import clips
from styleaug.video.clips import Frame, open_clip, writing_clip
from styleaug.video.film import style_film

FRAMES = 8


def picture(at: int, height: int = 48, width: int = 64) -> np.ndarray:
    wide = photo(height, width + 2 * FRAMES)[..., 2 * at : 2 * at + width]
    return (wide.permute(1, 2, 0) * 255).byte().numpy().copy()


def make_film(path, *, frames: int = FRAMES, sound: bool = False, size=(48, 64), fps=Fraction(10)):
    """Write an MP4 with PyAV alone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "10"})
        stream.width, stream.height = size[1], size[0]
        stream.pix_fmt = "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"
        audio = container.add_stream("aac", rate=8000, layout="mono") if sound else None
        for at in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(at, *size), format="rgb24")))
        if audio is not None:
            for at in range(0, 8000 * frames // 10, 800):
                wave = np.sin(np.arange(at, at + 800) / 5).astype(np.float32)[None]
                packet = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
                packet.sample_rate, packet.pts = 8000, at
                container.mux(audio.encode(packet))
            container.mux(audio.encode(None))
        container.mux(stream.encode(None))
    return path


def make_folder(folder, *, frames: int = FRAMES, suffix: str = ".png"):
    folder.mkdir()
    for at in range(frames):
        Image.fromarray(picture(at)).save(folder / f"frame{at + 5}{suffix}")  # 9 before 10
    return folder


def read(path) -> np.ndarray:
    with open_clip(path) as clip:
        return np.stack([frame.pixels for frame in clip.frames()])


def style(source, out, **options):
    return style_film(source, out, **{"bank": bank(), "generator": generator("tiny-adain"), **options})


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".avi", ".webm", ".gif"])
def test_a_film_is_written_in_one_style(tmp_path, suffix):
    source, out = make_film(tmp_path / "in.mp4"), tmp_path / f"out{suffix}"
    before = source.read_bytes()
    film = style(source, out)
    assert film.frames == FRAMES and film.notes == ()
    assert source.read_bytes() == before
    styled, original = read(out), read(source)
    assert styled.shape == original.shape == (FRAMES, 48, 64, 3)
    assert np.abs(styled.astype(float) - original).mean() > 5
    with av.open(str(out)) as container:
        assert container.streams.video[0].average_rate == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", out.name]


def test_what_is_written_is_what_the_stream_gives(tmp_path):
    from styleaug.transforms.host import rng_from
    from styleaug.video.transform import StyleVideo

    source = make_folder(tmp_path / "in")
    style(source, tmp_path / "out", seed=3)
    stream = StyleVideo(bank(), generator=generator("tiny-adain"), p=1.0, strength=1.0).stream(
        rng=rng_from(3)
    )
    for frame, found in zip(read(source), read(tmp_path / "out"), strict=True):
        wanted = stream(torch.from_numpy(frame).permute(2, 0, 1)).permute(1, 2, 0).numpy()
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize("size", [(47, 63), (33, 64)])
def test_odd_sizes_are_kept(tmp_path, size):
    source = make_film(tmp_path / "in.mp4", size=size)
    style(source, tmp_path / "out.mp4")
    assert read(tmp_path / "out.mp4").shape == (FRAMES, *size, 3)


def test_strength_zero_copies_frames_bit_for_bit(tmp_path):
    source = make_folder(tmp_path / "in")
    style(source, tmp_path / "out", strength=0.0)
    assert np.array_equal(read(tmp_path / "out"), read(source))


def test_frames_of_a_folder_are_in_natural_order_and_keep_their_names(tmp_path):
    source = make_folder(tmp_path / "in")
    style(source, tmp_path / "out")
    names = [f"frame{at + 5}.png" for at in range(FRAMES)]
    with open_clip(source) as clip:
        assert [frame.name for frame in clip.frames()] == names
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)


def test_a_film_becomes_a_folder_and_back(tmp_path):
    style(make_film(tmp_path / "in.mp4"), tmp_path / "frames")
    assert len(list((tmp_path / "frames").glob("*.png"))) == FRAMES
    style(tmp_path / "frames", tmp_path / "again.mp4", fps=12.5)
    with av.open(str(tmp_path / "again.mp4")) as container:
        assert container.streams.video[0].average_rate == Fraction(25, 2)


def test_sound_is_kept_unless_the_speed_changes(tmp_path):
    source = make_film(tmp_path / "in.mp4", sound=True)
    style(source, tmp_path / "out.mp4")
    style(source, tmp_path / "fast.mp4", fps=20)
    heard = []
    for path in (source, tmp_path / "out.mp4"):
        with av.open(str(path)) as container:
            heard.append([bytes(packet) for packet in container.demux(audio=0) if packet.size])
            assert abs(float(container.duration / 1e6) - 0.8) < 0.2
    assert heard[0] == heard[1] and heard[0]
    with av.open(str(tmp_path / "fast.mp4")) as container:
        assert not container.streams.audio
    film = style(source, tmp_path / "out.webm", flow=None)
    assert film.notes == ("the sound (aac) does not fit into .webm, and is left out.",)


def test_times_of_a_film_of_varying_speed_are_kept(tmp_path):
    times = [Fraction(at * at, 50) for at in range(5)]
    with writing_clip(tmp_path / "in.mp4", fps=Fraction(10), timed=True) as write:
        for at, time in enumerate(times):
            write(Frame(picture(at), time=time))
    style(tmp_path / "in.mp4", tmp_path / "out.mp4")
    with open_clip(tmp_path / "out.mp4") as clip:
        assert [frame.time for frame in clip.frames()] == pytest.approx(times, abs=1e-3)


def test_a_mask_track_says_where(tmp_path):
    source, masks = make_folder(tmp_path / "in"), tmp_path / "masks"
    masks.mkdir()
    for at in range(FRAMES):
        alpha = np.zeros((48, 64), np.uint8)
        alpha[:, :32] = 255
        Image.fromarray(alpha).save(masks / f"{at}.png")
    style(source, tmp_path / "out", mask=masks)
    styled, original = read(tmp_path / "out"), read(source)
    assert np.array_equal(styled[:, :, 36:], original[:, :, 36:])
    assert np.abs(styled[:, :, :28].astype(float) - original[:, :, :28]).mean() > 5
    (masks / "7.png").unlink()
    with pytest.raises(FileError, match=r"masks ends after 7 frames"):
        style(source, tmp_path / "other", mask=masks)
    assert not (tmp_path / "other").exists()
    with pytest.raises(ConfigError, match="needs mask"):
        style(source, tmp_path / "other", where="outside")


def test_the_input_is_never_written_to(tmp_path):
    source = make_film(tmp_path / "in.mp4")
    before = source.read_bytes()
    (tmp_path / "link.mp4").symlink_to(source)
    for out in (source, tmp_path / "." / "in.mp4", tmp_path / "link.mp4"):
        with pytest.raises(FileError, match="is what is read"):
            style(source, out)
    folder = make_folder(tmp_path / "frames")
    with pytest.raises(FileError, match="lies in"):
        style(folder, folder / "styled")
    with pytest.raises(FileError, match="give a new or empty folder"):
        style(source, folder)
    assert source.read_bytes() == before and len(list(folder.iterdir())) == FRAMES


def make_streamed(path, **options):
    """Write a film whose frames can be read without those that follow."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1", "g": "2", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for at in range(4 * FRAMES):
            frame = av.VideoFrame.from_ndarray(picture(at % FRAMES), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


@pytest.mark.parametrize(
    ("suffix", "options"),
    [(".mp4", {"movflags": "faststart"}), (".mkv", {"cluster_time_limit": "200"})],
)
def test_a_film_that_breaks_off_is_said(tmp_path, suffix, options):
    content = make_streamed(tmp_path / f"in{suffix}", **options)
    (tmp_path / f"half{suffix}").write_bytes(content[: len(content) // 2])
    film = style(tmp_path / f"half{suffix}", tmp_path / "out.mp4")
    assert 0 < film.frames < 4 * FRAMES and f"half{suffix}" in film.notes[0]
    assert read(tmp_path / "out.mp4").shape[0] == film.frames


def test_a_film_without_its_index_is_refused(tmp_path):
    (tmp_path / "none.mp4").write_bytes(make_film(tmp_path / "late.mp4").read_bytes()[:900])
    with pytest.raises(FileError, match=r"none\.mp4"):
        style(tmp_path / "none.mp4", tmp_path / "no.mp4")
    assert not (tmp_path / "no.mp4").exists()


@pytest.mark.parametrize("content", [b"", b"junk" * 100])
def test_what_is_no_film_is_refused(tmp_path, content):
    (tmp_path / "in.mp4").write_bytes(content)
    with pytest.raises(FileError, match=r"in\.mp4 is no video"):
        style(tmp_path / "in.mp4", tmp_path / "out.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_what_is_missing_or_of_another_type_is_refused(tmp_path):
    with pytest.raises(FileError, match="there is no file or folder"):
        style(tmp_path / "none.mp4", tmp_path / "out.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="no frame in"):
        style(tmp_path / "empty", tmp_path / "out.mp4")
    with pytest.raises(FileError, match=r"unknown file type '\.doc'"):
        style(make_film(tmp_path / "in.mp4"), tmp_path / "out.doc")


def test_frames_of_unlike_sizes_are_refused(tmp_path):
    folder = make_folder(tmp_path / "in", frames=2)
    Image.fromarray(picture(0, 20, 20)).save(folder / "frame9.png")
    with pytest.raises(Exception, match="of one size"):
        style(folder, tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists() and len(list(tmp_path.iterdir())) == 1


def test_sizes_and_numbers_are_bounded(tmp_path, monkeypatch):
    source = make_film(tmp_path / "in.mp4")
    monkeypatch.setattr(clips, "_MOST_PIXELS", 47 * 64)
    with pytest.raises(FileError, match=r"in\.mp4 has frames of 64 x 48 pixels"):
        style(source, tmp_path / "out.mp4")
    monkeypatch.undo()
    monkeypatch.setattr(clips, "MOST_FRAMES", 5)
    with pytest.raises(FileError, match=r"in\.mp4 has 8 frames"):
        style(source, tmp_path / "out.mp4")


def test_the_command(tmp_path, command):
    source = make_film(tmp_path / "in.mp4", frames=3)
    told = command("video", source, "-o", tmp_path / "out.gif", "--flow", "none")
    assert "out.gif: 3 frames written" in told.stderr
    first = read(tmp_path / "out.gif")
    command("video", source, "-o", tmp_path / "again.gif", "--flow", "none")
    assert np.array_equal(read(tmp_path / "again.gif"), first)
    told = command("video", source, "-o", source, code=1)
    assert "is what is read" in told.stderr
    command("video", source, code=2)
