"""Which files are meant, by their names alone."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.hubfiles import NoChoice, NothingFits, NotServable, SeveralFit, choose_files, part_names, role_of

EYES = ("mmproj-m-F32.gguf", "mmproj-m-Q8_0.gguf", "mmproj-m-f16.gguf", "mmproj-m-BF16.gguf")
NAMES = (
    "README.md",
    "config.json",
    "imatrix.gguf",
    "m-Q4_K_M.gguf",
    "m-Q8_0.gguf",
    "m-draft-Q4_K_M.gguf",
    "tokenizer.json",
)
PARTS = tuple(f"Q6_K/big-Q6_K-{part:05d}-of-00003.gguf" for part in (1, 2, 3))


@pytest.mark.parametrize(
    ("names", "quant", "main"),
    [
        (NAMES, None, "m-Q4_K_M.gguf"),
        (NAMES, "q8_0", "m-Q8_0.gguf"),
        (("only-IQ3_M.gguf", *EYES), None, "only-IQ3_M.gguf"),
        (("m.F16.gguf", "m.BF16.gguf"), "f16", "m.F16.gguf"),
        (("Q4_K_M/m.gguf", "Q8_0/m.gguf"), None, "Q4_K_M/m.gguf"),
        (("m-UD-Q4_K_M.gguf", "m-Q4_K_M.gguf"), None, "m-Q4_K_M.gguf"),
        (("m-UD-Q4_K_M.gguf", "m-Q4_K_M.gguf"), "UD-Q4_K_M", "m-UD-Q4_K_M.gguf"),
        (("m-Q4_K_M-00001-of-00001.gguf", "m-Q4_K_M.gguf"), None, "m-Q4_K_M.gguf"),
        (("m-Q4_K_M-v2.gguf", "m-Q4_K_M.gguf"), None, "m-Q4_K_M.gguf"),
        (("Q4_K_M/m-other.gguf", "m-Q4_K_M.gguf"), None, "m-Q4_K_M.gguf"),
        (("mtp-model-Q4_K_M.gguf",), None, "mtp-model-Q4_K_M.gguf"),
        (("M-Q4_K_M.GGUF",), None, "M-Q4_K_M.GGUF"),
        ((*PARTS, "m-Q4_K_M.gguf"), "Q6_K", PARTS[0]),
    ],
)
def test_the_quantisation_decides_and_the_plainest_name_wins(names, quant, main) -> None:
    assert choose_files(names, quant=quant).main == main


def test_all_parts_of_a_split_model_come_in_order_whichever_is_named() -> None:
    for chosen in (
        choose_files([*reversed(PARTS), "x.gguf"], quant="q6_k"),
        choose_files(PARTS, file=PARTS[1]),
        choose_files(PARTS, patterns=("*-00002-of-*",)),
        choose_files(PARTS),
    ):
        assert (chosen.main, chosen.names) == (PARTS[0], PARTS)
    with pytest.raises(NothingFits, match="only 2 of its 3 parts"):
        choose_files(PARTS[1:], quant="Q6_K")
    with pytest.raises(NothingFits, match="99999 parts"):
        choose_files(["m-Q4_K_M-00001-of-99999.gguf"])
    assert [role_of(name, PARTS[0]) for name in PARTS] == ["model", "shard", "shard"]


def test_a_projector_comes_with_a_model_that_was_chosen_by_rule() -> None:
    assert choose_files((*NAMES, *EYES)).names == ("m-Q4_K_M.gguf", "mmproj-m-f16.gguf")
    assert choose_files((*NAMES, *EYES[:2])).names == ("m-Q4_K_M.gguf", "mmproj-m-Q8_0.gguf")
    beside = ("a/m-Q4_K_M.gguf", "a/mmproj-F32.gguf", "b/mmproj-F16.gguf")
    assert choose_files(beside).names == ("a/m-Q4_K_M.gguf", "a/mmproj-F32.gguf")
    assert choose_files((*NAMES, *EYES), file="m-Q8_0.gguf").names == ("m-Q8_0.gguf",)
    assert choose_files((*NAMES, *EYES), quant="Q8_0", patterns=("mmproj*F32*",)).names == (
        "m-Q8_0.gguf",
        "mmproj-m-F32.gguf",
    )


def test_patterns_bring_drafts_configuration_and_all_else() -> None:
    chosen = choose_files((*NAMES, *EYES), patterns=("m-*Q4_K_M.gguf", "*.json", "mmproj-m-f16.gguf"))
    assert chosen.main == "m-Q4_K_M.gguf"
    assert {name: role_of(name, chosen.main) for name in chosen.names} == {
        "m-Q4_K_M.gguf": "model",
        "m-draft-Q4_K_M.gguf": "draft",
        "config.json": "config",
        "tokenizer.json": "config",
        "mmproj-m-f16.gguf": "projector",
    }


def test_a_pattern_without_a_slash_is_for_names_and_an_exact_name_is_itself() -> None:
    names = ("deep/m[1]-Q4_K_M.gguf", "deep/config.json")
    assert choose_files(names, patterns=("config.json",)).names == ("deep/config.json",)
    assert choose_files(names, patterns=("deep/m[1]-Q4_K_M.gguf",)).main == names[0]
    with pytest.raises(NothingFits):
        choose_files(names, patterns=("other/config.json",))


def test_what_cannot_be_chosen_is_refused_with_what_there_is() -> None:
    with pytest.raises(SeveralFit, match="a-Q4_K_M"):
        choose_files(("a-Q4_K_M.gguf", "b-Q4_K_M.gguf"))
    with pytest.raises(SeveralFit, match=r"Q8_0\.gguf"):
        choose_files(("m-Q8_0.gguf", "m-Q2_K.gguf"))
    with pytest.raises(NothingFits, match=r"no file is Q3_K"):
        choose_files(NAMES, quant="Q3_K")
    with pytest.raises(NotServable, match="safetensors"):
        choose_files(("model.safetensors", "config.json"))
    with pytest.raises(NothingFits):
        choose_files(())
    many = [f"m{number}.gguf" for number in range(41)]
    with pytest.raises(SeveralFit, match="and 1 more"):
        choose_files(many)


def test_a_hundred_thousand_hostile_names_take_no_time() -> None:
    split = [f"{'x' * 50}-{part:05d}-of-99999.gguf" for part in range(1, 100_000)]
    odd = [f"{'-' * 200}{number}.gguf" for number in range(1000)] + ["a" * 10_000 + ".gguf"] * 100
    before = time.monotonic()
    for patterns in ((), ("*",), ("*a*a*a*a*a*b",)):
        with pytest.raises(NoChoice) as told:
            choose_files([*split, *odd], patterns=patterns)
        assert len(told.value.message) < 20_000
    assert time.monotonic() - before < 20


@given(
    st.lists(st.text(max_size=40)),
    st.none() | st.text(min_size=1, max_size=10),
    st.lists(st.text(max_size=9), max_size=2),
)
def test_whatever_is_listed_what_is_chosen_was_listed(names: list[str], quant: str | None, patterns: list[str]) -> None:
    try:
        chosen = choose_files([*names, "m-Q4_K_M.gguf"], quant=quant, patterns=patterns)
    except NoChoice:
        return
    assert chosen.main in chosen.names
    assert set(chosen.names) <= {*names, "m-Q4_K_M.gguf"}
    assert set(part_names(chosen.main)) <= set(chosen.names)
