"""What decides without any effect: chunks, tokens, whom to ask, addresses."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.peer import CHUNK_BYTES, Offer
from worker.peers import chunks
from worker.peers.address import Address
from worker.peers.holders import Holders, Shunned
from worker.peers.tokens import TOKEN_S, Tokens
from worker.peers.uploads import have_text, read_have

MB = 1 << 20


@given(st.sets(st.integers(0, 200)))
def test_runs_say_what_the_bits_say(numbers: set[int]) -> None:
    bits = sum(1 << number for number in numbers)
    assert chunks.from_ranges(chunks.to_ranges(bits)) == bits
    assert list(chunks.each(bits)) == sorted(numbers)
    runs = chunks.to_ranges(bits)
    assert all(first < last for first, last in runs)
    assert all(one[1] < two[0] for one, two in itertools.pairwise(runs))


@given(st.integers(1, 9 * MB), st.lists(st.tuples(st.integers(0, 9 * MB), st.integers(0, 9 * MB)), max_size=6))
def test_a_chunk_is_there_when_each_of_its_bytes_is(size: int, spans: list[tuple[int, int]]) -> None:
    from worker.transfer.intervals import Intervals

    done = Intervals((start, min(end, size)) for start, end in spans)
    found = chunks.within(done, size)
    for number in range(chunks.count_of(size)):
        start, end = chunks.span(number, size)
        assert bool(found >> number & 1) == (done.reach(start) >= end)
    assert found <= chunks.all_of(size)


def test_runs_beyond_the_end_or_backwards_say_nothing() -> None:
    assert chunks.from_ranges([(5, 3), (-1, 2), (0, 10**12)], 4) == 0b1111
    assert read_have("0-2,x-3", 4) is None
    assert read_have(have_text(0b1011), 4) == 0b1011
    assert read_have("", 4) == 0


def test_a_token_is_of_one_file_and_of_some_minutes() -> None:
    now = [0.0]
    tokens = Tokens(lambda: now[0])
    first = tokens.grant("a")
    assert tokens.grant("a") == first
    assert tokens.good("a", first)
    assert not tokens.good("b", first)
    assert not tokens.good("a", "")
    now[0] = TOKEN_S * 0.6
    second = tokens.grant("a")
    assert second != first
    assert tokens.good("a", first)
    now[0] = TOKEN_S + 1
    assert not tokens.good("a", first)
    assert tokens.good("a", second)


class Scene:
    """Holders of a file of eight chunks, with a clock that stands and dice that always show one."""

    def __init__(self) -> None:
        self.now = 0.0
        self.shunned = Shunned(lambda: self.now)
        self.holders = Holders(8 * CHUNK_BYTES, self.shunned, lambda: self.now, lambda: 0.5)

    def offer(self, node: str, *runs: tuple[int, int], **more: Any) -> int:
        told = {"node": node, "url": "http://h:1", "token": "t" * 43, "size_bytes": 8 * CHUNK_BYTES, "have": runs}
        return self.holders.offered(Offer(**told | more))

    def pick(self, missing: int = 0xFF) -> tuple[int, str] | None:
        found = self.holders.pick(missing)
        return found and (found[0], found[1].offer.node)


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_the_rarest_chunk_is_taken_first(scene: Scene) -> None:
    scene.offer("a", (0, 8))
    scene.offer("b", (0, 7))
    assert scene.pick() == (7, "a")


def test_who_has_least_to_do_is_asked(scene: Scene) -> None:
    scene.offer("a", (0, 8), uploads=5)
    scene.offer("b", (0, 8), uploads=1)
    assert scene.pick() == (0, "b")


def test_who_is_shunned_has_nothing_until_it_is_over(scene: Scene) -> None:
    scene.offer("a", (0, 8))
    scene.shunned.failed("a")
    assert scene.pick() is None
    assert scene.holders.available(0xFF) == 0
    scene.now = 2.1
    assert scene.pick() == (0, "a")
    scene.shunned.failed("a")
    scene.now = 5.9
    assert scene.pick() is None


def test_who_is_busy_still_has_it(scene: Scene) -> None:
    scene.offer("a", (0, 8))
    found = scene.holders.pick(0xFF)
    assert found is not None
    found[1].busy_until = 1.0
    assert scene.pick() is None
    assert scene.holders.available(0xFF) == 0xFF
    assert scene.holders.free_at(0xFF) == 1.0


def test_an_offer_of_another_size_or_grid_is_none(scene: Scene) -> None:
    assert scene.offer("a", (0, 8), size_bytes=7) == 0
    assert scene.offer("a", (0, 8), chunk_bytes=4096) == 0
    assert scene.pick() is None


def test_an_old_offer_is_none(scene: Scene) -> None:
    scene.offer("a", complete=True)
    scene.now = 301
    assert scene.holders.available(0xFF) == 0


async def test_a_loopback_is_told_on_its_own_machine_only() -> None:
    address = Address(None, (), "here")
    assert address.url_for("here") is None
    await address.listens("127.0.0.1", 8081)
    assert address.url_for("here") == "http://127.0.0.1:8081"
    assert address.url_for("there") is None


async def test_an_address_of_the_network_is_told_to_all() -> None:
    address = Address(None, (), "here")
    await address.listens("fd00::7", 8081)
    assert address.url_for("there") == "http://[fd00::7]:8081"


async def test_of_all_addresses_the_one_on_the_way_to_nats_is_told() -> None:
    address = Address(None, ("nats://127.0.0.1:4222",), "here")
    await address.listens("0.0.0.0", 8081)
    assert address.url_for("here") == "http://127.0.0.1:8081"
    assert address.url_for("there") is None


async def test_what_the_operator_says_wins() -> None:
    address = Address("http://gate:9000/n1/", (), "here")
    await address.listens("127.0.0.1", 8081)
    assert address.url_for("there") == address.url_for("here") == "http://gate:9000/n1"
