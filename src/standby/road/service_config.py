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
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from standby.model.target_rules import TargetRules
from standby.road.places import RootPlaces
from standby.strict_toml import read_toml
from standby.wire.plain import check_loopback

FILE_NAME = "mover.toml"
ROLES = ("source", "target", "repository", "host")
ORPHAN_TIMEOUT_S = 600


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


def load_service_config(path: Path) -> ServiceConfig:
    """The configuration in `path`, a mover.toml or the folder of one; ConfigurationError."""
    if path.is_dir():
        path = path / FILE_NAME
    table = read_toml(path, "Write a mover.toml; see `standby mover run --help`")
    name = table.text("name")
    roles = table.texts("roles", ROLES)
    for role in roles:
        if role not in ROLES:
            raise table.error("roles", f"{role!r} is not known", f"one of {', '.join(ROLES)}")
    if not roles:
        raise table.error("roles", "is empty", "a mover without a role can do nothing")
    listed = table.table("roots")
    roots = {key: listed.path(key) for key in listed.keys()}  # noqa: SIM118 (a Table, no dict)
    if not roots:
        raise table.error("roots", "names no folder", 'write [roots] and vms = "/srv/vms"')
    for key, folder in roots.items():
        if not folder.is_dir():
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
    )
    table.done()
    return config
