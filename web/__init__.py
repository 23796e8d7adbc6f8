"""HTTP/1.1 on llhttp under asyncio protocols: a server for worker and gateway, a client for one engine.

Everything on the way of a chunk is a plain call out of the socket's own callback: no task, no queue, no await.
"""

from web.call import (
    AnswerTooLarge,
    BadAnswer,
    Call,
    CallFailed,
    CallTimeout,
    ConnectFailed,
    ConnectionCut,
    Sink,
)
from web.client import Client, Response
from web.exchange import Exchange
from web.limits import Limits
from web.message import Header, Request
from web.server import Server

__all__ = [
    "AnswerTooLarge",
    "BadAnswer",
    "Call",
    "CallFailed",
    "CallTimeout",
    "Client",
    "ConnectFailed",
    "ConnectionCut",
    "Exchange",
    "Header",
    "Limits",
    "Request",
    "Response",
    "Server",
    "Sink",
]
