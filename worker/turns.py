"""Which engines may go for another model's sake, and when: the rules against thrashing.

An engine that got ready has its *turn*. Before that is over it goes only if it served somebody and nothing waits for
it; afterwards whenever it is idle. A busy engine never goes: it *yields* when its turn is over and the other model has
waited as long as a turn. Pinned engines and those on their way stay.
"""

from __future__ import annotations

from worker.plans import Policy, Resident


def turn_s(resident: Resident, policy: Policy) -> float:
    """How long it may stay once it is ready: in proportion to what it cost to load it."""
    return min(max(policy.turn_factor * resident.reload_s, policy.turn_least_s), policy.turn_most_s)


def may_go(resident: Resident, policy: Policy) -> bool:
    """Whether it can be stopped now. Of one that crashed nobody has anything, as long as nobody waits for it."""
    if resident.pinned or resident.busy or resident.state not in ("ready", "crashed"):
        return False
    if resident.yielding:
        return True
    if resident.state == "crashed":
        return resident.waiting == 0
    if resident.ready_s >= turn_s(resident, policy):
        return True
    return resident.waiting == 0 and resident.served


def may_yield(resident: Resident, waited_s: float, policy: Policy) -> bool:
    """Whether a busy one has had its turn, and somebody has waited as long."""
    if resident.pinned or not resident.busy or resident.state != "ready":
        return False
    turn = turn_s(resident, policy)
    return resident.yielding or (resident.ready_s >= turn and waited_s >= turn)


def left_s(resident: Resident, waited_s: float, policy: Policy) -> float | None:
    """Seconds until time alone could move it; None: it will not, or it is not time that is missing."""
    if resident.pinned or resident.state != "ready":
        return None
    turn = turn_s(resident, policy)
    ready_left_s = turn - resident.ready_s
    left = max(ready_left_s, turn - waited_s) if resident.busy else ready_left_s
    return left if left > 0 else None


def order_of_going(resident: Resident) -> tuple[bool, float, float, str]:
    """Who goes first: who yields already, then the least loss, then who was idle longest."""
    return (not resident.yielding, resident.loss, -resident.idle_s, resident.engine)
