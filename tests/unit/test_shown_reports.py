"""Reports of sessions as people see them."""

from __future__ import annotations

import pytest

from standby.cli.jobs import _total, show_report
from standby.model.report import DiskReport, MachineReport, SessionReport
from standby.units import MiB


def session(outcome: str, *disks: DiskReport, machine: str = "interrupted") -> SessionReport:
    vm = MachineReport("vm", "id", outcome=machine, disks=list(disks))
    return SessionReport("s1", "job", "", outcome=outcome, machines=[vm])


def shown(capsys: pytest.CaptureFixture[str], found: SessionReport) -> list[list[str]]:
    """The table of the one VM's disks, as words."""
    show_report(found)
    return [
        line.replace(" MiB", "").replace(" B", "").split()
        for line in capsys.readouterr().out.splitlines()[3:]
        if line.startswith(("disk", "scsi"))
    ]


def test_what_nobody_told_of_a_disk_that_was_cut_off_is_no_nought(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = DiskReport("d0", "scsi:0:0", "full", read=7 * MiB, sent=3 * MiB)
    ended = DiskReport("d1", "scsi:0:1", "incremental", read=MiB, busy_s={"source": 0.1})
    silent = DiskReport("d2", "scsi:0:2", "full")
    left_out = DiskReport("d3", "scsi:0:3", "excluded")
    assert shown(capsys, session("interrupted", told, ended, silent, left_out)) == [
        ["disk", "mode", "read", "skipped", "changed", "sent", "written"],
        ["scsi:0:0", "full", "7.0", "-", "-", "3.0", "-"],
        ["scsi:0:1", "incremental", "1.0", "0", "0", "0", "0"],
        ["scsi:0:2", "full", "-", "-", "-", "-", "-"],
        ["scsi:0:3", "excluded", "0", "0", "0", "0", "0"],
    ]


def test_what_was_done_is_shown_with_what_was_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    disk = DiskReport("d0", "scsi:0:0", "incremental", read=MiB, skipped=9 * MiB)
    assert shown(capsys, session("done", disk, machine="done"))[1:] == [
        ["scsi:0:0", "incremental", "1.0", "9.0", "0", "0", "0"]
    ]


@pytest.mark.parametrize(
    ("found", "read"),
    [
        (session("interrupted"), "-"),  # killed
        (session("", machine=""), "-"),
        (session("failed", machine="failed"), "0 B"),  # it did not come to its disks
        (session("warnings", machine="skipped"), "0 B"),
        (session("interrupted", DiskReport("d0", "scsi:0:0", "full")), "-"),
        (session("interrupted", DiskReport("d0", "scsi:0:0", "full", read=MiB)), "1.0 MiB"),
        (session("done", DiskReport("d0", "scsi:0:0", "full"), machine="done"), "0 B"),
    ],
)
def test_the_total_of_a_session_that_was_cut_off_is_no_nought(
    found: SessionReport, read: str
) -> None:
    assert _total(found, "read") == read
