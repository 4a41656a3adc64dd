"""What `standby check` finds beyond the file itself: paths, and VMs that two jobs claim."""

from __future__ import annotations

import enum
import errno
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from standby.errors import ConfigurationError, DiskIO
from standby.files import is_folder, is_there, listed
from standby.model.job import ReplicationJob
from standby.model.machine import Machine, MachineProblem
from standby.road.target_rules import FILE_NAME as TARGET_RULES
from standby.road.target_rules import load_target_rules
from standby.server.config import Config
from standby.server.listening import api_address


class Level(enum.StrEnum):
    """`ERROR` stops a job, `WARNING` deserves a look."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to tell the user: on what, what is wrong, what to do. `mend` is the file, folder or
    mover that is at fault where it is not the configuration."""

    level: Level
    where: str
    problem: str
    hint: str = ""
    mend: str = ""


def selects(job: ReplicationJob, machine: str) -> bool:
    """Whether the job takes the VM of that name: one of `machines` matches and none of
    `exclude_machines`, shell wildcards, without regard to case."""
    name = machine.casefold()
    return any(fnmatchcase(name, pattern.casefold()) for pattern in job.machines) and not any(
        fnmatchcase(name, pattern.casefold()) for pattern in job.exclude_machines
    )


def excludes_disk(job: ReplicationJob, machine: str, place: str) -> bool:
    """Whether one of `exclude_disks` ('VM:place') matches the disk, without regard to case."""
    name = f"{machine}:{place}".casefold()
    return any(fnmatchcase(name, pattern.casefold()) for pattern in job.exclude_disks)


def replica_conflicts(
    jobs: Iterable[ReplicationJob],
    machines_by_host: Mapping[str, Sequence[Machine]],
    target_folders: Mapping[str, Path | str] | None = None,
) -> list[Finding]:
    """One VM in two jobs to one target folder (RULES 1), per VM. Without `target_folders` (host
    name: folder) two hosts count as two folders. Sources missing in the inventory have no VMs."""
    return [finding for _, finding in _claimed_twice(jobs, machines_by_host, target_folders or {})]


def refused_machines(
    config: Config, job: ReplicationJob, machines: Sequence[Machine]
) -> dict[str, str]:
    """{id: why} of those VMs that another job claims for the same target folder too: none of the
    jobs may make another replica of them there."""
    rivals = [item for item in config.jobs.values() if item.source == job.source]
    found = _claimed_twice(rivals, {job.source: machines}, target_folders(config))
    return {
        key[2]: f"{finding.problem}: {finding.hint}"
        for key, finding in found
        if key[0] == _folder_of(job, target_folders(config))
    }


def target_folders(config: Config) -> dict[str, str]:
    """What is one folder and what is another: by host, its path and the mover it is at."""
    return {host.name: f"{host.mover}:{host.path}" for host in config.hosts.values()}


def _folder_of(job: ReplicationJob, folders: Mapping[str, Path | str]) -> str:
    return str(folders.get(job.target, job.target))


def _claimed_twice(
    jobs: Iterable[ReplicationJob],
    machines_by_host: Mapping[str, Sequence[Machine]],
    folders: Mapping[str, Path | str],
) -> list[tuple[tuple[str, str, str], Finding]]:
    """((target folder, source, VM's id), what is to be said of it)."""
    claims: dict[tuple[str, str, str], list[ReplicationJob]] = {}
    names: dict[tuple[str, str, str], str] = {}
    for job in jobs:
        for machine in machines_by_host.get(job.source, ()):
            if selects(job, machine.name):
                key = (_folder_of(job, folders), job.source, machine.id)
                claims.setdefault(key, []).append(job)
                names[key] = machine.name
    return [
        (
            key,
            Finding(
                Level.ERROR,
                f"[jobs.{claimants[1].name}] machines",
                f"VM {names[key]} of host {key[1]} is in jobs "
                f"{' and '.join(job.name for job in claimants)}, which write to one target folder: "
                "a VM has one replica in it, whatever the jobs' suffixes",
                "add it to exclude_machines of all but one of them: "
                f'exclude_machines = ["{names[key]}"], or give one a target of its own',
            ),
        )
        for key, claimants in claims.items()
        if len(claimants) > 1
    ]


def same_names(
    jobs: Iterable[ReplicationJob], machines_by_host: Mapping[str, Sequence[Machine]]
) -> list[Finding]:
    """Replicas of one VM that have one name at several targets: their verbs need the target's."""
    takers: dict[tuple[str, str, str], dict[str, str]] = {}
    for job in jobs:
        for machine in machines_by_host.get(job.source, ()):
            if selects(job, machine.name):
                key = (job.source, machine.id, machine.name + job.suffix)
                takers.setdefault(key, {}).setdefault(job.target, job.name)
    return [
        Finding(
            Level.WARNING,
            f"[jobs.{list(found.values())[1]}] suffix",
            f"the replicas at {' and '.join(found)} are both called {name}",
            f"write {' or '.join(f'{target}:{name}' for target in found)} to "
            "`standby replica`, or give one of the jobs another suffix",
        )
        for (_, _, name), found in takers.items()
        if len(found) > 1
    ]


def unusable_machines(
    host: str,
    problems: Iterable[MachineProblem],
    jobs: Iterable[ReplicationJob],
    folder: Path | None = None,
    *,
    is_folder_host: bool = True,
) -> list[Finding]:
    """VMs that the host, whose folder that is, cannot describe: an error for the jobs that would
    take them."""
    findings = []
    for item in problems:
        name = item.name or item.folder
        takers = [job.name for job in jobs if job.source == host and selects(job, name)]
        file = str(folder / item.folder / "vm.toml") if folder is not None else "its vm.toml"
        hint = f"correct {file}"
        if not is_folder_host:
            file = f"VM {name} of host {host}"
            hint = f'leave its disk out (exclude_disks = ["{name}:PLACE"]), or change it there'
        elif is_denied(item.problem):
            file = str(folder / item.folder) if folder is not None else "its folder"
            hint = f"give this user read access to {file}"
        if takers:
            hint += f"; until then job {' and '.join(takers)} cannot replicate it"
        findings.append(
            Finding(
                Level.ERROR if takers else Level.WARNING,
                f"[hosts.{host}]",
                item.problem,
                hint,
                file,
            )
        )
    return findings


def is_denied(problem: str) -> bool:
    """Whether that says that this user has no right to something: what is there may be sound."""
    return os.strerror(errno.EACCES) in problem


def is_allowed(path: Path, mode: int = os.R_OK | os.W_OK) -> bool:
    """Whether this user has those rights, by default to read and write. A file is not opened: where
    this process has it open already, closing it again would drop its locks."""
    effective = os.access in os.supports_effective_ids
    return os.access(path, mode, effective_ids=effective)


def unwritable(path: Path) -> tuple[str, str]:
    """Why this user cannot write what is at `path`, and what to do about it."""
    if _is_on_read_only(path):
        return (
            "cannot be written: its file system is mounted read-only",
            "mount it writable, or name a folder elsewhere",
        )
    return "cannot be written by this user", f"give it write access to {path}"


def _is_on_read_only(path: Path) -> bool:
    if sys.platform == "win32":
        return False
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def check_paths(config: Config) -> list[Finding]:
    """What is wrong with the folders that the file names. Changes nothing."""
    findings = [*_shared_folders(config), *_nested_folders(config)]
    sources = {job.source for job in config.jobs.values()}
    targets = {job.target for job in config.jobs.values()}
    for host in config.hosts.values():
        if not host.is_folder and host.name not in sources | targets:
            findings.append(Finding(Level.WARNING, f"[hosts.{host.name}]", "no job uses this host"))
        if host.kind != "folder" or host.mover:
            continue
        where = f"[hosts.{host.name}] path"
        if host.name in targets:
            findings += _writable(where, host.path) or _target_rules(host.path)
        if host.name in sources:
            findings += _readable(where, host.path)
        if host.name not in sources | targets:
            findings.append(Finding(Level.WARNING, f"[hosts.{host.name}]", "no job uses this host"))
    for name, path in local_repositories(config).items():
        findings += _writable(f"[repositories.{name}] path", path)
    findings += _wans(config)
    try:
        api_address(config, config.server.listen, "[server] listen")
    except ConfigurationError as exc:
        findings.append(Finding(Level.ERROR, exc.where, exc.problem, exc.hint))
    findings += _writable("[standby] state_database", config.state_database.parent)
    if not config.jobs:
        findings.append(
            Finding(Level.WARNING, str(config.path), "there is no job", "add a table [jobs.NAME]")
        )
    return findings


def _wans(config: Config) -> list[Finding]:
    """Pairs of WAN accelerators that are of no use, or share their cache with nobody."""
    findings = []
    used = {job.wan for job in config.jobs.values()}
    for name, wan in config.wans.items():
        where = f"[wan.{name}]"
        if name not in used:
            hint = f'write wan = "{name}" into a job'
            findings.append(Finding(Level.WARNING, where, "no job uses this pair", hint))
        if wan.key:
            try:
                config.wan_key(name)
            except ConfigurationError as exc:
                findings.append(Finding(Level.ERROR, exc.where, exc.problem, exc.hint))
        elif config.state_url:
            problem = "is missing, and backup servers that share a database must have the same one"
            hint = "`openssl rand -hex 32` makes one; name it with env:NAME or file:PATH"
            findings.append(Finding(Level.WARNING, f"{where} key", problem, hint))
    return findings


def _readable(where: str, folder: Path) -> list[Finding]:
    try:
        if not is_there(folder):
            hint = "check the path, or whether the file system is mounted"
            return [Finding(Level.ERROR, where, f"{folder} does not exist", hint)]
        if not is_folder(folder):
            return [Finding(Level.ERROR, where, f"{folder} is not a folder", "correct the path")]
    except DiskIO as exc:
        return [_hidden(where, folder, exc)]
    return _unread(where, folder)


def _unread(where: str, folder: Path) -> list[Finding]:
    """The folder cannot be listed, or nothing in it be looked at."""
    try:
        listed(folder)
        is_readable = os.access(folder, os.R_OK | os.X_OK)
    except DiskIO:
        is_readable = False
    if is_readable:
        return []
    what, hint = f"{folder} cannot be read by this user", f"give it read access to {folder}"
    return [Finding(Level.ERROR, where, what, hint, str(folder))]


def _hidden(where: str, folder: Path, error: DiskIO) -> Finding:
    hint = "give this user access to the folders above it"
    return Finding(
        Level.ERROR, where, f"{folder} cannot be read: {error.reason}", hint, str(folder)
    )


def _writable(where: str, folder: Path) -> list[Finding]:
    """A missing folder is fine where it can be made."""
    existing = folder
    try:
        while not is_there(existing) and existing != existing.parent:
            existing = existing.parent
        if not is_folder(existing):
            return [Finding(Level.ERROR, where, f"{existing} is not a folder", "correct the path")]
    except DiskIO as exc:
        return [_hidden(where, folder, exc)]
    if existing == folder and (problem := _unread(where, folder)):
        return problem
    if not is_allowed(existing, os.W_OK | os.X_OK):
        why, mend = unwritable(existing)
        hint = f"{mend}, or correct the path"
        return [Finding(Level.ERROR, where, f"{folder} {why}", hint, str(existing))]
    return []


def _target_rules(folder: Path) -> list[Finding]:
    file = str(folder / TARGET_RULES)
    try:
        load_target_rules(folder)
    except DiskIO as exc:
        return [Finding(Level.ERROR, "the target's rules", str(exc), f"correct {file}", file)]
    except ConfigurationError as exc:
        return [Finding(Level.ERROR, exc.where, exc.problem, exc.hint or f"correct {file}", file)]
    return []


def _resolved(config: Config) -> dict[str, Path]:
    """The folders of this machine's hosts; what lies at a mover cannot be looked at from here."""
    return {
        host.name: _real(host.path)
        for host in config.hosts.values()
        if host.kind == "folder" and not host.mover
    }


def _real(path: Path) -> Path:
    """The path without links, as far as that can be seen; Path.resolve raises for a loop."""
    return Path(os.path.realpath(path))


def local_repositories(config: Config) -> dict[str, Path]:
    """The repositories of this machine."""
    return {
        name: path
        for name, path in config.repositories.items()
        if name not in config.stores or not config.stores[name].mover
    }


def _shared_folders(config: Config) -> list[Finding]:
    by_folder: dict[Path, list[str]] = {}
    for name, folder in _resolved(config).items():
        by_folder.setdefault(folder, []).append(name)
    return [
        Finding(
            Level.ERROR,
            f"[hosts.{names[1]}] path",
            f"{folder} is the folder of host {names[0]} too",
            "one folder is one host; give the second its own folder",
        )
        for folder, names in by_folder.items()
        if len(names) > 1
    ]


def _nested_folders(config: Config) -> list[Finding]:
    """A host's folder inside another's would be listed as a VM there; a repository inside a
    host's folder goes down with it."""
    hosts = _resolved(config)
    findings = []
    for inner, folder in hosts.items():
        for outer, parent in hosts.items():
            if parent in folder.parents:
                findings.append(
                    Finding(
                        Level.ERROR,
                        f"[hosts.{inner}] path",
                        f"{folder} lies inside the folder of host {outer}, {parent}",
                        "keep hosts' folders apart",
                    )
                )
    for name, path in local_repositories(config).items():
        for host, parent in hosts.items():
            if parent in (real := _real(path), *real.parents):
                findings.append(
                    Finding(
                        Level.ERROR,
                        f"[repositories.{name}] path",
                        f"{path} lies inside the folder of host {host}, {parent}",
                        "put the repository beside it",
                    )
                )
    return findings
