"""A small Hugging Face Hub: `python tests/fakes/hub.py --root DIR` prints its origins as one line of JSON, and serves.

    DIR/OWNER/REPO/REVISION/…    the files of a revision; the folder's content makes its commit
    DIR/OWNER/REPO/repo.json     all optional: gated, private (bool) · readers (tokens that may read it) ·
                                 metadata_gated (its metadata too) · extra (made-up files in the listing) ·
                                 names (further names in the listing) · wrong (name → sha256 that it claims) ·
                                 sizes (name → bytes that it claims)

Three origins: `hub` (metadata, `resolve`), `storage` (the bytes; a request with an Authorization header is refused
there, as object stores do with signed URLs), `elsewhere` (a stranger that has all the bytes: for redirects that lead
astray). Files ending in .gguf, .safetensors or .bin are LFS objects; others are git blobs, sent by `hub` itself.

Control pages beyond those of `faulty.py`: `POST /-/move {"repo", "revision", "to"}` lets a revision name another
folder; `POST /-/links {"lifetime_s"}` lets signed URLs end. `--page N`: entries of the tree on one page.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from faulty import Body, Origin, World

LFS = (".gguf", ".safetensors", ".bin")
API = "/api/models/"


@lru_cache(maxsize=4096)
def _digests(path: Path, size: int, _changed_ns: int) -> tuple[str, str]:
    """sha256 of the content, and its oid as a git blob."""
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
            git.update(block)
    return sha256.hexdigest(), git.hexdigest()


def digests(path: Path) -> tuple[str, str]:
    """sha256 and git oid of a file."""
    stat = path.stat()
    return _digests(path, stat.st_size, stat.st_mtime_ns)


class Repo:
    """One repository on the disk."""

    def __init__(self, hub: Hub, name: str) -> None:
        self.name, self.folder, self.hub = name, hub.root / name, hub
        told = self.folder / "repo.json"
        self.told: dict[str, Any] = json.loads(told.read_text()) if told.is_file() else {}

    def entries(self, folder: Path) -> list[dict[str, Any]]:
        """The tree of a revision, as the API tells it."""
        return self._snapshot(folder)[1]

    def commit(self, folder: Path) -> str:
        """A hash of all names and contents, as commits are."""
        return self._snapshot(folder)[0]

    def _snapshot(self, folder: Path) -> tuple[str, list[dict[str, Any]]]:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        state = json.dumps([self.told, [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]])
        known = self.hub.snapshots.get(folder)
        if known is None or known[0] != state:
            entries = self._made(folder, files)
            text = "".join(f"{entry['path']} {entry['oid']}\n" for entry in entries)
            told = f"{self.name}/{folder.name}\n{text}".encode("utf-8", "replace")
            known = self.hub.snapshots[folder] = state, hashlib.sha1(told).hexdigest(), entries
        return known[1:]

    def _made(self, folder: Path, files: list[Path]) -> list[dict[str, Any]]:
        real = [self._entry(path, path.relative_to(folder).as_posix()) for path in files]
        extra = (f"extra/{number // 1000}/{number}.txt" for number in range(int(self.told.get("extra", 0))))
        return real + [_made_up(name) for name in (*self.told.get("names", ()), *extra)]

    def _entry(self, path: Path, name: str) -> dict[str, Any]:
        sha256, git = digests(path)
        size = self.told.get("sizes", {}).get(name, path.stat().st_size)
        entry: dict[str, Any] = {"type": "file", "path": name, "size": size, "oid": git}
        if name.endswith(LFS):
            oid = self.told.get("wrong", {}).get(name, sha256)
            entry["lfs"] = {"oid": oid, "size": size, "pointerSize": 134}
        return entry

    def find(self, revision: str) -> tuple[str, Path] | None:
        """Commit and folder of a branch or commit."""
        moved = self.hub.moved.get((self.name, revision), revision)
        folder = self.folder / moved
        if folder.is_dir() and folder.parent == self.folder:
            return self.commit(folder), folder
        folders = (path for path in self.folder.iterdir() if path.is_dir())
        return next(((revision, path) for path in folders if self.commit(path) == revision), None)


def _made_up(name: str) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": 3, "oid": hashlib.sha1(name.encode("utf-8", "replace")).hexdigest()}


class Hub(World):
    """All repositories under a folder."""

    def __init__(self, root: Path, page: int) -> None:
        super().__init__()
        self.root, self.page = root, page
        self.moved: dict[tuple[str, str], str] = {}
        self.lifetime_s = 3600.0
        self.next_page = "hub"
        self.blobs: dict[str, Path] = {}
        self.snapshots: dict[Path, tuple[str, str, list[dict[str, Any]]]] = {}
        self.controls = {"/-/move": self._move, "/-/links": self._links}

    def _move(self, given: dict[str, str]) -> None:
        self.moved[given["repo"], given["revision"]] = given["to"]

    def _links(self, given: dict[str, float]) -> None:
        self.lifetime_s = given["lifetime_s"]

    def repo(self, name: str) -> Repo | None:
        return Repo(self, name) if (self.root / name).is_dir() and name.count("/") == 1 else None


class Api(Origin):
    """The origin `hub`."""

    world: Hub

    def respond(self, path: str) -> None:
        if path.startswith(API):
            owner, repo, kind, revision = (*path.removeprefix(API).split("/", 3), "", "", "")[:4]
            self._metadata(f"{owner}/{repo}", kind or "revision", unquote(revision) or "main")
        elif "/resolve/" in path:
            name, _, rest = path[1:].partition("/resolve/")
            revision, _, file = rest.partition("/")
            self._resolve(name, unquote(revision), unquote(file))
        else:
            self.refuse(404)

    def _repo(self, name: str, *, metadata: bool) -> Repo | None:
        """The repository, if the caller may have it; else the refusal is sent."""
        repo = self.world.repo(name)
        told = repo.told if repo else {}
        reads = self.token in told.get("readers", ())
        if self.token is not None and self.token.startswith("bad"):
            self._error(401, None, "Invalid credentials in Authorization header")
        elif repo is None or (told.get("private") and not reads):
            self._error(404 if self.token else 401, "RepoNotFound", "Repository not found")
        elif told.get("gated") and not reads and (not metadata or told.get("metadata_gated")):
            self._error(403 if self.token else 401, "GatedRepo", f"Access to model {name} is restricted")
        else:
            return repo
        return None

    def _metadata(self, name: str, kind: str, revision: str) -> None:
        if (repo := self._repo(name, metadata=True)) is None:
            return
        if (found := repo.find(revision)) is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        entries = repo.entries(found[1])
        if kind == "tree":
            self._tree(entries)
            return
        blobs = "blobs" in parse_qs(urlsplit(self.path).query)
        siblings = [_sibling(entry, blobs) for entry in entries]
        gated = "manual" if repo.told.get("gated") else False
        head = {"id": name, "modelId": name, "sha": found[0], "private": bool(repo.told.get("private")), "gated": gated}
        self.json({**head, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0})

    def _tree(self, entries: list[dict[str, Any]]) -> None:
        split = urlsplit(self.path)
        begin = int(parse_qs(split.query).get("cursor", ["0"])[0])
        end = begin + self.world.page
        link = f"<{self.world.origins[self.world.next_page]}{split.path}?recursive=true&cursor={end}>"
        self.json(entries[begin:end], {"Link": f'{link}; rel="next"'} if end < len(entries) else None)

    def _resolve(self, name: str, revision: str, file: str) -> None:
        if (repo := self._repo(name, metadata=False)) is None:
            return
        if (found := repo.find(revision)) is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        path = found[1] / file
        if not path.is_file() or ".." in file.split("/"):
            self._error(404, "EntryNotFound", "Entry not found")
            return
        sha256, git = digests(path)
        if not file.endswith(LFS):
            self.send_body(Body(f"{name}/{file}", path, f'"{git}"', {"X-Repo-Commit": found[0]}))
            return
        self.world.blobs[sha256] = path
        self.answer(302, b"", self._linked(name, file, sha256, path, found[0]))

    def _linked(self, name: str, file: str, sha256: str, path: Path, commit: str) -> dict[str, str]:
        expires = time.time() + self.world.lifetime_s
        storage = self.world.origins["storage"]
        claimed = Repo(self.world, name).told.get("wrong", {}).get(file, sha256)
        return {
            "Location": f"{storage}/{sha256}/{quote(name)}/{quote(file)}?expires={expires:.3f}&signature=abc",
            "X-Repo-Commit": commit,
            "X-Linked-Etag": f'"{claimed}"',
            "X-Linked-Size": str(path.stat().st_size),
        }

    def _error(self, status: int, code: str | None, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.refuse(status, headers, json.dumps({"error": message}).encode())


def _sibling(entry: dict[str, Any], blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": entry["path"]}
    lfs = entry.get("lfs")
    kept = {"rfilename": entry["path"], "size": entry["size"], "blobId": entry["oid"]}
    return kept | ({"lfs": {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": 134}} if lfs else {})


class Storage(Origin):
    """The origins `storage` and `elsewhere`: bytes behind signed URLs."""

    world: Hub

    def respond(self, path: str) -> None:
        sha256, _, name = unquote(path[1:]).partition("/")
        expires = float(parse_qs(urlsplit(self.path).query).get("expires", ["0"])[0])
        if self.headers.get("Authorization"):
            self.refuse(400, body=b"Only one auth mechanism allowed")
        elif expires < time.time():
            self.refuse(403, body=b"Request has expired")
        elif (held := self.world.blobs.get(sha256)) is None:
            self.refuse(404)
        else:
            self.send_body(Body(name, held, f'"{sha256[:32]}"'))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--page", type=int, default=1000, help="entries of the tree on one page")
    parser.add_argument("--astray", action="store_true", help="further pages of the tree are said to be elsewhere")
    parser.add_argument("--port", type=int, default=0, help="of the origin hub")
    parser.add_argument("--faults", type=json.loads, default=[], help="a JSON list of faults to begin with")
    args = parser.parse_args()
    hub = Hub(args.root, args.page)
    hub.next_page = "elsewhere" if args.astray else "hub"
    hub.add_faults(args.faults)
    hub.serve({"hub": Api, "storage": Storage, "elsewhere": Storage}, ports={"hub": args.port})


if __name__ == "__main__":
    main()
