"""Which engine holds the prompt cache of a conversation, so that its next turn can be offered there.

A conversation is known by chained hashes, a new one wherever an answer begins: the first over model, tenant, system
text, tools and all messages before the first answer, each next one over an answer and what follows it. What an engine
has in its cache after a whole answer is the prompt that it was sent; the next turn begins with the same messages, then
has the answer. So the hash of a request's whole chain is remembered, and a new request is looked up at each place where
an answer stands in it, the longest first.

Only a hint: who is offered the turn may refuse, and the line takes it at once. Plain; owns no clock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, Final, cast

import orjson

from gateway.fleet import Fleet
from schemas.node import Engine

TTL_S: Final = 600.0
ENTRIES_LIMIT: Final = 50_000
BYTES_LIMIT: Final = 32 << 20
ENTRY_BYTES: Final = 512
"""Most that one entry takes while the table grows; 290 at rest, measured."""
BODY_LIMIT_BYTES: Final = 1 << 20
"""Of larger bodies no chain is made: hashing them would be felt, and they do not fit into one message anyway."""
MESSAGES_LIMIT: Final = 1000
STALE_BELOW: Final = 0.5
"""Of what was expected in the cache; an engine that had less has given it to others."""
_DIGEST_BYTES: Final = 16
_PREFIX_FIELDS: Final = ("system", "tools", "chat_template_kwargs")
"""What a template may put in front of the messages."""
ANSWER: Final = "assistant"
"""The role of messages that engines wrote."""
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
_OPS: Final = frozenset(("chat", "messages"))


@dataclass(frozen=True, slots=True)
class Chain:
    """A conversation as hashes: all of it, and what stood before each answer in it, the longest first."""

    whole: bytes
    earlier: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Home:
    """The engine that holds a prompt. `pid` tells an engine from its successor under the same name."""

    key: bytes
    node: str
    engine: str
    pid: int | None
    prompt_tokens: int
    learned_at: float


class Conversation:
    """The messages of one request as they were parsed, until their chain is made."""

    __slots__ = ("_fields", "_made", "_op", "_tenant")

    def __init__(self, op: str, fields: Mapping[str, Any], tenant: str | None) -> None:
        self._op = op
        self._tenant = tenant
        self._fields = fields
        self._made: Chain | None = None

    @property
    def answered(self) -> bool:
        """An answer stands in it: it is not the first turn."""
        if self._made is not None:
            return bool(self._made.earlier)
        return any(message["role"] == ANSWER for message in _messages(self._fields))

    @property
    def chain(self) -> Chain:
        """Made once; what was parsed is let go then."""
        if self._made is None:
            self._made = _chain(self._op, self._fields, self._tenant)
            self._fields = _NOTHING
        return self._made


def conversation_of(op: str, fields: Mapping[str, Any], *, size_bytes: int, tenant: str | None) -> Conversation | None:
    """The conversation in a checked body, or nothing: there is none, or too large a one."""
    if op not in _OPS or size_bytes > BODY_LIMIT_BYTES or len(fields["messages"]) > MESSAGES_LIMIT:
        return None
    return Conversation(op, fields, tenant)


def _messages(fields: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return cast("Sequence[Mapping[str, Any]]", fields["messages"])


def _chain(op: str, fields: Mapping[str, Any], tenant: str | None) -> Chain:
    messages = _messages(fields)
    cuts = [place for place, message in enumerate(messages) if message["role"] == ANSWER]
    head = [op, fields["model"], tenant, *(fields.get(name) for name in _PREFIX_FIELDS)]
    links, start, before = list[bytes](), 0, orjson.dumps(head, option=orjson.OPT_SORT_KEYS)
    for cut in [*cuts, len(messages)]:
        before = _hashed(before, messages[start:cut])
        links.append(before)
        start = cut
    return Chain(links.pop(), tuple(reversed(links)))


def _hashed(before: bytes, value: object) -> bytes:
    return blake2b(before + orjson.dumps(value, option=orjson.OPT_SORT_KEYS), digest_size=_DIGEST_BYTES).digest()


class Affinity:
    """Owner of what is known, the least recently used goes first."""

    def __init__(self, *, entries_limit: int = ENTRIES_LIMIT, bytes_limit: int = BYTES_LIMIT) -> None:
        self._limit = min(entries_limit, bytes_limit // ENTRY_BYTES)
        self._homes: OrderedDict[bytes, Home] = OrderedDict()

    def __len__(self) -> int:
        return len(self._homes)

    def find(self, chain: Chain, model: str, fleet: Fleet, now: float) -> Home | None:
        """Where the longest known beginning of the conversation is cached, if that engine can be asked now."""
        for key in chain.earlier:
            home = self._homes.get(key)
            if home is None:
                continue
            if now - home.learned_at > TTL_S or _changed(home, model, fleet):
                del self._homes[key]
                continue
            if not _open(home, model, fleet):
                return None
            self._homes.move_to_end(key)
            return home
        return None

    def learn(
        self, chain: Chain, model: str, node: str, engine: str, prompt_tokens: int, fleet: Fleet, now: float
    ) -> None:
        """A whole answer to the conversation came from this engine."""
        found = _engine(node, engine, model, fleet)
        if found is None or not prompt_tokens:
            return
        # names out of the view, not out of the frame: thousands of entries share them
        home = Home(chain.whole, fleet.nodes[node].beat.node, found.engine, found.pid, prompt_tokens, now)
        self._homes.pop(chain.whole, None)
        self._homes[chain.whole] = home
        while len(self._homes) > self._limit:
            self._homes.popitem(last=False)

    def check(self, home: Home, cached_tokens: int) -> bool:
        """What the engine found in its cache for a turn that was offered by `home`. False: far less than expected, and
        the entry is forgotten."""
        if cached_tokens >= home.prompt_tokens * STALE_BELOW:
            return True
        self.drop(home)
        return False

    def drop(self, home: Home) -> None:
        """Forget it, unless it was learned anew meanwhile."""
        if self._homes.get(home.key) is home:
            del self._homes[home.key]


def _engine(node: str, engine: str, model: str, fleet: Fleet) -> Engine | None:
    sighting = fleet.nodes.get(node)
    if sighting is None:
        return None
    return next((one for one in sighting.beat.engines if one.engine == engine and one.model == model), None)


def _changed(home: Home, model: str, fleet: Fleet) -> bool:
    """It is another process by now, or none: its cache has gone with it."""
    found = _engine(home.node, home.engine, model, fleet)
    if found is None or found.state in ("stopped", "crashed"):
        return True
    return found.pid is not None and home.pid is not None and found.pid != home.pid


def _open(home: Home, model: str, fleet: Fleet) -> bool:
    found = _engine(home.node, home.engine, model, fleet)
    draining = fleet.nodes[home.node].beat.draining
    return found is not None and found.state == "ready" and not draining and not found.yielding
