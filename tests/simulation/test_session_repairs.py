"""Damage that is found by reading every byte, and healed from whoever still has the piece."""

from __future__ import annotations

import pytest

from simulation.faults import MARK, only, write_mark
from simulation.sessions import made
from standby.model.replica import ReplicaState
from standby.units import MiB


@pytest.fixture
def site(tmp_path):
    return made(tmp_path)


# --- verify and repair -----------------------------------------------------------------------


def damage(path, marker):
    data = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(data.index(marker))
        file.write(b"rot!")


def test_a_damaged_piece_is_repaired_in_place_from_the_source(site):
    write_mark(site)
    site.run()
    site.change()
    site.run()
    damage(site.replica().path / "disk0" / "base.vhdx", MARK)
    with site.server() as server:
        verdicts = server.replicas.verify("vm1_replica")
        assert [verdict.is_ok for verdict in verdicts] == [False, False]
        assert site.replica().record().state is ReplicaState.DAMAGED
        assert only(server.start("job")).outcome == "skipped"
        reports = server.replicas.repair("vm1_replica", verdicts)
        assert sum(report.healed_bytes for report in reports) >= 4096
        verdicts = server.replicas.verify("vm1_replica")
        assert all(verdict.is_ok for verdict in verdicts)
    assert site.replica().record().state is ReplicaState.READY
    site.change()
    assert only(site.run()).outcome == "done"
    assert site.check_points() == 3


def test_a_piece_that_nobody_has_any_more_is_named(site):
    write_mark(site)
    site.run()
    site.write(4 * MiB, 4096)  # the source has moved on
    site.run()
    damage(site.replica().path / "disk0" / "base.vhdx", MARK)
    with site.server() as server:
        verdicts = server.replicas.verify("vm1_replica")
        assert [verdict.is_ok for verdict in verdicts] == [False, True]
        (report,) = server.replicas.repair("vm1_replica", verdicts)
        assert report.healed_bytes == 0
        (extent,) = report.missing["disk0"]
        assert (extent.offset, extent.length) == (4 * MiB, 4096)
        assert not all(verdict.is_ok for verdict in server.replicas.verify("vm1_replica"))
    assert site.replica().record().state is ReplicaState.DAMAGED
    with site.server() as server:  # the intact point is there for the worst day
        result = server.replicas.failover("vm1_replica")
        assert result.point.id == verdicts[1].point_id


def test_a_piece_is_repaired_from_another_replica_of_the_vm(tmp_path):
    more = """
[hosts.third]
kind = "folder"
path = "third"
[jobs.other]
source = "source"
target = "third"
machines = ["*"]
"""
    site = made(tmp_path, more=more)
    write_mark(site)
    site.run()
    with site.server() as server:
        assert server.start("other").outcome == "done"
        site.write(4 * MiB, 4096)  # the source has moved on
        damage(site.replica().path / "disk0" / "base.vhdx", MARK)
        name = str(site.replica().path)
        verdicts = server.replicas.verify(name)
        (report,) = server.replicas.repair(name, verdicts)
        assert report.is_complete
        assert all(verdict.is_ok for verdict in server.replicas.verify(name))


def test_a_limit_that_a_folder_host_cannot_keep_is_told(tmp_path):
    site = made(tmp_path, more='checkpoint_max_growth = "1 GiB"\n')
    with site.server() as server:
        (finding,) = [item for item in server.check() if "checkpoint_max_growth" in item.where]
    assert "do not grow" in finding.problem
