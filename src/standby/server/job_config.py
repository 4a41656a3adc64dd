"""The [jobs.NAME] tables of standby.toml."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from standby.errors import ConfigurationError
from standby.model.job import ReplicationJob
from standby.server.config_values import HostConfig, ProxyConfig
from standby.server.schedule_config import parse_schedule
from standby.server.wan_config import WanConfig
from standby.strict_toml import Table, nearest

SUFFIX = re.compile(r"[A-Za-z0-9._-]{0,32}")


def parse_job(
    name: str,
    table: Table,
    hosts: dict[str, HostConfig],
    repositories: dict[str, Path],
    proxies: dict[str, ProxyConfig],
    wans: dict[str, WanConfig],
) -> ReplicationJob:
    """One [jobs.NAME] table; ConfigurationError for the first thing that is wrong. The others are
    what there is for it to name."""
    default = ReplicationJob(name, "", "", "", ())
    job = replace(
        default,
        source=known_name(table, "source", table.text("source"), hosts),
        target=known_name(table, "target", table.text("target"), hosts),
        repository=_repository_of(table, repositories),
        machines=_patterns(table, "machines", None),
        exclude_machines=_patterns(table, "exclude_machines", ()),
        exclude_disks=_disk_patterns(table, "exclude_disks"),
        restore_points=table.integer("restore_points", 7, minimum=1, maximum=1000),
        suffix=table.text("suffix", default.suffix),
        compression=table.text("compression", "auto", choices=("auto", "none", "fast", "high")),
        verify_writes=table.text("verify_writes", "cache", choices=("cache", "device")),
        rpo_s=table.duration_s("rpo", 0),
        max_tasks=table.integer("max_tasks", default.max_tasks, minimum=1, maximum=256),
        max_machines=table.integer("max_machines", default.max_machines, minimum=1, maximum=256),
        checkpoint_max_age_s=table.duration_s(
            "checkpoint_max_age", default.checkpoint_max_age_s, minimum=60
        ),
        checkpoint_max_growth=table.size("checkpoint_max_growth", 0),
        seed=_seed(table.table("seed")),
        map=_map(table.table("map")),
        proxies=_proxies(table, "proxies", "source", proxies),
        target_proxies=_proxies(table, "target_proxies", "target", proxies),
        priority=table.integer("priority", 0, minimum=-10, maximum=10),
        weight=table.integer("weight", 1, minimum=1, maximum=100),
        wan=_wan_of(table, wans),
        networks=_networks(table.table("networks")),
        without_vtpm=table.boolean("without_vtpm", False),
    )
    parse_schedule(table.table("schedule"), name)
    table.done()
    if not job.machines:
        raise table.error("machines", "names no VM", 'write for example machines = ["web*"]')
    if not SUFFIX.fullmatch(job.suffix):
        raise table.error(
            "suffix", f"{job.suffix!r} is not usable", "letters, digits, '.', '_', '-'"
        )
    if job.source == job.target and hosts[job.target].is_folder:
        raise table.error(
            "target", f"is the source, {job.source}", "a replica belongs on another host"
        )
    for host in (hosts[job.source], hosts[job.target]) if job.wan else ():
        if not host.mover:
            problem = f"host {host.name} names no mover, and WAN accelerators work between movers"
            raise table.error("wan", problem, f"leave it out, or add mover to [hosts.{host.name}]")
    both = sorted(set(job.map) & {machine for machine, wanted in job.seed.items() if wanted})
    if both:
        raise table.error("map", f"{both[0]} is in seed too", "a VM is seeded or mapped, not both")
    return job


def _networks(table: Table) -> dict[str, str]:
    """{virtual switch of the source: virtual switch of the target}."""
    return {name: table.text(name) for name in table.keys()}  # noqa: SIM118 (a Table, not a dict)


def _proxies(
    table: Table, key: str, side: str, proxies: Mapping[str, ProxyConfig]
) -> tuple[str, ...]:
    """Proxies that exist and do `side`."""
    names = table.texts(key, ())
    for name in names:
        if name not in proxies:
            raise unknown_name(table, key, "proxy", name, proxies)
        if proxies[name].side not in (side, "both"):
            problem = f"{name} is a proxy of the {proxies[name].side} side only"
            raise table.error(key, problem, f'write side = "both" in [proxies.{name}]')
    return names


def _repository_of(table: Table, repositories: dict[str, Path]) -> str:
    if table.has("repository"):
        return known_name(table, "repository", table.text("repository"), repositories)
    if len(repositories) == 1:
        return next(iter(repositories))
    if repositories:
        raise table.error("repository", "is missing", f"one of {', '.join(repositories)}")
    raise table.error(
        "repository", "is missing", 'add a table: [repositories.main] with path = "…"'
    )


def _wan_of(table: Table, wans: dict[str, WanConfig]) -> str:
    name = table.text("wan", "")
    if name and name not in wans:
        raise unknown_name(table, "wan", "pair of WAN accelerators", name, wans)
    return name


def _patterns(table: Table, key: str, default: tuple[str, ...] | None) -> tuple[str, ...]:
    patterns = table.texts(key, default)
    if "" in patterns:
        raise table.error(key, "holds an empty name")
    return patterns


def _disk_patterns(table: Table, key: str) -> tuple[str, ...]:
    patterns = _patterns(table, key, ())
    for pattern in patterns:
        machine, _, place = pattern.partition(":")
        if not machine or not place:
            raise table.error(
                key, f"{pattern!r} names no disk", "write VM:place, for example db01:scsi:0:1"
            )
    return patterns


def _seed(table: Table) -> dict[str, bool]:
    return {machine: table.boolean(machine) for machine in table.keys()}  # noqa: SIM118


def _map(table: Table) -> dict[str, str]:
    folders = {}
    for machine in table.keys():  # noqa: SIM118
        folders[machine] = table.text(machine)
        if not folders[machine]:
            raise table.error(machine, "is empty", "write the VM's folder at the target")
    return folders


def known_name(table: Table, key: str, name: str, known: Mapping[str, object]) -> str:
    """`name`, that `key` gives, where it is one of the known ones; else ConfigurationError."""
    if name not in known:
        raise unknown_name(table, key, key, name, known)
    return name


def unknown_name(
    table: Table, key: str, kind: str, name: str, known: Mapping[str, object]
) -> ConfigurationError:
    """The error of a name that nothing has, with the nearest that something has."""
    hint = nearest(name, list(known)) or f"known: {', '.join(known) or 'none'}"
    return table.error(key, f"there is no {kind} named {name!r}", hint)
