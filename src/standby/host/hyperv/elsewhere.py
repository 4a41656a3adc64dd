"""What of a script's answers for a VM may mean that the VM is not on the node that was asked."""

from __future__ import annotations

from typing import Any

from standby.errors import ScriptFailed
from standby.host.hyperv.answers import Step
from standby.host.hyperv.rows import Changes, Converted, Created, Destroyed, Growth

NO_MACHINE = "NoMachine"
"""The kind that a script throws where it does not find its VM."""
_NOT_FOUND = (0x80041002, 0x80070490)
"""WMI's "not found", Windows' "element not found"."""


def may_be_elsewhere(step: Step[Any]) -> bool:
    """Whether the step may be about a VM that the node does not have. Any answer with `found` says
    so itself."""
    error = step.error
    if error is not None:
        return isinstance(error, ScriptFailed) and (
            error.error_id.startswith(NO_MACHINE)
            or error.category == "ObjectNotFound"
            or error.hresult in _NOT_FOUND
        )
    value = step.value
    if getattr(value, "found", True) is False:
        return True
    if isinstance(value, Created):
        return value.state == "changed" and not value.before.enabled
    if isinstance(value, Converted | Destroyed):
        return value.state == "gone"
    if isinstance(value, Changes):
        return not value.points or any(disk.code for disk in value.disks)
    return isinstance(value, Growth) and not value.status
