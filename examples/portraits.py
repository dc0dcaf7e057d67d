"""Turn a folder of portraits into avatars: a style each, and the person stays recognisable.

    uv run --extra faces examples/portraits.py [PORTRAITS --out avatars --keep light]

Use portraits of people who agreed to it. --keep light: faces take only the light and colour of the style.
--keep face: the pixels of faces do not change. --keep paint: faces are painted, too, but weakly.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torchvision.transforms.functional import to_tensor

from styleaug import Preserve, StyleAugment, load_bank
from styleaug.transforms.faces import find_faces

KEEP = {
    "light": Preserve(protect=find_faces),
    "face": Preserve(protect="faces"),
    "paint": Preserve(0.5),
}
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def open_portraits(folder: str | None) -> dict[str, Image.Image]:
    """Read a folder; without one, a photograph of NASA that scikit-image carries."""
    if folder is None:
        from skimage import data

        return {"astronaut": Image.fromarray(data.astronaut()[:320, 60:380])}
    files = [path for path in sorted(Path(folder).iterdir()) if path.suffix.lower() in SUFFIXES]
    return {path.stem: ImageOps.exif_transpose(Image.open(path)).convert("RGB") for path in files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("portraits", nargs="?", help="folder of pictures  [default: one of NASA]")
    parser.add_argument("--out", type=Path, default=Path("avatars"))
    parser.add_argument("--bank", default="art")
    parser.add_argument("--keep", choices=KEEP, default="light")
    args = parser.parse_args()

    bank = load_bank(args.bank)
    augment = StyleAugment(bank, p=1.0, preserve=KEEP[args.keep])
    styles = torch.randperm(len(bank), generator=torch.Generator().manual_seed(0))
    args.out.mkdir(parents=True, exist_ok=True)
    for number, (name, portrait) in enumerate(open_portraits(args.portraits).items()):
        if not find_faces(to_tensor(portrait)[None]).any():
            print(f"{name}: no face was found, so there is no avatar of it")
            continue
        params = augment.make_params(portrait)
        params["codes"] = bank.codes[styles[number % len(bank)]][None]
        augment.apply(portrait, params).save(args.out / f"{name}.png")
        print(f"{name}: {args.out / name}.png")


if __name__ == "__main__":
    main()
