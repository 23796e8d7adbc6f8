"""`peer://node/model`: the copy that another node has, and nobody else's."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bus.kv import Bucket
from schemas.source import parse_source
from worker.peers import swarm
from worker.sources import BadListing, Corrupt, Listing, NotThere, SourceError, Unreachable, Unsupported, Want
from worker.store.manifest import Copy, HeldFile, Manifest

MB = 1 << 20


def stock(member: Any, model: str, *sizes: int, **changes: Any) -> list[bytes]:
    """It has a whole copy of a model, of files `f0.gguf`, `f1.gguf`…; returns their contents."""
    contents, files = [os.urandom(size) for size in sizes], []
    for number, content in enumerate(contents):
        sha256 = hashlib.sha256(content).hexdigest()
        member.put(content, sha256)
        role = "projector" if number else "model"
        files.append(HeldFile(path=f"f{number}.gguf", size_bytes=len(content), sha256=sha256, role=role))
    fields = {"model": model, "source": "file:///x", "revision": "r1", "serial": 1, "main": "f0.gguf"}
    manifest = Manifest.model_validate({**fields, "files": files, "installed_at": 0.0} | changes)
    member.copies[model] = Copy(model, "t", manifest, Path("/nowhere"), 0.0)
    return contents


async def listed(member: Any, text: str, **want: Any) -> Listing:
    ref = parse_source(text)
    return await member.peers.source.resolve(ref, want=Want(ref, **want), secrets=None)


async def test_the_files_of_a_node_come_from_it_and_those_who_have_them_too(new_member: Any, site: Any) -> None:
    one, two, three = await new_member(), await new_member(), await new_member()
    contents = stock(one, "owner/repo:Q4", 5 * MB + 7, 300)
    listing = await listed(two, "peer://n0/owner=2Frepo=3AQ4")
    assert (listing.revision, listing.main) == ("r1", "f0.gguf")
    assert [(file.path, file.size_bytes, file.role) for file in listing.files] == [
        ("f0.gguf", 5 * MB + 7, "model"),
        ("f1.gguf", 300, "projector"),
    ]
    for file, content in zip(listing.files, contents, strict=True):
        digests = await two.fetch(file)
        assert two.blob(digests.sha256).read_bytes() == content
        two.bytes.clear()
    one.blob(listing.files[0].digest.hex).unlink()  # another who has it gives it as well
    assert (await three.fetch((await listed(three, "peer://n0/owner=2Frepo=3AQ4")).files[0])).size_bytes == 5 * MB + 7


async def test_an_empty_file_comes_too(new_member: Any) -> None:
    one, two = await new_member(), await new_member()
    stock(one, "m", 2 * MB, 0)
    listing = await listed(two, "peer://n0/m")
    assert (await two.fetch(listing.files[1])).size_bytes == 0


async def test_of_several_files_those_that_are_wanted_are_listed(new_member: Any) -> None:
    one, two = await new_member(), await new_member()
    stock(one, "m", 100, 100)
    assert [file.path for file in (await listed(two, "peer://n0/m", files=("f0*",))).files] == ["f0.gguf"]
    with pytest.raises(NotThere, match=r"node n0 has revision r1, not r2"):
        await listed(two, "peer://n0/m", revision="r2")
    with pytest.raises(BadListing):
        await listed(two, "peer://n0/m", checksums={"f0.gguf": "sha256:" + "0" * 64})
    with pytest.raises(Unsupported, match="sha256"):
        await listed(two, "peer://n0/m", checksums={"f0.gguf": "md5:" + "0" * 32})


async def test_the_own_copy_is_listed_without_being_asked_for(new_member: Any) -> None:
    one = await new_member(enabled=False)
    stock(one, "m", 100)
    assert (await listed(one, "peer://n0/m")).revision == "r1"
    with pytest.raises(NotThere, match="node n0 has no copy of other"):
        await listed(one, "peer://n0/other")


async def test_why_a_copy_cannot_be_had_names_the_node(new_member: Any) -> None:
    one, two = await new_member(), await new_member()
    stock(one, "inplace", 100, in_place=True)
    stock(one, "leaving", 100)
    one.states |= {"leaving": SimpleNamespace(state="Deleting"), "coming": SimpleNamespace(state="Downloading")}
    for model, kind, text in (
        ("absent", NotThere, "node n0 has no copy of absent"),
        ("leaving", NotThere, "node n0 is deleting its copy of leaving"),
        ("coming", Unreachable, r"node n0 has not got all of coming yet \(Downloading\)"),
        ("inplace", Unsupported, "node n0 serves inplace where it lies"),
    ):
        with pytest.raises(kind, match=text):
            await listed(two, f"peer://n0/{model}")


async def test_a_node_that_was_never_there_and_one_that_is_away_are_told_apart(new_member: Any) -> None:
    one = await new_member()
    with pytest.raises(NotThere, match="there is no node n9 now"):
        await listed(one, "peer://n9/m")
    await Bucket(one.bus, one.bus.names.bucket_nodes).put("n9", b"{}")
    with pytest.raises(Unreachable, match="node n9 does not answer"):
        await listed(one, "peer://n9/m")


async def test_nodes_that_share_nothing_or_cannot_be_reached_say_so(new_member: Any) -> None:
    one, two, apart = await new_member(), await new_member(), await new_member(enabled=False)
    for member in (one, apart):
        stock(member, "m", 2 * MB)
    with pytest.raises(Unsupported, match="node n2 shares no files"):
        await listed(two, "peer://n2/m")
    listing = await listed(apart, "peer://n0/m")
    with pytest.raises(Unsupported, match="this node shares no files"):
        await apart.fetch(listing.files[0])
    one.peers.address.host = "another machine"
    with pytest.raises(Unsupported, match=r"http\.listen or http\.advertise"):
        await listed(two, "peer://n0/m")


async def test_without_nats_or_with_a_strange_answer_it_is_said(new_member: Any, nats_server: Any) -> None:
    one, two = await new_member(), await new_member()
    one.bus.subscribe(one.bus.names.node("odd", "copy"), lambda asked: one.bus.publish(asked.reply, b"[]"))
    await one.bus.flush(2)
    with pytest.raises(BadListing, match="what node odd answered cannot be read"):
        await listed(two, "peer://odd/m")
    nats_server.kill()
    while two.bus.connected:
        await asyncio.sleep(0.01)
    with pytest.raises(SourceError) as raised:
        await listed(two, "peer://n0/m")
    assert raised.value.retryable


async def test_a_file_that_nobody_gives_any_more_is_given_up_and_goes_on_later(
    new_member: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(swarm, "NOBODY_S", 0.5)
    one, two = await new_member(upload_bytes_per_s=5 * MB), await new_member()
    [content] = stock(one, "m", 12 * MB)
    [file] = (await listed(two, "peer://n0/m")).files
    fetching = asyncio.create_task(two.fetch(file))
    while not two.bytes or sum(two.bytes) < MB:
        await asyncio.sleep(0.01)
    one.blob(file.digest.hex).unlink()
    with pytest.raises(Unreachable, match="no node gives what is missing"):
        await fetching
    one.put(content, file.digest.hex)
    two.bytes.clear()
    await two.fetch(file)
    assert two.bytes[0] >= MB


async def test_a_rotten_copy_is_refused_and_its_node_is_named(new_member: Any) -> None:
    one, two = await new_member(), await new_member()
    [content] = stock(one, "m", 2 * MB)
    [file] = (await listed(two, "peer://n0/m")).files
    one.blob(file.digest.hex).write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(Corrupt, match=r"what n0 gave is not the file"):
        await two.fetch(file)
    assert not two.part(file).data.exists()
