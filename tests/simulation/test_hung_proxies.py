"""A mover that hangs, with its links open and its machine well, holds no disk for long."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cli.processes import wait_until
from simulation.several import SeveralSite
from standby.units import MiB

DATA = 48 * MiB


@pytest.fixture
def site(tmp_path: Path) -> Iterator[SeveralSite]:
    made = SeveralSite(tmp_path / "site")
    text = made.config.read_text()
    patient = 'reconnect_for = "1h"\nhung_after = "3s"'
    made.config.write_text(text.replace('reconnect_for = "10s"', patient))
    made.add_machine(sizes=(64 * MiB,))
    made.write(0, DATA)
    yield made
    made.close()


def data_bytes(site: SeveralSite) -> int:
    return sum(link.sent_bytes for machine in site.machines.values() for link in machine.made)


def test_a_source_proxy_that_hangs_gives_its_disk_to_the_other(site: SeveralSite) -> None:
    machine = site.machines["px1"]
    machine.cuts, machine.cut_after = False, 24 * MiB
    machine.on_cut = partial(site.hang, "px1")
    report = site.run()
    (found,) = report.machines
    assert found.outcome == "done", found.error
    (disk,) = found.disks
    assert (disk.retries, disk.proxy) == (1, "px2")
    assert any("it hangs: no answer" in text for text in found.warnings), found.warnings
    assert data_bytes(site) < 1.05 * DATA + 2 * MiB
    site.released.set()
    wait_until(lambda: not site.running_tasks(), "what hung has ended")
    assert site.check_points() == 1
    site.check_nothing_leaked()


def test_a_target_proxy_that_hangs_gives_its_replica_to_the_other(site: SeveralSite) -> None:
    machine = site.machines["dr1"]
    machine.take_after = 24 * MiB
    machine.on_taken = partial(site.hang, "dr1")
    report = site.run()
    (found,) = report.machines
    assert found.outcome == "done", found.error
    assert site.replica().record().generation == 2
    assert any("through target proxy dr2" in text for text in found.warnings), found.warnings
    site.released.set()
    wait_until(lambda: not site.running_tasks(), "what hung has ended")
    assert site.check_points() == 1
    site.check_nothing_leaked()


@pytest.mark.parametrize("is_back", [True, False])
def test_a_proxy_that_only_the_server_cannot_reach_goes_on(
    site: SeveralSite, is_back: bool
) -> None:
    machine = site.machines["px1"]
    machine.cuts, machine.cut_after = False, 24 * MiB
    reached = threading.Event()

    def cut_off() -> None:
        """The control link of px1 alone is gone."""
        site.hung.add("px1")
        for link in site.control:
            if link.peer == "px1":
                link.shutdown()
        reached.set()

    machine.on_cut = cut_off
    with site.server() as server:
        report = {}
        session = threading.Thread(target=lambda: report.update(it=server.start("job")))
        session.start()
        assert reached.wait(60)
        wait_until(lambda: not site.running_tasks(), "the transfer ended without the server")
        if is_back:
            site.released.set()
        session.join(60)
    done = report["it"]
    site.remember(done)
    (found,) = done.machines
    assert found.outcome == "done", found.error
    # All has arrived: where px1 stays away, px2 reads the disk and finds nothing to send.
    wanted = ("px1", 0) if is_back else ("px2", 1)
    assert [(disk.proxy, disk.retries) for disk in found.disks] == [wanted]
    assert data_bytes(site) < 1.05 * DATA + 2 * MiB
    assert site.check_points() == 1
    site.check_nothing_leaked()
