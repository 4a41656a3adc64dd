"""Room of a WAN accelerator for the disks under way."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from cli.processes import wait_until
from standby.errors import ConfigurationError, LinkError
from standby.road.service_config import WanConfig, load_service_config
from standby.road.wan_room import RESERVED_S, Room, disk_bytes
from standby.units import GiB, MiB
from standby.wan.limits import Limits
from wan_caches import HeldClock


class Asking:
    """Disks that wait in threads; the order in which they got room."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.order: list[str] = []
        self.errors: list[LinkError] = []
        self._threads: list[threading.Thread] = []

    def ask(self, task: str, session: str = "", weight: float = 1.0) -> None:
        """One more waits, behind those that did before."""

        def run() -> None:
            try:
                self.room.enter(task, session, weight)
            except LinkError as exc:
                self.errors.append(exc)
                return
            self.order.append(task)

        waiting = self.room.waiting
        thread = threading.Thread(target=run)
        self._threads.append(thread)
        thread.start()
        wait_until(lambda: self.room.waiting > waiting, f"{task} waits")

    def granted(self, count: int) -> list[str]:
        """The order, once so many got room."""
        wait_until(lambda: len(self.order) >= count, "they got room")
        return self.order

    def end(self) -> None:
        for thread in self._threads:
            thread.join(10)


def test_more_disks_than_there_is_room_for_wait_in_their_order() -> None:
    room = Room(2, "wa")
    asking = Asking(room)
    with room.use("a"), ExitStack() as second:
        second.enter_context(room.use("b"))
        asking.ask("c")
        asking.ask("d")
        assert (room.held, room.waiting) == (2, 2)
        second.close()
        assert asking.granted(1) == ["c"]
        room.leave("c")
        assert asking.granted(2) == ["c", "d"]
    asking.end()
    room.leave("d")
    assert (room.held, room.waiting) == (0, 0)


def test_a_session_of_many_disks_does_not_keep_anothers_only_one_waiting() -> None:
    room = Room(2, "wa")
    asking = Asking(room)
    for task in ("a1", "a2"):
        room.enter(task, "a")
    for task in ("a3", "a4"):
        asking.ask(task, "a")
    asking.ask("b1", "b")
    for gone in ("a1", "a2", "b1"):
        room.leave(gone)
        asking.granted(len(asking.order) + 1)
    asking.end()
    assert asking.order == ["b1", "a3", "a4"]


def test_heavier_sessions_hold_more() -> None:
    room = Room(4, "wa")
    asking = Asking(room)
    for number in range(4):
        room.enter(f"x{number}", "x")
    for session, weight in (("light", 1), ("heavy", 3)):
        for number in range(4):
            asking.ask(f"{session}{number}", session, weight)
    for number in range(4):
        room.leave(f"x{number}")
        asking.granted(number + 1)
    assert sorted(asking.order) == ["heavy0", "heavy1", "heavy2", "light0"]
    room.close()
    asking.end()


def test_who_is_cancelled_waits_no_longer_and_gives_back_what_was_granted() -> None:
    room = Room(1, "wa")
    asking = Asking(room)
    room.enter("a")
    asking.ask("b")
    asking.ask("c")
    room.cancel("b")
    room.cancel("a")
    assert asking.granted(1) == ["c"]
    asking.end()
    assert "waited for room" in str(asking.errors[0])
    assert room.held == 1


def test_a_disk_under_way_keeps_its_room_until_it_ends() -> None:
    room = Room(1, "wa")
    room.enter("a")
    with room.use("a"):
        room.enter("a")  # it has it
        room.leave("a")
        room.cancel("a")
        assert room.held == 1
    assert room.held == 0


def test_room_that_nobody_begins_with_goes_back() -> None:
    clock = HeldClock()
    room = Room(1, "wa", clock)
    room.enter("gone")
    clock.at += RESERVED_S + 1
    with room.use("other"):
        clock.at += 2 * RESERVED_S
        assert room.held == 1
    with room.use("gone"):  # came after all
        assert room.held == 1


def test_how_many_disks_there_is_room_for_is_what_the_configuration_says() -> None:
    limits = Limits(GiB, MiB)
    assert WanConfig(None, limits).disks_at_once == 2 * GiB // (240 * MiB) == 8
    assert WanConfig(None, limits, 20, disks_bytes=MiB).disks_at_once == 1
    assert disk_bytes(27) == 240 * MiB


def mover_toml(folder: Path, *wan: str) -> Path:
    (folder / "vms").mkdir()
    head = ['name = "wa"', 'state = "state"', 'roles = ["wan"]', "[roots]", 'vms = "vms"', "[wan]"]
    (folder / "mover.toml").write_text("\n".join([*head, *wan]) + "\n")
    return folder / "mover.toml"


def test_mover_toml_says_what_disks_may_take(tmp_path: Path) -> None:
    path = mover_toml(tmp_path, 'disks_memory = "1 GiB"', 'window = "16 MiB"')
    wan = load_service_config(path).wan
    assert wan is not None
    assert wan.disks_at_once == 8


def test_memory_too_small_for_one_disk_is_refused(tmp_path: Path) -> None:
    path = mover_toml(tmp_path, 'disks_memory = "128 MiB"')
    with pytest.raises(ConfigurationError, match=r"one disk takes 240\.0 MiB"):
        load_service_config(path)
