import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import InvalidRequest, PunaError, UnknownField
from schemas.model import COPY_MOVES, ModelRecord
from schemas.task import BODY_LIMIT_BYTES, TASK_MOVES, TASK_OPS, IllegalMove, TaskRecord, moved, read_task


def test_what_an_operator_types_is_a_task():
    task = read_task("download", b'{"model":"smollm2","source":"hf://org/repo:Q4_K_M"}')
    assert (task.model, task.source, task.policy) == ("smollm2", "hf://org/repo:Q4_K_M", "reuse_if_exists")
    assert task.id.startswith("t-")


def test_the_same_task_twice_is_one_task_in_whatever_order_it_is_written():
    one = read_task("download", b'{"model":"m","source":"a/b"}')
    two = read_task("download", b'{ "source": "a/b", "model": "m" }')
    assert one.id == two.id


def test_different_tasks_have_different_ids():
    here, there = (read_task("delete", b'{"model":"m"}', node).id for node in ("a", "b"))
    assert here != there != read_task("delete", b'{"model":"m"}').id
    ids = {read_task(op, b'{"model":"m"}').id for op in ("delete", "load", "unload", "verify")}
    assert len(ids) == 4


def test_a_given_id_is_kept():
    assert read_task("delete", b'{"model":"m","id":"mine-1"}').id == "mine-1"


@pytest.mark.parametrize(
    ("op", "body", "param"),
    [
        ("download", {"model": "m"}, "source"),
        ("download", {"source": "a/b"}, "model"),
        ("download", {"model": "../m", "source": "a/b"}, "model"),
        ("download", {"model": "m", "source": "nowhere"}, "source"),
        ("download", {"model": "m", "source": "a/b", "sorce": 1}, "sorce"),
        ("download", {"model": "m", "source": "a/b", "checksums": {"*": "sha256:xyz"}}, "checksums.*"),
        ("download", {"model": "m", "source": "a/b", "token_ref": "hf_abcdef"}, "token_ref"),
        ("download", {"model": "m", "source": "a/b", "parameters": {"token": "hf_abcdef"}}, "parameters"),
        ("download", {"model": "m", "source": "a/b", "profile": {"slots": 0}}, "profile.slots"),
        ("delete", {"model": "m", "id": "no spaces"}, "id"),
        ("cancel", {}, "task"),
        ("dance", {}, "op"),
    ],
)
def test_a_bad_task_names_its_field(op, body, param):
    with pytest.raises(InvalidRequest) as raised:
        read_task(op, orjson.dumps(body))
    assert raised.value.param == param
    assert "hf_abcdef" not in raised.value.message


def test_an_unknown_field_lists_those_that_there_are():
    with pytest.raises(UnknownField) as raised:
        read_task("delete", b'{"model":"m","force":true}')
    assert "retain" in raised.value.message


def test_a_task_over_the_limit_is_refused():
    with pytest.raises(InvalidRequest, match="at most"):
        read_task("delete", b" " * (BODY_LIMIT_BYTES + 1))


@given(st.sampled_from(TASK_OPS), st.binary(max_size=200))
def test_whatever_comes_is_a_task_or_a_refusal(op, payload):
    try:
        read_task(op, payload)
    except PunaError as error:
        assert error.http_status == 400


def record(state="queued", **fields):
    return TaskRecord(task="t", op="download", created=1.0, since=1.0, state=state, **fields)


def test_a_move_sets_the_time_and_what_changed():
    after = moved(record(), "running", 5.0, node="n", attempts=1)
    assert (after.state, after.since, after.node, after.attempts) == ("running", 5.0, "n", 1)


def test_progress_within_a_state_leaves_its_time():
    assert moved(record("running"), "running", 9.0).since == 1.0


@pytest.mark.parametrize("state", ["done", "failed", "cancelled", "dead"])
def test_nothing_comes_after_the_end(state):
    assert record(state).ended
    with pytest.raises(IllegalMove):
        moved(record(state), "running", 2.0)


def test_every_state_is_in_the_tables_and_every_move_leads_to_one():
    for table in (TASK_MOVES, COPY_MOVES):
        assert {state for after in table.values() for state in after} <= table.keys()


def test_a_record_of_desired_state_travels_whole():
    wanted = ModelRecord(model="m", source="hf://a/b:Q4_K_M", placement={"copies": "all"}, profile={"slots": 2})
    assert ModelRecord.model_validate_json(wanted.model_dump_json()) == wanted
