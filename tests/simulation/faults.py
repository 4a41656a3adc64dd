"""What tests of faults share: errors on demand, a content to look for, looks at reports."""

from __future__ import annotations

from standby.disk import open_disk
from standby.errors import (
    DiskIO,
)
from standby.units import MiB


def failing(operation="write"):
    """Fail as a disk would."""

    def fail():
        raise DiskIO("somewhere", operation, 0, 0, "as asked for")

    return fail


def only(report):
    (machine,) = report.machines
    return machine


def open_alarms(site):
    with site.server() as server:
        return [(alarm.kind, alarm.machine) for alarm in server.store.alarms()]


MARK = b"what the guest wrote"


def write_mark(site):
    with open_disk(site.disk(), writable=True) as disk:
        disk.write(4 * MiB, (MARK + bytes(4096))[:4096])
