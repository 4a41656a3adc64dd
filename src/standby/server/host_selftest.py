"""`standby host selftest`: the walk on one host of a configuration, and what this machine sees."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from standby.clock import Clock, new_token
from standby.errors import ConfigurationError, HostError
from standby.files import ByteLock
from standby.host.hyperv.cluster import ClusterDoor
from standby.host.hyperv.credentials import Access
from standby.host.hyperv.door import Door
from standby.host.hyperv.selftest import STEPS, Report, Step, run
from standby.host.hyperv.selftest_walk import Walk
from standby.host.seen_paths import mapped_path, parsed_place
from standby.server.config import Config
from standby.server.host_check import maps_of, opened_doors
from standby.server.hyperv_hosts import hyperv_door
from standby.server.references import read_reference
from standby.server.selftest_disks import LocalDisks

TOKEN_LENGTH = 8


def selftest_host(
    config: Config, name: str, folder: str, clock: Clock, say: Callable[[str], None]
) -> Report:
    """The walk on the host of that name, or on the first node of the cluster; `say` hears each
    step's name as it begins."""
    with opened_doors(config, name, clock) as doors:
        door = doors.open[0]
        settings = config.hosts[name].hyperv
        if settings is None or not settings.is_cluster:
            return selftest_door(config, name, folder, door, clock, say)

        def read_secret(reference: str, where: str) -> str:
            return read_reference(reference, where, config.path.parent)

        with contextlib.closing(hyperv_door(name, settings, read_secret, clock)) as cluster:
            assert isinstance(cluster, ClusterDoor)
            return selftest_door(config, name, folder, door, clock, say, cluster)


def selftest_door(
    config: Config,
    name: str,
    folder: str,
    door: Door,
    clock: Clock,
    say: Callable[[str], None],
    cluster: ClusterDoor | None = None,
    steps: Sequence[Step] = STEPS,
) -> Report:
    """The walk through doors that are open: to a host or to one node, and to the cluster that it is
    a node of. ConfigurationError where `folder` is no folder of a
    Windows machine."""
    place = parsed_place(folder)
    if place is None or not place.is_windows or not place.parts:
        raise ConfigurationError(
            "--folder", f"{folder!r} is no folder of the host", r"such as 'D:\Standby-selftest'"
        )
    disks, missing = seen_disks(config, door.access, folder)
    with (
        _alone(config, name),
        tempfile.TemporaryDirectory(prefix="standby-selftest-") as records,
    ):
        walk = Walk(
            host=name,
            door=door,
            folder="\\".join((place.anchor.upper(), *place.parts)),
            token=new_token()[:TOKEN_LENGTH],
            clock=clock,
            records=Path(records),
            disks=disks,
            missing_disks=missing,
            cluster=cluster,
            say=say,
        )
        return run(walk, steps)


@contextlib.contextmanager
def _alone(config: Config, name: str) -> Iterator[None]:
    """Nobody else tests the host from here meanwhile: each removes what the other makes."""
    lock = ByteLock(config.state_database.parent / f"selftest-{name}.lock")
    lock.path.parent.mkdir(parents=True, exist_ok=True)
    if not lock.acquire():
        raise HostError(name, "another self-test of it is under way", "Wait for its end")
    try:
        yield
    finally:
        lock.release()


def seen_disks(config: Config, access: Access, folder: str) -> tuple[LocalDisks | None, str]:
    """The folder's disk files through a proxy of this machine, or why there are none."""
    others = []
    for item in maps_of(config, access):
        seen = mapped_path(folder, item.paths)
        if seen is None:
            continue
        if not item.proxy.mover:
            return LocalDisks(item.paths, f"proxy {item.proxy.name} as {seen}"), ""
        others.append(item.proxy.name)
    if others:
        return None, f"proxy {', '.join(others)} sees {folder}, this machine does not"
    return None, f"no proxy sees {folder}: see [proxies.NAME.paths]"
