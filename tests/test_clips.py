"""Times, sound, transparency and animated pictures: what a film keeps beside its pixels."""

from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from specimens import bank, generator
from test_film import make_film

from styleaug.errors import FileError
from styleaug.video.clips import open_clip, writing_clip
from styleaug.video.film import style_film

RATE, SPAN = 16_000, 1024
CLAPS = (1.0, 1.6)
"""When a clap is seen, as a bright frame, and heard."""


def style(source, out, **options):
    return style_film(
        source, out, **{"bank": bank(), "generator": generator("tiny-adain"), "strength": 0.0, **options}
    )


def make_claps(path, *, video=0.0, audio=0.0, steps=(1,), codec="aac", length=3.0, tracks=1, **options):
    """Write a film whose claps are seen and heard at once, wherever picture and sound begin."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 90_000)
        sounds = [container.add_stream(codec, rate=RATE, layout="mono") for _ in range(tracks)]
        times = video + np.cumsum([0, *(steps[at % len(steps)] for at in range(49))]) / 25
        events = [(time, None) for time in times]
        events += [(audio + at * SPAN / RATE, at) for at in range(int(length * RATE) // SPAN)]
        wave = np.zeros(int(length * RATE), np.float32)
        for clap in CLAPS:
            start = int((clap - audio) * RATE)
            wave[start : start + 200] = np.sin(np.arange(200) / 2)
        for time, at in sorted(events, key=lambda event: event[0]):
            if at is None:
                bright = min(abs(time - clap) for clap in CLAPS) < 0.02
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 235 if bright else 30, np.uint8))
                frame.pts, frame.time_base = round(time * 90_000), Fraction(1, 90_000)
                container.mux(stream.encode(frame))
                continue
            for sound in sounds:
                part = wave[None, at * SPAN : (at + 1) * SPAN]
                frame = av.AudioFrame.from_ndarray(part.copy(), format="fltp", layout="mono")
                frame.sample_rate, frame.pts = RATE, round(audio * RATE) + at * SPAN
                container.mux(sound.encode(frame))
        for each in (*sounds, stream):
            container.mux(each.encode(None))
    return path


def lag(path, *, track: int = 0) -> float:
    """Measure by how many seconds the claps are heard after they are seen."""
    with av.open(str(path)) as container:
        seen = [f.time for f in container.decode(video=0) if f.to_ndarray(format="gray").mean() > 130]
    with av.open(str(path)) as container:
        heard = []
        for frame in container.decode(audio=track):
            loud = np.flatnonzero(np.abs(frame.to_ndarray().astype(float)).ravel() > 0.3)
            heard += [frame.time + loud[0] / frame.sample_rate] if len(loud) else []
    return heard[0] - seen[0]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".ts"])
@pytest.mark.parametrize(
    "where",
    [{"video": 0.8}, {"audio": 0.72}, {"video": 0.92, "audio": 0.6}, {"steps": (1, 3, 0.5)}, {}],
    ids=["late picture", "late sound", "both late", "varying", "plain"],
)
def test_sound_and_picture_stay_together(tmp_path, suffix, where):
    source = make_claps(tmp_path / f"in{suffix}", **where)
    for out in (tmp_path / "out.mp4", tmp_path / "out.mkv"):
        film = style(source, out)
        assert film.frames == 50 and film.notes == ()
        assert lag(out) == pytest.approx(lag(source), abs=0.005)


def test_a_picture_that_comes_late_comes_late(tmp_path):
    style(make_claps(tmp_path / "in.mkv", video=0.8), tmp_path / "out.mp4")
    with open_clip(tmp_path / "out.mp4") as clip:
        assert float(next(clip.frames()).time) == pytest.approx(0.8, abs=0.001)
    style(tmp_path / "in.mkv", tmp_path / "out.gif")  # has no sound that it could be late for
    with open_clip(tmp_path / "out.gif") as clip:
        assert next(clip.frames()).time == 0


@settings(max_examples=8)
@given(video=st.integers(0, 20), audio=st.integers(0, 20), suffix=st.sampled_from([".mp4", ".mkv"]))
def test_whenever_they_begin(tmp_path_factory, video, audio, suffix):
    folder = tmp_path_factory.mktemp("claps")
    source = make_claps(folder / f"in{suffix}", video=video / 25, audio=audio / 25, length=2.5)
    style(source, folder / "out.mkv")
    assert lag(folder / "out.mkv") == pytest.approx(lag(source), abs=0.005)


def test_avi_frames_come_in_order(tmp_path):
    source = make_claps(tmp_path / "in.mkv", codec="mp3")
    style(source, tmp_path / "out.avi")
    assert lag(tmp_path / "out.avi") == pytest.approx(lag(source), abs=0.08)  # MP3 has a delay of its own


def test_a_picture_shorter_than_its_sound_is_whole(tmp_path):
    source = make_claps(tmp_path / "in.mkv", length=9.0)
    assert style(source, tmp_path / "out.mkv").notes == ()


def test_what_is_cut_away_by_an_edit_list_is_not_missed(tmp_path):
    content = make_claps(tmp_path / "in.mp4").read_bytes()
    at = content.index(b"elst") + 4
    duration = int.from_bytes(content[at + 8 : at + 12], "big")
    head = content[: at + 8] + (duration - 400).to_bytes(4, "big")
    media = int.from_bytes(content[at + 12 : at + 16], "big") + 400 * 90
    (tmp_path / "cut.mp4").write_bytes(head + media.to_bytes(4, "big") + content[at + 16 :])
    film = style(tmp_path / "cut.mp4", tmp_path / "out.mp4")
    assert 30 < film.frames < 50 and film.notes == ()
    assert lag(tmp_path / "out.mp4") == pytest.approx(lag(tmp_path / "cut.mp4"), abs=0.005)


def test_all_tracks_are_kept(tmp_path):
    source = make_claps(tmp_path / "in.mkv", tracks=2, video=0.4)
    style(source, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert len(container.streams.audio) == 2
    for track in (0, 1):
        assert lag(tmp_path / "out.mp4", track=track) == pytest.approx(lag(source, track=track), abs=0.005)
    assert (
        style(source, tmp_path / "out.gif").notes
        == ("the sound (aac) does not fit into .gif, and is left out.",) * 2
    )
    assert "a folder" in style(source, tmp_path / "out").notes[0]


PAUSES = [100, 300, 50, 700]
"""Of the frames of an animation, in milliseconds."""


def frames_of(*, clear: bool, hidden: int = 0) -> list[Image.Image]:
    """Make pictures of a square that is seen, and of what is around it."""
    pictures = []
    for at in range(len(PAUSES)):
        pixels = np.full((33, 47, 4), (hidden, 255 - hidden, 90, 0 if clear else 255), np.uint8)
        pixels[8:24, 4 + at * 5 : 20 + at * 5] = (60 * at, 90, 200, 255)
        pictures.append(Image.fromarray(pixels))
    return pictures


def make_animation(path, *, clear: bool = True, hidden: int = 0, **options):
    first, *rest = frames_of(clear=clear, hidden=hidden)
    kind = {".apng": "PNG", ".png": "PNG"}.get(path.suffix)
    lossless = {"lossless": True, "exact": True} if path.suffix == ".webp" else {"disposal": 2}
    if path.suffix in (".apng", ".png"):
        lossless = {}
    first.save(
        path,
        format=kind,
        save_all=True,
        append_images=rest,
        **{"duration": PAUSES, "loop": 3, **lossless, **options},
    )
    return path


def shown(path):
    """Read an animation with Pillow: its frames, how long each is shown, and how often it plays."""
    with Image.open(path) as image:
        pictures, pauses = [], []
        for at in range(image.n_frames):
            image.seek(at)
            pictures.append(np.array(image.convert("RGBA")))
            pauses.append(round(image.info["duration"]))
        return np.stack(pictures), pauses, image.info.get("loop")


ANIMATIONS = [".gif", ".apng", ".png", ".webp"]


@pytest.mark.parametrize("out", ANIMATIONS)
@pytest.mark.parametrize("source", ANIMATIONS)
@pytest.mark.parametrize("clear", [True, False], ids=["clear", "opaque"])
def test_animations_keep_times_plays_and_transparency(tmp_path, source, out, clear):
    before, _, _ = shown(make_animation(tmp_path / f"in{source}", clear=clear))
    film = style(tmp_path / f"in{source}", tmp_path / f"out{out}", strength=0.4, flow=None)
    after, pauses, plays = shown(tmp_path / f"out{out}")
    assert film.notes == () and film.frames == 4
    assert pauses == PAUSES and plays == 3
    assert np.array_equal(after[..., 3] > 127, before[..., 3] > 127)
    assert np.abs(after[..., :3].astype(int) - before[..., :3])[before[..., 3] > 0].mean() > 2


def test_an_animation_that_plays_once_plays_once(tmp_path):
    first, *rest = frames_of(clear=False)
    first.save(tmp_path / "in.gif", save_all=True, append_images=rest, duration=PAUSES)
    style(tmp_path / "in.gif", tmp_path / "out.gif")
    assert shown(tmp_path / "out.gif")[1:] == (PAUSES, None)
    style(tmp_path / "in.gif", tmp_path / "out.webp")
    assert shown(tmp_path / "out.webp")[2] == 1


@pytest.mark.parametrize("suffix", [".webm", ".mkv", ".mov"])
def test_films_keep_transparency(tmp_path, suffix):
    source = make_animation(tmp_path / "in.apng")
    film = style(source, tmp_path / f"out{suffix}")
    style(tmp_path / f"out{suffix}", tmp_path / f"again{suffix}")  # and is read again
    style(tmp_path / f"again{suffix}", tmp_path / "out.apng")
    before, after = shown(source)[0], shown(tmp_path / "out.apng")[0]
    assert np.abs(before[..., 3].astype(int) - after[..., 3]).mean() < 8
    change = np.abs(before[..., :3].astype(int) - after[..., :3])
    inside = [change[at, 12:20, 8 + at * 5 : 16 + at * 5].mean() for at in range(len(PAUSES))]
    assert max(inside) < 6  # colours of half the size blur at its border
    assert not any("transparen" in note for note in film.notes)
    make_animation(tmp_path / "opaque.gif", clear=False)
    style(tmp_path / "opaque.gif", tmp_path / f"plain{suffix}")
    with open_clip(tmp_path / f"plain{suffix}") as clip:
        assert {frame.pixels.shape[2] for frame in clip.frames()} == {3}


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_transparency_that_does_not_fit_is_said(tmp_path, suffix):
    make_animation(tmp_path / "in.gif")
    film = style(tmp_path / "in.gif", tmp_path / f"out{suffix}")
    (note,) = film.notes
    assert note == f"{suffix} cannot hold transparency; transparent pixels are shown on white."
    with open_clip(tmp_path / f"out{suffix}") as clip:
        assert next(clip.frames()).pixels[:4].min() > 240
    make_animation(tmp_path / "opaque.gif", clear=False)
    assert style(tmp_path / "opaque.gif", tmp_path / f"out{suffix}").notes == ()


@pytest.mark.parametrize("suffix", [".apng", ".webp", "folder"])
def test_what_nobody_sees_decides_nothing(tmp_path, suffix):
    styled = []
    for hidden in (0, 255):
        if suffix == "folder":
            source = tmp_path / f"in{hidden}"
            source.mkdir()
            for at, picture in enumerate(frames_of(clear=True, hidden=hidden)):
                picture.save(source / f"{at}.png")
        else:
            source = make_animation(tmp_path / f"in{hidden}{suffix}", hidden=hidden)
        style(source, tmp_path / f"out{hidden}", strength=1.0)
        names = sorted((tmp_path / f"out{hidden}").iterdir())
        styled.append(np.stack([np.array(Image.open(name)) for name in names]))
    seen = styled[0][..., 3] > 0
    assert styled[0].shape[-1] == 4 and np.array_equal(styled[0][..., 3], styled[1][..., 3])
    assert np.array_equal(styled[0][seen], styled[1][seen])


def test_ten_bits_and_a_turn_are_read(tmp_path):
    with av.open(str(tmp_path / "in.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 31, 17, "yuv444p10le"
        for at in range(3):
            frame = av.VideoFrame.from_ndarray(np.full((17, 31, 3), 60 * at, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    film = style(tmp_path / "in.mkv", tmp_path / "out.mkv")
    assert film.notes == (f"{tmp_path / 'in.mkv'} has more than 8 bits a channel; 8 of them are kept.",)
    with open_clip(tmp_path / "out.mkv") as clip:
        assert [round(frame.pixels.mean(), -1) for frame in clip.frames()] == [0, 60, 120]

    content = make_film(tmp_path / "flat.mp4", size=(32, 48)).read_bytes()
    at = content.index(b"tkhd") + 4 + 40  # the matrix: a quarter turn
    turn = [0, 1 << 16, 0, -(1 << 16) % 2**32, 0, 0, 0, 0, 1 << 30]
    (tmp_path / "turned.mp4").write_bytes(
        content[:at] + b"".join(x.to_bytes(4, "big") for x in turn) + content[at + 36 :]
    )
    style(tmp_path / "turned.mp4", tmp_path / "out.mp4")
    with open_clip(tmp_path / "flat.mp4") as clip:
        flat = next(clip.frames()).pixels
    with open_clip(tmp_path / "out.mp4") as clip:
        upright = next(clip.frames()).pixels
    assert upright.shape == (48, 32, 3)
    assert np.abs(np.rot90(flat, -1).astype(int) - upright).mean() < 6


def test_the_last_pause_of_a_film_is_kept(tmp_path):
    make_animation(tmp_path / "in.gif", clear=False)
    style(tmp_path / "in.gif", tmp_path / "out.mkv")
    style(tmp_path / "out.mkv", tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.duration / 1e3 == pytest.approx(sum(PAUSES), abs=30)


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.9])
def test_animations_that_break_off_are_said(tmp_path, cut):
    for suffix in (".webp", ".apng"):
        content = make_animation(tmp_path / f"in{suffix}").read_bytes()
        path = tmp_path / f"part{suffix}"
        path.write_bytes(content[: int(len(content) * cut)])
        try:
            film = style(path, tmp_path / "out.gif")
        except FileError as error:
            assert str(path) in str(error)
        else:
            assert film.frames < 4 or film.notes


def test_no_pipe_is_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / "in.mp4")
    with pytest.raises(FileError, match=r"in\.mp4"):
        style(tmp_path / "in.mp4", tmp_path / "out.mp4")


def test_a_film_is_written_by_hand(tmp_path):
    from styleaug.video.clips import Frame

    with writing_clip(tmp_path / "out.webp", fps=10) as write:
        for at in range(3):
            write(Frame(np.full((16, 16, 3), 80 * at, np.uint8)))
    assert shown(tmp_path / "out.webp")[1][:2] == [100, 100]
