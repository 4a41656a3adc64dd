"""Whose disk file is which: a file that a VM has open answers on the VM's own node only."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any

from standby.host.hyperv.answers import Step
from standby.host.hyperv.embedded import parse_instance
from standby.host.hyperv.files import folded
from standby.host.hyperv.machines import owner_of
from standby.host.hyperv.rows import Created, FileAnswer, HostRows, Resource, State


class FileHomes:
    """The VM that each known disk file belongs to, learnt from what nodes answer."""

    def __init__(self) -> None:
        self._machines: dict[str, str] = {}
        self._lock = threading.Lock()

    def machine_of(self, path: str) -> str:
        """The id of the VM, '' when it is not known."""
        with self._lock:
            return self._machines.get(folded(path), "")

    def learn_rows(self, rows: HostRows) -> None:
        """Every file that VMs and their snapshots name; what was known before is forgotten."""
        owners = {
            owner_of(row.instance_id): row.virtual_system_identifier.lower()
            for row in rows.settings
        }
        found = {}
        for row in rows.storage:
            owner = owner_of(row.instance_id)
            if row.file:
                found[folded(row.file)] = owners.get(owner, owner)
        with self._lock:
            self._machines = found

    def learn(self, steps: Iterable[Step[Any]]) -> None:
        """The files that answers about VMs name."""
        found: dict[str, str] = {}
        for step in steps:
            resources: list[Resource] = []
            if isinstance(step.value, Created):
                resources = list(step.value.disks)
            elif isinstance(step.value, State):
                resources = [disk for item in step.value.settings for disk in item.disks]
            found |= {folded(row.file): step.id.lower() for row in resources if row.file}
        with self._lock:
            self._machines |= found

    def learn_parents(self, steps: Mapping[str, Step[Any] | None]) -> None:
        """The parents that descriptions of files name are their VM's too."""
        for path, step in steps.items():
            machine = self.machine_of(path)
            value = step.value if step is not None else None
            if not machine or not isinstance(value, FileAnswer) or value.code or not value.text:
                continue
            try:
                parent = parse_instance(value.text, "Msvm_VirtualHardDiskSettingData").text(
                    "ParentPath"
                )
            except ValueError:
                continue
            if parent:
                with self._lock:
                    self._machines.setdefault(folded(parent), machine)
