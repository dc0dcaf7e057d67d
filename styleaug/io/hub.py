"""Our files on the Hugging Face hub: find, download and commit them. Nothing else is read, nothing is run.

A reference is `hf:OWNER/NAME` or `hf:OWNER/NAME@REVISION`, where the revision is a branch, a tag or the hash
of a commit. Files lie in the cache of `huggingface_hub`; a commit that is there needs no network.
"""

import os
import re
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeGuard, TypeVar

from styleaug.errors import ConfigError, FileError, StyleAugError, first_line, missing_extra
from styleaug.io.tensors import MOST_BYTES

__all__ = ["Snapshot", "commit_files", "fetch", "is_hub", "pinned", "read_reference"]

HUB = "hf:"
MAIN = "main"
"""Branch that is read if no revision is given."""
_TIMEOUT = 30.0
"""Seconds to wait for the hub's answer about a repository."""
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CLIENTS = {"huggingface_hub", "hf_xet", "httpx", "httpx2", "requests"}
"""Libraries whose errors mean that the hub could not be read, whatever their class."""
_BUSY = 429

_Source = TypeVar("_Source")


class Snapshot(NamedTuple):
    """Our files of one commit, on this disk."""

    folder: Path
    """Folder that holds the files."""

    origin: str
    """Reference with the commit's hash: `hf:OWNER/NAME@HASH`."""


def is_hub(source: object) -> TypeGuard[str]:
    """Return True if `source` is a reference to a repository of the hub."""
    return isinstance(source, str) and source.startswith(HUB)


def read_reference(source: str, revision: str | None = None) -> tuple[str, str]:
    """Parse a reference, with or without `hf:`; return the repository and the revision.

    Raises:
        ConfigError: it is not `OWNER/NAME`, or it has a revision and another one is given.
    """
    repo, at, written = source.removeprefix(HUB).partition("@")
    if not _REPOSITORY.fullmatch(repo) or (at and not written) or re.search(r"\s", written):
        raise ConfigError(
            f"a repository of the hub is hf:OWNER/NAME or hf:OWNER/NAME@REVISION, got {source!r:.200}."
        )
    if written and revision:
        raise ConfigError(f"{source!r} names a revision; leave out revision={revision!r}.")
    return repo, written or revision or MAIN


def pinned(source: _Source) -> _Source | str:
    """Return a reference with the hash of its commit, after downloading; return anything else unchanged."""
    return fetch(source).origin if is_hub(source) else source


def fetch(source: str, revision: str | None = None) -> Snapshot:
    """Download those of our files that a repository holds, unless they are in the cache.

    If the hub cannot be reached, the last commit of that branch in the cache is used.

    Args:
        source: a reference, with or without `hf:`.
        revision: a branch, a tag or a commit's hash, if the reference has none.

    Raises:
        ConfigError: it is no reference.
        FileError: the repository is missing, private, gated or cannot be reached, holds none of our files, or
            a file is too large.
        MissingExtraError: `huggingface_hub` is not installed.
    """
    repo, revision = read_reference(source, revision)
    hub = import_hub(f"{HUB}{repo}")
    kept = in_cache(hub, repo, revision)
    if kept and _COMMIT.fullmatch(revision):
        return kept
    api = client(hub)
    try:
        with explained(api, repo, revision):
            info = api.model_info(repo, revision=revision, files_metadata=True, timeout=_TIMEOUT)
            names = our_files(f"{HUB}{repo}", {file.rfilename: file.size for file in info.siblings or ()})
            paths = [Path(api.hf_hub_download(repo, name, revision=revision)) for name in names]
    except _UnreachableError:
        if kept:
            return kept
        raise
    if {path.parent.name for path in paths} != {info.sha}:
        raise FileError(f"{HUB}{repo} got a new commit while it was read. Call again.")
    return _snapshot(repo, paths[0].parent)


def in_cache(hub: ModuleType, repo: str, revision: str) -> Snapshot | None:
    """Return our files of a revision in the cache, None if there are none."""
    found = [hub.try_to_load_from_cache(repo, name, revision=revision) for name in MOST_BYTES]
    folders = [Path(path).parent for path in found if isinstance(path, str)]
    return _snapshot(repo, folders[0]) if folders else None


def _snapshot(repo: str, folder: Path) -> Snapshot:
    """Return the snapshot in a folder of the cache, whose name is the commit."""
    return Snapshot(folder, f"{HUB}{repo}@{folder.name}")


def our_files(source: str, sizes: Mapping[str, int | None]) -> list[str]:
    """Return those names that are ours, after checking their sizes before any download.

    Raises:
        FileError: there are none, or one is too large or of unknown size.
    """
    names = [name for name in MOST_BYTES if name in sizes]
    if not names:
        held = ", ".join(sorted(sizes)[:6]) or "no files"
        raise FileError(
            f"{source} holds neither {' nor '.join(MOST_BYTES)}, but {held}. styleaug reads what "
            "push_to_hub or `styleaug bank push` wrote; other weights cannot be loaded."
        )
    for name in names:
        size = sizes[name]
        if size is None or not size <= MOST_BYTES[name]:
            told = "an unknown number of" if size is None else f"{size:,}"
            raise FileError(f"{name} of {source} has {told} bytes; at most {MOST_BYTES[name]:,} are read.")
    return names


def commit_files(
    repo: str,
    files: Mapping[str, bytes],
    *,
    message: str,
    private: bool = True,
    branch: str | None = None,
    keep: Callable[[Callable[[str], bytes | None]], Container[str]] = lambda read: (),
) -> str:
    """Commit files to a repository, which is made if it is missing; return the reference of the commit.

    Args:
        repo: `OWNER/NAME`.
        files: contents by name.
        message: of the commit.
        private: make the repository private, and refuse one that is public.
        branch: branch to commit to, made if it is missing; None is the main one.
        keep: called with a function that reads a file of the branch by its name (None: there is none);
            returns the names of `files` that stay as they are there.

    Raises:
        ConfigError: the repository is public, and `private` is set.
        FileError: the hub cannot be reached, or refuses.
    """
    hub = import_hub("push_to_hub")
    api = client(hub)
    with explained(api, repo, branch or MAIN, writing=True):
        api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.model_info(repo, timeout=_TIMEOUT).private:
            raise ConfigError(
                f"{HUB}{repo} is public, so everyone could read what is pushed. If that is meant, give "
                "private=False (in the shell --public); else choose another name."
            )
        if branch:
            api.create_branch(repo, branch=branch, exist_ok=True)
        info = api.model_info(repo, revision=branch or MAIN, timeout=_TIMEOUT)
        there = {file.rfilename for file in info.siblings or ()}

        def read(name: str) -> bytes | None:
            if name not in there:
                return None
            return Path(api.hf_hub_download(repo, name, revision=info.sha)).read_bytes()

        kept = keep(read)
        added = [hub.CommitOperationAdd(name, content) for name, content in files.items() if name not in kept]
        # The hub refuses if somebody has changed the branch since it was read.
        options = {"commit_message": message, "revision": branch, "parent_commit": info.sha}
        done = api.create_commit(repo, added, **options)
    return f"{HUB}{repo}@{done.oid}"


class _UnreachableError(FileError):
    """The hub does not answer; what is in the cache may be used."""


@contextmanager
def explained(api: Any, repo: str, revision: str, *, writing: bool = False) -> Iterator[None]:
    """Replace the errors of the hub's client by one of ours, which says what to do."""
    errors = import_hub("the hub").errors
    what = f"{HUB}{repo}"
    login = f"log in: hf auth login, or set HF_TOKEN to a token that may {'write' if writing else 'read'} it"
    try:
        yield
    except StyleAugError:
        raise
    except errors.GatedRepoError:
        raise FileError(f"{what} is gated: ask for access at {api.endpoint}/{repo}, then {login}.") from None
    except errors.RepositoryNotFoundError:
        raise FileError(
            f"there is no repository {what} at {api.endpoint}, or it is private and you may not "
            f"{'write' if writing else 'read'} it. Check the name; if it is private, {login}."
        ) from None
    except errors.RevisionNotFoundError:
        raise FileError(
            f"{what} has no revision {revision!r}. Give a branch, a tag, or the full hash of a commit listed "
            f"at {api.endpoint}/{repo}/commits/{MAIN}."
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise FileError(f"the hub refuses {what} ({status}): {login}.") from None
        kind = _UnreachableError if status >= 500 or status == _BUSY else FileError
        raise kind(f"the hub cannot serve {what}: {first_line(error)} Try again later.") from None
    except Exception as error:
        known = isinstance(error, OSError | ValueError | RuntimeError)
        if not known and type(error).__module__.partition(".")[0] not in _CLIENTS:
            raise
        if isinstance(error, OSError) and error.errno and error.filename:
            raise FileError(
                f"cannot keep {what} in the cache: {first_line(error)} Set HF_HOME to another folder."
            ) from None
        reason = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        raise _UnreachableError(
            f"cannot reach {what} at {api.endpoint}: {type(reason).__name__}, "
            f"{str(reason)[:300].strip(' .')}. Check the network and HF_ENDPOINT. "
            "Without a network, give the path of a folder that holds the files."
        ) from None


def client(hub: ModuleType) -> Any:
    """Return the client of the hub that HF_ENDPOINT names now, not when the library was imported."""
    return hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT", "").rstrip("/") or None, library_name="styleaug")


def import_hub(what: str) -> ModuleType:
    """Import `huggingface_hub`.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise missing_extra(what, "huggingface_hub", "hub") from None
    return huggingface_hub
