"""standby.toml as frozen values, every key checked; and what else can be said before a job runs.

The file is the configuration, the database holds state only. Unknown keys are refused with the
nearest known one, secrets are references, relative paths count from the file's folder.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from standby.host.seen_paths import mapped_path
from standby.server.config_values import (
    Config,
    HostConfig,
    Limits,
    MoverConfig,
    ProxyConfig,
    RepositoryConfig,
    ServerConfig,
)
from standby.server.hyperv_config import parse_hyperv
from standby.server.job_config import known_name, parse_job, unknown_name
from standby.server.schedule_config import check_chains, parse_schedule, parse_zone
from standby.server.traffic_config import parse_traffic
from standby.server.wan_config import parse_wan
from standby.server.watch_config import parse_logs, parse_webhook
from standby.strict_toml import Table, read_toml
from standby.units import MiB

__all__ = [
    "Config",
    "HostConfig",
    "Limits",
    "MoverConfig",
    "ProxyConfig",
    "RepositoryConfig",
    "ServerConfig",
    "load_config",
]

FILE_NAME = "standby.toml"
STATE_FILE_NAME = "standby-state.sqlite"

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Names of the installation, hosts, repositories, jobs: usable in messages, files and URIs."""

HYPERV_KINDS = ("hyperv", "hyperv-cluster")
HOST_KINDS = ("folder", *HYPERV_KINDS)


def load_config(path: Path) -> Config:
    """`path` (a standby.toml, or a folder that holds one) as values; ConfigurationError naming
    file, table and key for the first thing that is wrong. Looks at no other file."""
    if os.path.isdir(path):  # noqa: PTH112 (raises nothing: read_toml names it)
        path = path / FILE_NAME
    root = read_toml(path, "`standby init` writes one to start from")
    general = root.table("standby")
    installation = _name(general, "installation")
    state_database, state_url = _state(general)
    time_zone = parse_zone(general)
    general.done()
    limits = _limits(root.table("limits"))
    server = _server(root.table("server"))
    movers = {name: _mover(name, table) for name, table in _named(root, "movers")}
    if len({mover.plain for mover in movers.values()}) > 1:
        raise root.table("movers").error(
            "plain",
            "is true for some movers and not for others",
            "Movers talk to one another: all are plain, or none",
        )
    hosts = {name: _host(name, table, movers) for name, table in _named(root, "hosts")}
    proxies = {name: _proxy(name, table, movers, hosts) for name, table in _named(root, "proxies")}
    hosts = {name: _with_replicas(host, proxies) for name, host in hosts.items()}
    stores = {n: _repository(n, table, movers) for n, table in _named(root, "repositories")}
    repositories = {name: store.path for name, store in stores.items()}
    plain = {mover.name: mover.plain for mover in movers.values()}
    wans = {name: parse_wan(name, table, plain) for name, table in _named(root, "wan")}
    jobs = {
        name: parse_job(name, table, hosts, repositories, proxies, wans)
        for name, table in _named(root, "jobs")
    }
    for name, table in _named(root, "jobs"):
        _check_target(hosts[jobs[name].target], table)
    schedules = {
        name: schedule
        for name, table in _named(root, "jobs")
        if (schedule := parse_schedule(table.table("schedule"), name))
    }
    check_chains(root.table("jobs"), schedules, tuple(jobs))
    webhooks = {name: parse_webhook(name, table) for name, table in _named(root, "webhooks")}
    logs = parse_logs(root.table("logs"))
    traffic = {name: parse_traffic(name, table) for name, table in _named(root, "traffic")}
    root.done()
    return Config(
        path.absolute(),
        installation,
        state_database,
        hosts,
        repositories,
        jobs,
        movers,
        proxies,
        limits,
        schedules,
        time_zone,
        stores=stores,
        traffic=traffic,
        state_url=state_url,
        server=server,
        webhooks=webhooks,
        logs=logs,
        wans=wans,
    )


def _state(table: Table) -> tuple[Path, str]:
    """(file, URL or reference to one) of the state database; the URL '' for SQLite."""
    text = table.text("state_database", STATE_FILE_NAME)
    if not text.startswith(("env:", "file:")) and "://" not in text:
        return table.path("state_database", STATE_FILE_NAME), ""
    if "://" in text:
        if not re.match(r"(postgresql|postgres)(\+psycopg)?://", text):
            raise table.error("state_database", "is no PostgreSQL URL", _STATE_HINT)
        if re.search(r"://[^@/]*:[^@/]*@|[?&]password=", text):
            raise table.error("state_database", "a secret must not stand in this file", _STATE_HINT)
    return Path(table.file).absolute().parent / STATE_FILE_NAME, text


_STATE_HINT = (
    'write a file\'s path, "postgresql://user@host/database", or where the URL holds a password, '
    'a reference to it: "env:NAME" or "file:PATH"'
)


def _named(root: Table, kind: str) -> list[tuple[str, Table]]:
    """The tables of `kind` with their names, each a valid name."""
    table = root.table(kind)
    names = table.keys()
    for name in names:
        if not NAME.fullmatch(name):
            raise table.error(name, f"{name!r} is not a usable name", _NAME_HINT)
    return [(name, table.table(name)) for name in names]


_NAME_HINT = "letters, digits, '.', '_' and '-', at most 64, beginning with a letter or digit"


def _name(table: Table, key: str) -> str:
    if not table.has(key):
        raise table.missing(
            key,
            f'give this installation a name that never changes: {key} = "main-site" in [standby];'
            " replicas carry it",
        )
    name = table.text(key)
    if not NAME.fullmatch(name):
        raise table.error(key, f"{name!r} is not a usable name", _NAME_HINT)
    return name


def _server(table: Table) -> ServerConfig:
    tls = table.table("tls")
    has_tls = tls.has("certificate") or tls.has("key")
    certificate, key = (tls.path(name) if has_tls else None for name in ("certificate", "key"))
    tls.done()
    server = ServerConfig(
        identity=table.path("identity", "identity"),
        authority=table.path("authority", "authority"),
        listen=table.text("listen", "127.0.0.1:9443"),
        reconnect_every_s=table.duration_s("reconnect_every", 15, minimum=1),
        reconnect_for_s=table.duration_s("reconnect_for", 30 * 60),
        hung_after_s=table.duration_s("hung_after", 0, minimum=1) or None,
        certificate=certificate,
        key=key,
        metrics_open=table.boolean("metrics_open", False),
        enrol=_address(table, "enrol"),
    )
    table.done()
    return server


def _address(table: Table, key: str) -> str:
    """A "host:port" to listen on, '' where the key is not there."""
    text = table.text(key, "")
    if text and not re.fullmatch(r"[^\s]*:[0-9]{1,5}", text):
        raise table.error(key, f"{text!r} is no address", 'write "HOST:PORT", as "0.0.0.0:9442"')
    return text


def _limits(table: Table) -> Limits:
    limits = Limits(
        max_tasks=table.integer("max_tasks", 4, minimum=1, maximum=1024),
        task_memory=table.size("task_memory", 64 * MiB, minimum=16 * MiB),
    )
    table.done()
    return limits


def _place(table: Table, movers: dict[str, MoverConfig]) -> tuple[Path, str, int]:
    """(path, mover, max_tasks). A path at a mover is its machine's business, and stays as written;
    what is here counts from the file's folder."""
    mover = table.text("mover", "")
    if mover:
        known_name(table, "mover", mover, movers)
        path = Path(table.text("path"))
        if not table.text("path").strip():
            raise table.error("path", "is empty", f"write the path of a folder at mover {mover}")
    else:
        path = table.path("path")
    limited = table.has("max_tasks")
    max_tasks = table.integer("max_tasks", minimum=1, maximum=1024) if limited else 0
    return path, mover, max_tasks


def _mover(name: str, table: Table) -> MoverConfig:
    mover = MoverConfig(name, table.text("address"), table.boolean("plain", False))
    if mover.plain:
        from standby.wire.plain import check_loopback  # heavy, and rarely needed

        check_loopback(mover.address, table.where("address"))
    table.done()
    return mover


def _host(name: str, table: Table, movers: dict[str, MoverConfig]) -> HostConfig:
    kind = table.text("kind", choices=HOST_KINDS)
    if kind == "folder":
        host = HostConfig(name, kind, *_place(table, movers))
        table.done()
        return host
    hyperv = parse_hyperv(name, table, is_cluster=kind == "hyperv-cluster")
    limited = table.has("max_tasks")
    max_tasks = table.integer("max_tasks", minimum=1, maximum=1024) if limited else 0
    table.done()
    return HostConfig(name, kind, Path(), max_tasks=max_tasks, hyperv=hyperv)


def _with_replicas(host: HostConfig, proxies: dict[str, ProxyConfig]) -> HostConfig:
    """The host with its folder of replicas as this machine sees it, where it has one."""
    if host.hyperv is None or not host.hyperv.replicas:
        return host
    for proxy in proxies.values():
        seen = mapped_path(host.hyperv.replicas, proxy.paths.get(host.name, {}))
        if seen and not proxy.mover and proxy.side in ("both", "target"):
            return replace(host, path=Path(seen))
    return host


def _check_target(host: HostConfig, table: Table) -> None:
    if host.hyperv is None or host.path != Path():
        return
    if not host.hyperv.replicas:
        raise table.error(
            "target",
            f"[hosts.{host.name}] of kind {host.kind} says no folder for replicas",
            "write replicas = 'D:\\Replicas' there, or name another host",
        )
    raise table.error(
        "target",
        f"no proxy on this machine sees {host.hyperv.replicas} of host {host.name}",
        "write it into the `paths` of a [proxies.NAME] without a mover: a mover of another machine "
        "works for folder hosts only",
    )


def _proxy(
    name: str, table: Table, movers: dict[str, MoverConfig], hosts: dict[str, HostConfig]
) -> ProxyConfig:
    mover = table.text("mover", "")
    if mover:
        known_name(table, "mover", mover, movers)
    maps = table.table("paths")
    paths = {}
    for seen in maps.keys():  # noqa: SIM118 (a Table, not a dict)
        places = maps.table(seen)
        key = _host_or_node(maps, seen, hosts)
        paths[key] = {place: places.text(place) for place in places.keys()}  # noqa: SIM118
    proxy = ProxyConfig(
        name,
        mover,
        table.integer("max_tasks", 2, minimum=1, maximum=256),
        paths,
        table.text("side", "both", choices=("both", "source", "target")),
    )
    table.done()
    return proxy


def _host_or_node(maps: Table, name: str, hosts: dict[str, HostConfig]) -> str:
    """A key of a proxy's `paths`: a host's name, or "CLUSTER/NODE", the node in lower case."""
    host, slash, node = name.partition("/")
    if host not in hosts:
        raise unknown_name(maps, name, "host", host, hosts)
    if not slash:
        return host
    settings = hosts[host].hyperv
    if settings is None or not settings.is_cluster:
        raise maps.error(name, f"host {host} has no nodes", f'write "{host}"')
    nodes = {access.address.partition(".")[0].lower(): None for access in settings.accesses[1:]}
    if nodes and node.lower() not in nodes:
        raise unknown_name(maps, name, "node", node.lower(), nodes)
    if not node or "." in node or "/" in node:
        raise maps.error(name, "names no node", f'write its first name, as "{host}/hv1"')
    return f"{host}/{node.lower()}"


def _repository(name: str, table: Table, movers: dict[str, MoverConfig]) -> RepositoryConfig:
    repository = RepositoryConfig(name, *_place(table, movers))
    table.done()
    return repository
