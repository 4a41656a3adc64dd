"""A failover cluster behind one door: each request goes to the nodes that its VMs are on.

    ClusterDoor.run(verb, request) ─▶ split by owner ─▶ a Door per node ─▶ answers put together

A VM is where a node's own WMI shows it, whatever the cluster says: live migration may happen
between any two calls. So the node it was last seen on is asked first; an answer that may mean "not
here" is believed only after every node was asked where the VM is. Nodes that do not answer are
gone round; while their VMs are taken over by others, those are waited for.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from standby.clock import SYSTEM_CLOCK, Clock
from standby.errors import (
    HostAnswerWrong,
    HostCallFailed,
    HostError,
    HostShellLost,
    HostUnreachable,
    MachineNowhere,
)
from standby.host.hyperv.answers import Answer, Step
from standby.host.hyperv.cluster_files import FileHomes
from standby.host.hyperv.cluster_inventory import Merged, is_local, merged
from standby.host.hyperv.cluster_nodes import Nodes, OpenDoor
from standby.host.hyperv.cluster_rows import HOMES, ROLES, ClusterView
from standby.host.hyperv.elsewhere import may_be_elsewhere
from standby.host.hyperv.open_files import CLOSE_FILES
from standby.host.hyperv.rows import DISKS, MACHINES, HostRows
from standby.host.hyperv.verbs import Verb

Value = TypeVar("Value")

FIND_S = 300.0
"""How long a VM is looked for that its cluster has a role for: a node that died is given up by the
others after some seconds, then its VMs start one by one."""
PAUSE_S = 5.0
ENTRY_WAIT_S = 20.0
"""How long a cluster's name may lead to nobody, before any node is known."""
INVENTORY_WAIT_S = 60.0
"""How long an inventory waits for VMs that are being taken over."""
ROUNDS_MAX = 20
"""How often a request follows a VM that moves on."""


@dataclass(slots=True)
class _Round:
    """What is known of a request's VMs so far: what was answered for good, what may mean that the
    VM is elsewhere, by VM."""

    done: dict[str, Step[Any]] = field(default_factory=dict)
    doubtful: dict[str, tuple[str, Step[Any]]] = field(default_factory=dict)
    lost: dict[str, tuple[str, HostCallFailed]] = field(default_factory=dict)
    """The node that did not answer last, and what was said of it, by VM."""
    gone: set[str] = field(default_factory=set)
    """VMs that no node has and nobody waits for: what any node says of them counts."""
    warnings: list[str] = field(default_factory=list)


class ClusterDoor:
    """The door to a cluster; `Asking` for what a host's door is.

    `address` is the cluster's name, which leads to one of its nodes; `nodes` are addresses of
    nodes, where the names that the cluster has for them do not lead there, or its own name does
    not. Safe to use from many threads.
    """

    def __init__(
        self,
        name: str,
        address: str,
        open_door: OpenDoor,
        nodes: Sequence[str] = (),
        clock: Clock = SYSTEM_CLOCK,
        *,
        find_s: float = FIND_S,
        pause_s: float = PAUSE_S,
    ) -> None:
        self.host = name
        self.nodes = Nodes(name, address, open_door, nodes)
        self._clock = clock
        self._find_s = find_s
        self._pause_s = pause_s
        self._lock = threading.RLock()
        self._homes: dict[str, str] = {}
        """By VM id, the name of the node it was last seen on."""
        self._known: set[str] = set()
        """The VMs that inventories had, until they are gone."""
        self._files = FileHomes()

    def node_of(self, machine_id: str) -> str:
        """The node that the VM was last seen on, '' when on none."""
        with self._lock:
            return self._homes.get(machine_id.lower(), "")

    def node_for(self, path: str) -> str:
        """The node for a new VM with its files there: the one that coordinates their volume, else
        the one with the fewest VMs. HostError where no node takes VMs."""
        up = self.nodes.up()
        if not up:
            raise HostError(
                self.host,
                "no node of the cluster takes VMs: each is down or paused",
                "Get-ClusterNode shows them; Resume-ClusterNode ends a pause",
            )
        coordinator = self.nodes.coordinator_of(path)
        with self._lock:
            homes = list(self._homes.values())
        return coordinator if coordinator in up else min(up, key=lambda name: homes.count(name))

    def close(self) -> None:
        """Leave no shell on any node. The door can be used again."""
        self.nodes.close()

    # --- asking ------------------------------------------------------------------------------

    def run(self, verb: Verb[Value], request: Any) -> Answer[Value]:
        """Run the verb's script on the nodes of the request's `machines` or `files`, on all for
        the inventory, on any for what names neither; one answer."""
        if verb.name == MACHINES.name:
            return self._inventory()  # type: ignore[return-value]  # the verb's value is HostRows
        if verb.name == DISKS.name:
            return self._described(verb, request)
        if "machines" in request:
            return self._followed(verb, request)
        if verb.name == CLOSE_FILES.name:
            return self._at_shares(verb, request)
        if "replicas" in request:
            return self._new(verb, request)
        return self.nodes.anywhere(verb, request)

    def _new(self, verb: Verb[Value], request: Any) -> Answer[Value]:
        """VMs that are to be made, each on the node for its folder."""
        requests: dict[str, Any] = {}
        for one in request["replicas"]:
            name = self.node_for(one["folder"])
            requests.setdefault(name, {**request, "replicas": []})["replicas"].append(one)
        steps: list[Step[Any]] = []
        warnings: list[str] = []
        for name, answer in self.nodes.each(verb, requests).items():
            if isinstance(answer, HostCallFailed):
                steps += [Step(one["id"], None, answer) for one in requests[name]["replicas"]]
            else:
                steps += answer.steps
                warnings += answer.warnings
        return Answer(self.host, verb.name, tuple(steps), tuple(warnings))

    def _at_shares(self, verb: Verb[Value], request: Any) -> Answer[Value]:
        """Files as their SMB servers know them: any node may serve a shared volume; a node's own
        files it serves alone, and others may have files of that very name. A file has as many steps
        as nodes answered about it; a node that does not answer serves nobody."""
        requests: dict[str, Any] = {}
        asked = [node.name for node in self.nodes.asked()]
        for one in request["files"]:
            home = self.node_of(self._files.machine_of(one["path"]))
            for name in [home] if home and is_local(one["path"]) else asked:
                if is_local(one["path"]) and not home:
                    continue
                requests.setdefault(name, {**request, "files": []})["files"].append(one)
        steps: list[Step[Any]] = []
        warnings: list[str] = []
        for name, answer in self.nodes.each(verb, requests).items():
            if isinstance(answer, HostUnreachable):
                continue
            if isinstance(answer, HostCallFailed):
                steps += [Step(one["id"], None, answer) for one in requests[name]["files"]]
            else:
                steps += answer.steps
                warnings += answer.warnings
        return Answer(self.host, verb.name, tuple(steps), tuple(warnings))

    # --- where VMs are -----------------------------------------------------------------------

    def _locate(self, ids: Iterable[str]) -> tuple[dict[str, str], list[str]]:
        """Asks every node: {VM id: its node now}, and the nodes that did not answer."""
        request = {"machines": [{"id": identity} for identity in ids]}
        silent = []
        found: dict[str, str] = {}
        asked = self.nodes.asked()
        answers = self.nodes.each(HOMES, {node.name: request for node in asked})
        for name, answer in answers.items():
            if isinstance(answer, HostCallFailed):
                silent.append(name)
                continue
            found |= {key: name for key, home in answer.values().items() if home.found}
        with self._lock:
            self._homes |= {key.lower(): name for key, name in found.items()}
        silent += self.nodes.down()
        return found, silent

    def _forget(self, identity: str) -> None:
        with self._lock:
            self._homes.pop(identity.lower(), None)

    def _roles(self, ids: Sequence[str]) -> dict[str, str]:
        """{VM id: how its role stands, in words} of those that are roles of the cluster."""
        answer = self.nodes.anywhere(ROLES, {"machines": [{"id": identity} for identity in ids]})
        return {
            key: f"role {value.roles[0].name} is {value.roles[0].state} on {value.roles[0].node}"
            for key, value in answer.values().items()
            if value.roles
        }

    # --- requests about VMs ------------------------------------------------------------------

    def _followed(self, verb: Verb[Value], request: Any) -> Answer[Value]:
        """Each VM's part of the request answered by the node that has it."""
        wanted = {one["id"]: one for one in request["machines"]}
        state = _Round()
        until = self._clock.monotonic() + self._find_s
        for _ in range(ROUNDS_MAX + len(wanted)):
            left = [identity for identity in wanted if identity not in state.done]
            if not left:
                break
            homes = self._settled(left, state, until)
            requests: dict[str, Any] = {}
            for identity, name in homes.items():
                requests.setdefault(name, {**request, "machines": []})
                requests[name]["machines"].append(wanted[identity])
            # Rounds keep volumes from too much at once; nodes side by side would each have its own.
            is_paced = len(request.get("rounds", ())) > 1
            for name, answer in self.nodes.each(verb, requests, in_turn=is_paced).items():
                asked = [one["id"] for one in requests[name]["machines"]]
                if isinstance(answer, HostCallFailed):
                    self._failed(verb, name, asked, answer, state)
                else:
                    self._answered(name, asked, answer, state)
        for identity in wanted:
            if identity not in state.done:
                error = MachineNowhere(self.host, identity, "it moves on and on")
                state.done[identity] = Step(identity, None, error)
        steps = tuple(state.done[identity] for identity in wanted)
        self._files.learn(steps)
        return Answer(self.host, verb.name, steps, tuple(state.warnings))

    def _failed(
        self,
        verb: Verb[Any],
        name: str,
        asked: Sequence[str],
        error: HostCallFailed,
        state: _Round,
    ) -> None:
        """A node's whole call failed: where nothing was begun, or may be begun again, its VMs are
        looked for; else each has the error."""
        is_gone = isinstance(error, HostUnreachable) or (
            isinstance(error, HostShellLost) and verb.is_repeatable
        )
        for identity in asked:
            self._forget(identity)
            if is_gone and state.lost.get(identity, ("",))[0] != name:
                state.lost[identity] = (name, error)
            else:
                state.done[identity] = Step(identity, None, error)

    def _answered(
        self, name: str, asked: Sequence[str], answer: Answer[Any], state: _Round
    ) -> None:
        state.warnings += answer.warnings
        steps = {step.id: step for step in answer.steps}
        for identity in asked:
            step = steps.get(identity)
            if step is None:
                wrong = HostAnswerWrong(self.host, answer.verb, f"it has nothing of {identity}")
                state.done[identity] = Step(identity, None, wrong)
            elif identity in state.gone:
                state.done[identity] = step
            elif may_be_elsewhere(step):
                self._forget(identity)
                state.doubtful[identity] = (name, step)
            else:
                state.done[identity] = step
                with self._lock:
                    self._homes[identity.lower()] = name

    def _settled(self, left: Sequence[str], state: _Round, until: float) -> dict[str, str]:
        """{VM id: node to ask} of those left, as soon as there is one to ask. A VM that no node has
        is waited for while the cluster has a role for it; then it has its answer: what its last
        node said, or MachineNowhere."""
        with self._lock:
            homes = {key: self._homes[key.lower()] for key in left if key.lower() in self._homes}
        open_ids = [key for key in left if key not in homes]
        while open_ids:
            found, silent = self._locate(open_ids)
            for identity in found:
                name, step = state.doubtful.pop(identity, ("", None))
                if step is not None and name == found[identity]:
                    state.done[identity] = step  # its node was asked, and meant it
                else:
                    homes[identity] = found[identity]
            open_ids = [key for key in open_ids if key not in found]
            if open_ids:
                homes |= self._given_up(open_ids, silent, state, until)
                open_ids = [k for k in open_ids if k not in homes and k not in state.done]
            if homes or not open_ids:
                break
            self._clock.sleep(self._pause_s)
            with contextlib.suppress(HostCallFailed):
                self.nodes.look()
        return homes

    def _given_up(
        self, ids: Sequence[str], silent: Sequence[str], state: _Round, until: float
    ) -> dict[str, str]:
        """Those of the VMs on no node that nothing brings back have their answer. Where every node
        was asked and the VM has no role, it is gone: any node may say so, {VM id: node}."""
        roles = self._roles(ids)
        is_late = self._clock.monotonic() >= until
        witness = self.nodes.asked()[0].name
        homes = {}
        for identity in ids:
            if identity in roles and not is_late:
                continue
            if identity not in roles and not silent:
                _, step = state.doubtful.pop(identity, ("", None))
                if step is None:
                    homes[identity] = witness
                    state.gone.add(identity)
                else:
                    state.done[identity] = step
                continue
            why = roles.get(identity) or "the cluster has no role for it"
            if silent:
                why += f"; no answer from {', '.join(sorted(silent))}"
                why += f": {state.lost[identity][1]}" if identity in state.lost else ""
            error = MachineNowhere(self.host, identity, why)
            state.done[identity] = Step(identity, None, error)
        return homes

    # --- files and the inventory -------------------------------------------------------------

    def _described(self, verb: Verb[Value], request: Any) -> Answer[Value]:
        """Disk files, each described by the node that has its VM: a file that a VM has open answers
        there only. The next nodes are asked for those that the first ones do not describe."""
        wanted = {one["id"]: one for one in request["files"]}
        done: dict[str, Step[Any]] = {}
        names = [node.name for node in self.nodes.asked()]
        ways = {key: self._ways(one["path"], names) for key, one in wanted.items()}
        for turn in range(len(names)):
            requests: dict[str, Any] = {}
            for key, way in ways.items():
                if turn < len(way) and not (key in done and _is_described(done[key])):
                    requests.setdefault(way[turn], {**request, "files": []})
                    requests[way[turn]]["files"].append(wanted[key])
            for name, answer in self.nodes.each(verb, requests).items():
                if isinstance(answer, HostCallFailed):
                    steps: list[Step[Any]] = [
                        Step(one["id"], None, answer) for one in requests[name]["files"]
                    ]
                else:
                    steps = list(answer.steps)
                for step in steps:
                    if step.id not in done or _is_described(step):
                        done[step.id] = step
        self._files.learn_parents({one["path"]: done.get(key) for key, one in wanted.items()})
        return Answer(self.host, verb.name, tuple(done[key] for key in wanted if key in done))

    def _ways(self, path: str, names: Sequence[str]) -> list[str]:
        """The nodes to ask about a file, in order. By a path on a node's own drive another node
        means another file."""
        home = self.node_of(self._files.machine_of(path))
        if home and is_local(path):
            return [home]
        return [home, *(name for name in names if name != home)] if home else list(names)

    def _inventory(self) -> Answer[HostRows]:
        """Every node's rows in one answer; what is amiss with nodes are its warnings."""
        view = self._come_in()
        found = self._merged([node.name for node in self.nodes.asked()], {})
        nowhere: list[str] = []
        until = self._clock.monotonic() + min(self._find_s, INVENTORY_WAIT_S)
        for _ in range(ROUNDS_MAX):
            # One that moved while it was asked for is on neither node's list, or not whole; one
            # whose node died is on none until another has taken it over.
            with self._lock:
                missing = sorted((self._known | found.torn) - set(found.homes))
            there, silent = self._locate(missing) if missing else ({}, [])
            if there:
                found = self._merged(sorted(set(there.values())), found.rows)
                continue
            roles = self._roles(missing) if missing else {}
            nowhere = [f"VM {key} is on no node: {why}" for key, why in roles.items()]
            if not silent:
                with self._lock:
                    self._known -= set(missing) - set(roles)
            if not (roles or view.pending) or self._clock.monotonic() >= until:
                break
            self._clock.sleep(self._pause_s)
            was_pending = view.pending
            view = self.nodes.look()
            if was_pending:
                found = self._merged([node.name for node in self.nodes.asked()], {})
        with self._lock:
            self._homes.update(found.homes)
            self._known |= set(found.homes)
        self._files.learn_rows(found.whole)
        step = Step("host", found.whole)
        warnings = (*self.nodes.problems, *nowhere, *found.problems)
        return Answer(self.host, MACHINES.name, (step,), warnings)

    def _come_in(self) -> ClusterView:
        """The cluster as it is now. Where the node that its name led to has died, the name soon
        leads to another one."""
        until = self._clock.monotonic() + ENTRY_WAIT_S
        while True:
            try:
                return self.nodes.look()
            except (HostUnreachable, HostShellLost):
                if self.nodes.are_known or self._clock.monotonic() >= until:
                    raise
            self._clock.sleep(self._pause_s)

    def _merged(self, names: Sequence[str], rows: Mapping[str, HostRows]) -> Merged:
        """These nodes asked, and put together with what others said before."""
        read = dict(rows)
        failed: HostCallFailed | None = None
        for name, answer in self.nodes.each(MACHINES, {name: {} for name in names}).items():
            if isinstance(answer, HostCallFailed):
                failed = answer
                self.nodes.blame(name, str(answer))
            else:
                read.pop(name, None)
                read[name] = answer.value("host")
        if not read:
            raise failed or HostUnreachable(self.host, self.nodes.address, "no node is up")
        return merged(read)


def _is_described(step: Step[Any]) -> bool:
    return step.error is None and step.value is not None and step.value.code == 0
