"""The live table of `puna up` on a terminal, and lines of news where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from gateway.cli.say import Teller
from gateway.cli.tables import ENGINE_COLUMNS, Row, console, table
from gateway.cli.upview import changes

if TYPE_CHECKING:
    from rich.live import Live


class Show:
    """Shows rows as they change. A context manager, because a terminal must be given back."""

    def __init__(self, teller: Teller, *, quiet: bool) -> None:
        self._teller, self._quiet = teller, quiet
        self._told: dict[str, str] = {}
        self._live: Live | None = None

    def __enter__(self) -> Self:
        screen = console()
        if not self._quiet and screen.is_terminal:
            from rich.live import Live

            self._live = Live(console=screen, auto_refresh=False)
            self._live.start()
            self._teller.attach(screen)
        return self

    def rows(self, rows: Sequence[Row]) -> None:
        """Show these."""
        if self._live is not None:
            self._live.update(table(rows, ENGINE_COLUMNS), refresh=True)
        elif not self._quiet:
            self._told, lines = changes(self._told, rows)
            for line in lines:
                self._teller.line(line)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._teller.attach(None)
        if self._live is not None:
            self._live.stop()
