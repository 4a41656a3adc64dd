"""`standby server` over real movers: killed anywhere, hung and taken over from; certificates."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from cli.processes import state_of, wait_until
from simulation.installed import free_port
from simulation.served import check_done, finish
from standby.errors import MoverFenced
from standby.server.config import load_config
from standby.server.fleet import Fleet
from standby.units import MiB
from standby.wire.identity import IdentityFolder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals and /proc")

DATA = 48 * MiB


def test_a_server_that_hangs_is_taken_over_from_and_changes_nothing(served, state_place):
    site = served(state_place if isinstance(state_place, str) else "")
    site.add_machine(sizes=(64 * MiB,))
    site.write(0, DATA)
    session = site.queue()
    with site.server(STANDBY_STOP_POINT="disk under way") as hung:
        wait_until(lambda: state_of(hung.pid) in ("T", "t"), "the server hangs")
        with site.server("standing by") as other:
            site.expire_lease()
            assert json.loads(other.stdout.readline())["state"] == "active"
            run, report = site.ended(session)
            machine = check_done(run, report)
            assert "went on with what another process began" in machine.warnings
            assert (site.sent(), machine.disks[0].retries) == (1, 0)
            os.kill(hung.pid, signal.SIGCONT)
            _, err = hung.communicate(timeout=60)
            assert hung.returncode == 16, err
            assert "is fenced" in err
            assert site.ended(session) == (run, report)
            assert site.check_points() == 1
            fleet = Fleet(load_config(site.config))
            fleet.lead(lambda: run.generation - 1)
            with pytest.raises(MoverFenced):
                fleet.mover("dr").call("replica_list", root="target:")
            fleet.close()
            site.write(4096, 300 * 1024)
            check_done(*site.ended(site.queue()))
            finish(other)
    assert site.check_points() == 2
    site.check_nothing_leaked()


def test_a_server_killed_anywhere_is_gone_on_with(served):
    site = served()
    site.add_machine()
    site.fill()
    points = ("disk under way", "checkpoint made", "released", "repository commit")
    for number, point in enumerate(points):
        site.write(number * MiB, 64 * 1024)
        session = site.queue()
        with site.server(STANDBY_KILL_POINT=point) as process:
            assert process.wait(60) == -9
        site.expire_lease()
        with site.server() as process:
            machine = check_done(*site.ended(session))
            finish(process)
        if point != "repository commit":  # the change was in the killed session's own point then
            assert machine.disks[0].changed >= 64 * 1024, point
            assert sum(disk.sent for disk in machine.disks) > 0, point
            shown = json.loads(site.command("replica", "show", "vm1_replica", "--json").stdout)
            newest = max(shown["points"], key=lambda item: str(item["id"]))
            assert newest["changed_bytes"] >= 64 * 1024, (point, newest)
    assert len(points) <= site.check_points() <= 2 * len(points)
    site.check_nothing_leaked()


def test_a_server_that_dies_while_its_target_commits_is_gone_on_with(served):
    site = served()
    site.add_machine()
    site.fill()
    site.stop_mover("dr")
    site.start_movers("dr", STANDBY_STOP_POINT="point renamed", STANDBY_KILL_PROCESS="dr")
    session = site.queue()
    target = site.processes["dr"]
    with site.server() as process:
        wait_until(lambda: state_of(target.pid) in ("T", "t"), "the target is at its commit")
        process.kill()
        process.wait(60)
    os.kill(target.pid, signal.SIGCONT)
    site.expire_lease()
    with site.server() as process:
        check_done(*site.ended(session))
        finish(process)
    assert site.check_points() == 2  # what the dead one's target committed, and the next one's
    site.check_nothing_leaked()


def test_a_server_whose_state_database_was_lost_or_is_an_older_copy_goes_on(served):
    site = served()
    site.add_machine()
    site.fill()
    database = load_config(site.config).state_database
    older = None
    for number in range(3):
        site.write(number * MiB, 64 * 1024)
        session = site.queue()
        with site.server() as process:
            check_done(*site.ended(session))
            finish(process)
        if older is None:
            older = database.read_bytes()
            database.unlink()
        else:
            database.write_bytes(older)
    assert site.check_points() == 3
    site.check_nothing_leaked()


# --- certificates ----------------------------------------------------------------------------


def test_a_proxy_revoked_in_mid_session_is_out_and_its_disk_goes_through_another(served):
    site = served()
    site.add_machine()
    site.fill()
    site.stop_mover("px")
    site.start_movers("px", STANDBY_STOP_POINT="last extent", STANDBY_KILL_PROCESS="px")
    session = site.queue()
    with site.server() as process:
        px = site.processes["px"]
        wait_until(lambda: state_of(px.pid) in ("T", "t"), "the proxy is in the middle of a disk")
        revoked = site.command("ca", "revoke", "px", "--yes")
        assert revoked.returncode == 0, revoked.stderr
        machine = check_done(*site.ended(session))
        assert {disk.proxy for disk in machine.disks} == {"src"}
        lost = [text for text in machine.warnings if "px was lost (" in text]
        assert lost, machine.warnings
        assert all("is revoked" in text for text in lost), lost
        assert all(text.endswith("it went on through src") for text in lost)
        os.kill(px.pid, signal.SIGCONT)
        wait_until(lambda: "server gone" in site.log("px"), "the revoked mover's link ended")
        finish(process)
    assert site.check_points() == 1
    site.check_nothing_leaked()


def test_a_server_takes_enrolments_where_it_is_told_to(served):
    site = served()
    port = free_port()
    text = site.config.read_text()
    site.config.write_text(text.replace("[server]\n", f'[server]\nenrol = "127.0.0.1:{port}"\n'))
    with site.server() as process:
        token = site.authority.make_token("new", ["source"])
        folder = site.folder / "new"
        arguments = ["mover", "enroll", "--server", f"127.0.0.1:{port}", "--identity", str(folder)]
        for returncode in (0, 15):  # the token is good once
            done = subprocess.run(
                [sys.executable, "-m", "standby", *arguments],
                env=os.environ | {"STANDBY_TOKEN": token},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == returncode, done.stderr
        assert IdentityFolder(folder).name == "new"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert "enrolled new from 127.0.0.1" in err
    assert "refused an enrolment from 127.0.0.1" in err
