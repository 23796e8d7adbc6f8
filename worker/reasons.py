"""Why a model does not get an engine now, in words with figures: what is needed, what is free, who holds the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from worker.memory import gib
from worker.plans import DeviceRoom, Evict, Fits, Plan, Policy, Resident, Wanted
from worker.turns import left_s, turn_s

SHOWN: Final = 8
"""Devices or engines that are named in one sentence."""


def nowhere_text(wanted: Wanted, rooms: Sequence[DeviceRoom]) -> str:
    """None of the allowed devices can be used."""
    known = {room.device: room for room in rooms}
    names = wanted.devices or tuple(known)
    each = [f"{name}: {known[name].reason}" if name in known else f"{name}: there is no such device" for name in names]
    return f"{wanted.model} has no device that can be used; {'; '.join(each[:SHOWN]) or 'this node has none'}"


def cannot_text(wanted: Wanted, rooms: Sequence[DeviceRoom]) -> str:
    """Too large for all of them."""
    if wanted.split is not None and wanted.split > len(rooms):
        return f"{wanted.model} is to run on {wanted.split} devices (devices_per_engine); {len(rooms)} can be used here"
    sizes = ", ".join(f"{room.device} {gib(room.total_bytes)}" for room in rooms[:SHOWN])
    need = gib(wanted.need.total_bytes(wanted.split or len(rooms)))
    return f"{wanted.model} needs {need}; engines may have at most {sizes} here"


def yield_text(wanted: Wanted, engines: Sequence[Resident]) -> str:
    """Somebody had their turn."""
    who = ", ".join(f"{each.engine} ({each.model}, ready for {each.ready_s:.0f} s)" for each in engines[:SHOWN])
    return (
        f"{wanted.model} has waited {wanted.waited_s:.0f} s: {who} takes nothing new until it is idle, and is stopped"
    )


def wait_text(
    wanted: Wanted, rooms: Sequence[DeviceRoom], residents: Sequence[Resident], policy: Policy, *, foreign: bool
) -> str:
    """Who is in the way."""
    free = ", ".join(
        f"{room.device} {gib(max(room.free_bytes, 0))} free of {gib(room.total_bytes)}" for room in rooms[:SHOWN]
    )
    size = wanted.split or 1
    who = "; ".join(_holder(each, wanted.waited_s, policy) for each in residents[:SHOWN])
    text = f"{wanted.model} needs {gib(wanted.need.total_bytes(size))}; {free}"
    text += f"; held by {who}" if who else ""
    return f"{text}; the rest is used by other programs" if foreign else text


def _holder(each: Resident, waited_s: float, policy: Policy) -> str:
    held = gib(sum(each.held_bytes.values()))
    return f"{each.engine} ({each.model}, {held}, {_stays(each, waited_s, policy)})"


def _stays(each: Resident, waited_s: float, policy: Policy) -> str:
    if each.pinned:
        return "pinned"
    if each.state != "ready":
        return each.state
    doing = f"busy with {each.busy}" if each.busy else "idle"
    left = left_s(each, waited_s, policy)
    return f"{doing}, its turn of {turn_s(each, policy):.0f} s has {left:.0f} s to go" if left else doing


def plan_text(model: str, plan: Plan, rooms: Sequence[DeviceRoom]) -> str:
    """Any plan, for people."""
    if not isinstance(plan, Fits | Evict):
        return plan.reason
    free = ", ".join(
        f"{each.device} {gib(max(each.free_bytes, 0))} free" for each in rooms if each.device in plan.devices
    )
    need = gib(plan.need.total_bytes(len(plan.devices)))
    text = f"{model} needs {need}; it can start on {', '.join(plan.devices)} ({free}) at cost {plan.cost}"
    if isinstance(plan, Evict):
        return f"{text}, after idle {', '.join(plan.victims)} was stopped"
    short = sum(max(each.free_bytes, 0) for each in rooms if each.device in plan.devices)
    return f"{text}, although that is short" if plan.need.total_bytes(len(plan.devices)) > short else text
