"""Names: injective, and accepted wherever the contract puts them."""

import re
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import subjects
from schemas.errors import InvalidName
from schemas.subjects import Names, check_model_id, check_node_id, check_request_id, decode, encode

NAMES = st.text(min_size=1, max_size=60).filter(lambda name: 0 < len(name.encode(errors="ignore")) == len_utf8(name))
KV_KEY = re.compile(r"[-/_=.a-zA-Z0-9]+")


def len_utf8(name: str) -> int:
    try:
        return len(name.encode())
    except UnicodeEncodeError:
        return -1


def fits(name: str) -> bool:
    return (
        sum(1 if char in string.ascii_letters + string.digits + "-_" else 3 * len(char.encode()) for char in name)
        <= 200
    )


@given(NAMES.filter(fits))
def test_every_name_comes_back_from_its_token(name: str) -> None:
    assert decode(encode(name)) == name


@given(NAMES.filter(fits), NAMES.filter(fits))
def test_two_names_never_meet(one: str, other: str) -> None:
    assert (encode(one) == encode(other)) == (one == other)


@given(NAMES.filter(fits))
def test_a_token_is_a_legal_subject_token_key_and_durable(name: str) -> None:
    token = encode(name)
    assert KV_KEY.fullmatch(token)
    assert not set(token) & set(".*> \t\r\n/\\")
    assert len(token) <= subjects.NAME_LIMIT_BYTES


@given(st.text(max_size=40))
def test_only_what_encode_writes_is_decoded(token: str) -> None:
    try:
        name = decode(token)
    except InvalidName:
        return
    assert encode(name) == token


def test_the_contract_example_is_met() -> None:
    assert encode("Qwen2.5-7B:Q4_K_M") == "Qwen2=2E5-7B=3AQ4_K_M"


@pytest.mark.parametrize("name", ["", "a" * 201, "é" * 60, "\ud800"])
def test_what_cannot_be_a_token_is_refused(name: str) -> None:
    with pytest.raises(InvalidName):
        encode(name)


@pytest.mark.parametrize("token", ["=2e", "=41", "a=", "a.b", "*", "=FF=FE", ""])
def test_tokens_with_a_second_spelling_are_refused(token: str) -> None:
    with pytest.raises(InvalidName):
        decode(token)


@pytest.mark.parametrize("name", ["smollm2", "org/repo:Q4_K_M", "a.b*c>d", "模型", "x y"])
def test_model_ids_that_people_use_are_taken(name: str) -> None:
    assert check_model_id(name) == name


@pytest.mark.parametrize(
    "name", ["", " a", "a ", "a\n", "..", "a/../b", "a//b", "/a", "a/", "./a", "a\\b", "\x00", "x" * 10_240, "\u202ea"]
)
def test_model_ids_that_would_hurt_later_are_refused_and_the_field_is_named(name: str) -> None:
    with pytest.raises(InvalidName) as caught:
        check_model_id(name)
    assert caught.value.param == "model"
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("name", ["", "-a", ".", "a/b", "a b", "a" * 65, "a\n", "*"])
def test_odd_node_ids_are_refused(name: str) -> None:
    with pytest.raises(InvalidName):
        check_node_id(name)


def test_node_and_request_ids_that_people_use_are_taken() -> None:
    assert check_node_id("gpu-7.rack2.example") == "gpu-7.rack2.example"
    assert check_request_id("chatcmpl-abc_1") == "chatcmpl-abc_1"
    with pytest.raises(InvalidName):
        check_request_id("a.b")


def test_names_are_those_of_the_contract() -> None:
    names = Names()
    assert names.infer("chat", "a.b") == "puna.infer.chat.a=2Eb"
    assert names.queue("interactive", "m") == "puna.queue.interactive.m"
    assert names.node("n7", "cancel") == "puna.node.n7.cancel"
    assert names.node_infer("n7", "chat", "m") == "puna.node.n7.infer.chat.m"
    assert names.event("n7", "crashed") == "puna.event.n7.crashed"
    assert (names.stream_queue, names.stream_events) == ("PUNA_QUEUE", "PUNA_EVENTS")
    assert (names.bucket_nodes, names.bucket_blobs, names.bucket_models) == ("puna_nodes", "puna_blobs", "puna_models")
    assert names.task("download") == "puna.task.download"
    assert names.task("delete", "node7") == "puna.task.delete.node7"


def test_two_fleets_in_one_account_share_no_name() -> None:
    one, two = Names("a"), Names("b")
    for take in ("stream_queue", "stream_events", "bucket_nodes", "bucket_blobs", "bucket_models"):
        assert getattr(one, take) != getattr(two, take)


@pytest.mark.parametrize("prefix", ["", "a.b", "*", "a" * 33, "a b"])
def test_a_prefix_that_is_no_token_is_refused(prefix: str) -> None:
    with pytest.raises(InvalidName):
        Names(prefix)


def test_names_are_spelled_in_one_file_only() -> None:
    root = Path(__file__).parents[2]
    spelled = re.compile(
        r"""["'](?:puna\.(?:infer|node|queue|demand|reply|event|task)\b|PUNA_QUEUE|PUNA_EVENTS|puna_nodes|Puna-[A-Z]|Nats-Msg-Id)"""
    )
    found = [
        f"{path.relative_to(root)}: {line.strip()}"
        for package in ("schemas", "bus", "web", "worker", "gateway")
        for path in (root / package).rglob("*.py")
        if path.name != "subjects.py"
        for line in path.read_text().splitlines()
        if spelled.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("subject", ["_INBOX.abc.1", "my.own.place", "puna.reply.gw.s-1", "other.task.delete"])
def test_an_answer_may_go_to_an_inbox_or_where_the_fleet_answers(subject: str) -> None:
    assert Names().may_answer_to(subject)


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "$JS.API.STREAM.DELETE.KV_puna_models",
        "$KV.puna_nodes.a",
        "puna.task.delete",
        "puna.node.a.drain",
        "puna.reply",
        "a.*",
        "a.>",
        "a b",
        "a\r\nPUB x 0",
        "a..b",
        ".a",
        "a.",
        "x" * 256,
    ],
)
def test_nobody_has_a_worker_publish_where_he_may_not(subject: str) -> None:
    assert not Names().may_answer_to(subject)
