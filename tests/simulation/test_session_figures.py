"""What a session that was cut off, or killed, has told of itself; and what the next one adds."""

from __future__ import annotations

import threading

import pytest

from simulation.faults import failing, only
from simulation.sessions import made
from simulation.site import at_kill_point
from standby.server import journey
from standby.server.store import Store
from standby.units import MiB

CHANGED = 5 * 4096 + 300 * 1024 + 256 * 1024 + 4096
"""By whole pieces: data, a trimmed range, the other disk's."""


@pytest.fixture
def site(tmp_path):
    return made(tmp_path)


@pytest.mark.parametrize("count", [1, 2], ids=["one disk", "both disks"])
def test_a_point_that_took_two_sessions_says_what_both_changed(site, count):
    site.run()
    site.change()
    with at_kill_point("verified", failing(), count=0 if count == 2 else 1):
        assert only(site.run()).outcome == "failed"
    site.write(4 * MiB, 4096)
    machine = only(site.run())
    assert machine.outcome == "done", machine.error
    assert sum(disk.changed for disk in machine.disks) == CHANGED + 4096
    assert site.replica().points()[-1].changed_bytes == CHANGED + 4096
    assert sum(disk.written for disk in machine.disks) < CHANGED


def test_what_was_sent_and_taken_back_is_no_change_of_the_point(site):
    site.run()
    site.zero(20 * MiB, 64 * 1024)  # it was a hole: nothing
    site.write(19 * MiB, 64 * 1024)
    with at_kill_point("verified", failing(), count=0):
        assert only(site.run()).outcome == "failed"
    site.zero(19 * MiB, 64 * 1024)
    machine = only(site.run())
    assert machine.outcome == "done", machine.error
    assert [disk.changed for disk in machine.disks] == [0, 0]
    assert site.replica().points()[-1].changed_bytes == 0
    assert site.check_points() == 2


@pytest.mark.parametrize("point", ["child created", "released"])
def test_the_state_database_has_the_figures_of_a_session_under_way(site, point):
    """So the report of one that is killed there tells them."""
    site.run()
    site.change()
    found = []

    def look():
        with Store(site.folder / "standby-state.sqlite") as store:
            (session,) = store.unfinished_sessions()
            found.extend(only(session).disks)

    with at_kill_point(point, look):
        report = only(site.run())
    assert [disk.mode for disk in found] == ["incremental", "incremental"]
    if point == "released":
        assert found == report.disks
        assert sum(disk.sent for disk in found) > CHANGED / 2


def test_what_is_sent_is_on_record_while_the_transfer_goes_on(site, monkeypatch):
    site.run()
    site.change()
    recorded = threading.Event()
    save = Store.save_figures

    def saved(store, session, machine):
        save(store, session, machine)
        (found,) = store.session(session).machines
        if found.disks[0].sent >= CHANGED / 2 and found.disks[0].read and not found.outcome:
            recorded.set()

    monkeypatch.setattr(journey, "FIGURES_EVERY_S", 0.0)
    monkeypatch.setattr(Store, "save_figures", saved)
    held = []
    with at_kill_point("extent log commit", lambda: held.append(recorded.wait(60))):
        report = site.run()
    assert held == [True]
    assert only(report).outcome == "done"
    with site.server() as server:
        assert only(server.report(report.id)).disks == only(report).disks
