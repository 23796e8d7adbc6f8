"""How copies become models that this node serves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from schemas.model import Profile
from worker.sources import SourceError
from worker.store.catalogue import entry_of, merged

ONE = "hf://o/one"


@pytest.mark.parametrize(
    ("profile", "preload", "pinned"),
    [
        (Profile(), False, False),
        (Profile(pinned=True), False, True),
        (Profile(preload=True), True, False),
        (Profile(preload=False), False, False),
    ],
)
async def test_a_copy_is_started_when_it_is_asked_for_unless_its_profile_says_else(
    new_house, storehouse, shelf, profile, preload, pinned
) -> None:
    shelf.publish(ONE, "one", {"m.gguf": storehouse.A1})
    house = await new_house()
    entry = entry_of(await house.copies.ensure(storehouse.want("m", ONE, profile=profile)))
    assert (entry.preload, entry.pinned) == (preload, pinned)


async def test_a_profile_with_a_flag_for_the_settings_file_alone_is_refused_before_anything_is_fetched(
    new_house, storehouse, shelf
) -> None:
    shelf.publish(ONE, "one", {"m.gguf": storehouse.A1})
    house = await new_house()
    with pytest.raises(SourceError, match="--lora may not be set from outside: write it into the settings file"):
        await house.copies.ensure(storehouse.want("m", ONE, profile=Profile(flags={"lora": "/etc/passwd"})))
    assert house.copies.states()["m"].state == "Failed"
    assert "--lora" in (house.copies.states()["m"].reason or "")


async def test_a_profile_of_an_earlier_release_that_is_refused_today_is_not_served(
    new_house, storehouse, shelf, caplog
) -> None:
    shelf.publish(ONE, "one", {"m.gguf": storehouse.A1})
    house = await new_house()
    copy = await house.copies.ensure(storehouse.want("m", ONE))
    bad = copy.manifest.model_copy(update={"profile": Profile(flags={"mmproj": "/etc/passwd"})})
    assert merged([], [replace(copy, manifest=bad)]) == []
    assert "copy_not_served" in caplog.text
