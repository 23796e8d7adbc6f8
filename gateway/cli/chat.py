"""`puna run`: talk to a model through the gateway."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from gateway.cli.exits import CliError
from gateway.cli.httpclient import GatewayHttp

_CHAT = "/v1/chat/completions"
Messages = list[dict[str, str]]


def answer(gateway: GatewayHttp, model: str, messages: Messages) -> Iterator[str]:
    """The pieces of the model's answer as they come."""
    for event in gateway.stream(_CHAT, {"model": model, "messages": messages}):
        choices: list[dict[str, Any]] = event.get("choices") or []
        text = choices[0].get("delta", {}).get("content") if choices else None
        if text:
            yield text


def once(gateway: GatewayHttp, model: str, prompt: str) -> None:
    """Print the answer to one prompt."""
    for text in answer(gateway, model, [{"role": "user", "content": prompt}]):
        print(text, end="", flush=True)
    print()


def talk(gateway: GatewayHttp, model: str) -> None:
    """A conversation until end of input. Ctrl-C ends an answer, a second one the conversation."""
    print(f"{model}: /bye or Ctrl-D ends, Ctrl-C stops an answer", file=sys.stderr)
    messages: Messages = []
    while (prompt := _prompt()) is not None:
        if prompt:
            messages.append({"role": "user", "content": prompt})
            _turn(gateway, model, messages)


def _prompt() -> str | None:
    try:
        text = input(">>> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None
    return None if text in ("/bye", "/exit", "/quit") else text


def _turn(gateway: GatewayHttp, model: str, messages: Messages) -> None:
    said: list[str] = []
    try:
        for text in answer(gateway, model, messages):
            said.append(text)
            print(text, end="", flush=True)
    except KeyboardInterrupt:
        print("\n(stopped)", file=sys.stderr, end="")
    except CliError as error:
        if not said:
            raise
        print(f"\n({error.message})", file=sys.stderr, end="")
    print()
    messages.append({"role": "assistant", "content": "".join(said)})
