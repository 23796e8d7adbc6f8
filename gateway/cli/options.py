"""Options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from gateway.cli.tables import Format
    from gateway.cli.target import Target

FORMATS: Final = ("table", "wide", "json", "yaml")

Nats = Annotated[str | None, typer.Option("--nats", help="NATS URL; else NATS_URL, NATS_CONTEXT, a running `puna up`.")]
Gateway = Annotated[str | None, typer.Option("--gateway", help="Gateway URL; else PUNA_GATEWAY, a running `puna up`.")]
ApiKey = Annotated[str | None, typer.Option("--api-key", help="API key of the gateway; better: PUNA_API_KEY.")]
Output = Annotated[str, typer.Option("-o", "--output", help="table, wide, json or yaml.", metavar="FORMAT")]
Watch = Annotated[bool, typer.Option("--watch", "-w", help="Show changes until Ctrl-C.")]
Node = Annotated[str | None, typer.Option("--node", help="This node alone.")]
Wait = Annotated[bool, typer.Option("--wait", help="Until it is done.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0.1, help="With --wait: seconds to wait at most.")]


def target_of(nats: str | None, gateway: str | None = None, api_key: str | None = None) -> Target:
    """Which fleet is meant."""
    from gateway.cli.target import Target

    return Target(nats, gateway, api_key)


def format_of(output: str) -> Format:
    """How to print. Raises `typer.BadParameter`."""
    from gateway.cli.tables import Format

    if output not in FORMATS:
        raise typer.BadParameter(f"use one of {', '.join(FORMATS)}", param_hint="'-o'")
    return Format(output)
