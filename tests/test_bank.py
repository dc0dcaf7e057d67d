"""Style banks: values with provenance; and files that may be anything."""

import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save
from specimens import bank, generator, photos

from styleaug import BankError, FileError, Provenance, StyleBank, fit_style
from styleaug.bank import FORMAT

MADE_BY = Provenance("reinhard-rgb", "0123456789abcdef", 3, created="2025-01-01", version="0.1.0")


def small(styles: int = 3, length: int = 4) -> StyleBank:
    return StyleBank(torch.arange(styles * length, dtype=torch.float32).view(styles, length), MADE_BY)


def meta(**changes: object) -> dict[str, str]:
    """Give a bank's metadata with some fields changed."""
    facts = {"format": FORMAT, **vars(MADE_BY), **changes}
    return {"styleaug_bank": json.dumps({k: v for k, v in facts.items() if v is not ...})}


def test_round_trip(tmp_path):
    path = small().save(tmp_path / "deep" / "bank.safetensors")
    assert StyleBank.load(path) == small()
    assert StyleBank.load(str(path)).provenance == MADE_BY
    assert [p.name for p in path.parent.iterdir()] == ["bank.safetensors"]


def test_equal_banks_are_equal_bytes(tmp_path):
    paths = [small().save(tmp_path / f"{index}.safetensors") for index in range(5)]
    assert len({path.read_bytes() for path in paths}) == 1
    assert StyleBank.load(paths[0]).to_bytes() == small().to_bytes() == paths[0].read_bytes()
    assert small(4).to_bytes() != small().to_bytes()


def test_values_compare_and_are_not_hashable():
    other = StyleBank(small().codes, Provenance("reinhard-rgb", "f" * 16, 3))
    assert small() == small() and small() != other and small() != "bank"
    assert small() != small(2)
    with pytest.raises(TypeError):
        hash(small())


def test_a_bank_is_a_value():
    codes = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    made = StyleBank(codes, MADE_BY)
    assert made.codes.dtype == torch.float32 and not made.codes.requires_grad
    mine = torch.rand(3, 4)
    kept = StyleBank(mine, MADE_BY)
    before = kept.codes.clone()
    kept.select([0, 1]).codes.zero_()
    kept.merge(kept).codes.zero_()
    kept.sample(2).codes.zero_()
    mine.zero_()
    assert torch.equal(kept.codes, before)


def test_select():
    made = small(5)
    assert torch.equal(made.select([3, 0, 3]).codes, made.codes[[3, 0, 3]])
    assert torch.equal(made.select(slice(1, 3)).codes, made.codes[1:3])
    assert torch.equal(made.select(torch.tensor([-1])).codes, made.codes[-1:])
    mask = torch.tensor([False, True, False, False, True])
    assert torch.equal(made.select(mask).codes, made.codes[mask])
    assert made.select([1]).provenance == MADE_BY
    for rows in ([5], [-6], [], slice(4, 2), mask[:3]):
        with pytest.raises(BankError):
            made.select(rows)


def test_sample():
    made = small(20)
    part = made.sample(6, seed=3)
    rows = (part.codes[:, 0] / 4).long()
    assert len(rows.unique()) == 6 and torch.equal(rows, rows.sort().values)
    assert part == made.sample(6, seed=3) and part != made.sample(6, seed=4)
    for count in (0, 21, -1):
        with pytest.raises(BankError, match="cannot pick"):
            made.sample(count)


def test_merge():
    one = StyleBank(torch.rand(2, 4), Provenance("g", "f", 7, licence="CC0"))
    two = StyleBank(torch.rand(3, 4), Provenance("g", "f", 5, licence="CC BY 4.0"))
    joined = one.merge(two, one)
    assert torch.equal(joined.codes, torch.cat([one.codes, two.codes, one.codes]))
    assert joined.provenance.images == 19 and joined.provenance.licence == "CC0; CC BY 4.0"
    for other in (Provenance("h", "f", 5), Provenance("g", "e", 5)):
        with pytest.raises(BankError, match="cannot merge"):
            one.merge(StyleBank(torch.rand(3, 4), other))
    with pytest.raises(BankError, match="cannot merge"):
        one.merge(StyleBank(torch.rand(3, 5), two.provenance))


def test_describe():
    facts = small().describe()
    assert facts["styles"] == 3 and facts["code_length"] == 4 and facts["images"] == 3
    assert facts["generator"] == "reinhard-rgb" and facts["kilobytes"] < 1
    assert json.loads(json.dumps(facts)) == facts
    assert facts["spread"] > 0
    assert StyleBank(torch.ones(4, 3), MADE_BY).describe()["spread"] == 0
    assert StyleBank(torch.ones(2, 0), MADE_BY).describe()["spread"] == 0


def test_check_names_both_generators():
    bank("reinhard-rgb").check(generator("reinhard-rgb"))
    with pytest.raises(
        BankError, match=r"'reinhard-rgb' \(6 floats.*not by 'fourier' \(75\).*--generator fourier"
    ):
        bank("reinhard-rgb").check(generator("fourier"))
    with pytest.raises(BankError, match=r"other weights or settings \(fingerprint 0123456789abcdef"):
        StyleBank(torch.rand(1, 6), MADE_BY).check(generator("reinhard-rgb"))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.rand(0, 4), "at least one style"),
        (torch.rand(4), "at least one style"),
        (torch.ones(2, 3, dtype=torch.int64), "must be floats"),
        (torch.tensor([[1.0, 2], [torch.nan, 0], [0, torch.inf]]), "2 of 3 codes are not finite"),
        (torch.full((1, 2), 1e300, dtype=torch.float64), "not finite"),
    ],
)
def test_codes_that_are_none(codes, message):
    with pytest.raises(BankError, match=message):
        StyleBank(codes, MADE_BY)


def test_no_trace_of_the_images_is_kept(tmp_path):
    folder = tmp_path / "patient-jane-doe"
    folder.mkdir()
    for index, photo in enumerate(photos(6, 16, 16)):
        pixels = (photo.permute(1, 2, 0) * 255).byte().numpy()
        exif = Image.Exif()
        exif[0x010E] = "secret description"
        Image.fromarray(pixels).save(folder / f"biopsy-{index}.png", exif=exif)
    content = fit_style(folder, generator="reinhard-rgb", min_images=3).bank.to_bytes()
    for word in ("jane", "doe", "biopsy", "png", "secret", str(tmp_path), tmp_path.name):
        assert word.encode() not in content, word
    assert len(content) < 1000, "two codes of six floats leave no room for pixels"


def refuse(path: Path) -> str:
    """Load a file that is no bank; give what is said about it."""
    with pytest.raises(BankError) as caught:
        StyleBank.load(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hostile") / "bank.safetensors"


CONTENT = small().to_bytes()


@given(length=st.integers(0, len(CONTENT) - 1))
def test_truncated_files(file, length):
    file.write_bytes(CONTENT[:length])
    refuse(file)


@given(st.binary(max_size=300))
def test_random_files(file, content):
    file.write_bytes(content)
    refuse(file)


@given(place=st.integers(0, len(CONTENT) - 1), value=st.integers(0, 255))
def test_files_with_a_wrong_byte_are_refused_or_sound(file, place, value):
    file.write_bytes(CONTENT[:place] + bytes([value]) + CONTENT[place + 1 :])
    try:
        made = StyleBank.load(file)
    except BankError as error:
        assert str(file) in str(error)
    else:
        assert made.codes.shape == (3, 4) and made.codes.isfinite().all()


@given(
    header=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=5,
    )
)
def test_metadata_of_any_json(file, header):
    file.write_bytes(save({"codes": torch.rand(1, 2)}, {"styleaug_bank": json.dumps(header)}))
    refuse(file)


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"codes": torch.rand(2, 3)}, None, "not a style bank"),
        ({"codes": torch.rand(2, 3)}, {"other": "x"}, "not a style bank"),
        ({"weights": torch.rand(2, 3)}, meta(), "one matrix of codes"),
        ({"codes": torch.rand(2, 3), "more": torch.rand(1)}, meta(), "one matrix of codes"),
        ({"codes": torch.rand(2, 3, 1)}, meta(), r"shape \(2, 3, 1\)"),
        ({"codes": torch.rand(0, 3)}, meta(), r"shape \(0, 3\)"),
        ({"codes": torch.rand(1, 2**20 + 1)}, meta(), "shape"),
        ({"codes": torch.full((2, 3), torch.nan)}, meta(), "2 of 2 codes are not finite"),
        ({"codes": torch.full((2, 3), 1e300, dtype=torch.float64)}, meta(), "not finite"),
        ({"codes": torch.ones(2, 3, dtype=torch.int64)}, meta(), "must be floats"),
        ({"codes": torch.ones(2, 3, dtype=torch.bool)}, meta(), "must be floats"),
        (
            {"codes": torch.rand(2, 3)},
            meta(format=3),
            "has format 3; this version of styleaug reads formats 1 and 2",
        ),
        ({"codes": torch.rand(2, 3)}, meta(format=...), "has format None"),
        ({"codes": torch.rand(2, 3)}, meta(generator=5), "no valid 'generator'"),
        ({"codes": torch.rand(2, 3)}, meta(fingerprint=...), "no valid 'fingerprint'"),
        ({"codes": torch.rand(2, 3)}, meta(images=-1), "-1 images"),
        ({"codes": torch.rand(2, 3)}, meta(images=1.5), "no valid 'images'"),
        ({"codes": torch.rand(2, 3)}, meta(licence="x" * 5000), "no valid 'licence'"),
        ({"codes": torch.rand(2, 3)}, {"styleaug_bank": "{"}, "damaged metadata"),
        ({"codes": torch.rand(2, 3)}, {"styleaug_bank": "[" * 100_000}, "damaged metadata"),
        ({"codes": torch.rand(2, 3)}, {"styleaug_bank": "7"}, "not a JSON object"),
    ],
)
def test_safetensors_that_are_no_bank(file, tensors, metadata, message):
    file.write_bytes(save(tensors, metadata))
    assert message.replace("\\", "") in refuse(file)


@pytest.mark.parametrize("shape", [[10**12, 0], [2**62, 4], [10**7, 10**7], [-1, 4], [3], [0, 0]])
def test_headers_with_absurd_shapes(file, shape):
    size = 48 if 0 not in shape else 0
    header = {"__metadata__": meta(), "codes": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    refuse(file)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**40, 10**6])
def test_headers_of_absurd_length(file, length):
    file.write_bytes(struct.pack("<Q", length) + CONTENT[8:])
    assert "truncated" in refuse(file)


@pytest.mark.filterwarnings("ignore:.* carries no digest")
@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "C64", "BF16", "U64", "XYZ"])
def test_headers_of_odd_dtypes(file, dtype):
    header = {"__metadata__": meta(), "codes": {"dtype": dtype, "shape": [4, 4], "data_offsets": [0, 16]}}
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(range(16)))
    try:
        assert StyleBank.load(file).codes.isfinite().all()
    except BankError as error:
        assert str(file) in str(error)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def test_other_files(tmp_path, file):
    for content in (pickle.dumps(Bomb()), b"", b"PK\x03\x04", b"hello", Path(__file__).read_bytes()):
        file.write_bytes(content)
        refuse(file)
    torch.save({"codes": torch.rand(2, 3)}, file)
    refuse(file)
    np.save(tmp_path / "codes.npy", np.ones((2, 3)))
    refuse(tmp_path / "codes.npy")
    assert "is a folder" in refuse(tmp_path)
    assert "No such file" in refuse(tmp_path / "missing.safetensors")


def test_huge_files_are_refused_by_their_size(tmp_path):
    path = tmp_path / "huge.safetensors"
    with path.open("wb") as file:
        file.truncate(300 * 2**20)  # sparse: takes no room
    assert "has 314,572,800 bytes" in refuse(path)


def test_saving_where_it_cannot_be(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileError, match="cannot write"):
        small().save(tmp_path / "file" / "bank.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(FileError, match="is a folder, not a file"):
        small().save(tmp_path / "folder.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.safetensors"]
