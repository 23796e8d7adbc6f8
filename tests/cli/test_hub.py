"""Sources of the Hub, and which files they mean."""

from __future__ import annotations

import pytest

from gateway.cli.exits import CliError
from gateway.cli.hub import HubFile, HubSource, choose_files, parse_source

Q4 = HubFile("model-Q4_K_M.gguf", 10, "a")
Q8 = HubFile("model-Q8_0.gguf", 20, "b")
EYES = HubFile("mmproj-model-Q4_K_M.gguf", 1, "c")
PARTS = [HubFile(f"big/big-Q6_K-{part:05d}-of-00003.gguf", 5, "d") for part in (1, 2, 3)]


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hf://o/r", HubSource("o/r")),
        ("o/r", HubSource("o/r")),
        ("hf://o/r:Q4_K_M", HubSource("o/r", quant="Q4_K_M")),
        ("hf://o/r.x@main:Q8_0", HubSource("o/r.x", "main", "Q8_0")),
        ("hf://o/r@refs/pr/1#a/b.gguf", HubSource("o/r", "refs/pr/1", None, "a/b.gguf")),
    ],
)
def test_sources_are_understood(text, source) -> None:
    assert parse_source(text) == source


@pytest.mark.parametrize("text", ["", "one", "a/b/c", "hf://o", "https://o/r", "o/../r", "o/r:"])
def test_other_texts_are_no_sources(text) -> None:
    assert parse_source(text) is None


def test_the_model_is_asked_for_by_repository_and_quantisation() -> None:
    assert HubSource("o/r", quant="Q8_0").model == "o/r:Q8_0"
    assert HubSource("o/r").model == "o/r"


def test_the_quantisation_decides_whatever_its_case_and_projectors_are_no_models() -> None:
    assert choose_files(HubSource("o/r", quant="q8_0"), [EYES, Q4, Q8]) == [Q8]
    assert choose_files(HubSource("o/r"), [EYES, Q8, Q4]) == [Q4]
    assert choose_files(HubSource("o/r"), [EYES, Q8]) == [Q8]


def test_all_parts_of_a_split_model_are_taken_in_order() -> None:
    assert choose_files(HubSource("o/r", quant="Q6_K"), [*reversed(PARTS), Q4]) == PARTS
    with pytest.raises(CliError, match="2 of its 3 parts"):
        choose_files(HubSource("o/r", quant="Q6_K"), PARTS[:2])


def test_a_choice_that_is_none_lists_what_there_is() -> None:
    with pytest.raises(CliError, match=r"model-Q8_0\.gguf"):
        choose_files(HubSource("o/r", quant="Q2_K"), [Q4, Q8])
    with pytest.raises(CliError, match="no GGUF"):
        choose_files(HubSource("o/r"), [])
