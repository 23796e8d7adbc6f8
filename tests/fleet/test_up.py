"""What `puna up` hands on to its parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.cli.demo import DEMO_TEMPLATE

pytestmark = pytest.mark.fleet

ENGINE = Path(__file__).parents[1] / "fakes" / "engine.py"


async def test_the_engine_that_was_named_serves_with_the_demo_models_template(make_fleet) -> None:
    fleet = make_fleet("--engine", str(ENGINE), "--slots", "3")
    [words] = [words for words in (process.cmdline() for process in fleet.processes()) if str(ENGINE) in words[:3]]
    assert words[words.index("--chat-template-file") + 1] == str(DEMO_TEMPLATE)
    assert words[words.index("--parallel") + 1] == "3"
    async with fleet.client() as client:
        question = [{"role": "user", "content": "count"}]
        answer = await client.chat.completions.create(model=fleet.model, messages=question)
    assert answer.choices[0].message.content.startswith("t0 t1 ")
