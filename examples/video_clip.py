"""One style for a film without flicker, and one that follows an object.

uv run --extra video examples/video_clip.py
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torchvision import tv_tensors

from styleaug import StyleVideo
from styleaug.video.clips import Frame, open_clip, writing_clip
from styleaug.video.film import style_film

FRAMES, HEIGHT, WIDTH = 6, 96, 128


def disc(at: int) -> torch.Tensor:
    """Tell where a disc is that rolls to the right."""
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    return ((y - 50) ** 2 + (x - 40 - 4 * at) ** 2 < 20**2)[None].float()


def make_clip() -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a clip `(T, 3, H, W)` of uint8, and the mask of its object `(T, 1, H, W)`."""
    torch.manual_seed(0)
    ground = torch.nn.functional.interpolate(torch.rand(1, 3, 12, 16), (HEIGHT, WIDTH), mode="bicubic")
    masks = torch.stack([disc(at) for at in range(FRAMES)])
    frames = torch.lerp(ground.clamp(0, 1), torch.tensor([0.9, 0.5, 0.1]).view(3, 1, 1), masks)
    return (255 * frames).byte(), masks


clip, masks = make_clip()

# In a data set: a clip is one draw, and all else of the sample is passed on.
augment = StyleVideo("art", p=1.0, strength=1.0, where="inside")
sample = {"video": tv_tensors.Video(clip), "mask": tv_tensors.Mask(masks), "label": 3}
styled = augment(sample)
changed = (styled["video"] != clip).any(dim=1, keepdim=True)
print(f"changed: {changed[masks > 0].float().mean():.0%} of the object")
print(f"changed: {changed[masks == 0].float().mean():.0%} of all else, its soft border")
print(f"the mask is the same: {styled['mask'] is sample['mask']}")

# A film of any length, frame by frame; a seed gives the same style twice.
stream = StyleVideo("art", p=1.0).stream(rng=torch.Generator().manual_seed(1))
print(f"streamed {len([stream(frame) for frame in clip])} frames")

# From file to file, as `styleaug video IN -o OUT` does.
with TemporaryDirectory() as folder:
    source, out = Path(folder) / "in.mp4", Path(folder) / "out.mp4"
    with writing_clip(source, fps=25) as write:
        for frame in clip:
            write(Frame(frame.permute(1, 2, 0).numpy()))
    style_film(source, out, seed=1)
    with open_clip(out) as film:
        print(f"{out.name}: {sum(1 for _ in film.frames())} frames at {film.fps} a second")
