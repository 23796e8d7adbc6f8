"""Files from the network: whole, checked, once, or not there at all."""

from __future__ import annotations

import threading

import pytest

from gateway.cli.download import RemoteFile, fetch
from gateway.cli.exits import NOT_ALLOWED, CliError
from gateway.cli.say import Teller

DATA = bytes(range(256)) * 20_000


def remote(host, **more) -> RemoteFile:
    return RemoteFile(host.url, more.pop("sha256", host.sha256), len(host.data), **more)


def test_a_file_is_fetched_checked_and_not_asked_for_again(new_file_host, tmp_path) -> None:
    host = new_file_host(data=DATA)
    target = tmp_path / "deep" / "model.gguf"
    for _ in range(2):
        assert fetch(remote(host), target, Teller()).read_bytes() == DATA
    assert len(host.asked) == 1


def test_a_broken_transfer_goes_on_where_it_stopped(new_file_host, tmp_path) -> None:
    host = new_file_host(data=DATA, break_after=[1_500_000, 1_000_000])
    assert fetch(remote(host), tmp_path / "model.gguf", Teller()).read_bytes() == DATA
    assert [asked.get("range") for asked in host.asked] == [None, "bytes=1500000-", "bytes=2500000-"]


def test_a_busy_server_is_asked_again(new_file_host, tmp_path) -> None:
    host = new_file_host(data=DATA, errors=[503, 429])
    assert fetch(remote(host), tmp_path / "model.gguf", Teller()).read_bytes() == DATA


def test_damaged_bytes_are_refused_and_removed(new_file_host, tmp_path) -> None:
    host = new_file_host(data=DATA)
    with pytest.raises(CliError, match="damaged"):
        fetch(remote(host, sha256="0" * 64), tmp_path / "model.gguf", Teller())
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf.lock"]


def test_two_at_once_fetch_it_once(new_file_host, tmp_path) -> None:
    host = new_file_host(data=DATA)
    target = tmp_path / "model.gguf"
    threads = [threading.Thread(target=fetch, args=(remote(host), target, Teller())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_bytes() == DATA
    assert len(host.asked) == 1


def test_the_token_is_not_sent_to_where_the_first_host_points(new_file_host, tmp_path) -> None:
    store = new_file_host(data=DATA)
    hub = new_file_host(data=DATA, moved_to=store.url)
    fetch(remote(hub, token="secret"), tmp_path / "model.gguf", Teller())
    assert hub.asked[0]["authorization"] == "Bearer secret"
    assert "authorization" not in store.asked[0]


def test_a_forbidden_file_says_what_to_do(new_file_host, tmp_path) -> None:
    host = new_file_host(data=DATA, errors=[403])
    with pytest.raises(CliError, match="HF_TOKEN") as caught:
        fetch(remote(host), tmp_path / "model.gguf", Teller())
    assert caught.value.code == NOT_ALLOWED


def test_a_file_larger_than_the_disk_is_refused_before_it_is_fetched(new_file_host, tmp_path) -> None:
    host = new_file_host(data=DATA)
    with pytest.raises(CliError, match="make room"):
        fetch(RemoteFile(host.url, host.sha256, 10**18), tmp_path / "model.gguf", Teller())
    assert host.asked == []
