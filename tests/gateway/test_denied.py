"""A gateway whose NATS user lacks a permission says which one, and does not start."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
USERS = """
authorization { users: [ { user: narrow, password: p, permissions: {
  publish: [">"], subscribe: ["_INBOX.>", "other.>"] } } ] }
"""


async def test_the_missing_permission_is_named_and_the_exit_code_is_4(new_nats_server: Any) -> None:
    server = new_nats_server(USERS)
    url = server.url.replace("nats://", "nats://narrow:p@")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "gateway", "--nats", url, "--listen", "127.0.0.1:0"),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, text = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 4
    assert "may not subscribe to puna.reply.*.*" in text.decode()
    assert ":p@" not in text.decode()
