"""Calls about single VMs that wait at the same time go to the host as one script.

    thread 1 ─ run(CREATE, VM a) ──────▶ script: a
    thread 2 ─ run(CREATE, VM b) ─┐
    thread 3 ─ run(CREATE, VM c) ─┴────▶ script: b, c      as soon as the first one ended

Scripts take lists, and answer for each VM by itself: one VM's failure stays its own. One script of
a kind runs at a time; what came meanwhile is the next one. Snapshots, conversions and removals are
one kind: within a script they go in rounds, so that a host never has more than its measure at once
(pacing.py). What fails as a whole (no connection, a deadline) fails for all that it was about.
"""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass, field
from typing import Any

from standby.errors import HostShellLost, StandbyError
from standby.host.hyperv.answers import Answer
from standby.host.hyperv.asking import Asking, Value
from standby.host.hyperv.pacing import rounds
from standby.host.hyperv.rows import CONVERT, CREATE, DESTROY
from standby.host.hyperv.verbs import Verb

PACED = (CREATE.name, CONVERT.name, DESTROY.name)
LISTS = ("machines", "files", "replicas", "folders")
"""What requests call the list of what they are about."""
AT_ONCE_MAX = 10
"""VMs in one script that changes something, or reads long lists: each may be waited for."""
WAITS_S = 600.0
"""A verb with that deadline changes something, or reads long lists."""
LISTED_MAX = 2000
"""Things in one script that only looks."""


@dataclass(eq=False)
class _Call:
    verb: Verb[Any]
    key: str
    items: dict[str, dict[str, Any]]
    answer: Answer[Any] | None = None
    error: Exception | None = None

    @property
    def is_done(self) -> bool:
        return self.answer is not None or self.error is not None


@dataclass(eq=False)
class _Lane:
    """Calls of one kind: at most one script of theirs runs."""

    waiting: list[_Call] = field(default_factory=list)
    is_busy: bool = False


class Gathering:
    """A door that joins calls; `Asking`. A request holds one list (LISTS) of things with an `id`,
    or nothing (then all calls want the same). What a thing has as `volumes` tells which of them get
    in each other's way; the host is not told. `bare` is the door behind it."""

    def __init__(self, door: Asking, host: str = "") -> None:
        self.bare = door
        self._host = host
        self._turn = threading.Condition()
        self._lanes: dict[str, _Lane] = {}

    def run(self, verb: Verb[Value], request: Any) -> Answer[Value]:
        """What the host answers about this request's things, and no others."""
        key = next((name for name in LISTS if name in request), "")
        call = _Call(verb, key, {one["id"]: one for one in request[key]} if key else {})
        lane_name = "paced" if verb.name in PACED else verb.name
        with self._turn:
            lane = self._lanes.setdefault(lane_name, _Lane())
            lane.waiting.append(call)
            self._turn.notify_all()
        while True:
            with self._turn:
                self._turn.wait_for(lambda: call.is_done or (not lane.is_busy and lane.waiting))
                if call.is_done:
                    break
                batch = _batch(lane.waiting)
                lane.waiting = [item for item in lane.waiting if item not in batch]
                lane.is_busy = True
            try:
                self._ask(batch)
            finally:
                with self._turn:
                    for item in batch:
                        if not item.is_done:  # this thread is being ended
                            item.error = HostShellLost(
                                self._host, verb.name, "the call it went with was ended"
                            )
                    lane.is_busy = False
                    self._turn.notify_all()
        if call.error is not None:
            raise call.error
        assert call.answer is not None
        return call.answer

    def close(self) -> None:
        """Close the door behind it."""
        self.bare.close()

    def _ask(self, batch: list[_Call]) -> None:
        verb, key = batch[0].verb, batch[0].key
        items = {identity: one for call in batch for identity, one in call.items.items()}
        request: dict[str, Any] = {key: list(items.values())} if key else {}
        if verb.name in PACED:
            request = _in_rounds(request[key])
        try:
            answer = self.bare.run(verb, request)
        except Exception as exc:
            for call in batch:  # each its own: raising adds to one
                call.error = copy.copy(exc) if isinstance(exc, StandbyError) else exc
            return
        for call in batch:
            steps = answer.steps
            if key:
                steps = tuple(step for step in steps if step.id in call.items)
            call.answer = Answer(answer.host, answer.verb, steps, answer.warnings)


def _batch(waiting: list[_Call]) -> list[_Call]:
    """The first call, and those behind it that can go with it: the same verb, no thing twice unless
    both mean the same, and not too many."""
    first = waiting[0]
    limit = AT_ONCE_MAX if first.verb.deadline_s >= WAITS_S else LISTED_MAX
    items = dict(first.items)
    chosen = [first]
    for call in waiting[1:]:
        if call.verb.name != first.verb.name or call.key != first.key:
            continue
        is_same = all(items.get(key, one) == one for key, one in call.items.items())
        if is_same and len(items.keys() | call.items.keys()) <= limit:
            items |= call.items
            chosen.append(call)
    return chosen


def _in_rounds(machines: list[dict[str, Any]]) -> dict[str, Any]:
    """The machines with the round that each is in, and the rounds."""
    numbers = rounds([frozenset(one.get("volumes", ())) for one in machines])
    told = [
        {key: value for key, value in one.items() if key != "volumes"} | {"round": number}
        for one, number in zip(machines, numbers, strict=True)
    ]
    return {"machines": told, "rounds": sorted(set(numbers))}
