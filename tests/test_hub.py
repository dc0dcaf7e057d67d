"""Banks and generators on the Hugging Face hub: its own client, a server on this machine, no network."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import TOKEN, Hub, Repo
from PIL import Image
from specimens import bank, bank_of, photos, tiny_adain, tiny_vaegan

from styleaug import (
    BankError,
    ConfigError,
    FileError,
    Provenance,
    StyleAugment,
    StyleBank,
    WeightsError,
    load_bank,
    load_generator,
    push_to_hub,
)
from styleaug.io import hub as hub_room
from styleaug.robustness.arms import parse_arm
from styleaug.sharing.pushing import model_card
from styleaug.weights import generator_bytes

# Older clients read HF_ENDPOINT once, when they are imported, so they cannot be pointed to a server per test.
pytest.importorskip("huggingface_hub", minversion="2.0")
constants = pytest.importorskip("huggingface_hub.constants")
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the client itself


def point_to(monkeypatch, url: str, cache: Path) -> None:
    """Let the client talk to a hub, with this folder as its cache."""
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Start a hub, and let the client talk to it as its owner, with an empty cache."""
    server = Hub()
    point_to(monkeypatch, server.url, tmp_path / "cache")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    yield server
    server.shutdown()
    server.server_close()


def lab(styles: int = 4, **facts: object) -> StyleBank:
    """Make a bank that a shipped generator reads."""
    home = load_generator("reinhard-lab")
    made = bank_of(home, styles)
    return StyleBank(made.codes, Provenance(home.name, home.fingerprint, 40, **facts))  # pyright: ignore[reportArgumentType]


def held(hub: Hub, repo: str) -> dict[str, bytes]:
    """Return the files of a repository's main branch."""
    return hub.repos[repo].commits[hub.repos[repo].branches["main"]]


def share(hub: Hub, files: dict[str, bytes], repo: str = "owner/bank", *, private: bool = False) -> str:
    """Put files into a repository as somebody else would; return the commit."""
    hub.repos[repo] = Repo(private=private)
    return hub.repos[repo].commit(files)


def test_a_bank_goes_there_and_comes_back(hub):
    mine = lab(licence="CC0-1.0", min_images=5)
    where = mine.push_to_hub("owner/bank")
    commit = hub.repos["owner/bank"].branches["main"]
    assert where == f"hf:owner/bank@{commit}" and hub.repos["owner/bank"].private
    assert held(hub, "owner/bank").keys() == {"bank.safetensors", "README.md", "styles.png"}
    assert held(hub, "owner/bank")["bank.safetensors"] == mine.to_bytes()
    for source in ("owner/bank", "hf:owner/bank", where):
        back = StyleBank.from_pretrained(source)
        assert back == mine and back.origin == where and back.describe()["origin"] == where
        assert pickle.loads(pickle.dumps(back)).origin == where
    assert load_bank("hf:owner/bank") == mine
    assert mine.origin == "" and "origin" not in mine.describe()


def test_a_transform_remembers_the_commit(hub):
    first = lab(3).push_to_hub("owner/bank")
    augment = StyleAugment("hf:owner/bank", p=1.0)
    images = photos(2)
    styled = augment(images)
    assert styled.shape == images.shape and not torch.equal(styled, images)
    lab(7).push_to_hub("owner/bank")
    assert first in repr(augment.bank.origin)
    assert len(pickle.loads(pickle.dumps(augment)).bank) == 3
    assert augment._given[0] == first, "a copy made of the settings has the same styles"
    assert len(StyleAugment("hf:owner/bank").bank) == 7 and len(StyleAugment(first).bank) == 3


def test_a_revision_is_a_branch_or_a_commit(hub):
    old = lab(3).push_to_hub("owner/bank")
    lab(4).push_to_hub("owner/bank")
    side = lab(5).push_to_hub("owner/bank", branch="side")
    assert len(StyleBank.from_pretrained("owner/bank")) == 4
    assert len(StyleBank.from_pretrained("owner/bank", revision="side")) == 5
    assert len(StyleBank.from_pretrained("owner/bank@side")) == 5
    assert len(StyleBank.from_pretrained("owner/bank", revision=old.partition("@")[2])) == 3
    assert StyleBank.from_pretrained("hf:owner/bank@side").origin == side
    with pytest.raises(FileError, match=r"has no revision 'gone'. Give a branch, a tag, or the full hash"):
        StyleBank.from_pretrained("owner/bank", revision="gone")
    with pytest.raises(ConfigError, match=r"names a revision; leave out revision='side'"):
        StyleBank.from_pretrained("owner/bank@side", revision="side")


@pytest.mark.parametrize("branch", [None, "side"])
@pytest.mark.parametrize(
    "readme", [b"# Mine", b"", b"\xff\xfe", b"Written by styleaug 1; or not\n", "edited"]
)
def test_a_readme_of_somebody_else_is_kept(hub, readme, branch):
    lab(3).push_to_hub("owner/bank", private=False)
    if readme == "edited":  # our card without its last line
        readme = held(hub, "owner/bank")["README.md"].rstrip().rpartition(b"\n")[0]
    hub.repos["owner/bank"].commit({"README.md": readme, "styles.png": b"theirs"})
    with pytest.warns(
        UserWarning, match=r"own README\.md and styles\.png is kept, because styleaug did not write it"
    ):
        where = lab(4).push_to_hub("owner/bank", private=False, branch=branch)
    files = hub.repos["owner/bank"].commits[where.partition("@")[2]]
    assert files["README.md"] == readme and files["styles.png"] == b"theirs"
    assert len(load_bank(where)) == 4


def test_our_card_is_written_anew(hub):
    share(hub, {"notes.md": b"theirs"})
    lab(3).push_to_hub("owner/bank", private=False)
    assert b"**Styles**: 3" in held(hub, "owner/bank")["README.md"]
    assert held(hub, "owner/bank")["notes.md"] == b"theirs"
    for content in (held(hub, "owner/bank")["README.md"].replace(b"\n", b"\r\n"), None):
        if content:
            hub.repos["owner/bank"].commit({"README.md": content})
        lab(5).push_to_hub("owner/bank", private=False)
        assert b"**Styles**: 5" in held(hub, "owner/bank")["README.md"]


def test_a_picture_of_somebody_else_is_kept(hub):
    share(hub, {"styles.png": b"theirs"})
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"own styles\.png is kept"):
            lab().push_to_hub("owner/bank", private=False)
        assert held(hub, "owner/bank").keys() == {"styles.png", "bank.safetensors"}
        assert held(hub, "owner/bank")["styles.png"] == b"theirs"


def test_what_somebody_commits_during_a_push_is_kept(hub):
    share(hub, {})
    hub.moving = {"README.md": b"# Mine"}
    with pytest.raises(FileError, match="Try again"):
        lab().push_to_hub("owner/bank", private=False)
    assert held(hub, "owner/bank") == {"README.md": b"# Mine"}


def test_a_learned_generator_goes_with_its_bank(hub):
    network = tiny_adain()
    mine = bank_of(network)
    with pytest.raises(BankError, match=r"made by generator 'adain' .*Use that generator"):
        mine.push_to_hub("owner/run")
    assert not hub.repos, "nothing is made before all is checked"
    where = mine.push_to_hub("owner/run", generator=network, private=False)
    assert held(hub, "owner/run")["generator.safetensors"] == generator_bytes(network)
    back = load_generator("hf:owner/run")
    assert back.fingerprint == network.fingerprint and back.origin == where and network.origin == ""
    augment = StyleAugment("hf:owner/run", p=1.0)
    assert augment.bank == mine and augment.home.fingerprint == network.fingerprint
    assert augment.home.origin == where
    assert augment(photos(2)).shape == photos(2).shape
    # A bank in a repository of its own names the generator's.
    mine.push_to_hub("owner/bank", generator="hf:owner/run")
    assert "generator.safetensors" not in held(hub, "owner/bank")
    assert (
        f'StyleAugment("hf:owner/bank", generator="{where}")' in held(hub, "owner/bank")["README.md"].decode()
    )
    assert StyleAugment("hf:owner/bank", generator="hf:owner/run").bank == mine


def test_a_generator_with_a_prior_needs_no_bank(hub):
    network = tiny_vaegan()
    push_to_hub(network, "owner/stains", licence="MIT")
    assert held(hub, "owner/stains").keys() == {"generator.safetensors", "README.md", "styles.png"}
    augment = StyleAugment("hf:owner/stains")
    assert augment.bank is None and augment.home.fingerprint == network.fingerprint
    with pytest.raises(
        BankError, match=r"hf:owner/stains@.* holds a generator and no bank. Fit one: styleaug"
    ):
        load_bank("hf:owner/stains")
    push_to_hub(tiny_adain(), "owner/network")
    assert held(hub, "owner/network").keys() == {"generator.safetensors", "README.md"}, "no styles to show"
    lab().push_to_hub("owner/bank")
    with pytest.raises(WeightsError, match=r"hf:owner/bank@.* holds a bank and no generator; give it"):
        load_generator("hf:owner/bank")
    with pytest.raises(ConfigError, match=r"known by name wherever styleaug is; there is nothing to push"):
        push_to_hub(load_generator("reinhard-lab"), "owner/nothing")


def test_a_commit_in_the_cache_needs_no_network(hub, monkeypatch):
    where = lab().push_to_hub("owner/bank")
    StyleBank.from_pretrained("owner/bank")
    asked = len(hub.log)
    assert StyleBank.from_pretrained(where).origin == where and len(hub.log) == asked
    StyleAugment(where)
    assert len(hub.log) == asked
    hub.status = 503
    assert StyleBank.from_pretrained("owner/bank").origin == where, "the last one that was read"
    hub.status = None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert StyleBank.from_pretrained("owner/bank").origin == where
    with pytest.raises(FileError, match=r"cannot reach hf:owner/other at .*HF_HUB_OFFLINE.*Without"):
        StyleBank.from_pretrained("owner/other")


def test_nobody_there(monkeypatch, tmp_path):
    point_to(monkeypatch, "http://127.0.0.1:9", tmp_path)
    for read in (load_bank, load_generator, StyleAugment):
        with pytest.raises(
            FileError, match=r"cannot reach hf:a/b at http://127.0.0.1:9.*Check the network and"
        ):
            read("hf:a/b")
    with pytest.raises(FileError, match=r"cannot reach hf:a/b"):
        lab().push_to_hub("a/b")


@pytest.mark.parametrize("token", [TOKEN, "hf_of_a_stranger"])
def test_a_private_or_missing_repository(hub, monkeypatch, token):
    lab().push_to_hub("owner/secret")
    monkeypatch.setenv("HF_TOKEN", token)
    for repo in ("owner/secret", "owner/gone"):
        if (token, repo) == (TOKEN, "owner/secret"):
            continue
        with pytest.raises(
            FileError, match=f"no repository hf:{repo} at .*private.*hf auth login, or set HF_TOK"
        ):
            load_bank(f"hf:{repo}")


def test_refusals_of_the_hub(hub, monkeypatch):
    share(hub, {"bank.safetensors": lab().to_bytes()}, "owner/gated")
    hub.gated.add("owner/gated")
    with pytest.raises(
        FileError, match=r"hf:owner/gated is gated: ask for access at .*/owner/gated, then log in"
    ):
        load_bank("hf:owner/gated")
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_stranger")
    with pytest.raises(
        FileError, match=r"no repository hf:owner/new .*you may not write it|refuses hf:owner/new"
    ):
        lab().push_to_hub("owner/new")
    hub.status = 500
    with pytest.raises(FileError, match=r"the hub cannot serve hf:owner/bank: .*Try again later"):
        load_bank("hf:owner/bank")


def test_nothing_else_is_downloaded(hub):
    files = {"bank.safetensors": lab().to_bytes(), "model.py": b"raise SystemExit", "weights.pkl": b"\x80"}
    share(hub, files)
    folder = Path(hub_room.fetch("hf:owner/bank").folder)
    assert [path.name for path in folder.iterdir()] == ["bank.safetensors"]
    assert not [line for line in hub.log if "model.py" in line or "weights.pkl" in line]
    share(hub, {"config.json": b"{}", "model.safetensors": b"x"}, "owner/other")
    with pytest.raises(
        FileError, match=r"holds neither generator.* nor bank.*, but config.json, model.safeten"
    ):
        load_bank("hf:owner/other")
    share(hub, {}, "owner/empty")
    with pytest.raises(
        FileError, match=r"but no files. styleaug reads what push_to_hub or `styleaug bank push`"
    ):
        load_bank("hf:owner/empty")


@pytest.mark.parametrize(
    ("size", "told"), [(2**28 + 1, "has 268,435,457 bytes; at most 268,435,456"), (None, "unk")]
)
def test_sizes_are_bounded_before_the_download(hub, size, told):
    share(hub, {"bank.safetensors": lab().to_bytes()})
    hub.sizes["bank.safetensors"] = size
    with pytest.raises(FileError, match=told):
        load_bank("hf:owner/bank")
    assert not [line for line in hub.log if "resolve" in line]


def test_a_damaged_file_is_refused(hub):
    content = bytearray(lab().to_bytes())
    content[-1] ^= 1
    share(hub, {"bank.safetensors": bytes(content)})
    with pytest.raises(BankError, match=r"is damaged: its content is not what was written"):
        load_bank("hf:owner/bank")
    share(hub, {"generator.safetensors": pickle.dumps({"a": 1})}, "owner/pickle")
    with pytest.raises(WeightsError, match=r"is not a safetensors file"):
        load_generator("hf:owner/pickle")


def test_a_commit_in_between_is_noticed(hub):
    share(hub, {"bank.safetensors": lab(3).to_bytes()})
    hub.moving = {"bank.safetensors": lab(4).to_bytes()}
    with pytest.raises(FileError, match=r"got a new commit while it was read. Call again"):
        load_bank("hf:owner/bank")
    hub.moving = {}
    assert len(load_bank("hf:owner/bank")) == 4


def test_what_is_public_stays_apart_from_what_is_private(hub):
    share(hub, {}, "owner/open")
    with pytest.raises(ConfigError, match=r"hf:owner/open is public, so everyone could read.*private=False"):
        lab().push_to_hub("owner/open")
    assert held(hub, "owner/open") == {}
    lab().push_to_hub("owner/open", private=False)
    lab().push_to_hub("owner/free", private=False)
    assert "bank.safetensors" in held(hub, "owner/open") and not hub.repos["owner/free"].private


def test_a_folder_on_this_disk(tmp_path, monkeypatch):
    mine = lab()
    mine.save(tmp_path / "folder" / "bank.safetensors")
    monkeypatch.chdir(tmp_path)
    for source in ("./folder", "folder", tmp_path / "folder", "folder/bank.safetensors"):
        back = StyleBank.from_pretrained(source)
        assert back == mine and back.origin == ""
    assert StyleAugment("./folder").bank == mine, "its generator is known by name"
    with pytest.raises(ConfigError, match=r"revision is for repositories of the hub"):
        StyleBank.from_pretrained("./folder", revision="main")
    with pytest.raises(BankError, match=r"cannot open gone-bank/bank"):
        (tmp_path / "gone-bank").mkdir()
        StyleBank.from_pretrained("gone-bank")
    for source in ("./nowhere", "nowhere", "a/b/c", tmp_path / "nowhere"):
        with pytest.raises(
            ConfigError, match=r"there is no folder .*, and a repository of the hub is hf:OWNER/NAME"
        ):
            StyleBank.from_pretrained(source)


@pytest.mark.parametrize(
    "source", ["hf:", "hf:art", "hf:a/b@", "hf:a/b@x y", "hf:a/../b", "hf:a/b c", "hf:/a/b"]
)
def test_references_that_are_none(source):
    for read in (load_bank, load_generator, StyleAugment):
        with pytest.raises(
            ConfigError, match=r"a repository of the hub is hf:OWNER/NAME or hf:OWNER/NAME@REVISION"
        ):
            read(source)
    with pytest.raises(ConfigError, match=r"hf:OWNER/NAME|give a branch by branch"):
        lab().push_to_hub(source)


def test_the_card(hub, tmp_path):
    made = lab(licence="photos of ours | <b>all rights</b>", min_images=5)
    made.push_to_hub("owner/bank")
    card = held(hub, "owner/bank")["README.md"].decode()
    assert card.startswith("---\nlibrary_name: styleaug\nlicense: other\n")
    assert 'augment = StyleAugment("hf:owner/bank")' in card
    assert "4 styles, read from 40 images" in card and "![" in card
    assert f"`reinhard-lab`, loaded as `reinhard-lab`; fingerprint `{made.provenance.fingerprint}`" in card
    assert "mean of at least 5 patients or files. This is no formal" in card
    assert r"photos of ours \| &lt;b&gt;all rights" in card
    (tmp_path / "styles.png").write_bytes(held(hub, "owner/bank")["styles.png"])
    with Image.open(tmp_path / "styles.png") as picture:
        assert picture.width > 4 * 160 and picture.height > 160, "the photo, and four styles"


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        (
            {"epsilon": 2.0, "delta": 1e-5},
            "differential privacy for one patient or file each: epsilon 2, delta 1e-05",
        ),
        ({}, "A style may come from a single image"),
        ({"licence": "CC-BY-4.0"}, "license: cc-by-4.0"),
        ({}, "license: unknown"),
    ],
)
def test_the_card_says(facts, told):
    home = load_generator("reinhard-lab")
    assert told in model_card("a/b", lab(**facts), network=home, elsewhere=home.name)


def test_the_card_names_groups_and_what_was_trained():
    network = tiny_adain()
    plain = bank_of(network, 3)
    groups = torch.tensor([0, 0, 1])
    grouped = StyleBank(plain.codes, plain.provenance, groups=groups, labels=["site *A*", "B"])
    card = model_card("a/b", grouped, network=network, branch="side")
    assert r"- **Styles of the group site \*A\***: 2" in card and 'StyleAugment("hf:a/b@side")' in card
    assert "The generator was trained on images" in card and network.fingerprint in card
    alone = model_card("a/b", None, network=network)
    assert 'StyleAugment(BANK, generator="hf:a/b")' in alone


def test_an_arm_follows_the_branch(hub):
    lab(3).push_to_hub("owner/bank")
    before = parse_arm("style:hf:owner/bank").digest()
    assert parse_arm("style:hf:owner/bank").digest() == before
    lab(4).push_to_hub("owner/bank")
    assert parse_arm("style:hf:owner/bank").digest() != before


def test_in_the_shell(hub, command, tmp_path):
    lab().save(tmp_path / "mine.safetensors")
    done = command(
        "bank", "push", tmp_path / "mine.safetensors", "owner/bank", "--public", "--licence", "MIT"
    )
    where = done.stdout.strip()
    assert where == f"hf:owner/bank@{hub.repos['owner/bank'].branches['main']}"
    assert f'StyleAugment("{where}")' in done.stderr
    assert "license: mit" in held(hub, "owner/bank")["README.md"].decode()
    shown = command("bank", "show", "hf:owner/bank")
    assert where in shown.stdout
    refused = command("bank", "show", "hf:owner/gone", code=1)
    assert refused.stderr.startswith("Error: there is no repository hf:owner/gone")


@pytest.mark.slow
def test_the_endpoint_is_that_of_the_environment(hub, tmp_path, monkeypatch):
    share(hub, {"bank.safetensors": lab().to_bytes()})
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    done = subprocess.run(
        [sys.executable, "-m", "styleaug", "bank", "show", "hf:owner/bank"], capture_output=True, text=True
    )
    assert done.returncode == 0 and f"hf:owner/bank@{hub.repos['owner/bank'].branches['main']}" in done.stdout


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r'hf:a/b needs huggingface_hub: pip install "styleaug\[hub\]"'):
        load_bank("hf:a/b")
    with pytest.raises(
        ConfigError, match=r'push_to_hub needs huggingface_hub: pip install "styleaug\[hub\]"'
    ):
        lab().push_to_hub("a/b")


@pytest.mark.slow
def test_nothing_is_imported_before_it_is_used():
    probe = "import styleaug, sys; styleaug.load_bank('art'); sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe]).returncode == 0
    assert bank().origin == ""
