"""What keeps a Hyper-V host from being used, found by asking it; nothing is changed there.

Each finding is one line with one remedy, an exact command where there is one. The host is asked by
one script of its own and the two of the inventory.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from standby.clock import Clock
from standby.errors import (
    HostAccessDenied,
    HostAnswerWrong,
    HostCallFailed,
    HostCertificateRefused,
    HostCredentialsRefused,
    HostQuotaReached,
    HostUnreachable,
)
from standby.host.hyperv.answers import Answer
from standby.host.hyperv.credentials import Access
from standby.host.hyperv.doctor_rows import DOCTOR, HostFinding, Level, Seen, Share, System
from standby.host.hyperv.door import Door
from standby.host.hyperv.inventory import HostInventory, read_inventory
from standby.host.hyperv.machines import HostMachine
from standby.host.hyperv.quotas import Quotas

BUILD_MIN = 14393
"""Windows Server 2016, the first with change tracking."""
SKEW_WARNING_S = 30.0
SKEW_KERBEROS_S = 300.0
"""Beyond it Kerberos refuses tickets."""
CERTIFICATE_DAYS_MIN = 14
SCRIPTS_WANTED = 8
ENVELOPE_KB_MIN = 150
CONNECT_S = 10.0

ADMINISTRATORS = "S-1-5-32-544"
HYPERV_ADMINISTRATORS = "S-1-5-32-578"


@dataclass(frozen=True, slots=True)
class Examined:
    """What was found; `inventory` and `shares` are None where the host did not tell them."""

    findings: tuple[HostFinding, ...]
    inventory: HostInventory | None = None
    shares: tuple[Share, ...] | None = None


def host_of(access: Access) -> str:
    """The host's name in the configuration: a node of a cluster has its own behind it."""
    return access.host.partition("/")[0]


def examined(access: Access, door: Door, clock: Clock) -> Examined:
    """Everything about one host, in the order in which it would have to be mended."""
    before = clock.now()
    try:
        answer = door.run(DOCTOR, {})
    except HostCallFailed as exc:
        return Examined((refused(access, exc),))
    after = clock.now()
    seen, errors = answer.values(), answer.errors()
    found = [HostFinding(Level.OK, "reachability", f"{access.url} answers")]
    found += _certificate(access, clock)
    found += _system(access, seen.get("system", Seen()), before, after)
    found += _rights(seen.get("account", Seen()), _about(answer, "account"))
    found += _services(seen.get("services", Seen()), _about(answer, "services"))
    found.append(_quotas(door))
    clusters = [item.name for item in seen.get("cluster", Seen()).clusters]
    if isinstance(errors.get("cluster"), HostAccessDenied):
        text = "the account may not ask whether the host is a node of a cluster"
        found.append(HostFinding(Level.WARNING, "cluster", text, _REMEDY_CLUSTER))
    inventory: HostInventory | None = None
    try:
        inventory = read_inventory(door)
    except HostCallFailed as exc:
        found.append(HostFinding(Level.ERROR, "VMs", _shortened(exc), _REMEDY_RIGHTS))
    machines = inventory.machines if inventory else ()
    found += double_hop(access, clusters, machines)
    found += [finding for item in machines for finding in machine_findings(item)]
    if inventory is not None and not any(item.what.startswith("VM ") for item in found):
        text = f"{len(machines)} found, each can be replicated with change tracking"
        found.append(HostFinding(Level.OK, "VMs", text))
    shares: tuple[Share, ...] | None = None
    if "shares" in errors:
        text = f"its SMB shares cannot be listed: {_shortened(errors['shares'])}"
        remedy = "sign in as one of the host's Administrators, or look with Get-SmbShare there"
        found.append(HostFinding(Level.WARNING, "shares", text, remedy))
    else:
        shares = tuple(item for item in seen["shares"].shares if not item.special)
    return Examined(tuple(found), inventory, shares)


def _about(answer: Answer[Seen], step: str) -> HostCallFailed | None:
    return answer.errors().get(step)


def _shortened(error: HostCallFailed) -> str:
    """The error without the host's name, which stands above all findings."""
    return str(error).removeprefix(f"host {error.host}: ")


# --- whether it answers at all -------------------------------------------------------------------


def refused(access: Access, error: HostCallFailed) -> HostFinding:
    """A host that cannot be asked: which of the ways there is closed."""
    match error:
        case HostUnreachable():
            return HostFinding(
                Level.ERROR,
                "reachability",
                f"no answer from {error.address} ({error.reason})",
                error.hint
                or "on the host: Enable-PSRemoting -Force; let this machine through the firewall "
                f"to port {access.port}; or correct address in [hosts.{host_of(access)}]",
            )
        case HostCertificateRefused():
            return HostFinding(
                Level.ERROR,
                "TLS",
                f"the certificate of {error.address} is not trusted ({error.reason})",
                f'write ca = "PATH" of its authority into [hosts.{host_of(access)}], and an '
                "address that the certificate holds",
            )
        case HostCredentialsRefused():
            return HostFinding(
                Level.ERROR,
                "credentials",
                f"{error.username or 'the account'} is refused over {error.transport}"
                + (f" ({error.reason})" if error.reason else ""),
                f"check username and secret in [hosts.{host_of(access)}.credentials], and that the "
                "host offers this transport: winrm get winrm/config/service/auth",
            )
        case HostAccessDenied():
            return HostFinding(Level.ERROR, "rights", _shortened(error), _REMEDY_RIGHTS)
        case HostQuotaReached():
            return HostFinding(
                Level.ERROR,
                "quotas",
                f"the quota is used up ({error.quota})",
                "give standby an account of its own, or raise it: "
                "winrm set winrm/config/winrs '@{MaxShellsPerUser=\"30\"}'",
            )
        case HostAnswerWrong() if is_constrained(error.said):
            return HostFinding(
                Level.ERROR,
                "language mode",
                "PowerShell is in constrained language mode for this account",
                "allow its scripts in the host's AppLocker or WDAC policy (the account's own "
                "rule), or remove the environment variable __PSLockdownPolicy",
            )
    return HostFinding(
        Level.ERROR,
        "WinRM",
        _shortened(error),
        "on the host: winrm quickconfig, Get-Service winrm, vmms; then try again",
    )


def is_constrained(said: Iterable[str]) -> bool:
    """Whether PowerShell refused the bootstrap itself; its error ids are in no language."""
    text = " ".join(said).lower()
    return "inconstrainedlanguage" in text or "language mode" in text or "languagemode" in text


_REMEDY_RIGHTS = (
    "on the host: Add-LocalGroupMember -SID S-1-5-32-578 -Member ACCOUNT (Hyper-V Administrators) "
    "and -SID S-1-5-32-580 (Remote Management Users), or S-1-5-32-544 (Administrators)"
)


_REMEDY_CLUSTER = "on a node: Grant-ClusterAccess -User ACCOUNT -ReadOnly (-Full on a target)"


def _certificate(access: Access, clock: Clock) -> Iterator[HostFinding]:
    """How long the host's certificate is still good."""
    if not access.is_tls:
        text = f"HTTP: every message is encrypted by {access.transport}, no certificate is checked"
        yield HostFinding(Level.OK, "TLS", text)
        return
    try:
        end = _certificate_end(access)
    except (OSError, ValueError) as exc:
        text = f"its certificate could not be read again ({exc})"
        yield HostFinding(Level.WARNING, "TLS", text, "run this check again")
        return
    days = (end - clock.now()).days
    text = f"the certificate is trusted, and good until {end:%Y-%m-%d}"
    if days >= CERTIFICATE_DAYS_MIN:
        yield HostFinding(Level.OK, "TLS", text)
    else:
        remedy = (
            "renew it, then: winrm set winrm/config/Listener?Address=*+Transport=HTTPS "
            "'@{CertificateThumbprint=\"…\"}'"
        )
        yield HostFinding(Level.WARNING, "TLS", f"{text}, {days} days", remedy)


def _certificate_end(access: Access) -> datetime:
    context = ssl.create_default_context(cafile=str(access.ca) if access.ca else None)
    # As strict as the door, which has verified it a moment before: one that signed itself will do.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    address = access.address.strip("[]")
    with (
        socket.create_connection((address, access.port), CONNECT_S) as line,
        context.wrap_socket(line, server_hostname=address) as secured,
    ):
        told = secured.getpeercert() or {}
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(told.get("notAfter", ""))), UTC)


# --- the host ------------------------------------------------------------------------------------


def _system(access: Access, seen: Seen, before: datetime, after: datetime) -> Iterator[HostFinding]:
    system = seen.systems[0] if seen.systems else System()
    build = int(system.build_number) if system.build_number.isdecimal() else 0
    if not build:
        text = "it does not say which Windows it is"
        yield HostFinding(Level.WARNING, "version", text, "look with `winver` on the host")
    elif build < BUILD_MIN:
        text = f"{system.caption} (build {build})"
        remedy = "standby needs Windows Server 2016 (build 14393) or later"
        yield HostFinding(Level.ERROR, "version", text, remedy)
    else:
        yield HostFinding(Level.OK, "version", f"{system.caption} (build {build})")
    if system.local_date_time is not None:
        yield clock_finding(access, system.local_date_time, before, after)


def clock_finding(
    access: Access, theirs: datetime, before: datetime, after: datetime
) -> HostFinding:
    """How far the host's clock is from ours: its time lies between ours before and after."""
    skew_s = max((theirs - after).total_seconds(), (before - theirs).total_seconds(), 0.0)
    which = "ahead of" if theirs > after else "behind"
    text = f"{skew_s:.0f} s {which} this machine's"
    remedy = "take the time from one source: w32tm /resync on the host, NTP here"
    if skew_s >= SKEW_KERBEROS_S and access.transport == "kerberos":
        return HostFinding(Level.ERROR, "clock", f"{text}, and Kerberos allows for 300 s", remedy)
    if skew_s >= SKEW_WARNING_S:
        return HostFinding(Level.WARNING, "clock", text, remedy)
    return HostFinding(Level.OK, "clock", "as this machine's")


def _rights(seen: Seen, error: HostCallFailed | None) -> Iterator[HostFinding]:
    if error is not None:
        text = f"the account's groups cannot be told: {_shortened(error)}"
        yield HostFinding(Level.WARNING, "rights", text, _REMEDY_RIGHTS)
        return
    groups = set(seen.groups)
    if ADMINISTRATORS in groups:
        yield HostFinding(Level.OK, "rights", f"{seen.account} is one of the Administrators")
    elif HYPERV_ADMINISTRATORS in groups:
        text = f"{seen.account} is one of the Hyper-V Administrators"
        yield HostFinding(Level.OK, "rights", text)
    else:
        text = f"{seen.account} is neither one of the Administrators nor a Hyper-V Administrator"
        remedy = _REMEDY_RIGHTS.replace("ACCOUNT", f"'{seen.account}'")
        remedy += "; a local account among these also needs LocalAccountTokenFilterPolicy = 1"
        yield HostFinding(Level.ERROR, "rights", text, remedy)


def _services(seen: Seen, error: HostCallFailed | None) -> Iterator[HostFinding]:
    remedy = "on the host: Start-Service vmms; where Hyper-V is not installed: "
    remedy += "Install-WindowsFeature Hyper-V -IncludeManagementTools -Restart"
    if isinstance(error, HostAccessDenied):
        yield HostFinding(Level.ERROR, "services", _shortened(error), _REMEDY_RIGHTS)
    elif error is not None:
        text = f"Hyper-V does not answer: {_shortened(error)}"
        yield HostFinding(Level.ERROR, "services", text, remedy)
    else:
        stopped = [item.name for item in seen.services if item.started is False]
        if stopped:
            text = f"{', '.join(stopped)} does not run"
            start = f"on the host: Start-Service {', '.join(stopped)}"
            yield HostFinding(Level.ERROR, "services", text, start)
        elif len(seen.services) < 2:
            text = "Hyper-V's services are not shown to this account"
            yield HostFinding(Level.ERROR, "services", text, _REMEDY_RIGHTS)
        else:
            yield HostFinding(Level.OK, "services", "Hyper-V's services run")


def _quotas(door: Door) -> HostFinding:
    try:
        return quota_finding(door.quotas())
    except HostCallFailed as exc:
        return HostFinding(Level.WARNING, "quotas", _shortened(exc), "run this check again")


def quota_finding(quotas: Quotas) -> HostFinding:
    """What the limits of the host's WinRM service leave."""
    scripts = quotas.scripts_at_once(SCRIPTS_WANTED)
    if not quotas.is_read:
        text = f"this account may not read them; {scripts} scripts run at once, as on the oldest"
        remedy = "sign in as one of the Administrators, where more are wanted"
        return HostFinding(Level.WARNING, "quotas", text, remedy)
    if scripts < SCRIPTS_WANTED:
        text = f"MaxShellsPerUser is {quotas.shells_per_user}: {scripts} scripts run at once"
        remedy = "winrm set winrm/config/winrs '@{MaxShellsPerUser=\"30\"}'"
        return HostFinding(Level.WARNING, "quotas", text, remedy)
    if quotas.envelope_kb < ENVELOPE_KB_MIN:
        text = f"MaxEnvelopeSizekb is {quotas.envelope_kb}: requests go in many pieces"
        remedy = "winrm set winrm/config '@{MaxEnvelopeSizekb=\"500\"}'"
        return HostFinding(Level.WARNING, "quotas", text, remedy)
    return HostFinding(Level.OK, "quotas", f"{scripts} scripts may run at once")


# --- double hop and VMs --------------------------------------------------------------------------


def double_hop(
    access: Access, clusters: Iterable[str], machines: Iterable[HostMachine]
) -> Iterator[HostFinding]:
    """What needs the account's credentials beyond the host, where they end at it."""
    if access.transport == "credssp":
        return
    enable = (
        "on the host: Enable-WSManCredSSP -Role Server -Force, then "
        f'transport = "credssp" in [hosts.{host_of(access)}.credentials]'
    )
    for name in clusters:
        yield HostFinding(
            Level.WARNING,
            "double hop",
            f"replica VMs on cluster {name} will not be highly available: a role is added with "
            f"CredSSP only, and the transport is {access.transport}",
            f"{enable}; or on a node, for each: Add-ClusterVirtualMachineRole -VMName 'NAME'",
        )
    if access.transport == "kerberos" and access.delegate:
        return
    remote = sorted({item.name for item in machines if any(_is_remote(f) for f in _files(item))})
    if remote:
        shown = ", ".join(remote[:3]) + (f" and {len(remote) - 3} more" if remote[3:] else "")
        yield HostFinding(
            Level.WARNING,
            "double hop",
            f"disks of {shown} lie on another machine, where {access.transport} brings no "
            "credentials: the host may be denied to describe them",
            f"{enable}; or Kerberos with delegate = true and delegation to the file server",
        )


def _files(machine: HostMachine) -> list[str]:
    return [file.path for disk in machine.disks for file in disk.chain]


def _is_remote(path: str) -> bool:
    return path.startswith("\\\\") and not path.startswith(("\\\\?\\", "\\\\.\\"))


def machine_findings(machine: HostMachine) -> Iterator[HostFinding]:
    """What keeps one VM from being replicated, or from being replicated quickly."""
    what = f"VM {machine.name}"
    if machine.reason_kept_out:
        yield HostFinding(Level.OK, what, f"no wildcard takes it: {machine.reason_kept_out}")
        return
    for refusal in machine.refusals:
        yield HostFinding(Level.WARNING, what, f"disk {refusal.place} {refusal.what}", refusal.hint)
    if machine.tracker_problem:
        yield HostFinding(
            Level.WARNING,
            what,
            f"every session reads its disks whole: configuration version {machine.shape.version}, "
            "and change tracking needs 6.2",
            f"while it is off, and for good: Update-VMVersion -Name '{machine.name}'",
        )
    if machine.snapshots:
        yield HostFinding(
            Level.WARNING,
            what,
            f"it has {len(machine.snapshots)} recovery snapshots: a session or another backup is "
            "at work, or left them behind",
            "standby's own go at its next session; others, where nothing backs it up now: "
            "Get-VMSnapshot -VMName "
            f"'{machine.name}' -SnapshotType Recovery | Remove-VMSnapshot",
        )
