"""Draw what the generators make of ten contents in ten styles; look at the result at full size.

    STYLEAUG_DATA=DATA python benchmarks/sheets.py adain --small --blends --bands --front --out docs/pictures

Only images that the data's manifest marks free, none of which was trained on where the folder has
enough of them: photographs (Caltech-101) and blood cells (PBC) as contents and a painting and a scroll
among them; paintings (Art Institute of Chicago), scrolls (KaoKore) and procedural textures as styles.
`--faces` adds `faces.jpg`, of a portrait of NASA in the public domain.
"""

import argparse
import os
from pathlib import Path

import torch
from held_out import tiles
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.functional import to_pil_image, to_tensor

from pretrained.textures import texture
from styleaug.offline.stylizing import stylize
from styleaug.sheets import contact_sheet, draw_tissue
from styleaug.transforms.augment import StyleAugment
from styleaug.transforms.blends import BLENDS
from styleaug.transforms.faces import find_faces
from styleaug.transforms.guard import Preserve
from styleaug.transforms.splice import Splice
from styleaug.weights import RANDOM_GENERATORS, load_bank, load_generator

CONTENTS = {"content/caltech101": 6, "wbc/pbc": 2, "style/artwall_cc0": 1, "style/kaokore": 1}
STYLES = {"style/artwall_cc0": 6, "style/kaokore": 2}
TEXTURES = (1, 2)
NEAREST = Image.Resampling.NEAREST


@torch.inference_mode()
def sheet(name: str, contents: list[Image.Image], styles: list[Image.Image]) -> Image.Image:
    """Lay out styles above, contents at the left, and each content in each style."""
    generator = load_generator(name)
    codes = generator.encode_style(torch.stack([to_tensor(style) for style in styles]))
    blank = Image.new("RGB", contents[0].size, "white")
    rows = [[blank, *styles]]
    for content in contents:
        images = to_tensor(content).expand(len(styles), -1, -1, -1)
        painted = generator(images, codes, torch.ones(len(styles)))
        rows.append([content, *(to_pil_image(image) for image in painted)])
    return contact_sheet(rows)


def small_sheet(contents: list[Image.Image], side: int = 32) -> Image.Image:
    """Lay out contents of few pixels, and below them `adain` at their size and, as is usual, enlarged."""
    images = torch.stack([to_tensor(content.resize((side, side))) for content in contents])
    params = StyleAugment("art", p=1.0).make_params(images, rng=torch.Generator().manual_seed(0))
    rows = [images, *(StyleAugment("art", least_side=least).apply(images, params) for least in (1, None))]
    return contact_sheet([[to_pil_image(image).resize((96, 96), NEAREST) for image in row] for row in rows])


def random_sheet(contents: list[Image.Image]) -> Image.Image:
    """Lay out contents, and below them each random network with a draw for each; `strength` is drawn, too."""
    images, rows = torch.stack([to_tensor(content) for content in contents]), [contents]
    for name in RANDOM_GENERATORS:
        augment = StyleAugment(generator=name, p=1.0, strength=(0.5, 1))
        styled = augment.apply(images, augment.make_params(images, rng=torch.Generator().manual_seed(1)))
        rows.append([to_pil_image(image) for image in styled])
    return contact_sheet(rows, titles=["photographs and cells", *RANDOM_GENERATORS])


def region_sheet(side: int = 192, count: int = 5) -> Image.Image:
    """Lay out drawn tissue, its labels, and looks by label: of a random network, and of a bank."""
    tissue = to_tensor(draw_tissue(side))
    labels = (tissue[0] < 0.95).long() + (tissue[0] < 0.4).long()  # glass, fibres, nuclei
    shown = to_pil_image((labels / 2).expand(3, -1, -1))
    rows = []
    for options in ({"generator": "gin"}, {"bank": "art"}):
        augment = StyleAugment(**options, p=1.0, splice=Splice("mask", parts=3))
        batch = tv_tensors.Image(tissue.expand(count, -1, -1, -1))
        params = augment.make_params([batch, tv_tensors.Mask(labels)], rng=torch.Generator().manual_seed(3))
        looks = augment.apply(batch, params)
        rows.append([to_pil_image(tissue), shown, *(to_pil_image(image) for image in looks)])
    return contact_sheet(rows, ["image", "labels", *(f"draw {number + 1}" for number in range(count))])


def blend_sheet(content: Image.Image, style: Image.Image) -> Image.Image:
    """Lay out one content, one style, and what each blend mode makes of them, in two rows with captions."""
    tiles = {"image": content, "style": style}
    tiles |= {f'"{mode}"': stylize(content, style, blend=mode) for mode in BLENDS}
    half = len(tiles) // 2
    rows = [dict(list(tiles.items())[start : start + half]) for start in (0, half)]
    top, bottom = (contact_sheet([list(row.values())], list(row)) for row in rows)
    sheet = Image.new("RGB", (top.width, top.height + bottom.height), "white")
    sheet.paste(top)
    sheet.paste(bottom, (0, top.height))
    return sheet


def band_sheet(pairs: list[tuple[Image.Image, Image.Image]]) -> Image.Image:
    """Lay out contents, styles, and all, the low and the high frequencies of what the style changes."""
    names = {"all of the change": None, 'bands="low"': "low", 'bands="high"': "high"}
    rows = [[*pair, *(stylize(*pair, bands=bands) for bands in names.values())] for pair in pairs]
    return contact_sheet(rows, ["image", "style", *names])


def face_sheet(side: int = 192, count: int = 4) -> Image.Image:
    """Lay out a portrait of NASA in styles of the bank, and what each way to keep the face leaves of them."""
    from skimage import data

    portrait = Image.fromarray(data.astronaut()[:320, 60:380]).resize((side, side), Image.Resampling.LANCZOS)
    ways = {
        "portrait": None,
        "art": StyleAugment("art", p=1.0),
        "preserve=0.5": StyleAugment("art", p=1.0, preserve=0.5),
        "protect=find_faces": StyleAugment("art", p=1.0, preserve=Preserve(protect=find_faces)),
        'protect="faces"': StyleAugment("art", p=1.0, preserve=Preserve(protect="faces")),
    }
    bank = load_bank("art")
    chosen = torch.randperm(len(bank), generator=torch.Generator().manual_seed(0))[1 : 4 * count : 4]
    rows = []
    for style in chosen:
        row = []
        for augment in ways.values():
            params = augment and {**augment.make_params(portrait), "codes": bank.codes[style][None]}
            row.append(augment.apply(portrait, params) if augment else portrait)
        rows.append(row)
    return contact_sheet(rows, list(ways))


def front_picture(data: Path, side: int = 224) -> Image.Image:
    """Lay out content, style and result: photographs like paintings, cells like those of a laboratory."""
    photos, scrolls = tiles(data / "content/caltech101", 24, side), tiles(data / "style/kaokore", 8, side)
    paintings = tiles(data / "style/artwall_cc0", 9, side)
    home, away = tiles(data / "wbc/pbc", 8, side), tiles(data / "wbc/bccd", 8, side)
    rows = [[(photos[12], paintings[2], "adain"), (photos[21], scrolls[0], "adain")]]
    rows.append([(home[3], away[4], "randstainna"), (home[7], away[0], "photo")])
    return contact_sheet([[tile for triple in row for tile in painted(*triple)] for row in rows])


@torch.inference_mode()
def painted(content: Image.Image, style: Image.Image, name: str) -> tuple[Image.Image, ...]:
    """Return content, style, and the content in that style."""
    generator = load_generator(name)
    code = generator.encode_style(to_tensor(style)[None])
    result = generator(to_tensor(content)[None], code, torch.ones(1))
    return content, style, to_pil_image(result[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("generators", nargs="*")
    parser.add_argument("--small", action="store_true", help="what becomes of images of 32 px, too")
    parser.add_argument("--random", action="store_true", help="the random networks, and looks by region, too")
    parser.add_argument("--blends", action="store_true", help="what each blend mode makes of an image, too")
    parser.add_argument("--bands", action="store_true", help="low and high frequencies of a style, too")
    parser.add_argument("--faces", action="store_true", help="what keeps a face, too")
    parser.add_argument("--front", action="store_true", help="the front page's picture, too")
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--out", type=Path, default=Path("."))
    args = parser.parse_args()
    data = Path(os.environ["STYLEAUG_DATA"])
    contents, styles = (
        [tile for folder, count in counts.items() for tile in tiles(data / folder, count, args.size)]
        for counts in (CONTENTS, STYLES)
    )
    styles += [to_pil_image(texture(seed, args.size)) for seed in TEXTURES]
    for name in args.generators:
        picture = sheet(name, contents, styles)
        picture.save(args.out / f"{Path(name).stem}.jpg", quality=85)
    if args.front:
        front_picture(data).save(args.out / "front.jpg", quality=88)
    if args.faces:
        face_sheet().save(args.out / "faces.jpg", quality=85)
    if args.random:
        random_sheet(contents).save(args.out / "random.jpg", quality=85)
        region_sheet().save(args.out / "regions.jpg", quality=85)
    if args.blends:
        blend_sheet(contents[4], styles[2]).save(args.out / "blends.jpg", quality=88)
    if args.bands:
        photos, scrolls = tiles(data / "content/caltech101", 24, 224), tiles(data / "style/kaokore", 8, 224)
        paintings = tiles(data / "style/artwall_cc0", 9, 224)
        pairs = [(photos[12], paintings[2]), (photos[21], scrolls[0])]
        band_sheet(pairs).save(args.out / "bands.jpg", quality=88)
    if args.small:
        small_sheet(contents).save(args.out / "small.jpg", quality=85)


if __name__ == "__main__":
    main()
