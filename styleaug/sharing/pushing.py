"""Push banks and learned generators to the Hugging Face hub, with a card and a picture."""

import re
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

from styleaug.bank import StyleBank, tool_version
from styleaug.errors import ConfigError, code, markdown
from styleaug.generators.base import TISSUE, AbstractGenerator
from styleaug.io.hub import commit_files, is_hub, pinned, read_reference
from styleaug.io.tensors import BANK_FILE, GENERATOR_FILE
from styleaug.sheets import draw_styles, preview, sample_photos, usual_picture
from styleaug.weights import as_bank, cards, find_styles, generator_bytes, generator_names, load_generator

__all__ = ["model_card", "push_to_hub"]

PICTURE_FILE = "styles.png"
CARD_FILE = "README.md"
_STYLES = 6
"""Styles shown in the picture, of each group."""
_LICENCES = {
    "apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "pddl", "odbl",
}  # fmt: skip
"""Names of licences that the hub knows; another one is shown as text."""


def push_to_hub(
    source: str | Path | StyleBank | AbstractGenerator,
    repo: str,
    *,
    generator: str | Path | AbstractGenerator | None = None,
    private: bool = True,
    branch: str | None = None,
    licence: str = "",
) -> str:
    """Push a bank, a learned generator or both to the Hugging Face hub; return the commit's reference.

    The commit holds `bank.safetensors`, `generator.safetensors` if no generator that is shipped made the
    bank, a card (`README.md`) and a picture of the styles on a sample image, which is none of yours. Each
    push writes its own card anew; a `README.md` that styleaug did not write is kept, with a warning.

    Args:
        source: a bank, by name, path or as a `StyleBank`; a run folder of `styleaug train`; or a learned
            generator.
        repo: `"OWNER/NAME"`. The repository is made if it is missing.
        generator: the generator of the bank, if none that is shipped made it. A reference `"hf:OWNER/NAME"`
            is named in the card, anything else is pushed with the bank.
        private: make the repository private, and refuse one that is public. A repository that exists stays
            private or public.
        branch: branch to push to, made if it is missing; None is the main one.
        licence: licence of what is pushed; the default is the bank's own.

    Raises:
        BankError: the generator of the bank is not known.
        ConfigError: no repository has such a name; it is public and `private` is set; or there is nothing to
            push, because the generator is known by name.
        FileError: the hub cannot be reached, or refuses.
        WeightsError: the generator has no weights.

    Example:
        >>> push_to_hub("bank.safetensors", "owner/bank")  # doctest: +SKIP
        'hf:owner/bank@5f1c...'
    """
    if "@" in repo:
        raise ConfigError(f"push to OWNER/NAME and give a branch by branch, got {repo!r:.200}.")
    repo, _ = read_reference(repo)
    if isinstance(source, AbstractGenerator):
        bank, network = None, source
    else:
        source = source if isinstance(source, str | Path) else as_bank(source)
        bank, found = find_styles(source, generator)
        network = found if isinstance(found, AbstractGenerator) else load_generator(found)
        if bank is not None:
            bank.check(network)
    elsewhere = pinned(generator) if is_hub(generator) else known_name(network)
    files = {} if bank is None else {BANK_FILE: bank.to_bytes()}
    if elsewhere is None:
        files[GENERATOR_FILE] = generator_bytes(network)
    if not files:
        raise ConfigError(f"{elsewhere!r} is known by name wherever styleaug is; there is nothing to push.")
    sheet = draw_picture(bank, network)
    text = model_card(
        repo,
        bank,
        network=network,
        elsewhere=elsewhere,
        licence=licence,
        picture=sheet is not None,
        branch=branch,
    )
    files |= {CARD_FILE: text.encode(), **({} if sheet is None else {PICTURE_FILE: sheet})}
    what = " and ".join(
        name.removesuffix(".safetensors") for name in (BANK_FILE, GENERATOR_FILE) if name in files
    )
    message = f"Push {what} with styleaug"
    return commit_files(repo, files, message=message, private=private, branch=branch, keep=files_to_keep)


def files_to_keep(read: Callable[[str], bytes | None]) -> set[str]:
    """Return which of card and picture stay as they are, because styleaug did not write those that are there.

    Args:
        read: reads a file of the repository by its name; None if there is none.
    """
    card = read(CARD_FILE)
    signed = card is not None and _SIGNED.search(card.decode(errors="replace"))
    there = [name for name in (CARD_FILE, PICTURE_FILE) if read(name) is not None]
    if signed or not there:
        return set()
    warnings.warn(
        f"the repository's own {' and '.join(there)} is kept, because styleaug did not write it; no card and "
        "no picture are pushed. To get them, delete what is there and push again.",
        stacklevel=4,
    )
    return {CARD_FILE, PICTURE_FILE}


def known_name(network: AbstractGenerator) -> str | None:
    """Return the name by which every installation loads this generator, None if it has other weights."""
    name = network.name
    if (
        name.removesuffix(TISSUE) in generator_names()
        and load_generator(name).fingerprint == network.fingerprint
    ):
        return name
    shipped = cards()["generators"].items()
    return next((name for name, facts in shipped if facts["fingerprint"] == network.fingerprint), None)


def draw_picture(bank: StyleBank | None, network: AbstractGenerator) -> bytes | None:
    """Draw styles on a sample image as PNG; None for a generator without bank that needs one."""
    if bank is not None:
        content = BytesIO()
        draw_styles(bank, network, usual_picture(bank)[0], _STYLES).save(content, "PNG")
        return content.getvalue()
    if not network.has_prior:
        return None
    with TemporaryDirectory() as folder:
        return preview(
            sample_photos()[:1], Path(folder) / PICTURE_FILE, generator=network, styles=_STYLES, size=160
        ).read_bytes()


_CARD = """---
library_name: styleaug
license: {identifier}
tags:
- styleaug
- style-transfer
- data-augmentation
---

# {name}

{opening}
{picture}
## Use it

```sh
pip install "styleaug[hub]"
```

```python
from styleaug import StyleAugment

augment = StyleAugment({arguments})  # images (B, 3, H, W) in [0, 1] -> images of the same shape
```

The main branch may change. For the same styles every time, add the hash of a commit: `"hf:{repo}@HASH"`.

## What it holds

{facts}

styleaug reads `bank.safetensors` and `generator.safetensors` from here and runs nothing. A bank holds
statistics of styles: no pixels, file names or paths.

## Privacy

{privacy}

Written by styleaug {version}; the next push writes it anew.
"""
_SIGNED = re.compile(r"^Written by styleaug \S+; the next push writes it anew\.\s*\Z", re.MULTILINE)
"""The last line of a card of ours. Who changes the card and means to keep it deletes that line."""


def model_card(
    repo: str,
    bank: StyleBank | None,
    *,
    network: AbstractGenerator,
    elsewhere: str | None = None,
    licence: str = "",
    picture: bool = False,
    branch: str | None = None,
) -> str:
    """Format the card of a repository from what the bank and the generator know about themselves.

    Args:
        repo: `OWNER/NAME`.
        bank: the bank in it, if any.
        network: the generator of the bank, or the one that is pushed.
        elsewhere: name or reference by which the generator is loaded; None if it is pushed here.
        licence: licence of what is pushed; the default is the bank's own.
        picture: whether a picture of the styles is beside the card.
        branch: branch that the card is pushed to.
    """
    licence = licence or (bank.provenance.licence if bank is not None else "")
    named = licence.lower() if licence.lower() in _LICENCES else "other" if licence else "unknown"
    where = f"hf:{repo}@{branch}" if branch else f"hf:{repo}"
    given = [f'"{where}"' if bank is not None or network.has_prior else f'BANK, generator="{where}"']
    if elsewhere is not None and is_hub(elsewhere):
        given.append(f'generator="{elsewhere}"')
    shown = f"\n![An image, and styles of this repository]({PICTURE_FILE})\n" if picture else ""
    return _CARD.format(
        identifier=named,
        name=markdown(repo),
        opening=opening(bank, network),
        picture=shown,
        arguments=", ".join(given),
        repo=repo,
        facts="\n".join(facts_of(bank, network, elsewhere, licence)),
        privacy="\n\n".join(privacy_of(bank, trained=elsewhere is None)),
        version=tool_version(),
    )


def opening(bank: StyleBank | None, network: AbstractGenerator) -> str:
    """Return the first sentence of a card."""
    if bank is None:
        return f"A generator of kind {code(network.name)} for style augmentation with styleaug."
    made = bank.provenance
    return (
        f"{len(bank)} styles, read from {made.images:,} images, for style augmentation with styleaug and its "
        f"generator {code(made.generator)}."
    )


def facts_of(
    bank: StyleBank | None, network: AbstractGenerator, elsewhere: str | None, licence: str
) -> list[str]:
    """List what a repository holds, one fact a line."""
    lines = []
    if bank is not None:
        made = bank.provenance
        lines += [
            f"- **Styles**: {len(bank)}, each {bank.codes.shape[1]} numbers",
            f"- **Images they were read from**: {made.images:,}",
            f"- **Fitted**: {markdown(made.created)}, with styleaug {markdown(made.version)}",
        ]
        groups = bank.count_groups()
        lines += [f"- **Styles of the group {markdown(name)}**: {count}" for name, count in groups.items()]
    place = (
        f"in this repository, as `{GENERATOR_FILE}`" if elsewhere is None else f"loaded as {code(elsewhere)}"
    )
    return [
        *lines,
        f"- **Generator**: {code(network.name)}, {place}; fingerprint `{network.fingerprint}`",
        f"- **Licence**: {markdown(licence) or 'not stated'}",
    ]


def privacy_of(bank: StyleBank | None, *, trained: bool) -> list[str]:
    """Return paragraphs on what a bank, and a generator that was trained, tell about the images."""
    told = []
    if bank is not None:
        made = bank.provenance
        if made.epsilon is not None:
            told.append(
                f"The styles were drawn with differential privacy for one patient or file each: epsilon "
                f"{made.epsilon:g}, delta {made.delta:g}. The number of images is not protected."
            )
        elif made.min_images > 1:
            told.append(
                f"Each style is the mean of at least {made.min_images} patients or files. This is no formal "
                "guarantee: anyone who has an image can guess, better than by chance, whether it was read."
            )
        else:
            told.append(
                "A style may come from a single image, so anyone who has it can tell whether it was read. "
                "Images that must stay secret need another bank, fitted with `--min-images` or `--epsilon`."
            )
    if trained:
        told.append("The generator was trained on images, and its weights are not protected.")
    return told
