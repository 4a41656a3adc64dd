"""Replica VMs as roles of a failover cluster: never started by it until failover, and started and
stopped through it.

A cluster restarts what it expects to run: so what standby starts or stops there goes through the
role. The role of a replica has priority 0 (never started by the cluster itself) until failover. To
make a VM a role over WinRM takes CredSSP, as the published page of Add-ClusterVirtualMachineRole
says; where that is refused the replica stays a VM of its node, and the user gets the command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from standby.errors import HostAccessDenied, HostError, ScriptFailed
from standby.host.hyperv.asking import Asking
from standby.host.hyperv.cluster_rows import (
    ADD_ROLES,
    OFFLINE,
    ONLINE,
    REFRESH_ROLES,
    REMOVE_ROLES,
    ROLES,
    START_ROLES,
    STOP_ROLES,
    Role,
    Roles,
)
from standby.host.hyperv.verbs import Verb

NEVER, MEDIUM = 0, 2000
"""Priorities: never started by the cluster; what new roles have."""
TURN_OFF, SHUT_DOWN, SHUT_DOWN_BY_FORCE = 0, 2, 3
"""OfflineAction of a VM's resource; 1, which new roles have, saves it."""


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a VM is a role of the cluster (`role`), or why not, and what makes it one."""

    role: str = ""
    problem: str = ""
    command: str = ""

    @property
    def is_high(self) -> bool:
        """Whether the cluster takes the VM over when its node dies."""
        return bool(self.role)


class ClusterRoles:
    """The roles that replica VMs are in one cluster. `door` goes to the VM's node."""

    def __init__(self, door: Asking, host: str) -> None:
        self._door = door
        self._host = host

    def look(self, machine_id: str) -> Role | None:
        """The VM's role, None when it is none."""
        return _role(self._asked(ROLES, machine_id))

    def make(self, machine_id: str, priority: int = NEVER) -> Availability:
        """`make_all` of one VM."""
        return self.make_all([machine_id], priority)[machine_id]

    def make_all(
        self, machine_ids: Sequence[str], priority: int = NEVER
    ) -> dict[str, Availability]:
        """Make the VMs roles with that priority, or give their roles that priority; one script.
        What the host refuses is no error: the replica works without, and the answer has the
        command."""
        request = {"machines": [{"id": item, "priority": priority} for item in machine_ids]}
        answer = self._door.run(ADD_ROLES, request)
        made = {key: _role(value) for key, value in answer.values().items()}
        errors = answer.errors()
        found = {}
        for machine in machine_ids:
            role, error = made.get(machine), errors.get(machine)
            if role is not None:
                found[machine] = Availability(role.name)
                continue
            if error is not None and not isinstance(error, HostAccessDenied | ScriptFailed):
                raise error
            said = ""
            if error is not None:
                said = error.detail if isinstance(error, HostAccessDenied) else error.problem
            found[machine] = Availability(
                problem=(
                    f"not highly available: the cluster did not take VM {machine} as a role "
                    f"({said.strip() or 'it does not say why'}). Over WinRM that takes "
                    "transport = 'credssp'"
                ),
                command=(
                    f"Add-ClusterVirtualMachineRole -VMId {machine}; "
                    f"(Get-ClusterGroup -VMId {machine}).Priority = {priority}"
                ),
            )
        return found

    def start(self, machine_id: str, wait_s: int, priority: int = MEDIUM) -> Role:
        """Start the role, which the cluster keeps running from now on. HostError where it does not
        come online in time."""
        role = self._there(
            machine_id,
            self._asked(START_ROLES, machine_id, priority=priority, wait_s=wait_s),
        )
        if role.state != ONLINE:
            raise HostError(
                self._host,
                f"role {role.name} is {role.state} on node {role.node} after {wait_s} s",
                "The cluster's log (Get-ClusterLog) on that node says why",
            )
        return role

    def stop(self, machine_id: str, wait_s: int, action: int = SHUT_DOWN) -> Role:
        """Stop the role; the VM ends as `action` says, and the cluster does not start it again.
        HostError where it is not offline in time."""
        role = self._there(
            machine_id,
            self._asked(STOP_ROLES, machine_id, action=action, priority=NEVER, wait_s=wait_s),
        )
        if role.state != OFFLINE:
            raise HostError(
                self._host,
                f"role {role.name} is {role.state} on node {role.node} after {wait_s} s",
                "Is its guest still shutting down? Get-ClusterGroup shows when it has",
            )
        return role

    def remove(self, machine_id: str) -> None:
        """Take the VM out of the cluster, before it is removed from its node."""
        self._asked(REMOVE_ROLES, machine_id)

    def refresh(self, machine_id: str) -> None:
        """Tell the cluster that the VM's hardware changed."""
        self._asked(REFRESH_ROLES, machine_id)

    def _asked(self, verb: Verb[Roles], machine_id: str, **more: int) -> Roles:
        request = {"machines": [{"id": machine_id, **more}]}
        return self._door.run(verb, request).value(machine_id)

    def _there(self, machine_id: str, answer: Roles) -> Role:
        role = _role(answer)
        if role is None:
            raise HostError(self._host, f"VM {machine_id} is no role of the cluster any more")
        return role


def _role(answer: Roles) -> Role | None:
    return answer.roles[0] if answer.roles else None
