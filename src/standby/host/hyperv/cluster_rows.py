"""What the scripts about clusters answer, and their verbs."""

from __future__ import annotations

import msgspec

from standby.host.hyperv.verbs import Verb

UP, DOWN, PAUSED, JOINING = "Up", "Down", "Paused", "Joining"
"""States of a node, as ClusterNodeState names them."""
ONLINE, OFFLINE, FAILED = "Online", "Offline", "Failed"
"""States of a role, as ClusterGroupState names them; there are PartialOnline and Pending too."""


class ClusterNode(msgspec.Struct, frozen=True):
    """A node by the name that the cluster has for it."""

    name: str
    state: str = ""


class SharedVolume(msgspec.Struct, frozen=True):
    """A cluster's shared volume: the node that coordinates it, the folders it is seen under."""

    name: str
    coordinator: str = ""
    paths: list[str] = []


class ClusterView(msgspec.Struct, frozen=True):
    """cluster.ps1; `pending` are VMs' roles that are being brought online, stopped or taken over:
    their VMs may be on no node just now."""

    name: str
    nodes: list[ClusterNode]
    volumes: list[SharedVolume] = []
    pending: list[str] = []


class Home(msgspec.Struct, frozen=True):
    """homes.ps1: whether the node has the VM."""

    found: bool


class Role(msgspec.Struct, frozen=True):
    """A role (resource group) of a cluster. A priority of 0 means that the cluster never starts it
    by itself."""

    name: str
    node: str = ""
    state: str = ""
    priority: int = 0


class Roles(msgspec.Struct, frozen=True):
    """What a script about roles answers for a VM: its role, or none, with what the host said."""

    problem: str = ""
    roles: list[Role] = []


VIEW: Verb[ClusterView] = Verb("cluster", ClusterView, is_repeatable=True, deadline_s=60)
HOMES: Verb[Home] = Verb("homes", Home, is_repeatable=True, deadline_s=60)
ROLES: Verb[Roles] = Verb("roles", Roles, is_repeatable=True, deadline_s=60)
ADD_ROLES: Verb[Roles] = Verb("add_roles", Roles, is_repeatable=True, deadline_s=300)
START_ROLES: Verb[Roles] = Verb("start_roles", Roles, is_repeatable=True, deadline_s=900)
STOP_ROLES: Verb[Roles] = Verb("stop_roles", Roles, is_repeatable=True, deadline_s=900)
REMOVE_ROLES: Verb[Roles] = Verb("remove_roles", Roles, is_repeatable=True, deadline_s=300)
REFRESH_ROLES: Verb[Roles] = Verb("refresh_roles", Roles, is_repeatable=True, deadline_s=300)
