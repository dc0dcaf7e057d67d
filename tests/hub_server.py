"""A server on this machine that speaks the Hugging Face hub's protocol, as far as its client needs it."""

import hashlib
import json
import threading
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_owner"


class Repo:
    """A repository: files of each commit, and the commit of each branch."""

    def __init__(self, *, private: bool):
        self.private = private
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.commit({})

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Add files to a branch; return the new commit."""
        before = self.branches.get(branch, "")
        tree = {**self.commits.get(before, {}), **files}
        content = "".join(f"{name} {hashlib.sha1(data).hexdigest()} " for name, data in sorted(tree.items()))
        commit = hashlib.sha1(f"{before} {content}".encode()).hexdigest()
        self.commits[commit], self.branches[branch] = tree, commit
        return commit

    def find(self, revision: str) -> str | None:
        """Return the commit of a revision."""
        return self.branches.get(revision, revision if revision in self.commits else None)


class Hub(ThreadingHTTPServer):
    """The server; `repos` is what it holds, `log` what it was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, Repo] = {}
        self.log: list[str] = []
        self.objects: dict[str, bytes] = {}
        self.status: int | None = None
        """Status of every answer, for a hub that is out of order."""
        self.sizes: dict[str, int | None] = {}
        """Sizes that are told in place of the true ones."""
        self.gated: set[str] = set()
        self.moving: dict[str, bytes] = {}
        """Files that somebody commits right after the next answer about a repository."""
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


class Answer(BaseHTTPRequestHandler):
    """One request."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Print nothing."""

    def handle_one(self) -> None:
        """Answer any request."""
        path = unquote(urlsplit(self.path).path).strip("/")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.log.append(f"{self.command} {path}")
        if self.server.status:
            return self.send(b"", status=self.server.status)
        match path.split("/"):
            case ["api", "repos", "create"]:
                self.create(json.loads(self.body))
            case ["api", "validate-yaml"]:
                content = json.loads(self.body)["content"]
                self.send({"errors": [], "warnings": []}, status=200 if content.startswith("---\n") else 400)
            case ["api", "models", owner, name, *rest]:
                self.about(f"{owner}/{name}", rest)
            case [owner, name, "info", "lfs", "objects", "batch"]:
                self.batch(json.loads(self.body)["objects"])
            case ["lfs", oid] if self.command == "GET":
                assert "Authorization" not in self.headers, "the token stays with the hub"
                self.send(self.server.objects[oid])
            case ["lfs", oid]:
                self.server.objects[oid] = self.body
                self.send(b"")
            case [owner, name, "resolve", revision, *file]:
                self.resolve(f"{owner}/{name}", revision, "/".join(file))
            case _:
                self.send(b"", status=404)

    do_GET = do_HEAD = do_POST = do_PUT = handle_one

    def send(self, body: object, *, status: int = 200, **headers: str) -> None:
        """Send JSON or bytes."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def owned(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repo(self, name: str) -> Repo | None:
        """Return a repository that the caller may read, else answer as the hub does."""
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and not self.owned()):
            status = 404 if self.owned() else 401
            self.send(b"", status=status, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
            return None
        if name in self.server.gated:
            self.send(b"", status=403, X_Error_Code="GatedRepo")
            return None
        return repo

    def commit_of(self, repo: Repo, revision: str) -> str | None:
        """Return the commit of a revision, else answer that there is none."""
        commit = repo.find(revision)
        if commit is None:
            self.send(b"", status=404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id")
        return commit

    def create(self, asked: dict) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if not self.owned():
            return self.send(b"", status=401)
        if name in self.server.repos:
            return self.send({"url": f"{self.server.url}/{name}"}, status=409)
        private = asked.get("visibility") == "private" or asked.get("private", False)
        self.server.repos[name] = Repo(private=private)
        self.send({"url": f"{self.server.url}/{name}"})

    def about(self, name: str, rest: list[str]) -> None:
        """Answer a request under /api/models/OWNER/NAME."""
        repo = self.repo(name)
        if repo is None:
            return
        match self.command, rest:
            case "GET", ["revision", *revision]:
                self.tell(name, repo, "/".join(revision))
            case "GET", []:
                self.tell(name, repo, "main")
            case "POST", ["branch", branch]:
                known = branch in repo.branches
                repo.branches.setdefault(branch, repo.branches["main"])
                self.send({}, status=409 if known else 200)
            case "POST", ["preupload", _]:
                asked = json.loads(self.body)["files"]
                modes = {True: "lfs", False: "regular"}
                told = [
                    {
                        "path": f["path"],
                        "uploadMode": modes[not f["path"].endswith(".md")],
                        "shouldIgnore": False,
                    }
                    for f in asked
                ]
                self.send({"files": told})
            case "POST", ["commit", branch]:
                lines = [json.loads(line) for line in self.body.splitlines()]
                files = {}
                for line in lines:
                    value = line["value"]
                    if line["key"] == "header" and value.get("parentCommit") not in (None, repo.find(branch)):
                        return self.send({"error": "A commit has happened since."}, status=412)
                    if line["key"] == "file":
                        files[value["path"]] = b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        files[value["path"]] = self.server.objects[value["oid"]]
                oid = repo.commit(files, branch)
                self.send({"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid})
            case _:
                self.send(b"", status=404)

    def tell(self, name: str, repo: Repo, revision: str) -> None:
        """Describe a revision: its commit, its files and their sizes."""
        if commit := self.commit_of(repo, revision):
            files = repo.commits[commit].items()
            siblings = [
                {"rfilename": file, "size": self.server.sizes.get(file, len(data))} for file, data in files
            ]
            facts = {"id": name, "sha": commit, "private": repo.private, "siblings": siblings, "tags": []}
            if self.server.moving:
                repo.commit(self.server.moving)
            self.send(facts)

    def batch(self, asked: list[dict]) -> None:
        """Say where to put large files."""
        places = [
            {**each, "actions": {"upload": {"href": f"{self.server.url}/lfs/{each['oid']}"}}}
            for each in asked
        ]
        self.send({"transfer": "basic", "objects": places})

    def resolve(self, name: str, revision: str, file: str) -> None:
        """Send a file, or what a HEAD request asks about it."""
        repo = self.repo(name)
        commit = repo and self.commit_of(repo, revision)
        if repo is None or commit is None:
            return
        data = repo.commits[commit].get(file)
        if data is None:
            return self.send(b"", status=404, X_Error_Code="EntryNotFound")
        oid = hashlib.sha256(data).hexdigest()
        if not file.endswith(".safetensors"):
            return self.send(data, X_Repo_Commit=commit, ETag=f'"{oid}"')
        self.server.objects[oid] = data  # large files come from another host
        self.send(
            b"",
            status=302,
            Location=f"http://localhost:{self.server.server_port}/lfs/{oid}",
            X_Repo_Commit=commit,
            X_Linked_Etag=f'"{oid}"',
            X_Linked_Size=str(len(data)),
        )
