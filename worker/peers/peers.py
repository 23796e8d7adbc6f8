"""A node's part in sharing files, put together: it answers, it sends, and it fetches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bus.connection import Bus
from bus.watched import Tasks
from web import Exchange, Header
from worker.copying import Fetch
from worker.peers.address import Address
from worker.peers.answering import Answering
from worker.peers.client import PeerClient
from worker.peers.copies import CopyAnswers, Shelf
from worker.peers.crowd import Crowd, Tell
from worker.peers.fetcher import PeerFetcher
from worker.peers.hands import Hands
from worker.peers.holdings import Holdings
from worker.peers.metrics import PeerWatch
from worker.peers.questions import Questions
from worker.peers.settings import PeerSettings
from worker.peers.tokens import Tokens
from worker.peers.uploads import Uploads
from worker.sources.peer import Peer


class Peers:
    """`inner` asks sources; `roots` are the folders of the store, the one that is written first; `shelf` what is in
    them. `source` is that of `peer://`."""

    def __init__(
        self,
        bus: Bus,
        node: str,
        settings: PeerSettings,
        inner: Fetch,
        *,
        roots: Sequence[Path],
        shelf: Shelf,
        advertise: str | None,
        tasks: Tasks,
        tell: Tell,
        watch: PeerWatch,
    ) -> None:
        self._enabled = settings.enabled
        self._tasks = tasks
        self.tokens: Final = Tokens()
        hands = Hands("peers")
        self.holdings: Final = Holdings(roots)
        self.address: Final = Address(advertise, bus.settings.servers)
        self.uploads: Final = Uploads(
            self.holdings,
            self.tokens,
            hands,
            tasks.start,
            max_uploads=settings.max_uploads,
            bytes_per_s=settings.upload_bytes_per_s,
            watch=watch,
        )
        self._answering = Answering(
            bus,
            node,
            self.holdings,
            self.tokens,
            self.address,
            hands,
            run=tasks.start,
            uploads=lambda: self.uploads.active,
        )
        self._copies = CopyAnswers(bus, node, shelf, self.address, shares=settings.enabled)
        self.source: Final = Peer(bus, node, self.address.host, self._copies.told)
        self._client = PeerClient(settings.stall_timeout_s)
        questions = Questions(bus, node, self.address.host)
        self.crowd: Final = Crowd(
            bus, node, settings, self.holdings, questions, self._client, hands, tell, tasks.start, watch
        )
        self.fetcher: Final = PeerFetcher(inner, self.crowd)

    async def listens(self, host: str, port: int) -> None:
        """The HTTP is up: others may be told, and their questions answered."""
        await self.address.listens(host, port)
        self._copies.start()
        if self._enabled:
            self._answering.start()

    def page(self, exchange: Exchange, headers: Sequence[Header]) -> None:
        """Answer a request below `uploads.PREFIX`. Raises a `PunaError` for one that is refused at once."""
        self.uploads.handle(exchange, headers)

    def stop(self) -> None:
        """Answer no questions any more, and end idle connections. Safe to call twice."""
        self._answering.stop()
        self._copies.stop()
        self._client.close()
