"""Several pieces of work of which the first failure ends all."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def together(*works: Coroutine[Any, Any, None]) -> None:
    """Run them side by side. At the first error, or when cancelled, the others are ended; then it is raised."""
    tasks = [asyncio.create_task(work, name=f"transfer-connection-{at}") for at, work in enumerate(works)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
