"""Two workers with one message of the line: only the one whose `accept` came first is heard."""

from __future__ import annotations

from schemas.frame import ACCEPT, DATA, END, OPEN, encode_frame, marked_epoch
from schemas.reply import Accept, Open

ONE, OTHER = marked_epoch(1, b"aa"), marked_epoch(1, b"bb")
SAID = b'data: {"n":1}\n\ndata: [DONE]\n\n'


async def test_frames_with_another_mark_are_not_written(gateway, worker) -> None:
    asked = gateway.ask(stream=True)
    job = await worker.take()
    accept = Accept(node=worker.node).encode()

    async def offer(epoch: bytes) -> bytes:
        return (
            await worker.nc.request(job.headers["Puna-Reply"], encode_frame(ACCEPT, epoch, 0, accept), timeout=5)
        ).data

    async def send(epoch: bytes, kind: bytes, seq: int, payload: bytes = b"{}") -> None:
        await worker.nc.publish(job.headers["Puna-Reply"], encode_frame(kind, epoch, seq, payload))

    assert await offer(ONE) == b"go"
    assert await offer(OTHER) == b"gone"
    head = Open(content_type="text/event-stream").encode()
    await send(OTHER, OPEN, 1, head)
    await send(OTHER, DATA, 2, b"data: stranger\n\n")
    await send(ONE, OPEN, 1, head)
    assert await offer(ONE) == b"go", "the same accept again: the answer to the first was lost"
    await send(ONE, DATA, 2, SAID)
    await send(OTHER, END, 3)
    await send(ONE, END, 3)
    assert (await asked).content == SAID


async def test_data_may_come_right_behind_the_accept(gateway, worker) -> None:
    asked = gateway.ask(stream=True)
    job = await worker.take()
    frames = [
        (ACCEPT, 0, Accept(node=worker.node).encode()),
        (OPEN, 1, Open(content_type="text/event-stream").encode()),
        (DATA, 2, SAID),
        (END, 3, b"{}"),
    ]
    inbox = worker.nc.new_inbox()
    for kind, seq, payload in frames:
        await worker.nc.publish(
            job.headers["Puna-Reply"], encode_frame(kind, ONE, seq, payload), reply=inbox if seq == 0 else ""
        )
    assert (await asked).content == SAID
