"""What `standby check` says of movers and proxies: what the file alone shows, and what each mover
that a job needs answers when it is asked, once and all at the same time. Nothing is waited for
longer than one attempt, nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from standby.clock import Clock
from standby.errors import CertificateError, ConfigurationError
from standby.model.job import ReplicationJob
from standby.server.config import Config
from standby.server.config_check import Finding, Level
from standby.server.config_values import host_part
from standby.server.crews import uses_services
from standby.server.fleet import Fleet
from standby.server.mover_check import Check, Movers
from standby.server.mover_check import Level as CheckLevel
from standby.server.proxies import Eligibility, Side, eligible_proxies, paths_hint, seen_folders

AT_ONCE = 16
TRIES = "`standby infrastructure check` tries every part"


@dataclass(frozen=True, slots=True)
class Need:
    """One duty of a mover in a job: `role`, for `what` at `path` on its machine. Those of one
    `group` can stand in for one another; '' is for none."""

    mover: str
    role: str
    what: str
    path: str
    group: str = ""
    is_optional: bool = False


@dataclass(slots=True)
class Asked:
    """What came of asking: `lost` are the movers whose hosts cannot be asked anything, `unserved`
    the jobs whose target has no proxy that can be asked."""

    findings: list[Finding] = field(default_factory=list)
    lost: set[str] = field(default_factory=set)
    unserved: set[str] = field(default_factory=set)


def proxy_findings(config: Config) -> list[Finding]:
    """Proxies that the file makes useless: those that see no host's folders, or whose `paths` lead
    to none of them; and jobs that no proxy can work for."""
    findings = []
    for proxy in config.proxies.values():
        where = f"[proxies.{proxy.name}]"
        if not proxy.paths and all(proxy.mover != host.mover for host in config.hosts.values()):
            hint = f'write paths, as {{ HOST = {{ "folder there" = "folder at {proxy.name}" }} }}'
            findings.append(Finding(Level.WARNING, where, "sees no host's folders", hint))
        for name, folders in proxy.paths.items():
            host = config.hosts[host_part(name)]
            if not seen_folders(proxy, host):
                left = ", ".join(folders) or "nothing"
                problem = f"{left} does not hold {host.shown}, the folder of host {name}"
                hint = f"{proxy.name} takes no disk of it: write that folder, or one above it"
                findings.append(Finding(Level.WARNING, f"{where} paths.{name}", problem, hint))
    for job in config.jobs.values():
        findings += _unserved(config, job)
    return findings


def _unserved(config: Config, job: ReplicationJob) -> Iterator[Finding]:
    where = f"[jobs.{job.name}]"
    try:
        is_served = uses_services(config, job)
    except ConfigurationError as exc:
        yield Finding(Level.ERROR, where, exc.problem, exc.hint)
        return
    for side, host in _sides(job):
        is_folder = config.hosts[host].is_folder
        if is_folder and not is_served:
            continue
        found = _eligible(config, job, side, host)
        if not any(bool(item.proxy.mover) is is_served for item in found.eligible.values()):
            why = "; ".join(f"{name}: {reason}" for name, reason in sorted(found.refused.items()))
            does = f"{'reads' if side == 'source' else 'writes'} host {host}"
            problem = f"no proxy {does}: {why or 'there is none'}"
            hint = f"write paths for {host} into a [proxies.NAME], or name its mover there"
            if not is_folder:
                hint = paths_hint(host)
            yield Finding(Level.ERROR, where, problem, hint)


def _eligible(config: Config, job: ReplicationJob, side: Side, host: str) -> Eligibility:
    """The proxies that see the host's folder, or, to read from it, a part."""
    files = [str(config.hosts[host].path)] if side == "target" else []
    return eligible_proxies(config, job, side, files)


def _sides(job: ReplicationJob) -> tuple[tuple[Side, str], tuple[Side, str]]:
    return ("source", job.source), ("target", job.target)


def needs_of(config: Config, job: ReplicationJob) -> list[Need]:
    """What the job needs of movers; nothing where it works on this machine alone."""
    try:
        if not uses_services(config, job):
            return []
    except ConfigurationError:
        return []
    needs = []
    for side, host in _sides(job):
        place = config.hosts[host]
        if place.is_folder:
            needs.append(Need(place.mover, "host", f"host {host}", str(place.path)))
        for item in _eligible(config, job, side, host).eligible.values():
            for path in item.paths if item.proxy.mover else ():
                what, group = f"host {host}", f"{side} {host} of job {job.name}"
                needs.append(Need(item.proxy.mover, side, what, path, group))
    store = config.stores[job.repository]
    needs.append(Need(store.mover, "repository", f"repository {store.name}", str(store.path)))
    wan = config.wans.get(job.wan)
    if wan is not None and wan.mode != "direct":
        away = wan.if_away == "direct"
        for mover in (wan.source, wan.target):
            needs.append(Need(mover, "wan", f"[wan.{wan.name}]", "", "", away))
    return needs


def asked_movers(config: Config, fleet: Fleet, clock: Clock) -> Asked:
    """Ask every mover that a job needs, each over a connection of its own."""
    by_job = {job.name: needs_of(config, job) for job in config.jobs.values()}
    needs = [need for found in by_job.values() for need in found]
    names = sorted({need.mover for need in needs})
    asked = Asked()
    if not names:
        return asked
    if not all(config.movers[name].plain for name in names):
        try:
            fleet.check_identity()
        except CertificateError as exc:
            mend = str(config.server.identity)
            asked.findings = [
                Finding(Level.ERROR, "[server] identity", str(exc), "no mover was asked", mend)
            ]
            asked.lost = set(names)
            asked.unserved = set(by_job)
            return asked
    movers = Movers(fleet, config, clock)
    try:
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="check") as pool:
            told = dict(
                zip(
                    names,
                    pool.map(lambda name: movers.connected(config.movers[name]), names),
                    strict=True,
                )
            )
        problems = {need: _unfit(movers, need) for need in dict.fromkeys(needs)}
    finally:
        movers.close()
    served = {need.group for need in needs if need.group and not problems[need]}
    for name in names:
        mine = [need for need in problems if need.mover == name]
        asked.findings += _findings_of(config, name, mine, problems, served, told[name])
        if any(need.role == "host" and problems[need] for need in mine):
            asked.lost.add(name)
    for job, found in by_job.items():
        if not any(item.role == "target" and not problems[item] for item in found):
            asked.unserved.add(job)
    return asked


def _unfit(movers: Movers, need: Need) -> str:
    """Why the mover cannot do that, '' where it can: 'away', 'role' or 'root'."""
    told = movers.described.get(need.mover)
    if told is None:
        return "away"
    if need.role not in told["roles"]:
        return "role"
    return "root" if need.path and movers.place(need.mover, need.path) is None else ""


def _findings_of(
    config: Config,
    name: str,
    needs: Sequence[Need],
    problems: dict[Need, str],
    served: set[str],
    told: Sequence[Check],
) -> Iterator[Finding]:
    """What is to be said of one mover."""

    def level(which: Sequence[Need]) -> Level:
        spared = all(need.is_optional or need.group in served for need in which)
        return Level.WARNING if spared else Level.ERROR

    where, mend = f"[movers.{name}]", f"mover {name}"
    if any(problems[need] == "away" for need in needs):
        (check,) = (item for item in told if item.level is CheckLevel.ERROR)
        address = config.movers[name].address
        problem = f"mover {name} cannot be reached at {address}: {check.text}"
        yield Finding(level(needs), where, problem, f"{check.hint}. {TRIES}", mend)
        return
    lacks = [need for need in needs if problems[need] == "role"]
    if lacks:
        yield Finding(level(lacks), where, *missing_roles(name, lacks, told), mend)
    for need in needs:
        if problems[need] == "root":
            problem = f"{need.path}, for {need.what}, lies below none of the roots of mover {name}"
            hint = f"add a root to {name}'s mover.toml, or correct the path"
            yield Finding(level([need]), where, problem, hint, mend)
    for check in told:
        if check.level is not CheckLevel.OK and check.what != f"mover {name} roles":
            what = check.what.removeprefix(f"mover {name} ")
            grade = Level.ERROR if check.level is CheckLevel.ERROR else Level.WARNING
            yield Finding(grade, where, f"{what}: {check.text}", check.hint, mend)


def missing_roles(name: str, lacks: Sequence[Need], told: Sequence[Check]) -> tuple[str, str]:
    """(problem, hint) of a mover that is not what it is needed as."""
    roles = next((item.text for item in told if item.what == f"mover {name} roles"), "")
    wanted = ", ".join(dict.fromkeys(need.role for need in lacks))
    uses = ", ".join(dict.fromkeys(f"{need.role} for {need.what}" for need in lacks))
    problem = f"mover {name} is no {wanted}, and needed as {uses}; its roles are " + (
        roles.partition(";")[0] or "none"
    )
    hint = f"give mover {name} the role {wanted}: in `roles` of its mover.toml, enrolled with it"
    if {need.role for need in lacks} & {"source", "target"}:
        hint += f"; or have a [proxies.NAME] on another machine see {lacks[0].what}"
    return problem, hint
