"""Processes of the command line that start in hundredths of a second, on any host of a network.

A nursery is one process that has imported everything. For each start it forks a process that goes
to a network namespace, mounts what is asked for where only it sees that, and runs the command line
with its arguments and environment: in all else `python -m standby`, with an id, signals and an
exit code of its own. `tuned` sets constants of modules in it ("standby.wire.link.USER_TIMEOUT_S"),
so that a test need not wait for minutes.

    with Nursery() as nursery:
        child = nursery.start(["mover", "run", "--config", path], log, space="…")
        child.kill()
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

PR_SET_PDEATHSIG = 1
CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
MS_BIND, MS_REC, MS_SLAVE = 0x1000, 0x4000, 0x80000
NOT_IMPORTED = (
    "standby.server.store.migrations",
    "standby.host.hyperv",
    "standby.__main__",
)


class Process:
    """A process of a nursery, in this much a `subprocess.Popen`."""

    def __init__(self, channel: socket.socket, pid: int) -> None:
        self.pid = pid
        self._channel = channel
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, -N after signal N, None while it runs."""
        with contextlib.suppress(TimeoutError):
            self.wait(0.000001)
        return self.returncode

    def wait(self, timeout_s: float = 60) -> int:
        """The exit code; TimeoutError when it still runs."""
        if self.returncode is None:
            self._channel.settimeout(timeout_s)
            text = self._channel.recv(64)
            self._channel.close()
            self.returncode = int(text) if text else -signal.SIGKILL
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it, unless the process has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9, and the end of it."""
        self.send_signal(signal.SIGKILL)
        self.wait()


class Child(Process):
    """One whose output is in files."""

    def __init__(
        self,
        channel: socket.socket,
        pid: int,
        out: Path,
        err: Path,
        environment: Mapping[str, str],
    ) -> None:
        super().__init__(channel, pid)
        self.environment = environment
        self.out = out
        self.err = err

    def said(self) -> str:
        """Its standard output so far."""
        return self.out.read_text()

    def log(self) -> str:
        """Its standard error so far."""
        return self.err.read_text()


class Piped(Process):
    """One whose output comes through pipes."""

    def __init__(self, channel: socket.socket, pid: int, stdout: IO[str], stderr: IO[str]) -> None:
        super().__init__(channel, pid)
        self.stdout = stdout
        self.stderr = stderr
        self._said: tuple[str, str] | None = None

    def communicate(self, timeout: float = 60) -> tuple[str, str]:
        """What it says until it has ended; TimeoutError when it still runs."""
        if self._said is None:
            with ThreadPoolExecutor(2) as pool:
                said = [pool.submit(stream.read) for stream in (self.stdout, self.stderr)]
                try:
                    self.wait(timeout)
                except TimeoutError:
                    self.kill()  # else nothing would end the pipes, nor the threads
                    raise
            self._said = (said[0].result(), said[1].result())
            self.stdout.close()
            self.stderr.close()
        return self._said

    def close(self) -> None:
        """Kill it if it still runs, and close the pipes."""
        self.kill()
        self.stdout.close()
        self.stderr.close()


class Nursery:
    """Ends with all its processes at the end of the block."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="standby-nursery-"))
        self._address = str(self._folder / "socket")
        command = [sys.executable, "-W", "error", __file__, self._address]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        self.is_ready = False

    def _wait(self) -> None:
        """The nursery imports while others do other things."""
        assert self._process.stdout is not None
        if not self.is_ready and self._process.stdout.readline() != b"ready\n":
            raise OSError("the nursery did not start")
        self.is_ready = True

    def start(
        self,
        arguments: Sequence[object],
        log: Path,
        *,
        space: str = "",
        environment: Mapping[str, str] | None = None,
        mounts: Sequence[tuple[Path, Path]] = (),
        tuned: Mapping[str, Any] | None = None,
    ) -> Child:
        """Run `standby arguments` in the namespace `space`; its output goes to `log`.out and
        `log`.err. `mounts` are (folder, where this process sees it)."""
        out, err = (log.with_name(f"{log.name}.{kind}") for kind in ("out", "err"))
        given = dict(environment or {})
        request: dict[str, Any] = {
            "arguments": [str(item) for item in arguments],
            "space": space,
            "environment": dict(os.environ) | given,
            "mounts": [(str(item), str(place)) for item, place in mounts],
            "tuned": dict(tuned or {}),
        }
        with out.open("ab") as first, err.open("ab") as second:
            channel, pid = self._started(request, first.fileno(), second.fileno())
        if not pid:
            raise OSError(f"the nursery started nothing: {err.read_text()}")
        return Child(channel, pid, out, err, given)

    def piped(
        self,
        arguments: Sequence[object],
        environment: Mapping[str, str] | None = None,
        *,
        tuned: Mapping[str, Any] | None = None,
    ) -> Piped:
        """Run `standby arguments` here, its output at the other ends of two pipes."""
        request: dict[str, Any] = {
            "arguments": [str(item) for item in arguments],
            "space": "",
            "environment": dict(os.environ) | dict(environment or {}),
            "mounts": [],
            "tuned": dict(tuned or {}),
        }
        out, first = os.pipe()
        err, second = os.pipe()
        with contextlib.ExitStack() as on_failure:
            said = on_failure.enter_context(os.fdopen(out))
            told = on_failure.enter_context(os.fdopen(err))
            try:
                channel, pid = self._started(request, first, second)
            finally:
                os.close(first)
                os.close(second)
            if not pid:
                raise OSError(f"the nursery started nothing: {told.read()}")
            on_failure.pop_all()
        return Piped(channel, pid, said, told)

    def _started(self, request: dict[str, Any], out: int, err: int) -> tuple[socket.socket, int]:
        """The keeper's end of a new process, and its id (0: there is none, and the end is
        closed)."""
        self._wait()
        with contextlib.ExitStack() as on_failure:
            channel = on_failure.enter_context(socket.socket(socket.AF_UNIX))
            channel.connect(self._address)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [out, err]))
            channel.sendmsg([json.dumps(request).encode()], [rights])
            channel.shutdown(socket.SHUT_WR)
            pid = int.from_bytes(channel.recv(4), "little")
            if pid:
                on_failure.pop_all()
            return channel, pid

    def close(self) -> None:
        """Kill it, and with it all of its processes."""
        self._process.kill()
        self._process.wait(timeout=30)
        assert self._process.stdout is not None
        self._process.stdout.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# --- in the nursery --------------------------------------------------------------------------


def serve(address: str) -> None:
    """Fork for each request, until killed."""
    _die_with_parent()
    _import_all()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers end by themselves
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        print("ready", flush=True)
        while True:
            channel, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                with channel:
                    _keep(channel)
                os._exit(0)
            channel.close()


def _import_all() -> None:
    import standby

    for found in pkgutil.walk_packages(standby.__path__, "standby."):
        if not found.name.startswith(NOT_IMPORTED):
            with contextlib.suppress(ImportError):  # of another system
                importlib.import_module(found.name)
    # Each process does this when it begins: what is learnt here it need not learn.
    from standby.wire.learning import learn_values

    learn_values()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _keep(channel: socket.socket) -> None:
    """Start one process and tell how it ended."""
    _die_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    text, handles = b"", array.array("i")
    while True:
        part, more, _, _ = channel.recvmsg(65536, socket.CMSG_SPACE(8))
        for level, kind, data in more:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                handles.frombytes(data)
        if not part:
            break
        text += part
    request = json.loads(text)
    child = os.fork()
    if child == 0:
        code = 70
        try:
            _die_with_parent()
            channel.close()
            os.setsid()
            for number, handle in enumerate(handles, 1):
                os.dup2(handle, number)
                os.close(handle)
            # Python's own know of the files that the nursery had there, whether one may seek.
            sys.stdout = os.fdopen(1, "w", closefd=False)
            sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
            code = _run(request)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    for handle in handles:
        os.close(handle)
    channel.sendall(child.to_bytes(4, "little"))
    _, status = os.waitpid(child, 0)
    channel.sendall(str(os.waitstatus_to_exitcode(status)).encode())


def _run(request: dict[str, Any]) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    if request["space"]:
        with open(f"/run/netns/{request['space']}") as file:
            _checked(libc.setns(file.fileno(), CLONE_NEWNET), "setns")
    if request["mounts"]:
        _checked(libc.unshare(CLONE_NEWNS), "unshare")
        _checked(libc.mount(None, b"/", None, MS_REC | MS_SLAVE, None), "mount /")
        for item, place in request["mounts"]:
            done = libc.mount(item.encode(), place.encode(), None, MS_BIND, None)
            _checked(done, f"mount {item}")
    os.environ.clear()
    os.environ.update(request["environment"])

    from standby import cli, killpoints

    killpoints.install(killpoints._environment_handler())
    for name, value in request["tuned"].items():
        module, _, constant = name.rpartition(".")
        assert hasattr(importlib.import_module(module), constant), name
        setattr(importlib.import_module(module), constant, value)
    sys.argv = ["standby", *request["arguments"]]
    try:
        cli.main(request["arguments"])
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else int(exc.code is not None)


def _checked(result: int, what: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    serve(sys.argv[1])
