"""Processes by pid and start, power.json, the QMP client, QEMU's command line."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import judging
from standby.clock import SYSTEM_CLOCK
from standby.disk import open_disk, vhdx
from standby.errors import HostError, MachineRunning
from standby.host.folder import Boot, FolderHost, locks, new_machine, power, processes, qemu
from standby.host.folder.power import PowerRecord
from standby.host.folder.qmp import QmpClient
from standby.host.folder.vm_toml import MachineFile
from standby.model.machine import Machine, MachineDisk, NetworkAdapter, PowerState
from standby.units import MiB

SLEEPER = [sys.executable, "-S", "-c", "import sys; print('up', flush=True); sys.stdin.read()"]
STUBBORN = [
    sys.executable,
    "-S",
    "-c",
    "import signal, sys; signal.signal(15, signal.SIG_IGN); print('up', flush=True);"
    "sys.stdin.read()",
]


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short private folder that $XDG_RUNTIME_DIR names."""
    with tempfile.TemporaryDirectory(prefix="sb-") as name:
        monkeypatch.setenv("XDG_RUNTIME_DIR", name)
        yield Path(name)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits to be ended."""
    yield from started(SLEEPER)


@pytest.fixture
def stubborn() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does not end when asked."""
    yield from started(STUBBORN)


def started(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as made:
        assert made.stdout is not None
        made.stdout.readline()
        yield made
        made.kill()


# --- processes -------------------------------------------------------------------------------


def test_a_process_is_known_by_pid_and_start(process: subprocess.Popen[bytes]) -> None:
    start = processes.started(process.pid)
    assert start
    assert processes.is_alive(process.pid, start)
    assert not processes.is_alive(process.pid, start + "0")
    assert not processes.is_alive(process.pid, "")
    assert not processes.is_alive(0, start)


def test_a_zombie_counts_as_dead(process: subprocess.Popen[bytes]) -> None:
    start = processes.started(process.pid)
    process.kill()
    assert processes.wait_for_end(process.pid, start, SYSTEM_CLOCK, timeout_s=30)
    assert process.returncode is None  # nobody has waited for it
    assert processes.started(process.pid) == ""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the number of exit(2) is x86-64's")
def test_a_process_is_alive_while_any_thread_of_it_is() -> None:
    script = (
        "import ctypes, sys, threading\n"
        "def stay():\n"
        "    sys.stdin.read()\n"
        "threading.Thread(target=stay).start()\n"
        "print('up', flush=True)\n"
        "ctypes.CDLL(None).syscall(60, 0)  # exit(2) on x86-64: of this thread alone\n"
    )
    for process in started([sys.executable, "-S", "-c", script]):
        start = processes.started(process.pid)
        assert start
        status = Path(f"/proc/{process.pid}/stat")
        while status.read_text().rpartition(")")[2].split()[0] != "Z":
            pass
        assert processes.is_alive(process.pid, start)


def test_a_process_ends_when_asked(process: subprocess.Popen[bytes]) -> None:
    start = processes.started(process.pid)
    assert processes.end(process.pid, start, SYSTEM_CLOCK, grace_s=30)
    assert process.wait(timeout=30) == -15
    assert processes.end(process.pid, start, SYSTEM_CLOCK, grace_s=30)


def test_a_process_that_does_not_listen_is_made_to_end(stubborn: subprocess.Popen[bytes]) -> None:
    start = processes.started(stubborn.pid)
    assert not processes.end(stubborn.pid, start, SYSTEM_CLOCK, grace_s=0)
    assert stubborn.wait(timeout=30) == -9


# --- power.json ------------------------------------------------------------------------------


def off_machine(root: Path) -> tuple[FolderHost, Machine, Path]:
    machine = new_machine(root, "web01", {"scsi:0:0": 8 * MiB})
    return FolderHost("prod", root), machine, root / "web01"


def test_a_machine_never_started_has_an_empty_record(tmp_path: Path) -> None:
    assert power.read_record(tmp_path, "prod") == PowerRecord()


def test_a_live_recorded_qemu_means_running_and_no_checkpoint(
    tmp_path: Path, process: subprocess.Popen[bytes]
) -> None:
    host, machine, folder = off_machine(tmp_path)
    start = processes.started(process.pid)
    record = PowerRecord(node=platform.node(), qemu_pid=process.pid, qemu_started=start)
    power.write_record(folder, record)
    assert power.read_record(folder, "prod") == record
    assert host.power_state(machine) is PowerState.RUNNING
    with pytest.raises(MachineRunning, match=str(process.pid)):
        host.take_checkpoint(machine, "intent")


def test_a_dead_or_reused_pid_means_off(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    host, machine, folder = off_machine(tmp_path)
    record = PowerRecord(
        node=platform.node(), qemu_pid=process.pid, qemu_started="an-earlier-boot/4711"
    )
    power.write_record(folder, record)
    assert host.power_state(machine) is PowerState.OFF
    host.release_checkpoint(host.take_checkpoint(machine, "intent"))


def test_a_record_of_another_machine_is_not_believed_to_be_off(tmp_path: Path) -> None:
    host, machine, folder = off_machine(tmp_path)
    power.write_record(folder, PowerRecord(node="hv2", qemu_pid=7, qemu_started="boot/1"))
    assert host.power_state(machine) is PowerState.UNKNOWN
    with pytest.raises(MachineRunning, match="hv2"):
        host.take_checkpoint(machine, "intent")
    with pytest.raises(HostError, match="hv2"):
        host.stop(machine)


def test_a_disk_server_that_outlived_its_qemu_is_ended(
    tmp_path: Path, process: subprocess.Popen[bytes]
) -> None:
    host, machine, folder = off_machine(tmp_path)
    start = processes.started(process.pid)
    power.write_record(
        folder, PowerRecord(node=platform.node(), serve_pid=process.pid, serve_started=start)
    )
    assert host.disk_server(machine) == (process.pid, start)
    assert host.power_state(machine) is PowerState.OFF
    assert process.wait(timeout=30) == -15
    assert host.disk_server(machine) == (0, "")
    assert power.read_record(folder, "prod") == PowerRecord()


def test_a_disk_server_of_a_start_under_way_is_left_alone(
    tmp_path: Path, process: subprocess.Popen[bytes]
) -> None:
    host, machine, folder = off_machine(tmp_path)
    start = processes.started(process.pid)
    power.write_record(
        folder, PowerRecord(node=platform.node(), serve_pid=process.pid, serve_started=start)
    )
    with locks.power_lock(folder):
        assert host.power_state(machine) is PowerState.RUNNING
    assert process.poll() is None


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    host, machine, folder = off_machine(tmp_path)
    (folder / "power.json").write_text("{")
    with pytest.raises(HostError, match=r"power\.json"):
        host.power_state(machine)


def test_a_qemu_that_nobody_recorded_is_found_by_its_pid_file(tmp_path: Path) -> None:
    _, _, folder = off_machine(tmp_path)
    pid_file = tmp_path / "vm.pid"
    power.write_record(folder, PowerRecord(node=platform.node(), pid_file=str(pid_file)))
    for process in started([*SLEEPER, "-pidfile", str(pid_file)]):
        pid_file.write_text(f"{process.pid}\n")
        record = power.read_record(folder, "prod")
        assert (record.qemu_pid, record.qemu_is_alive) == (process.pid, True)
    for process in started(SLEEPER):  # the pid is somebody else's now
        pid_file.write_text(f"{process.pid}\n")
        assert power.read_record(folder, "prod").qemu_pid == 0


# --- runtime folder --------------------------------------------------------------------------


def test_sockets_lie_in_a_private_folder_with_short_paths(runtime: Path, tmp_path: Path) -> None:
    record = qemu.sockets(tmp_path / ("long" * 50), "prod")
    assert Path(record.qmp_socket).parent == runtime / "standby"
    assert (runtime / "standby").stat().st_mode & 0o777 == 0o700
    assert len(record.disk_socket) < 108
    assert record == qemu.sockets(tmp_path / ("long" * 50), "prod")
    assert record != qemu.sockets(tmp_path / "other", "prod")


def test_a_runtime_folder_that_others_can_enter_is_refused(runtime: Path) -> None:
    (runtime / "standby").mkdir(mode=0o755)
    with pytest.raises(HostError, match="this user alone"):
        power.runtime_folder("prod")


def test_a_runtime_folder_that_is_a_link_is_refused(runtime: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (runtime / "standby").symlink_to(tmp_path)
    with pytest.raises(HostError, match="this user alone"):
        power.runtime_folder("prod")


def test_without_a_runtime_folder_of_the_session_the_temporary_one_serves(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    monkeypatch.setattr(tempfile, "tempdir", str(runtime))
    assert power.runtime_folder("prod") == runtime / f"standby-{os.getuid()}"


# --- QMP -------------------------------------------------------------------------------------


class FakeMonitor(threading.Thread):
    """A monitor socket that answers each request line with the next of `answers`."""

    def __init__(self, path: Path, greeting: bytes, answers: list[bytes]) -> None:
        super().__init__()
        self.answers = answers
        self.greeting = greeting
        self.requests: list[Any] = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(1)
        self.start()

    def run(self) -> None:
        with self.listener, self.listener.accept()[0] as peer, peer.makefile("rb") as lines:
            peer.sendall(self.greeting)
            for answer in self.answers:
                self.requests.append(json.loads(lines.readline()))
                peer.sendall(answer)


GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'
EMPTY = b'{"return": {}}\r\n'


def test_events_are_passed_over_and_answers_returned(runtime: Path) -> None:
    event = b'{"event": "RESUME", "data": {}}\r\n'
    monitor = FakeMonitor(
        runtime / "m", GREETING, [EMPTY, event + b'{"return": {"status": "running"}}\r\n' + event]
    )
    with QmpClient(str(runtime / "m"), "prod") as client:
        assert client.execute("query-status", verbose=True) == {"status": "running"}
    monitor.join()
    assert monitor.requests == [
        {"execute": "qmp_capabilities"},
        {"execute": "query-status", "arguments": {"verbose": True}},
    ]


@pytest.mark.parametrize(
    ("greeting", "answers", "word"),
    [
        (b'{"hello": 1}\n', [], "greeting"),
        (b"no json\n", [], "JSON"),
        (b"[1]\n", [], "object"),
        (GREETING, [], "closed|pipe|reset"),
        (GREETING, [b'{"error": {"class": "G", "desc": "not today"}}\n'], "not today"),
        (GREETING, [EMPTY, b'{"error": {"class": "G", "desc": "never"}}\n'], "cont: never"),
    ],
)
def test_what_is_no_answer_is_said(
    runtime: Path, greeting: bytes, answers: list[bytes], word: str
) -> None:
    monitor = FakeMonitor(runtime / "m", greeting, answers)
    with pytest.raises(HostError, match=word), QmpClient(str(runtime / "m"), "prod") as client:
        client.execute("cont")
    monitor.join()


def test_nobody_at_the_monitor_is_said(runtime: Path) -> None:
    with pytest.raises(HostError, match="no answer"):
        QmpClient(str(runtime / "none"), "prod")


# --- QEMU ------------------------------------------------------------------------------------


def test_without_qemu_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host, machine, folder = off_machine(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="qemu-system-x86"):
        host.start(machine)
    assert not (folder / "power.json").exists()


def test_the_command_attaches_every_disk_at_its_place(tmp_path: Path) -> None:
    machine = Machine(
        "11111111-2222-3333-4444-555555555555",
        "a,b",
        "vm",
        generation=1,
        memory_bytes=100 * MiB + 1,
        processors=2,
        disks=(
            MachineDisk("scsi:0:0", "a.vhdx", host_id="D1"),
            MachineDisk("scsi:1:9", "b.vhdx"),
            MachineDisk("ide:1:0", "c.vhdx"),
        ),
        adapters=(
            NetworkAdapter("lan", "user", "525400000001"),
            NetworkAdapter("dead", "no such bridge"),
        ),
    )
    record = PowerRecord(qmp_socket="/r/q", disk_socket="/r/d", pid_file="/r/p")
    command = qemu.command_line("qemu", tmp_path, MachineFile(machine), record, "tcg")
    text = " ".join(command)
    assert "-name guest=a,,b " in text
    assert "-m 101M -smp 2" in text
    assert "-uuid 11111111-2222-3333-4444-555555555555" in text
    values = [json.loads(word) for word in command if word.startswith("{")]
    drives = {value["drive"]: value for value in values if "drive" in value}
    assert drives["disk0"] | {"bus": "scsi0.0", "scsi-id": 0, "serial": "D1"} == drives["disk0"]
    assert drives["disk1"] | {"bus": "scsi1.0", "scsi-id": 9} == drives["disk1"]
    assert drives["disk2"] | {"driver": "ide-hd", "bus": "ide.2"} == drives["disk2"]
    nodes = {value["node-name"]: value for value in values if "node-name" in value}
    assert nodes["disk1"]["export"] == "d1"
    assert nodes["disk1"]["server"] == {"type": "unix", "path": "/r/d"}
    assert nodes["disk1"]["reconnect-delay"] > 0
    cards = [value for value in values if value["driver"] == "virtio-net-pci"]
    assert [card.get("netdev") for card in cards] == ["netdev0", None]
    assert cards[0]["mac"] == "52:54:00:00:00:01"


def test_a_kernel_of_the_folder_is_booted_directly(tmp_path: Path) -> None:
    item = MachineFile(Machine("a", "a", "a"), Boot("k", "boot/i", "console=ttyS0"))
    command = qemu.command_line("qemu", tmp_path, item, PowerRecord(), "tcg")
    start = command.index("-kernel")
    assert command[start : start + 6] == [
        "-kernel",
        str(tmp_path / "k"),
        "-initrd",
        str(tmp_path / "boot" / "i"),
        "-append",
        "console=ttyS0",
    ]
    assert not any("pflash" in word for word in command)


def test_generation_2_without_firmware_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu, "_FIRMWARE_FOLDERS", (str(tmp_path),))
    item = MachineFile(Machine("a", "web01", "a"))
    with pytest.raises(HostError, match="ovmf"):
        qemu.prepare_firmware(tmp_path, item, "prod")


def test_generation_2_gets_firmware_and_variables_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu, "_FIRMWARE_FOLDERS", (str(tmp_path),))
    (tmp_path / "OVMF_CODE.fd").write_bytes(b"code")
    (tmp_path / "OVMF_VARS.fd").write_bytes(b"variables")
    folder = tmp_path / "vm"
    folder.mkdir()
    item = MachineFile(Machine("a", "web01", "a"))
    qemu.prepare_firmware(folder, item, "prod")
    assert (folder / "nvram.fd").read_bytes() == b"variables"
    (folder / "nvram.fd").write_bytes(b"written by the guest")
    qemu.prepare_firmware(folder, item, "prod")
    assert (folder / "nvram.fd").read_bytes() == b"written by the guest"
    text = " ".join(qemu.command_line("qemu", folder, item, PowerRecord(), "tcg"))
    assert "pflash0=code,pflash1=variables" in text
    assert str(folder / "nvram.fd") in text


# --- a real QEMU without a guest -------------------------------------------------------------


@pytest.fixture
def paused(tmp_path: Path, runtime: Path) -> Iterator[tuple[FolderHost, Machine, Path]]:
    """A VM whose firmware finds nothing to boot: it stays until it is stopped."""
    judging.require_tool(qemu.BINARY)
    machine = new_machine(
        tmp_path, "web01", {"scsi:0:0": 8 * MiB}, generation=1, memory_bytes=64 * MiB
    )
    host = FolderHost("prod", tmp_path, accelerator="tcg")
    yield host, machine, tmp_path / "web01"
    host.stop(machine, force=True, timeout_s=0)


def test_start_and_stop_are_idempotent(paused: tuple[FolderHost, Machine, Path]) -> None:
    host, machine, folder = paused
    host.start(machine)
    record = power.read_record(folder, "prod")
    assert host.power_state(machine) is PowerState.RUNNING
    assert host.disk_server(machine) == (record.serve_pid, record.serve_started)
    host.start(machine)
    assert power.read_record(folder, "prod") == record
    with pytest.raises(MachineRunning):
        host.take_checkpoint(machine, "intent")
    with pytest.raises(HostError, match="did not shut down"):
        host.stop(machine, timeout_s=0.01)
    host.stop(machine, force=True, timeout_s=0)
    host.stop(machine)
    assert host.power_state(machine) is PowerState.OFF
    assert not record.qemu_is_alive
    assert not record.server_is_alive
    assert not Path(record.disk_socket).exists()
    host.confirm_checkpoint(host.take_checkpoint(machine, "intent"))


def test_a_dead_disk_server_is_started_again_under_the_running_machine(
    paused: tuple[FolderHost, Machine, Path],
) -> None:
    host, machine, folder = paused
    host.start(machine)
    before = power.read_record(folder, "prod")
    os.kill(before.serve_pid, 9)
    assert processes.wait_for_end(
        before.serve_pid, before.serve_started, SYSTEM_CLOCK, timeout_s=30
    )
    assert host.disk_server(machine) == (0, "")
    host.start(machine)
    after = power.read_record(folder, "prod")
    assert (after.qemu_pid, after.qemu_started) == (before.qemu_pid, before.qemu_started)
    assert after.serve_pid != before.serve_pid
    assert after.server_is_alive
    host.start(machine)
    assert power.read_record(folder, "prod") == after


@pytest.mark.parametrize("step", [1, 2, 3], ids=["begun", "disk server up", "QEMU up"])
def test_a_start_that_was_killed_before_writing_down_is_finished_by_the_next(
    paused: tuple[FolderHost, Machine, Path], monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    host, machine, folder = paused

    class Killed(BaseException):
        pass

    write = power.write_record
    calls = []

    def write_and_die(where: Path, record: PowerRecord) -> None:
        calls.append(record)
        if len(calls) == step:
            raise Killed
        write(where, record)

    with monkeypatch.context() as patched:
        patched.setattr(power, "write_record", write_and_die)
        with pytest.raises(Killed):
            host.start(machine)
    was_running = host.power_state(machine) is PowerState.RUNNING
    assert was_running == (step == 3)
    before = power.read_record(folder, "prod").qemu_pid
    host.start(machine)
    after = power.read_record(folder, "prod")
    assert after.qemu_is_alive
    assert after.server_is_alive
    assert not was_running or after.qemu_pid == before


def test_a_qemu_that_refuses_leaves_no_disk_server(
    paused: tuple[FolderHost, Machine, Path],
) -> None:
    host, machine, folder = paused
    text = (folder / "vm.toml").read_text()
    (folder / "vm.toml").write_text(text.replace("processors = 1", "processors = 1024"))
    with pytest.raises(HostError, match="refused to start"):
        host.start(machine)
    assert power.read_record(folder, "prod") == PowerRecord()
    assert host.power_state(machine) is PowerState.OFF


def test_a_disk_server_that_cannot_open_its_disk_says_why(
    paused: tuple[FolderHost, Machine, Path],
) -> None:
    host, machine, folder = paused
    (folder / "disk0.vhdx").rename(folder / "base.vhdx")
    vhdx.create_child(folder / "disk0.vhdx", folder / "base.vhdx").close()
    with open_disk(folder / "base.vhdx", writable=True) as base:
        base.write(0, bytes(512))  # from now on it is not the parent that the child wants
    with pytest.raises(HostError, match=r"did not come up.*base\.vhdx"):
        host.start(machine)
    assert host.power_state(machine) is PowerState.OFF


def test_the_disk_can_be_opened_again_after_the_stop(
    paused: tuple[FolderHost, Machine, Path],
) -> None:
    host, machine, folder = paused
    host.start(machine)
    host.stop(machine, force=True, timeout_s=0)
    with open_disk(folder / "disk0.vhdx", writable=True) as disk:
        disk.write(0, bytes(512))
