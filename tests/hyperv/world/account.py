"""The account that scripts run as, and the host's SMB shares, as doctor.ps1 asks for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from hyperv.dialect.values import CimInstance, PSObject
from hyperv.dialect.world import Call, Cmdlet, DotNetType, PSError
from hyperv.world.binding import Bound
from hyperv.world.machines import Host

_IDENTITY = "Security.Principal.WindowsIdentity"
SMB = "ROOT/Microsoft/Windows/SMB"


@dataclass
class Share:
    """An SMB share; `access` maps accounts to Full, Change or Read."""

    name: str
    path: str
    access: dict[str, str] = field(default_factory=dict)
    is_special: bool = False


def types(host: Host) -> dict[str, DotNetType]:
    """WindowsIdentity, of the account that signed in."""

    def current() -> PSObject:
        groups = [
            PSObject(
                ("System.Security.Principal.SecurityIdentifier", "System.Object"), {"Value": sid}
            )
            for sid in host.groups
        ]
        return PSObject(
            (f"System.{_IDENTITY}", "System.Object"), {"Name": host.account, "Groups": groups}
        )

    return {_IDENTITY: DotNetType(_IDENTITY, {"GetCurrent": current})}


def cmdlets(host: Host) -> Mapping[str, Cmdlet]:
    """Get-SmbShare and Get-SmbShareAccess, which only Administrators may use."""

    def shares() -> list[Share]:
        if "S-1-5-32-544" not in host.groups:
            raise PSError(
                "Access is denied. ",
                "PermissionDenied",
                "Windows System Error 5",
                exception_type="Microsoft.Management.Infrastructure.CimException",
                command_type="Get-SmbShare",
            )
        return [Share("ADMIN$", "C:\\Windows", is_special=True), *host.shares]

    def get_share(call: Call) -> Iterator[object]:
        if Bound(call).values:
            raise NotImplementedError("the model has Get-SmbShare without parameters only")
        for share in shares():
            values = {"Name": share.name, "Path": share.path, "Special": share.is_special}
            yield CimInstance("MSFT_SMBShare", SMB, values, share.name)

    def get_access(call: Call) -> Iterator[object]:
        names = Bound(call).get("Name")
        for share in shares():
            for account, right in share.access.items() if share.name in names else ():
                values = {
                    "Name": share.name,
                    "AccountName": account,
                    "AccessControlType": "Allow",
                    "AccessRight": right,
                }
                yield CimInstance("MSFT_SmbShareAccessControlEntry", SMB, values, share.name)

    return {"Get-SmbShare": get_share, "Get-SmbShareAccess": get_access}
