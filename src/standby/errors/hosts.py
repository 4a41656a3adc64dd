"""Exit code 12: hosts, their VMs and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from standby.errors.base import Retry, StandbyError


@dataclass(eq=False)
class HostError(StandbyError):
    """A source or target host cannot do what was asked."""

    retry: ClassVar[Retry] = Retry.LATER
    exit_code: ClassVar[int] = 12
    host: str
    problem: str
    hint: str = ""

    def message(self) -> str:
        return f"host {self.host}: {self.problem}" + (f". {self.hint}" if self.hint else "")


@dataclass(eq=False)
class MachineRunning(StandbyError):
    """A VM that must be off is running, or its disks are held open."""

    retry: ClassVar[Retry] = Retry.LATER
    exit_code: ClassVar[int] = 12
    host: str
    machine: str
    reason: str
    hint: str = ""

    def message(self) -> str:
        return (
            f"VM {self.machine} on host {self.host} is running ({self.reason}); "
            f"{self.hint or 'shut it down, then try again'}"
        )


@dataclass(eq=False)
class SourceChanged(StandbyError):
    """A source disk changed while it was being read under a checkpoint."""

    retry: ClassVar[Retry] = Retry.LATER
    exit_code: ClassVar[int] = 12
    machine: str
    path: str
    what: str

    def message(self) -> str:
        return (
            f"VM {self.machine}: {self.path} changed under the checkpoint ({self.what}); no "
            "restore point was made. Keep the VM off during the session, then start the job again"
        )


@dataclass(eq=False)
class CheckpointLimit(StandbyError):
    """A checkpoint reached its limit of age or growth and was released."""

    retry: ClassVar[Retry] = Retry.LATER
    exit_code: ClassVar[int] = 12
    machine: str
    limit: str

    def message(self) -> str:
        return (
            f"VM {self.machine}: the checkpoint reached its limit ({self.limit}) and was released; "
            "the transfer is kept and the next session goes on from it"
        )


@dataclass(eq=False)
class HostCallFailed(StandbyError):
    """A Hyper-V host was asked and gave no usable answer; raised only through its children."""

    retry: ClassVar[Retry] = Retry.LATER
    exit_code: ClassVar[int] = 12
    host: str


@dataclass(eq=False)
class HostUnreachable(HostCallFailed):
    """The host cannot be spoken to: no connection, or what answers is not its WinRM service."""

    address: str
    reason: str
    hint: str = ""

    def message(self) -> str:
        hint = self.hint or (
            "Is it up, is the address right, does `winrm quickconfig` on it say that the service "
            "listens, and does the firewall let this machine in?"
        )
        return f"host {self.host}: no answer from {self.address} ({self.reason}). {hint}"


@dataclass(eq=False)
class HostCredentialsRefused(HostCallFailed):
    """The host, or the domain, does not take the credentials. Trying again locks accounts."""

    retry: ClassVar[Retry] = Retry.NEVER
    username: str
    transport: str
    reason: str = ""
    hint: str = ""

    def message(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        hint = self.hint or (
            "Check the user name, the secret that the configuration names, and that the host "
            "offers this way of signing in (`winrm get winrm/config/service/auth`)"
        )
        return (
            f"host {self.host}: {self.username or 'the account'} was refused over "
            f"{self.transport}{why}. {hint}"
        )


@dataclass(eq=False)
class HostClockSkewed(HostCallFailed):
    """Kerberos takes no ticket, for clocks differ by more than it allows (5 minutes)."""

    reason: str

    def message(self) -> str:
        return (
            f"host {self.host}: the clocks of this machine, the host and its domain differ too "
            f"much for Kerberos ({self.reason}). Have all of them follow the domain's time "
            "(`timedatectl` here, `w32tm /query /status` there)"
        )


@dataclass(eq=False)
class HostCertificateRefused(HostCallFailed):
    """The host's certificate is not one that this machine trusts for that address."""

    retry: ClassVar[Retry] = Retry.NEVER
    address: str
    reason: str

    def message(self) -> str:
        return (
            f"host {self.host}: the certificate of {self.address} is not trusted ({self.reason}). "
            "Write the file of the authority that signed it, or of the certificate itself where it "
            'signed itself, as ca = "PATH", and address the host by a name the certificate holds'
        )


@dataclass(eq=False)
class HostAccessDenied(HostCallFailed):
    """The account is known, and may not do this (Windows error 5)."""

    retry: ClassVar[Retry] = Retry.NEVER
    verb: str
    detail: str = ""
    machine: str = ""

    def message(self) -> str:
        about = f" for VM {self.machine}" if self.machine else ""
        detail = f" ({self.detail})" if self.detail else ""
        return (
            f"host {self.host}: access denied to {self.verb}{about}{detail}. The account needs to "
            "be a member of the host's Administrators, or of its Remote Management Users and "
            "Hyper-V Administrators; a local account other than the built-in one also needs "
            "LocalAccountTokenFilterPolicy = 1"
        )


@dataclass(eq=False)
class HostQuotaReached(HostCallFailed):
    """A limit of the host's WinRM service is reached: shells, operations, memory."""

    verb: str
    quota: str

    def message(self) -> str:
        return (
            f"host {self.host}: {self.verb} was turned away, the host's quota is used up "
            f"({self.quota}). Other programs that sign in with this account count too: give "
            "standby an account of its own, or raise the limit "
            "(`winrm get winrm/config/winrs` shows it)"
        )


@dataclass(eq=False)
class HostDeadline(HostCallFailed):
    """A script did not end in time, and was ended. What it had done is unknown."""

    verb: str
    deadline_s: float
    during: str

    def message(self) -> str:
        return (
            f"host {self.host}: {self.verb} did not end within {self.deadline_s:g} s (while "
            f"{self.during}) and was broken off; what it had done by then is looked up before it "
            "is tried again. Is the host overloaded, or is its management service "
            "(`Get-Service vmms, winrm`) stuck?"
        )


@dataclass(eq=False)
class HostShellLost(HostCallFailed):
    """The connection or the shell was lost after the script may have begun."""

    verb: str
    reason: str

    def message(self) -> str:
        return (
            f"host {self.host}: {self.verb} lost its connection ({self.reason}); what it did is "
            "unknown and is looked up before it is tried again. Was the host, or its WinRM "
            "service, restarted?"
        )


@dataclass(eq=False)
class HostFault(HostCallFailed):
    """The host's WinRM service refused a message for another reason."""

    verb: str
    code: int
    reason: str

    def message(self) -> str:
        code = f" {self.code}" if self.code else ""
        return (
            f"host {self.host}: its WinRM service refused {self.verb} (fault{code}: "
            f"{self.reason}). `winrm helpmsg {self.code or 'CODE'}` on the host explains the code"
        )


@dataclass(eq=False)
class ScriptFailed(HostCallFailed):
    """PowerShell on the host ended a script, or its work for one VM, with an error."""

    verb: str
    machine: str
    problem: str
    error_id: str = ""
    """PowerShell's FullyQualifiedErrorId."""
    hresult: int = 0
    """Unsigned, 0 where there is none."""
    category: str = ""
    wmi_code: int = 0
    """What a WMI method or its job said, 0 where none did."""

    def message(self) -> str:
        about = f" for VM {self.machine}" if self.machine else ""
        known = [f"0x{self.hresult:08X}"] if self.hresult else []
        known += [f"WMI code {self.wmi_code}"] if self.wmi_code else []
        known += [self.error_id] if self.error_id else []
        codes = f" ({', '.join(known)})" if known else ""
        problem = self.problem.strip().rstrip(".")
        return (
            f"host {self.host}: {self.verb} failed{about}: {problem}{codes}. The host's event log "
            "Microsoft-Windows-Hyper-V-VMMS-Admin says more"
        )


@dataclass(eq=False)
class HostAnswerWrong(HostCallFailed):
    """What came back from a script is not the answer it owes."""

    verb: str
    problem: str
    said: tuple[str, ...] = ()
    """The first lines of the script's error stream."""

    def message(self) -> str:
        said = f"; the host said: {' | '.join(self.said)}" if self.said else ""
        return (
            f"host {self.host}: the answer of {self.verb} cannot be used: {self.problem}{said}. "
            "`standby version --verbose` and this message belong into a report of the fault"
        )


@dataclass(eq=False)
class MachineNowhere(HostCallFailed):
    """No node of a cluster that answers has the VM."""

    machine: str
    reason: str

    def message(self) -> str:
        return (
            f"cluster {self.host}: VM {self.machine} is on no node that answers ({self.reason}). "
            "`Get-ClusterGroup` and `Get-ClusterNode` on a node show where it belongs; as soon as "
            "a node has it, the next attempt finds it"
        )


@dataclass(eq=False)
class BackupInProgress(StandbyError):
    """A VM has a recovery snapshot that is not standby's: another product is at work."""

    retry: ClassVar[Retry] = Retry.LATER
    exit_code: ClassVar[int] = 12
    host: str
    machine: str
    snapshots: tuple[str, ...]
    remedy: str

    def message(self) -> str:
        return (
            f"VM {self.machine} on host {self.host}: another backup is in progress (recovery "
            f"snapshot {', '.join(self.snapshots)}, not made by standby, left alone); tried again "
            f"later. If nothing else backs this VM up, remove it: {self.remedy}"
        )


@dataclass(eq=False)
class MachineBusy(StandbyError):
    """The host is at work on a VM (merge, migration, export), for longer than was waited."""

    retry: ClassVar[Retry] = Retry.LATER
    exit_code: ClassVar[int] = 12
    host: str
    machine: str
    operation: str
    waited_s: float

    def message(self) -> str:
        return (
            f"VM {self.machine} on host {self.host}: {self.operation} was still going on after "
            f"{self.waited_s:g} s; tried again later"
        )


@dataclass(eq=False)
class CheckpointFailed(StandbyError):
    """The host made no usable checkpoint of a VM."""

    retry: ClassVar[Retry] = Retry.LATER
    exit_code: ClassVar[int] = 12
    host: str
    machine: str
    problem: str
    hint: str = ""

    def message(self) -> str:
        hint = f". {self.hint}" if self.hint else ""
        return f"VM {self.machine} on host {self.host}: no checkpoint: {self.problem}{hint}"


@dataclass(eq=False)
class FilesHeldOpen(StandbyError):
    """A checkpoint cannot be given up while files of it are open. `held` are the files, each with
    the clients that have it open where they are known."""

    retry: ClassVar[Retry] = Retry.LATER
    exit_code: ClassVar[int] = 12
    host: str
    machine: str
    held: tuple[str, ...]
    note: str
    remedy: str

    def message(self) -> str:
        note = f" ({self.note})" if self.note else ""
        return (
            f"VM {self.machine} on host {self.host}: its checkpoint stays, files of it are held "
            f"open: {'; '.join(self.held)}{note}. Tried again later; what closes them, "
            f"{self.remedy}"
        )


@dataclass(eq=False)
class WrongDisk(StandbyError):
    """A file that a proxy sees is not the disk that the host names."""

    retry: ClassVar[Retry] = Retry.NEVER
    exit_code: ClassVar[int] = 12
    machine: str
    place: str
    path: str
    difference: str

    def message(self) -> str:
        return (
            f"VM {self.machine}, disk {self.place}: {self.path} is not the disk that the host "
            f"names ({self.difference}); nothing was read. Check the proxy's `paths` for the host"
        )
