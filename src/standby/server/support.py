"""Everything a support case needs, in one .zip file, without secrets.

Each part is collected by itself: what cannot be had (a damaged database, a mover that is away) is
named in problems.json, and the rest is there all the same, after DEADLINE_S at the latest. Secrets
are masked three times: their references in the configuration, the values they refer to wherever
these turn up, and what looks like a secret. Names of VMs, hosts and folders stay: without them
nothing could be told.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import threading
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import msgspec

import standby
from standby.clock import SYSTEM_CLOCK, Clock
from standby.errors import ConfigurationError, StandbyError
from standby.server.config import FILE_NAME
from standby.server.logs import log_files
from standby.server.masking import MASK, SECRETS
from standby.server.references import read_reference
from standby.server.serve import job_times, server_status, webhook_states
from standby.server.server import BackupServer
from standby.server.watch_config import LOG_FILE_NAME

SESSIONS = 50
ALARMS = 500
LOG_BYTES_MAX = 32 << 20
MOVER_TIMEOUT_S = 5.0
"""What a mover that does not answer is waited for, all at the same time."""
DEADLINE_S = 30.0
"""What all parts together that ask somebody may take."""
CLOSE_S = 3.0

T = TypeVar("T")

_REFERENCE = re.compile(r"(env|file):.+", re.S)
_SECRET_KEY = re.compile(r"(?i)pass|secret|token|credential|authorization|cookie|key|signature")
_URL = re.compile(r"([a-z][a-z0-9+.-]*://)(?:[^/@\s]*@)?([^/\s?#]*)(\S*)", re.I)


def write_bundle(
    config: Path,
    output: Path | None = None,
    *,
    clock: Clock = SYSTEM_CLOCK,
    open_server: Callable[[Path], BackupServer] = BackupServer,
) -> tuple[Path, dict[str, str]]:
    """Write the file (default: here, named by the time) and return it, with what could not be
    collected: {part: reason}. ConfigurationError where the file is there already. Only the user
    may read it."""
    now = clock.now()
    path = output or Path(f"standby-support-{now:%Y%m%dT%H%M%SZ}.zip")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigurationError(str(path), "is there already", "Name another --output") from None
    except OSError as exc:
        raise ConfigurationError(str(path), f"cannot be written: {exc.strerror}") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as bundle:
                problems = _fill(bundle, config, clock, open_server)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path, problems


def _fill(
    bundle: zipfile.ZipFile,
    config: Path,
    clock: Clock,
    open_server: Callable[[Path], BackupServer],
) -> dict[str, str]:
    """Every part; what could not be collected."""
    problems: dict[str, str] = {}
    file = config / FILE_NAME if os.path.isdir(config) else config  # noqa: PTH112 (raises nothing)

    ends = SYSTEM_CLOCK.monotonic() + DEADLINE_S

    def left_s() -> float:
        return max(0.1, ends - SYSTEM_CLOCK.monotonic())

    def add(name: str, collect: Callable[[], Any]) -> None:
        try:
            collected = _within(left_s(), collect)
            found = masked_values(msgspec.to_builtins(collected, enc_hook=str))
        except Exception as exc:  # whatever is wrong with one part, the others are wanted
            problems[name] = SECRETS.masked(_told(exc))
            return
        text = msgspec.json.format(msgspec.json.encode(found), indent=2)
        bundle.writestr(f"{name}.json", text)

    _learn_secrets(file, problems)
    add("about", lambda: _about(clock))
    add("configuration", lambda: masked_configuration(file.read_bytes().decode()))
    try:
        server = _within(left_s(), lambda: open_server(config))
    except (StandbyError, TimeoutError) as exc:
        problems["server"] = SECRETS.masked(str(exc))
        _add_logs(bundle, file.parent / LOG_FILE_NAME, problems)
    else:
        try:
            away = _movers_away(server)
            problems |= {f"movers/{name}": text for name, text in away.items()}
            _add_state(server, add, away)
        finally:
            with contextlib.suppress(TimeoutError):  # a mover that hangs is left to the system
                _within(CLOSE_S, server.close)
        log_file = server.config.logs.file
        if log_file is not None:
            _add_logs(bundle, log_file, problems)
    problems = {name: SECRETS.masked(text) for name, text in problems.items()}
    bundle.writestr("problems.json", msgspec.json.format(msgspec.json.encode(problems), indent=2))
    return problems


def _told(error: Exception) -> str:
    """What is wrong, in words; of a bug its class too."""
    if isinstance(error, StandbyError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}"


def _within(timeout_s: float, collect: Callable[[], T]) -> T:
    """What `collect` returns or raises; TimeoutError after that time, and it is left alone."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(collect())
        except BaseException as exc:
            future.set_exception(exc)

    threading.Thread(target=run, name="support part", daemon=True).start()
    try:
        return future.result(timeout_s)
    except TimeoutError:
        if future.done():
            raise  # its own
        raise TimeoutError(f"not collected within {timeout_s:.0f} s") from None


def _add_state(
    server: BackupServer,
    add: Callable[[str, Callable[[], Any]], None],
    away: Mapping[str, str],
) -> None:
    store, queue = server.store, server.store.queue
    add("status", lambda: server_status(server))
    add("jobs", lambda: {"jobs": server.jobs(), "times": job_times(server)})
    add("findings", lambda: server.check(asks_movers=False))  # who is away is known
    add("sessions", lambda: server.sessions(limit=SESSIONS))
    add("queue", lambda: _newest_runs(server))
    add("requests", lambda: queue.requests()[-ALARMS:])
    add("alarms", lambda: store.alarms(open_only=False)[:ALARMS])
    add("checkpoints", store.open_intents)
    add("known_replicas", store.known_replicas)
    add("replicas", lambda: {"replicas": server.replicas.all(),
                             "unreadable": server.replicas.unreadable()})  # fmt: skip
    add("webhooks", lambda: webhook_states(server.config))
    add("movers", lambda: {name: away.get(name, "answers") for name in server.config.movers})


def _newest_runs(server: BackupServer) -> list[dict[str, Any]]:
    """The newest sessions of each job as they stand, with their VMs."""
    found = []
    for job in server.config.jobs:
        for run in server.store.queue.last_sessions(job, SESSIONS // 5):
            found.append({"session": run, "tasks": server.store.queue.tasks(run.id)})
    return found


def _about(clock: Clock) -> dict[str, Any]:
    from standby import comparing

    packages = {}
    for requirement in importlib.metadata.requires("standby") or []:
        name = re.split(r"[<>=!~ ;\[]", requirement)[0]
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    return {
        "time": clock.now(),
        "standby": standby.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "kernel": comparing.kernel_variant(),
        "packages": packages,
    }


def _movers_away(server: BackupServer) -> dict[str, str]:
    """{mover: why} of those that do not answer; each is given MOVER_TIMEOUT_S, all at the same
    time. From then on whoever asks one of them fails at once."""
    late = f"no answer within {MOVER_TIMEOUT_S:.0f} s"
    away = dict.fromkeys(server.config.movers, late)
    fleet = server.crews.fleet

    def ask(name: str) -> None:
        try:
            mover = fleet.mover(name)
            if mover.answers():
                mover.call("ping")
                away.pop(name, None)
            else:
                away[name] = mover.problem or late
        except Exception as exc:  # told as it is: that is what the bundle is for
            away[name] = str(exc) or type(exc).__name__

    threads = [threading.Thread(target=ask, args=(name,), daemon=True) for name in away]
    for thread in threads:
        thread.start()
    ends = SYSTEM_CLOCK.monotonic() + MOVER_TIMEOUT_S
    for thread in threads:
        thread.join(max(0.0, ends - SYSTEM_CLOCK.monotonic()))
    found = dict(away)
    for name in found:  # closing waits for the attempt that is under way: not here
        threading.Thread(target=fleet.mover(name).close, daemon=True).start()
    return found


def _add_logs(bundle: zipfile.ZipFile, file: Path, problems: dict[str, str]) -> None:
    """The newest log files, up to LOG_BYTES_MAX."""
    room = LOG_BYTES_MAX
    for path in log_files(file):
        try:
            with path.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(0, size - room))
                text = log.read(room).decode(errors="replace")
        except OSError as exc:
            problems[f"logs/{path.name}"] = str(exc.strerror)
            continue
        bundle.writestr(f"logs/{path.name}", SECRETS.masked(text))
        room -= min(size, room)
        if room <= 0:
            return


# --- without secrets -------------------------------------------------------------------------


def masked_configuration(text: str) -> Any:
    """The configuration as values: comments are left out, for they may hold anything."""
    return _masked_table(tomllib.loads(text), "")


def _masked_table(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        hidden = {"credentials", "headers"}
        return {
            name: dict.fromkeys(item, MASK)
            if name in hidden and isinstance(item, Mapping)
            else _masked_table(item, name)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_masked_table(item, key) for item in value]
    if not isinstance(value, str):
        return value
    if _SECRET_KEY.search(key):
        return MASK
    if reference := _REFERENCE.fullmatch(value):
        return f"{reference[1]}:{MASK}"
    return _URL.sub(lambda found: found[1] + found[2] + (f"/{MASK}" if found[3] else ""), value)


def masked_values(value: Any) -> Any:
    """`value` (builtin types) without a secret in any of its texts."""
    if isinstance(value, str):
        return SECRETS.masked(value)
    if isinstance(value, Mapping):
        return {SECRETS.masked(str(key)): masked_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked_values(item) for item in value]
    return value


def _learn_secrets(file: Path, problems: dict[str, str]) -> None:
    """Read what the configuration refers to, so that it is masked wherever it turns up."""
    try:
        values = tomllib.loads(file.read_bytes().decode())
    except (OSError, ValueError) as exc:
        problems["configuration"] = _told(exc)
        return
    for key, text in _texts(values):
        if _REFERENCE.fullmatch(text):
            with contextlib.suppress(ConfigurationError):
                read_reference(text, key, file.parent)
        elif _SECRET_KEY.search(key):
            SECRETS.add(text)


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, text) of every text in the values."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _texts(item, str(name))
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, key)
