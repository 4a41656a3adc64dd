"""A running session is ended, by Ctrl-C or from another process: nothing is left behind, and the
next session goes on from what was transferred."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli.conftest import small_site
from cli.processes import children, started, state_of, wait_until
from simulation.site import Site

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals and /proc")


@contextmanager
def hanging_session(site: Site) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`job start` whose target mover is stopped in the middle of the transfer, and that mover."""
    stop_point = {"STANDBY_STOP_POINT": "extent log commit", "STANDBY_KILL_PROCESS": "target mover"}
    with started("job", "start", "job", "--config", site.config, **stop_point) as process:
        stopped: list[int] = []

        def is_stopped() -> bool:
            stopped[:] = [pid for pid in children(process.pid) if state_of(pid) in "Tt"]
            return bool(stopped) or process.poll() is not None

        wait_until(is_stopped, "the target mover stopped")
        assert stopped, process.communicate()
        yield process, stopped[0]


def resume_once_cut_off(process: subprocess.Popen[str], mover: int) -> None:
    """Let the hanging mover go on when the other one has ended: it was cut off too then."""
    wait_until(lambda: children(process.pid) == [mover], "the source mover ended")
    os.kill(mover, signal.SIGCONT)


def check_goes_on(site: Site) -> None:
    """The next session has nothing to clean up that it could not, and resumes the transfer."""
    assert site.replica().points() == ()
    report = site.run()
    assert report.outcome in ("done", "warnings")
    assert "resume" in {disk.mode for disk in report.machines[0].disks}
    assert site.check_points() == 1
    site.check_nothing_leaked()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_session_its_movers_and_130(tmp_path: Path, number: int) -> None:
    site = small_site(tmp_path / "site")
    with hanging_session(site) as (process, mover):
        process.send_signal(number)
        resume_once_cut_off(process, mover)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "what was transferred is kept" in err
    assert "Traceback" not in err
    assert state_of(mover) == ""
    with site.server() as server:
        assert server.sessions()[0].outcome == "interrupted"
    check_goes_on(site)


def test_job_stop_ends_it_from_another_process(tmp_path: Path) -> None:
    site = small_site(tmp_path / "site")
    with (
        hanging_session(site) as (process, mover),
        started("job", "stop", "job", "--json", "--config", site.config) as stopping,
    ):
        resume_once_cut_off(process, mover)
        answer, trouble = stopping.communicate(timeout=60)
        out, err = process.communicate(timeout=60)
    assert stopping.returncode == 0, trouble
    (stopped,) = json.loads(answer)["stopped"]
    assert stopped["outcome"] == "interrupted"
    assert stopped["machines"][0]["outcome"] == "interrupted"
    assert process.returncode == 130, err
    assert "Session " + stopped["id"] + " of job job: interrupted" in out
    assert "what was transferred is kept" in err
    check_goes_on(site)


def test_a_second_session_of_the_job_is_refused_and_told_how_to_end_the_first(
    tmp_path: Path,
) -> None:
    site = small_site(tmp_path / "site")
    with hanging_session(site) as (process, mover):
        with started("job", "start", "job", "--config", site.config) as second:
            _, err = second.communicate(timeout=60)
        assert second.returncode == 16
        assert "standby job stop" in err
        with started("job", "stop", "job", "--timeout", "1", "--config", site.config) as stopping:
            _, err = stopping.communicate(timeout=60)
        assert stopping.returncode == 16
        assert "still runs after 1 s" in err
        resume_once_cut_off(process, mover)
        process.communicate(timeout=60)
