"""Whether a face is still the same person's after styling: verification rate and cosine similarity.

Each person of the gallery has a template, the mean of the unit embeddings of some images. A probe is compared
with every template. A score with the person's own template is genuine, any other is an impostor's. The
verification rate is the share of probes whose genuine score lies above the threshold that lets a fixed share
of the impostors pass (true accept rate at a false accept rate; ISO/IEC 19795-1). Gallery images are never
styled; the threshold is set anew for each way of styling.

Faces and landmarks are read from the plain images, as no style moves a pixel. So the figures are those of the
network; how often the detector still finds the styled face is a figure of its own.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from styleaug.bank import StyleBank
from styleaug.checks import check_count, check_number
from styleaug.errors import ConfigError, FileError, WeightsError, missing_extra, printable, reason_of
from styleaug.evaluation.candidates import find_candidates
from styleaug.evaluation.decisions import Rate, mild_jitter
from styleaug.evaluation.labels import percent, tile
from styleaug.evaluation.pairs import read_square
from styleaug.evaluation.quality import find_device
from styleaug.generators.base import AbstractGenerator
from styleaug.images import from_float, to_float
from styleaug.io.atomic import atomic
from styleaug.io.files import list_image_files, save_image
from styleaug.sheets import contact_sheet
from styleaug.transforms.faces import detect_faces, import_dlib
from styleaug.transforms.guard import Preserve, read_preserve

__all__ = ["Identity", "Verification", "evaluate_identity", "verify"]

_FAR = 0.01
GALLERY = 5
"""Images of each person that the template is made of, at most."""
CHIP, PADDING = 150, 0.25
"""Side in pixels of the aligned faces that dlib's network was trained on, and their margin."""
ALIGNED = 112
EYES = ((38.2946, 51.6963), (73.5318, 51.5014))
"""Where ArcFace and its kin expect the eyes in a square of `ALIGNED` pixels (Deng et al. 2019): x, y."""
_SHOWN = 12
_BATCH = 32

Embed = Callable[[Tensor], Tensor]
"""Function from aligned faces `(B, 3, 112, 112)` in [0, 1] to embeddings `(B, E)`."""


class Verification(NamedTuple):
    """Scores of probes against the templates of all people, at one false accept rate."""

    verified: Rate
    """Probes whose genuine score lies above the threshold."""
    threshold: float
    """The impostors' score that is the highest one not let pass."""
    passed: int
    """Impostor scores above the threshold."""
    impostors: int
    same: float
    """Mean cosine of probes and their own templates."""
    others: float
    """Mean cosine of probes and other people's templates."""


def verify(scores: Float[Tensor, "P G"], people: Int[Tensor, " P"], far: float = _FAR) -> Verification:
    """Compute the true accept rate at a false accept rate.

    The threshold is the lowest impostor score that at most a share `far` of the impostor scores lies above.
    With fewer than `1 / far` impostor scores it is the highest of them.

    Args:
        scores: similarity of each probe with each template.
        people: column of each probe's own template.
        far: false accept rate, from 0 to below 1.

    Raises:
        ConfigError: no probe, fewer than two templates, or a score that is NaN.

    Example:
        >>> scores = torch.tensor([[0.9, 0.2], [0.1, 0.3], [0.5, 0.4]])
        >>> found = verify(scores, torch.tensor([0, 1, 1]), far=0.34)
        >>> found.verified.share, round(found.threshold, 2)
        (1.0, 0.2)
    """
    check_number("far", far, 0, 1, below=True)
    if len(scores) == 0 or scores.shape[1] < 2:
        raise ConfigError(f"a verification needs probes and two people, got scores {tuple(scores.shape)}.")
    if scores.isnan().any():
        raise ConfigError("scores must be numbers, got NaN: does the face network return finite embeddings?")
    own = F.one_hot(people, scores.shape[1]).bool()
    genuine, impostors = scores[own], scores[~own].sort(descending=True).values
    # The product may fall short of a whole number by rounding, as 0.29 * 100 does.
    threshold = impostors[math.floor(far * len(impostors) + 1e-9)]
    accepted = Rate(int((genuine > threshold).sum()), len(genuine))
    passed = int((impostors > threshold).sum())
    means = float(genuine.double().mean()), float(impostors.double().mean())
    return Verification(accepted, float(threshold), passed, len(impostors), *means)


@dataclass(frozen=True)
class _Row:
    """Identity under one generator at one strength."""

    name: str
    strength: float
    preserve: str
    """What was preserved, in words; empty for nothing."""
    found: Rate
    """Faces that the detector finds where they were."""
    itself: float
    """Mean cosine of a probe before and after."""
    result: Verification

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "name": self.name,
            "strength": self.strength,
            "preserve": self.preserve,
            "verified": self.result.verified.to_dict(),
            "threshold": round(self.result.threshold, 4),
            "same": round(self.result.same, 4),
            "others": round(self.result.others, 4),
            "itself": round(self.itself, 4),
            "found": self.found.to_dict(),
        }

    @property
    def title(self) -> str:
        """Return the row's name in tables."""
        return made_title(self.name, self.strength, self.preserve)

    @property
    def cells(self) -> list[str]:
        """Return the cells of the table."""
        cosines = (self.result.same, self.result.others, self.itself)
        return [percent(self.result.verified), *(f"{value:.3f}" for value in cosines), percent(self.found)]


class _Lost(NamedTuple):
    """A probe that was verified before styling and is not afterwards."""

    file: str
    name: str
    strength: float
    preserve: str
    below: float
    """How far the score lies below the threshold."""
    tiles: tuple[Image.Image, Image.Image]

    @property
    def title(self) -> str:
        """Return the title on the sheet."""
        return f"{made_title(self.name, self.strength, self.preserve)}: {self.file}"


def made_title(name: str, strength: float, preserve: str) -> str:
    """Return how images were styled, in words; a strength of 0 is the plain images."""
    kept = f", preserve {preserve}" if preserve else ""
    return printable(name) + (f", {strength:g}{kept}" if strength else "")


@dataclass(frozen=True)
class Identity:
    """Effect of styling on whose face it is."""

    rows: list[_Row]
    """The first is unstyled, the second has a mild colour jitter, for comparison."""
    network: str
    far: float
    people: int
    """Number of people with gallery and probes."""
    gallery: int
    probes: int
    lost: list[_Lost]
    """Probes that fell farthest below the threshold, each once."""
    failed: list[tuple[Path, str]] = field(default_factory=list)
    """Files that could not be used, with the reasons: unreadable, no face, or no gallery."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        shown = ("file", "name", "strength", "preserve", "below")
        return {
            "network": self.network,
            "far": self.far,
            "people": self.people,
            "gallery": self.gallery,
            "probes": self.probes,
            "rows": [row.to_dict() for row in self.rows],
            "worst": [{name: getattr(lost, name) for name in shown} for lost in self.lost],
            "failed": [[str(path), why] for path, why in self.failed],
        }

    def save(self, path: str | Path) -> Path:
        """Write `to_dict` as JSON, atomically."""
        with atomic(Path(path)) as part:
            part.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        return Path(path)

    def table(self) -> str:
        """Return all results as a text table."""
        first, wide = self.rows[0].result, max(24, *(len(row.title) for row in self.rows))
        lines = [
            f"{self.probes} probes and {self.gallery} gallery images of {self.people} people, network "
            f"{printable(self.network)}",
            f"false accept rate {100 * self.far:g} %: {first.passed} of {first.impostors} comparisons with "
            "other people pass unstyled",
            "",
            " " * wide + "".join(f"{head:>14}" for head in HEADINGS),
        ]
        for row in self.rows:
            lines.append(f"{row.title:{wide}}" + "".join(f"{cell:>14}" for cell in row.cells))
        return "\n".join([*lines, "", *_NOTES])

    def save_sheet(self, path: str | Path) -> Path:
        """Draw the probes that were lost, two in each row: the image and its styled version."""
        pairs = [self.lost[at : at + 2] for at in range(0, len(self.lost), 2)]
        rows = [[tile for lost in pair for tile in lost.tiles] for pair in pairs]
        titles = ["\n".join(lost.title for lost in pair) for pair in pairs]
        save_image(contact_sheet(rows, titles=titles, empty="No probe was lost."), Path(path))
        return Path(path)


HEADINGS = ("verified %", "same person", "other people", "itself", "found %")
_NOTES = (
    "verified: probes accepted as the person that they show, at the false accept rate (95 % interval)",
    "same person, other people: mean cosine with the templates; itself: with the unstyled probe",
    "found: faces that the detector still finds",
)


def evaluate_identity(
    images: str | Path,
    *,
    generators: Sequence[str | Path | AbstractGenerator] = (),
    bank: str | Path | StyleBank | Sequence[str | Path | StyleBank] | None = None,
    styles: str | Path | None = None,
    strengths: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
    preserve: Sequence[float | Preserve | None] = (None,),
    network: str | Path | Embed = "dlib",
    far: float = _FAR,
    size: int = 224,
    most: int = 200,
    seed: int = 0,
    device: str | torch.device | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Identity:
    """Measure whether faces can still be verified when the probes are styled.

    Use faces of people who agreed to it, or whose licence allows it: templates of faces are biometric data.

    Args:
        images: folder with the folders `gallery` and `probe`, each with one folder of images per person.
        generators: names, paths, run folders or generators.
        bank: bank or banks: names, paths, run folders or `StyleBank`s. None without generators is `"art"`.
        styles: folder to fit the generators' banks to; None uses the gallery.
        strengths: strengths, each in (0, 1].
        preserve: what is preserved, as in `StyleAugment`, each in turn; `Preserve(protect="faces")` keeps
            faces.
        network: `"dlib"`, of the extra `faces`; an ONNX file that maps aligned faces `(B, 3, 112, 112)`, RGB
            in [-1, 1], to embeddings `(B, E)`; or a function from such faces in [0, 1] to embeddings.
        far: false accept rate, from 0 to below 1.
        size: side in pixels of the squares that are styled and measured, at least 64.
        most: largest number of probes; they are drawn at random.
        seed: seed for choosing images and styles.
        device: where images are styled; None uses a GPU if there is one. dlib runs on the CPU.
        report: called with the number of finished rows and of all.

    Raises:
        FileError: a folder is missing, or has no image with a face.
        ConfigError: gallery and probe share no person, there is only one, or a number is out of its range.
        MissingExtraError: dlib, its weights or ONNX Runtime are not installed.
        BankError, WeightsError: a bank, generator or network is unknown or damaged.

    Example:
        >>> print(evaluate_identity("faces", generators=["adain"]).table())  # doctest: +SKIP
    """
    if not strengths or not all(0 < strength <= 1 for strength in strengths):
        raise ConfigError(f"strengths must lie in (0, 1], got {tuple(strengths)}.")
    check_number("far", far, 0, 1, below=True)
    size, most = check_count("size", size, least=64), check_count("most", most)
    place, root = find_device(device), Path(images)
    embed, called = load_network(network)
    people, gallery, probe, failed = read_people(root, size, most, torch.Generator().manual_seed(seed))
    banks = "art" if bank is None and not generators else bank
    candidates = find_candidates(banks, generators, root / "gallery" if styles is None else styles, seed=seed)
    enrolled = F.normalize(embed(gallery.pixels, gallery), dim=1)
    # Each person's mean direction; scatter by the matrix of who is on which image.
    templates = F.normalize(F.one_hot(gallery.people, len(people)).float().T @ enrolled, dim=1)
    plain = F.normalize(embed(probe.pixels, probe), dim=1)

    def row(
        name: str, strength: float, pixels: Float[Tensor, "P 3 E E"], kept: str = ""
    ) -> tuple[_Row, Tensor]:
        stored = to_float(from_float(pixels, torch.uint8))
        vectors = plain if strength == 0 else F.normalize(embed(stored, probe), dim=1)
        scores = vectors @ templates.T
        itself = float((vectors * plain).sum(dim=1).double().mean())
        result, found = verify(scores, probe.people, far), count_found(stored, probe)
        margin = scores.gather(1, probe.people[:, None])[:, 0] - result.threshold
        return _Row(name, strength, kept, found, itself, result), margin

    first, margin = row("unstyled", 0, probe.pixels)
    rows, lost, accepted = [first], [], margin > 0
    rows.append(row("mild jitter", 1, mild_jitter(probe.pixels, seed))[0])
    ways = list(product(candidates, preserve, strengths))
    for done, (candidate, keep, strength) in enumerate(ways):
        report(done, len(ways))
        styled = candidate.style(probe.pixels.to(place), strength, preserve=keep, seed=seed).cpu()
        made, margin = row(candidate.name, strength, styled, kept_by(keep))
        rows.append(made)
        gone = ((margin <= 0) & accepted).nonzero()[:, 0]
        lost += [
            _Lost(
                probe.names[at], candidate.name, strength, made.preserve, round(-float(margin[at]), 4),
                (tile(probe.pixels[at]), tile(styled[at])),
            )
            for at in sorted(gone.tolist(), key=lambda at: float(margin[at]))[:_SHOWN]
        ]  # fmt: skip
    worst = {one.file: one for one in sorted(lost, key=lambda one: one.below)}  # the last of a file stays
    shown = sorted(worst.values(), key=lambda one: -one.below)[:_SHOWN]
    return Identity(rows, called, far, len(people), len(gallery), len(probe), shown, failed)


def kept_by(preserve: float | Preserve | None) -> str:
    """Return what is preserved, in words."""
    given = read_preserve(preserve)
    floor = [] if given.floor is None else [f"{given.floor:g}"]
    named = (
        given.protect if isinstance(given.protect, str) else getattr(given.protect, "__name__", "function")
    )
    return " and ".join(floor if given.protect is None else [*floor, named])


# The images.


@dataclass(frozen=True)
class _Portraits:
    """Square images with a face each."""

    pixels: Float[Tensor, "N 3 E E"]
    names: list[str]
    """Path of each image in its folder."""
    people: Int[Tensor, " N"]
    """Number of the person on each image."""
    boxes: Float[Tensor, "N 4"]
    """Left, top, right and bottom edge of each face, in pixels."""

    def __len__(self) -> int:
        return len(self.pixels)


def read_people(
    root: Path, size: int, most: int, rng: torch.Generator
) -> tuple[list[str], _Portraits, _Portraits, list[tuple[Path, str]]]:
    """Read gallery and probes, and find a face on each; return people, both, and what could not be used."""
    for part in ("gallery", "probe"):
        if not (root / part).is_dir():
            raise FileError(
                f"{root} has no folder {part}: identity needs the folders gallery and probe, each with one "
                "folder of images for each person."
            )
    files, failed = {}, []
    for part in ("gallery", "probe"):
        files[part], missed = files_of_people(root / part)
        failed += missed
    shared = sorted(files["gallery"].keys() & files["probe"].keys())
    if not shared:
        raise ConfigError(
            f"gallery and probe of {root} share no person: {some_of(files['gallery'])} and "
            f"{some_of(files['probe'])}. Give a person's folder the same name in both."
        )
    failed += [
        (root / "probe" / name, f"{root / 'probe' / name}: this person has no folder in the gallery.")
        for name in sorted(files["probe"].keys() - files["gallery"].keys())
    ]
    people, gallery = [], []
    for name in sorted(files["gallery"]):
        own = [(path, len(people)) for path in files["gallery"][name]]
        found, missed = read_portraits(own, root / "gallery", size, GALLERY, rng)
        failed += missed
        if found is None:
            failed.append((root / "gallery" / name, f"{root / 'gallery' / name}: no image has a face."))
        else:
            gallery.append(found)
            people.append(name)
    probes = [
        (path, people.index(name)) for name in shared if name in people for path in files["probe"][name]
    ]
    probe, missed = read_portraits(probes, root / "probe", size, most, rng)
    if probe is None:
        raise FileError(f"no face was found on any probe in {root / 'probe'} whose person is in the gallery.")
    if len(people) < 2:
        raise ConfigError(f"the gallery of {root} has a face of {len(people)} person; it needs two or more.")
    return people, joined(gallery), probe, failed + missed


def files_of_people(folder: Path) -> tuple[dict[str, list[Path]], list[tuple[Path, str]]]:
    """List the images of each person, in the folder of that name and below, and files that are nobody's."""
    files: dict[str, list[Path]] = {}
    listing = list_image_files(folder)
    failed = list(listing.skipped)
    for path in listing.files:
        first, *rest = path.relative_to(folder).parts
        if rest:
            files.setdefault(first, []).append(path)
        else:
            failed.append((path, f"{path}: it lies in no person's folder."))
    return files, failed


def some_of(names: dict[str, Any]) -> str:
    """Return a few names for a message."""
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if listed[3:] else "") or "none"


def read_portraits(
    files: list[tuple[Path, int]], root: Path, size: int, most: int, rng: torch.Generator
) -> tuple[_Portraits | None, list[tuple[Path, str]]]:
    """Read at most `most` images with a face, drawn at random; of several faces the largest counts."""
    images, names, people, boxes, failed = [], [], [], [], []
    for at in torch.randperm(len(files), generator=rng).tolist():
        if len(images) == most:
            break
        path, person = files[at]
        try:
            image = read_square(path, size)
        except Exception as error:  # one bad image must not end a run
            failed.append((path, reason_of(path, error)))
            continue
        (found,) = detect_faces(image[None])
        if len(found) == 0:
            failed.append((path, f"{path}: no face was found."))
            continue
        images.append(image)
        names.append(path.relative_to(root).as_posix())
        people.append(person)
        boxes.append(found[0])
    if not images:
        return None, failed
    return _Portraits(torch.stack(images), names, torch.tensor(people), torch.stack(boxes)), failed


def joined(parts: list[_Portraits]) -> _Portraits:
    """Join portraits."""
    return _Portraits(
        torch.cat([part.pixels for part in parts]), [name for part in parts for name in part.names],
        torch.cat([part.people for part in parts]), torch.cat([part.boxes for part in parts]),
    )  # fmt: skip


def count_found(images: Float[Tensor, "N 3 E E"], portraits: _Portraits) -> Rate:
    """Count faces that are found again: with their centre inside the box that they had."""
    hits = 0
    for boxes, (left, top, right, bottom) in zip(detect_faces(images), portraits.boxes.tolist(), strict=True):
        across, down = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
        hits += bool(((across > left) & (across < right) & (down > top) & (down < bottom)).any())
    return Rate(hits, len(images))


# The network.

_Embed = Callable[[Tensor, _Portraits], Tensor]
"""Function from images `(N, 3, E, E)` in [0, 1], and where their faces are, to embeddings."""


def load_network(network: str | Path | Embed) -> tuple[_Embed, str]:
    """Return a function that embeds portraits, and the network's name.

    Raises:
        MissingExtraError: a library or its weights are not installed.
        FileError, WeightsError: a file is missing, or ONNX Runtime cannot read it.
    """
    if not isinstance(network, str | Path):
        return by_alignment(network), "given"
    if str(network) == "dlib":
        return by_dlib(), "dlib"
    path = Path(network)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder, not a face network.")
    return by_alignment(open_onnx(path)), path.name


def models() -> Path:
    """Return the folder of dlib's weights, which the package face_recognition_models carries."""
    found = find_spec("face_recognition_models")  # importing it would need setuptools
    if found is None or not found.submodule_search_locations:
        raise missing_extra("comparing faces", "face_recognition_models", "faces")
    return Path(found.submodule_search_locations[0]) / "models"


def landmarks(portraits: _Portraits) -> list[Any]:
    """Find the corners of the eyes and the base of the nose in each face, as dlib's objects."""
    dlib = import_dlib()
    predict = dlib.shape_predictor(str(models() / "shape_predictor_5_face_landmarks.dat"))
    edges = portraits.boxes.round().int().tolist()
    return [
        predict(as_array(image), dlib.rectangle(*box))
        for image, box in zip(portraits.pixels, edges, strict=True)
    ]


def as_array(image: Float[Tensor, "3 H W"]) -> np.ndarray:
    """Convert an image to an array of bytes."""
    return from_float(image, torch.uint8).permute(1, 2, 0).contiguous().numpy()


def by_dlib() -> _Embed:
    """Return dlib's network: a ResNet with 29 layers and 128 outputs, trained on 3 million faces (2017)."""
    dlib, folder = import_dlib(), models()
    network = dlib.face_recognition_model_v1(str(folder / "dlib_face_recognition_resnet_model_v1.dat"))

    def embed(images: Tensor, portraits: _Portraits) -> Tensor:
        chips = [
            dlib.get_face_chip(as_array(image), marks, CHIP, PADDING)
            for image, marks in zip(images, landmarks(portraits), strict=True)
        ]
        parts = [chips[at : at + _BATCH] for at in range(0, len(chips), _BATCH)]
        return torch.tensor(
            np.array([vector for part in parts for vector in network.compute_face_descriptor(part)])
        ).float()

    return embed


def by_alignment(network: Embed) -> _Embed:
    """Return a function that turns faces upright, as ArcFace does, and embeds them."""

    @torch.inference_mode()
    def embed(images: Tensor, portraits: _Portraits) -> Tensor:
        eyes = torch.stack([eyes_of(marks) for marks in landmarks(portraits)])
        vectors = [network(part) for part in align(images, eyes).split(_BATCH)]
        for part in vectors:
            if not isinstance(part, Tensor) or part.ndim != 2:
                got = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
                raise ConfigError(f"a face network must return embeddings (B, E), got {got}.")
        return torch.cat(vectors).float().cpu()

    return embed


def eyes_of(marks: Any) -> Float[Tensor, "2 2"]:
    """Return the centres of the eye on the left of the image and of that on its right: x, y."""
    points = torch.tensor([(marks.part(at).x, marks.part(at).y) for at in range(4)], dtype=torch.float32)
    return torch.stack([points[2:].mean(dim=0), points[:2].mean(dim=0)])


def align(images: Float[Tensor, "N 3 H W"], eyes: Float[Tensor, "N 2 2"]) -> Float[Tensor, "N 3 A A"]:
    """Turn, scale and shift images so that the eyes lie at `EYES`.

    Args:
        images: in [0, 1].
        eyes: x and y in pixels of the left and the right eye of each image.
    """
    goal = torch.tensor(EYES)
    # As complex numbers, a similarity is z * turn + shift.
    (left, right), at = torch.view_as_complex(goal), torch.view_as_complex(eyes.contiguous())
    turn = (at[:, 1] - at[:, 0]) / (right - left)
    shift = at[:, 0] - turn * left
    axis = torch.arange(ALIGNED, dtype=torch.float32)
    grid = torch.complex(axis[None].expand(ALIGNED, -1), axis[:, None].expand(-1, ALIGNED))
    places = torch.view_as_real(grid * turn[:, None, None] + shift[:, None, None])
    height, width = images.shape[-2:]
    places = (2 * places + 1) / torch.tensor([width, height]) - 1
    return F.grid_sample(images, places, mode="bilinear", padding_mode="border", align_corners=False)


def open_onnx(path: Path) -> Embed:
    """Open a network with ONNX Runtime."""
    if not path.is_file():
        raise FileError(f'there is no file {path}; give "dlib" or an ONNX file of a face network.')
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_extra("a face network of your own", "onnxruntime", "export") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
    except Exception as error:
        raise WeightsError(f"{path}: ONNX Runtime cannot read it: {str(error)[:200]}") from None

    def embed(faces: Tensor) -> Tensor:
        try:
            (vectors, *_) = session.run(None, {name: (2 * faces - 1).numpy()})
        except Exception as error:
            raise WeightsError(
                f"{path}: it must map faces (B, 3, {ALIGNED}, {ALIGNED}) to embeddings: {str(error)[:200]}"
            ) from None
        return torch.from_numpy(np.asarray(vectors))

    return embed
