"""mover.toml: what a service mover is, and what of its machine it may open.

name = "px1"
listen = "0.0.0.0:9440"
identity = "identity"            # folder of its key and certificate (standby mover enrol)
state = "/var/lib/standby-mover"
roles = ["source", "target", "repository", "host"]
orphan_timeout = "10m"
plain = false                    # true: on loopback only, no TLS; whoever connects must know the
                                 # secret in identity/plain.key (wire.plain)
[roots]                          # nothing else is opened, whoever asks
vms = "/srv/vms"
[protect]                        # RULES 17
keep_points_min = 3
keep_days_min = 7
[wan]                            # with role "wan" (never implied)
cache = "/var/cache/standby"     # the global cache of a target's accelerator; a source's needs none
size = "100 GiB"                 # what the cache may take on disk
memory = "256 MiB"               # and its index of memory; as much is a source's own index, with
                                 # up to four times as much beside it for what disks store
store = "256 MiB"                # memory for what a source sent last, to send changes of it; "0"
keep_free = "1 GiB"              # nothing is cached while the disk has less room than that
window = "128 MiB"               # memory that each disk under way may take, for compressing
disks_memory = "2 GiB"           # all disks under way, those sent and those received each; a disk
                                 # takes its window and 112 MiB; more of them wait their turn
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from standby.errors import DiskIO
from standby.files import is_folder
from standby.model.target_rules import TargetRules
from standby.road.places import RootPlaces
from standby.road.wan_room import disk_bytes
from standby.strict_toml import Table, read_toml
from standby.units import GiB, MiB, format_bytes
from standby.wan.compressing import WINDOW_LOG_MAX, WINDOW_LOG_MIN
from standby.wan.limits import Limits
from standby.wire.plain import check_loopback

FILE_NAME = "mover.toml"
ROLES = ("source", "target", "repository", "host")
"""Those of a mover.toml that names none."""
WAN = "wan"
ORPHAN_TIMEOUT_S = 600
DISKS_BYTES = 2 * GiB
INDEX_BYTES = STORE_BYTES = 256 * MiB


@dataclass(frozen=True, slots=True)
class WanConfig:
    """[wan]: what a WAN accelerator may take. `cache`: the folder of its global cache, None: it
    caches nothing. A stream's window has 2^window_log bytes. `store_bytes`: of what was sent
    (`wan.source_store`). `disks_bytes`: all disks that are sent, and all that are received, at
    once."""

    cache: Path | None
    limits: Limits
    window_log: int = WINDOW_LOG_MAX
    store_bytes: int = STORE_BYTES
    disks_bytes: int = DISKS_BYTES

    @property
    def disks_at_once(self) -> int:
        """How many disks there is room for, in either direction."""
        return max(1, self.disks_bytes // disk_bytes(self.window_log))


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """mover.toml, read. `orphan_timeout_s`: how long what a server left waits for it."""

    name: str
    listen: str
    identity: Path
    state: Path
    roles: tuple[str, ...] = ROLES
    roots: dict[str, Path] = field(default_factory=dict)
    protect: TargetRules = TargetRules()  # noqa: RUF009 (frozen)
    orphan_timeout_s: float = ORPHAN_TIMEOUT_S
    plain: bool = False
    """Without TLS, on the loopback device only (wire.plain)."""
    wan: WanConfig | None = None
    """None: a WAN accelerator that caches nothing, or no accelerator."""

    @property
    def folders(self) -> list[Path]:
        """All that this mover opens anything in."""
        folders = [*self.roots.values(), self.state, self.identity]
        if self.wan is not None and self.wan.cache is not None:
            folders.append(self.wan.cache)
        return folders


def load_service_config(path: Path) -> ServiceConfig:
    """The configuration in `path`, a mover.toml or the folder of one; ConfigurationError."""
    if os.path.isdir(path):  # noqa: PTH112 (raises nothing: read_toml names it)
        path = path / FILE_NAME
    table = read_toml(path, "Write a mover.toml; see `standby mover run --help`")
    name = table.text("name")
    roles = table.texts("roles", ROLES)
    for role in roles:
        if role not in (*ROLES, WAN):
            known = ", ".join((*ROLES, WAN))
            raise table.error("roles", f"{role!r} is not known", f"one of {known}")
    if not roles:
        raise table.error("roles", "is empty", "a mover without a role can do nothing")
    listed = table.table("roots")
    roots = {key: listed.path(key) for key in listed.keys()}  # noqa: SIM118 (a Table, no dict)
    if not roots and set(roles) != {WAN}:
        raise table.error("roots", "names no folder", 'write [roots] and vms = "/srv/vms"')
    for key, folder in roots.items():
        try:
            found = is_folder(folder)
        except DiskIO as exc:
            hint = "Give this user access to the folders above it"
            raise listed.error(key, f"{folder} cannot be looked at: {exc.reason}", hint) from exc
        if not found:
            raise listed.error(key, f"{folder} is not a folder", "Make it, or mount it, first")
    RootPlaces(roots)
    protect = table.table("protect")
    rules = TargetRules(
        keep_points_min=protect.integer("keep_points_min", 0, maximum=1000),
        keep_days_min=protect.integer("keep_days_min", 0, maximum=36500),
    )
    protect.done()
    plain = table.boolean("plain", False)
    listen = table.text("listen", "127.0.0.1:9440" if plain else "0.0.0.0:9440")
    if plain:
        check_loopback(listen, table.where("listen"))
    config = ServiceConfig(
        name=name,
        listen=listen,
        identity=table.path("identity", "identity"),
        state=table.path("state"),
        roles=tuple(dict.fromkeys(roles)),
        roots=roots,
        protect=rules,
        orphan_timeout_s=table.duration_s("orphan_timeout", ORPHAN_TIMEOUT_S, minimum=1),
        plain=plain,
        wan=_wan(table, roles),
    )
    table.done()
    return config


def _wan(table: Table, roles: tuple[str, ...]) -> WanConfig | None:
    if not table.has(WAN):
        return None
    wan = table.table(WAN)
    if WAN not in roles:
        raise table.error(WAN, "is only for WAN accelerators", 'add "wan" to `roles`')
    limits = Limits(
        limit_bytes=wan.size("size", 100 * GiB),
        index_bytes=wan.size("memory", INDEX_BYTES),
        keep_free_bytes=wan.size("keep_free", GiB),
    )
    window = wan.size("window", 1 << WINDOW_LOG_MAX, minimum=1 << WINDOW_LOG_MIN)
    store = wan.size("store", STORE_BYTES)
    window_log = min(WINDOW_LOG_MAX, window.bit_length() - 1)
    disks = wan.size("disks_memory", DISKS_BYTES)
    if disks < disk_bytes(window_log):
        raise wan.error(
            "disks_memory",
            f"is {format_bytes(disks)}",
            f"one disk takes {format_bytes(disk_bytes(window_log))}; or lower window",
        )
    cache = None
    if wan.has("cache"):
        cache = wan.path("cache")
        limits.segment_size()
    wan.done()
    return WanConfig(cache, limits, window_log, store, disks)
