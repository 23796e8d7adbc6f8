import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import InvalidRequest
from schemas.source import SOURCE_LIMIT_BYTES, check_inner, parse_source


@pytest.mark.parametrize(
    ("text", "scheme", "place", "inner", "revision", "quant"),
    [
        ("hf://org/repo", "hf", "org/repo", None, None, None),
        ("org/repo", "hf", "org/repo", None, None, None),
        ("org/repo:Q4_K_M", "hf", "org/repo", None, None, "Q4_K_M"),
        ("hf://org/repo@main:Q8_0", "hf", "org/repo", None, "main", "Q8_0"),
        ("hf://org/re.po@v1/x#sub/a.gguf", "hf", "org/re.po", "sub/a.gguf", "v1/x", None),
        ("s3://bucket/models/a.gguf", "s3", "bucket", "models/a.gguf", None, None),
        ("s3://bucket/models/", "s3", "bucket", "models/", None, None),
        ("oci://n/ns/b/bkt/o/models/a.gguf", "oci", "bkt", "models/a.gguf", None, None),
        ("file:///srv/a.gguf", "file", "/srv/a.gguf", None, None, None),
        ("local:///srv/a.gguf", "local", "/srv/a.gguf", None, None, None),
        ("pvc://claim/sub/a", "pvc", "claim", "sub/a", None, None),
        ("vendor://thing", "vendor", "thing", None, None, None),
    ],
)
def test_a_source_is_taken_apart(text, scheme, place, inner, revision, quant):
    ref = parse_source(text)
    assert (ref.scheme, ref.place, ref.inner, ref.revision, ref.quant) == (scheme, place, inner, revision, quant)
    assert ref.text == text


def test_the_namespace_of_oracles_storage_is_kept():
    assert parse_source("oci://n/ns/b/bkt/o/k").namespace == "ns"


def test_a_url_is_its_own_place():
    assert parse_source("https://host:8443/a/b.gguf?x=1").place == "https://host:8443/a/b.gguf?x=1"


@pytest.mark.parametrize("text", ["local:///srv/a", "pvc://claim", "vendor://x"])
def test_some_sources_are_served_in_place(text):
    assert parse_source(text).in_place


@pytest.mark.parametrize("text", ["file:///srv/a", "hf://a/b", "https://h/x"])
def test_others_are_copied(text):
    assert not parse_source(text).in_place


def test_a_commit_pins_the_content_and_a_branch_does_not():
    assert parse_source("hf://a/b@" + "0" * 40).pinned
    assert not parse_source("hf://a/b@main").pinned


@pytest.mark.parametrize(
    "text",
    [
        "",
        "repo",
        "ftp://host/file",
        "hf://a/b@..",
        "hf://a/b@x/../../y",
        "hf://a/b#../../etc/passwd",
        "hf://a/b#/etc/passwd",
        "hf://../b",
        "hf://a/b#x\x00y",
        "s3://b/k",
        "s3://bucket/../k",
        "s3://bucket//k",
        "s3://Bucket/k",
        "oci://ns/bucket/key",
        "oci://n/ns/b/bkt/o/a/../b",
        "file://relative/path",
        "file:///a/../b",
        "local:///a/..",
        "pvc://",
        "pvc://claim/../x",
        "vendor://",
        "peer://",
        "peer://node",
        "peer://node/",
        "peer://../m",
        "peer://a b/m",
        "peer://node/..",
        "peer://node/=2E=2E",
        "peer://node/a=2F..=2Fb",
        "peer://node/owner/repo",
        "peer://node/m/../../x",
        "peer://node/=2",
        "peer://node/=6D",
        "https://",
        "https://[::1",
        "https://host:port/x",
        "hf://" + "a" * SOURCE_LIMIT_BYTES + "/b",
        "hf://a/b#" + "x" * 300,
        "line\nbreak/x",
    ],
)
def test_a_bad_source_is_refused_with_its_field_and_a_remedy(text):
    with pytest.raises(InvalidRequest) as raised:
        parse_source(text)
    assert raised.value.param == "source"
    assert len(raised.value.message) < 400


def test_the_copy_of_a_node_is_named_as_in_subjects_and_a_plain_id_is_refused_with_the_right_text():
    ref = parse_source("peer://gpu-1.lab/owner=2Frepo=3AQ4_K_M")
    assert (ref.scheme, ref.place, ref.inner) == ("peer", "gpu-1.lab", "owner/repo:Q4_K_M")
    with pytest.raises(InvalidRequest) as raised:
        parse_source("peer://gpu-1.lab/owner/repo:Q4_K_M")
    assert "peer://gpu-1.lab/owner=2Frepo=3AQ4_K_M" in raised.value.message


def test_a_password_in_a_url_is_refused_and_not_repeated():
    with pytest.raises(InvalidRequest) as raised:
        parse_source("https://user:hunter2@host/model.gguf")
    assert "hunter2" not in raised.value.message
    assert "token_ref" in raised.value.message


@given(st.text(max_size=300))
def test_whatever_is_given_a_source_comes_out_or_a_clear_refusal(text):
    try:
        ref = parse_source(text)
    except InvalidRequest:
        return
    assert ref.text == text
    for part in (ref.inner or "").split("/"):
        assert part != ".."


@given(st.text(max_size=100))
def test_a_checked_inner_name_never_leads_out(name):
    try:
        checked = check_inner(name, "s3://bucket/x")
    except InvalidRequest:
        return
    assert not checked.startswith("/")
    assert not {"", ".", ".."} & set(checked.split("/"))
    assert "\0" not in checked
