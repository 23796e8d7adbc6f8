"""A fake web program that runs, for tests: started, asked for what it saw, told what to do, ended."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class Started:
    """`origins` are its URLs by role."""

    def __init__(self, program: str, root: Path, *flags: str) -> None:
        argv = [sys.executable, str(HERE / program), "--root", str(root), *flags]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.origins: dict[str, str] = json.loads(self.process.stdout.readline())
        self.url = next(iter(self.origins.values()))

    def post(self, page: str, value: Any = None) -> Any:
        request = urllib.request.Request(self.url + page, json.dumps(value).encode(), method="POST")
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def fault(self, kind: str, **details: Any) -> None:
        self.post("/-/faults", [{"kind": kind, **details}])

    def reset(self) -> None:
        self.post("/-/reset")

    def seen(self) -> dict[str, Any]:
        with urllib.request.urlopen(self.url + "/-/seen") as answer:
            return json.load(answer)

    def requests(self, **like: Any) -> list[dict[str, Any]]:
        """What was asked, as far as the given fields are like that."""
        found = self.seen()["requests"]
        return [each for each in found if all(each[name] == value for name, value in like.items())]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)
