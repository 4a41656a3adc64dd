"""What the scripts of the target side take and answer, as typed values."""

from __future__ import annotations

from typing import Any

import msgspec

from standby.host.hyperv.verbs import Verb


class Defined(msgspec.Struct, frozen=True):
    """define_replicas.ps1: the id of the VM that has the note now, whether it was made just now."""

    machine: str
    is_new: bool = False


class Done(msgspec.Struct, frozen=True):
    """Scripts that change a VM: `state` is done or unfinished (`job` tells which), or gone."""

    state: str
    job: str | None = None


class Started(msgspec.Struct, frozen=True):
    """heartbeats.ps1: EnabledState of the VM, OperationalStatus of its heartbeat."""

    enabled: list[int]
    integration: list[int] = []
    """EnabledState of the heartbeat components: 2 enabled."""
    heartbeat: list[int] = []


class Shutdown(msgspec.Struct, frozen=True):
    """shut_down.ps1: the method's return code, -1 where the VM has no such component."""

    code: int


class FileState(msgspec.Struct, frozen=True):
    """file_states.ps1: a file's attributes as .NET's FileAttributes has them."""

    attributes: int


class Versions(msgspec.Struct, frozen=True):
    """supported_versions.ps1: configuration versions of VMs that the host runs."""

    versions: list[str]


class Granted(msgspec.Struct, frozen=True):
    """grant_folders.ps1: what icacls ended with, and what it said."""

    code: int
    said: list[str] = []


class Space(msgspec.Struct, frozen=True):
    """volumes.ps1: bytes that are free on the volume of a folder."""

    free: int


DEFINE: Verb[Defined] = Verb("define_replicas", Defined, is_repeatable=True, deadline_s=600)
HARDWARE: Verb[Done] = Verb("set_hardware", Done, is_repeatable=True, deadline_s=600)
CONTROLLERS: Verb[Done] = Verb("set_controllers", Done, deadline_s=600)
ADD_ADAPTERS: Verb[Done] = Verb("add_adapters", Done, deadline_s=600)
ADAPTERS: Verb[Done] = Verb("set_adapters", Done, is_repeatable=True, deadline_s=600)
DRIVES: Verb[Done] = Verb("set_drives", Done, is_repeatable=True, deadline_s=600)
BOOT: Verb[Done] = Verb("set_boot", Done, is_repeatable=True, deadline_s=600)
ADD_BOOT: Verb[Done] = Verb("add_boot", Done, deadline_s=600)
RESTORE: Verb[Done] = Verb("set_automatic", Done, is_repeatable=True, deadline_s=600)
REMOVE: Verb[Done] = Verb("remove_replicas", Done, is_repeatable=True, deadline_s=600)
CHANGE_STATE: Verb[Done] = Verb("change_states", Done, is_repeatable=True, deadline_s=900)
HEARTBEATS: Verb[Started] = Verb("heartbeats", Started, is_repeatable=True)
SHUT_DOWN: Verb[Shutdown] = Verb("shut_down", Shutdown, is_repeatable=True)
FILE_STATES: Verb[FileState] = Verb("file_states", FileState, is_repeatable=True)
VERSIONS: Verb[Versions] = Verb("supported_versions", Versions, is_repeatable=True)
NEW_CHILDREN: Verb[Done] = Verb("new_children", Done, deadline_s=600)
GRANT: Verb[Granted] = Verb("grant_folders", Granted, is_repeatable=True)
VOLUMES: Verb[Space] = Verb("volumes", Space, is_repeatable=True)
TARGET_VERBS: tuple[Verb[Any], ...] = (
    DEFINE,
    HARDWARE,
    CONTROLLERS,
    ADD_ADAPTERS,
    ADAPTERS,
    DRIVES,
    BOOT,
    ADD_BOOT,
    RESTORE,
    REMOVE,
    CHANGE_STATE,
    HEARTBEATS,
    SHUT_DOWN,
    FILE_STATES,
    VERSIONS,
    NEW_CHILDREN,
    GRANT,
    VOLUMES,
)
"""Every script of the target side."""
