"""The errors that Windows gives, as a script sees them."""

from __future__ import annotations

from hyperv.dialect.world import PSError

CIM_EXCEPTION = "Microsoft.Management.Infrastructure.CimException"
CIM_COMMANDS = "Microsoft.Management.Infrastructure.CimCmdlets"
HYPERV_EXCEPTION = "Microsoft.HyperV.PowerShell.VirtualizationException"

ACCESS_DENIED = 0x80041003
NOT_FOUND = 0x80041002
INVALID_CLASS = 0x80041010
INVALID_NAMESPACE = 0x8004100E
INVALID_QUERY = 0x80041017
INVALID_PARAMETER = 0x80041008
TYPE_MISMATCH = 0x80041005
METHOD_NOT_FOUND = 0x80041055
INVALID_METHOD_PARAMETERS = 0x8004102F
SHARING_VIOLATION = 0x80070020
FILE_NOT_FOUND = 0x80070002
RPC_UNAVAILABLE = 0x800706BA
TRACKING_MISSING = 0xC03A0030
FILE_DENIED = 0x80070005
NO_RESOURCES = 0x800705AA
PARENT_NOT_FOUND = 0xC03A000D
PARENT_MISMATCH = 0xC03A000E
NOT_A_PLAIN_FILE = 0xC03A001A
CORRUPT_DISK = 0xC03A0003

_CIM: dict[int, tuple[str, str, int, str]] = {
    ACCESS_DENIED: ("Access denied ", "PermissionDenied", 2, "AccessDenied"),
    NOT_FOUND: ("Not found ", "ObjectNotFound", 6, "NotFound"),
    INVALID_CLASS: ("Invalid class ", "MetadataError", 5, "InvalidClass"),
    INVALID_NAMESPACE: ("Invalid namespace ", "MetadataError", 3, "InvalidNamespace"),
    INVALID_QUERY: ("Invalid query ", "InvalidArgument", 15, "InvalidQuery"),
    INVALID_PARAMETER: ("Invalid parameter ", "InvalidArgument", 4, "InvalidParameter"),
    TYPE_MISMATCH: ("Type mismatch ", "InvalidType", 13, "TypeMismatch"),
    METHOD_NOT_FOUND: ("Invalid method ", "MetadataError", 17, "MethodNotFound"),
    INVALID_METHOD_PARAMETERS: (
        "Invalid method Parameter(s) ",
        "InvalidArgument",
        4,
        "InvalidParameter",
    ),
}


class WorkFailed(Exception):
    """A job's work that came to nothing: what Msvm_ConcreteJob says of it."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__(description)
        self.code = code
        self.description = description


class NodeDown(Exception):
    """The node that a script runs on is dead: no answer ever comes."""


class ReturnCode(Exception):
    """A method that answers at once with a code other than 0 and 4096."""

    def __init__(self, code: int) -> None:
        super().__init__(str(code))
        self.code = code


def cim_error(
    hresult: int, command: str, detail: str = "", *, is_terminating: bool = False
) -> PSError:
    """What a CIM cmdlet writes when the service answers with that code."""
    message, category, number, status = _CIM[hresult]
    return PSError(
        detail or message,
        category,
        f"HRESULT 0x{hresult:08x}",
        hresult,
        CIM_EXCEPTION,
        {
            "NativeErrorCode": status,
            "StatusCode": number,
            "MessageId": f"HRESULT 0x{hresult:08x}",
            "ErrorSource": None,
        },
        is_terminating=is_terminating,
        command_type=f"{CIM_COMMANDS}.{command}",
    )


def hyperv_error(message: str, category: str, error_id: str, command: str) -> PSError:
    """What a cmdlet of the Hyper-V module writes."""
    return PSError(
        message,
        category,
        error_id,
        exception_type=HYPERV_EXCEPTION,
        command_type=f"Microsoft.HyperV.PowerShell.Commands.{command}",
    )


def binding_error(message: str, error_id: str, command: str) -> PSError:
    """A call that does not fit the command's parameters."""
    return PSError(
        message,
        "InvalidArgument",
        error_id,
        exception_type="System.Management.Automation.ParameterBindingException",
        is_terminating=True,
        command_type=command,
    )


def text_of(hresult: int) -> str:
    """How job descriptions write a system's error."""
    texts = {
        SHARING_VIOLATION: "The process cannot access the file because it is being used by another"
        " process.",
        FILE_NOT_FOUND: "The system cannot find the file specified.",
        FILE_DENIED: "General access denied error",
        NO_RESOURCES: "Insufficient system resources exist to complete the requested service.",
        PARENT_NOT_FOUND: "The virtual hard disk's parent was not found.",
        PARENT_MISMATCH: "The chain of virtual hard disks is corrupted. There is a mismatch in the"
        " identifiers of the parent virtual hard disk and differencing disk.",
        NOT_A_PLAIN_FILE: "The requested operation could not be completed due to a virtual disk"
        " system limitation. Virtual hard disk files must be uncompressed and unencrypted and must"
        " not be sparse.",
        CORRUPT_DISK: "The file or directory is corrupted and unreadable.",
    }
    return f"{texts[hresult]} (0x{hresult:08X})"
