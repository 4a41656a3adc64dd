"""A Hyper-V host of the configuration as a source of jobs: its door, and where it keeps records."""

from __future__ import annotations

from dataclasses import replace

from standby.clock import Clock
from standby.errors import ConfigurationError
from standby.host.hyperv.asking import Asking
from standby.host.hyperv.cluster import ClusterDoor
from standby.host.hyperv.credentials import SecretReader
from standby.host.hyperv.door import Door
from standby.host.hyperv.source import HyperVSource, SourceRules
from standby.server.config import Config, HostConfig
from standby.server.config_check import excludes_disk, selects
from standby.server.hyperv_config import HyperVConfig
from standby.server.references import read_reference
from standby.server.smb_clients import smb_clients

RECORDS = "hyperv"
"""The folder beside the state database in which what is under way on hosts is recorded."""


def hyperv_source(
    config: Config, host: HostConfig, clock: Clock, door: Asking | None = None
) -> HyperVSource:
    """The host of the configuration, nobody asked yet; tests have a `door` of their own. Its
    records are kept whoever asks: also a plan's checkpoint must be found again (RULES 10)."""
    settings = host.hyperv
    if settings is None:
        raise ConfigurationError(f"[hosts.{host.name}] kind", "is no Hyper-V host")
    folder = config.path.parent

    def read_secret(reference: str, where: str) -> str:
        return read_reference(reference, where, folder)

    return HyperVSource(
        host.name,
        door or hyperv_door(host.name, settings, read_secret, clock),
        config.state_database.parent / RECORDS / host.name,
        clock,
        rules=SourceRules(
            settings.is_application,
            settings.fall_back,
            settings.is_copy,
            settings.audit_every,
        ),
        excludes=lambda machine, place: excluded_by_all(config, host.name, machine, place),
        clients=lambda: smb_clients(config, host),
    )


def hyperv_door(
    name: str, settings: HyperVConfig, read_secret: SecretReader, clock: Clock
) -> Asking:
    """The door to a host, or to all nodes of a cluster."""
    first = settings.accesses[0]
    if not settings.is_cluster:
        return Door(first, read_secret, clock)

    def open_door(title: str, address: str) -> Door:
        own = (access for access in settings.accesses if access.address == address)
        access = replace(next(own, first), host=title, address=address)
        return Door(access, read_secret, clock)

    nodes = [access.address for access in settings.accesses[1:]]
    return ClusterDoor(name, first.address, open_door, nodes, clock)


def excluded_by_all(config: Config, host: str, machine: str, place: str) -> bool:
    """Whether every job that takes the VM, and at least one, leaves the disk out."""
    takers = [job for job in config.jobs.values() if job.source == host and selects(job, machine)]
    return bool(takers) and all(excludes_disk(job, machine, place) for job in takers)
