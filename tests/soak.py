"""A soak: session after session over networks of namespaces while anything that can die does.

    python tests/soak.py [--sessions 200] [--seed 7] [--in FOLDER] [--quiet]

Each round the guests write, a session begins, and a fault strikes: a process killed at a kill point
or at any moment, hung for a while, a cable cut, the line cut, storage unplugged, the server killed;
now and then a failover and its undo instead. What happens is drawn from the seed; when exactly it
strikes is the machine's. At the end, and every now and then, all is well again and then every point
of every replica must read as its VM did, and nothing may be left: files, checkpoints, tasks, locks,
slots, processes. Needs root. Exit code 0 when all held, 1 with the story when not.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from net.nursery import Child, Nursery
from net.sites import ROLES, TUNED, Sites
from standby.units import KiB, MiB

MACHINES = ("vm1", "vm2")
SIZES = (24 * MiB, 8 * MiB)
CHECK_EVERY = 20
ROUND_S = 150
HANG_S = 2.0

SERVER_POINTS = (
    "checkpoint intent", "checkpoint made", "child created", "disk under way", "released",
    "repository commit", "older tracker ids given up",
)  # fmt: skip
TARGET_POINTS = (
    "extent log commit", "extent log commit: disk flushed", "last extent", "verified",
    "digests written", "file renamed", "all files renamed", "pending written", "point renamed",
    "ready layer renamed", "ready layer renewed", "lease checked", "generation raised",
    "merge: intent", "merge: record removed", "merge: payload", "merge: base closed",
    "merge: locator", "merge: base guid", "merge: linkage2 cleared", "merge: record rewritten",
    "merge: child removed",
)  # fmt: skip
REPOSITORY_POINTS = ("repository commit",)


class Soak:
    """One run. `story` is what happened, a line per event."""

    def __init__(self, folder: Path, nursery: Nursery, seed: int, quiet: bool = True) -> None:
        self.chance = random.Random(seed)
        self.quiet = quiet
        self.story: list[str] = []
        self.outcomes: Counter[str] = Counter()
        self.began = time.monotonic()
        tuned = {**TUNED, "standby.road.service.LOOK_S": 2.0}
        self.sites = Sites(
            folder,
            nursery,
            restore_points=3,
            mover='orphan_timeout = "20s"',
            reconnect_for="60s",
            tuned=tuned,
        )
        for machine in MACHINES:
            self.sites.add_machine(machine, SIZES)
            self.sites.write(0, 6 * MiB, machine=machine)
            self.sites.write(4096, 2 * MiB, 1, machine=machine)

    def tell(self, text: str) -> None:
        """One more line of the story."""
        line = f"{time.monotonic() - self.began:8.1f} {text}"
        self.story.append(line)
        if not self.quiet:
            print(line, flush=True)

    # --- a round -----------------------------------------------------------------------------

    def run(self, sessions: int) -> None:
        """That many sessions; raises AssertionError for what does not hold."""
        for number in range(1, sessions + 1):
            self.write()
            if self.chance.random() < 0.06:
                self.fail_over()
            fault = self.chance.choice(self.faults())
            self.tell(f"session {number}: {fault.__name__}")
            fault()
            self.mend()
            if number % CHECK_EVERY == 0 or number == sessions:
                self.check()

    def write(self) -> None:
        """The guests."""
        for machine in MACHINES:
            for number, size in enumerate(SIZES):
                for _ in range(self.chance.randint(0, 4)):
                    length = self.chance.choice((512, 4 * KiB, 100 * KiB, MiB))
                    offset = self.chance.randrange(0, (size - length) // 512) * 512
                    if self.chance.random() < 0.2:
                        self.sites.zero(offset, length, number, machine)
                    else:
                        self.sites.write(offset, length, number, machine)

    def faults(self) -> list[Callable[[], None]]:
        """What may happen in a round; nothing, too."""
        return [
            self.nothing,
            self.kill_server_at_point,
            self.kill_server,
            self.kill_target_at_point,
            self.kill_target_at_point,
            self.kill_repository_at_point,
            self.kill_mover,
            self.kill_two_movers,
            self.hang_mover,
            self.end_mover,
            self.cut_cable,
            self.cut_line,
            self.unplug,
        ]

    def begin(self, **environment: str) -> Child:
        return self.sites.begin(**environment)

    def end(self, session: Child) -> str:
        """How the session ended; one that hangs is a failure."""
        try:
            code = session.wait(ROUND_S)
        except TimeoutError:
            raise AssertionError(f"the session hangs: {session.log()}") from None
        assert code != 1, session.log()  # a traceback
        told = json.loads(session.said()) if code != -signal.SIGKILL else {}
        for machine in told.get("machines", ()):
            self.tell(
                f"  {machine['machine']}: {machine['outcome']} {machine['point']} "
                f"{machine['error']} {'; '.join([*machine['warnings'], *machine['alarms']])}"
            )
            assert not machine["error"].startswith("unexpected"), machine
            assert "was stopped" not in machine["error"], machine  # nobody asked for that
            if machine["outcome"] == "done":  # it must read as the source does now
                self.sites.remember_point(machine["replica"], machine["point"], machine["machine"])
        self.outcomes[str(code)] += 1
        self.tell(f"  exit code {code} {told.get('message', '')}")
        return str(code)

    def moment(self) -> None:
        """Some time of a session, from before its first call to after its last one."""
        time.sleep(self.chance.uniform(0.0, 1.2))

    def mend(self) -> None:
        """All is well again: every mover runs, every cable is in."""
        for name in (*ROLES, "server"):
            self.sites.network[name].link.up()
        self.sites.network.wan.up()
        for name, child in self.sites.movers.items():
            child.send_signal(signal.SIGCONT)
            if child.poll() is not None:
                assert child.returncode in (0, 130, -signal.SIGKILL), (
                    f"{name} ended with {child.returncode}: {child.log()}"
                )
                self.sites.start_movers(name)
            assert "Traceback" not in child.log(), child.log()
            if child.poll() is None and len(child.environment) > 0:
                self.sites.start_movers(name)  # it waits for a kill point that was not reached

    # --- faults ------------------------------------------------------------------------------

    def nothing(self) -> None:
        """An ordinary session."""
        self.end(self.begin())

    def kill_server_at_point(self) -> None:
        point = f"{self.chance.choice(SERVER_POINTS)}:{self.chance.randint(1, 4)}"
        self.tell(f"  server dies at {point!r}")
        self.end(self.begin(STANDBY_KILL_POINT=point))

    def kill_server(self) -> None:
        session = self.begin()
        self.moment()
        session.send_signal(signal.SIGKILL)
        self.end(session)

    def kill_target_at_point(self) -> None:
        name = self.chance.choice(("dr1", "dr1", "dr2"))
        point = f"{self.chance.choice(TARGET_POINTS)}:{self.chance.randint(1, 3)}"
        self.tell(f"  {name} dies at {point!r}")
        self.sites.start_movers(name, STANDBY_KILL_POINT=point)
        session = self.begin()
        self.back_again(name, session)

    def kill_repository_at_point(self) -> None:
        point = f"{self.chance.choice(REPOSITORY_POINTS)}:{self.chance.randint(1, 2)}"
        self.sites.start_movers("repo", STANDBY_KILL_POINT=point)
        self.back_again("repo", self.begin())

    def back_again(self, name: str, session: Child) -> None:
        """Start the mover anew some time after its death, if it dies, and wait for the session."""
        mover = self.sites.movers[name]
        while mover.poll() is None and session.poll() is None:
            time.sleep(0.02)
        if mover.poll() is not None:
            self.moment()
            self.sites.start_movers(name)
        self.end(session)

    def kill_mover(self) -> None:
        name = self.chance.choice(sorted(ROLES))
        session = self.begin()
        self.moment()
        self.tell(f"  kill {name}")
        self.sites.kill_mover(name)
        self.moment()
        self.sites.start_movers(name)
        self.end(session)

    def kill_two_movers(self) -> None:
        names = self.chance.sample(sorted(ROLES), 2)
        session = self.begin()
        for name in names:
            self.moment()
            self.tell(f"  kill {name}")
            self.sites.kill_mover(name)
        self.moment()
        self.sites.start_movers(*names)
        self.end(session)

    def hang_mover(self) -> None:
        name = self.chance.choice(sorted(ROLES))
        session = self.begin()
        self.moment()
        self.tell(f"  hang {name}")
        self.sites.movers[name].send_signal(signal.SIGSTOP)
        time.sleep(self.chance.choice((0.5, HANG_S, 5.0)))
        self.sites.movers[name].send_signal(signal.SIGCONT)
        self.end(session)

    def end_mover(self) -> None:
        name = self.chance.choice(sorted(ROLES))
        session = self.begin()
        self.moment()
        self.tell(f"  end {name}")
        self.sites.end_mover(name)
        self.sites.start_movers(name)
        self.end(session)

    def cut_cable(self) -> None:
        name = self.chance.choice([*sorted(ROLES), "server"])
        session = self.begin()
        self.moment()
        self.tell(f"  cut {name}")
        self.sites.network[name].link.down()
        time.sleep(self.chance.choice((0.3, HANG_S, 6.0)))
        self.sites.network[name].link.up()
        self.end(session)

    def cut_line(self) -> None:
        session = self.begin()
        self.moment()
        self.sites.network.wan.down()
        time.sleep(self.chance.choice((0.3, HANG_S, 6.0)))
        self.sites.network.wan.up()
        self.end(session)

    def unplug(self) -> None:
        name = self.chance.choice(("px1", "px2"))
        session = self.begin()
        self.moment()
        self.tell(f"  unplug {name}")
        self.sites.unplug(name)
        self.end(session)
        self.sites.plug(name)

    def fail_over(self) -> None:
        """A failover and its undo, with a server or a target that dies in the middle or not."""
        machine = self.chance.choice(MACHINES)
        replica = f"{machine}_replica"
        if not self.sites.replica(replica).exists() or not self.sites.replica(replica).points():
            return
        self.tell(f"failover of {replica}")
        failed = self.sites.command("replica", "failover", replica, "--yes", "--json")
        self.tell(f"  exit code {failed.returncode} {failed.stderr.strip()}")
        assert failed.returncode != 1, failed.stderr
        skipped = self.begin()
        self.end(skipped)
        undone = self.sites.command("replica", "undo-failover", replica, "--yes", "--json")
        self.tell(f"  undo: exit code {undone.returncode} {undone.stderr.strip()}")
        if failed.returncode in (0, 3):
            assert undone.returncode in (0, 3), undone.stderr

    # --- what must hold ----------------------------------------------------------------------

    def check(self) -> None:
        """A session without faults ends well, every point is right, nothing is left."""
        said = self.undisturbed()
        if any(
            "retention is held" in alarm for made in said["machines"] for alarm in made["alarms"]
        ):
            said = self.undisturbed()  # acknowledged, and nothing was written since
        for machine in MACHINES:
            points = self.sites.check_points(f"{machine}_replica")
            assert 1 <= points <= 3, (points, said)
            self.sites.check_nothing_leaked(f"{machine}_replica")
        self.tell(f"checked; sessions so far by exit code: {dict(self.outcomes)}")

    def undisturbed(self) -> dict[str, Any]:
        """A session without faults, its retention not held by what earlier ones saw; its report."""
        self.sites.command("job", "acknowledge", "job")
        session = self.begin()
        code = self.end(session)
        assert code in ("0", "3"), f"{session.said()}{session.log()}"
        said: dict[str, Any] = json.loads(session.said())
        for machine in said["machines"]:
            assert machine["outcome"] == "done", machine
        return said


def soak(folder: Path, nursery: Nursery, sessions: int, seed: int, quiet: bool = True) -> Soak:
    """Run it; the error of what did not hold has the story behind it."""
    made = Soak(folder, nursery, seed, quiet)
    with made.sites:
        try:
            made.run(sessions)
        except BaseException as exc:
            exc.add_note("\n".join(["seed {seed}:", *made.story[-40:]]).format(seed=seed))
            raise
    return made


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--in", dest="place", type=Path, help="where the sites' files lie")
    parser.add_argument("--quiet", action="store_true")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="standby-soak-", dir=options.place))
    began = time.monotonic()
    with Nursery() as nursery:
        made = soak(folder / "site", nursery, options.sessions, options.seed, options.quiet)
    shutil.rmtree(folder)  # kept when something did not hold
    print(
        f"{options.sessions} sessions, seed {options.seed}: all points verified, nothing left, "
        f"{time.monotonic() - began:.0f} s; by exit code {dict(sorted(made.outcomes.items()))}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
