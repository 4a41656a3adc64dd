"""SOAP envelopes: what a client sent, taken apart, and what the service answers."""

from __future__ import annotations

import base64
import re
import uuid
import xml.etree.ElementTree as ET
from xml.sax.saxutils import escape

from hyperv.wsman.shells import Quotas

NAMES = {
    "s": "http://www.w3.org/2003/05/soap-envelope",
    "a": "http://schemas.xmlsoap.org/ws/2004/08/addressing",
    "w": "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd",
    "x": "http://schemas.xmlsoap.org/ws/2004/09/transfer",
    "rsp": "http://schemas.microsoft.com/wbem/wsman/1/windows/shell",
    "p": "http://schemas.microsoft.com/wbem/wsman/1/wsman.xsd",
    "f": "http://schemas.microsoft.com/wbem/wsman/1/wsmanfault",
    "cfg": "http://schemas.microsoft.com/wbem/wsman/1/config",
}
_DECLARED = " ".join(f'xmlns:{name}="{uri}"' for name, uri in NAMES.items())
_STATE = "http://schemas.microsoft.com/wbem/wsman/1/windows/shell/CommandState"


class Fault(Exception):
    """A SOAP fault."""

    def __init__(self, code: int | None, subcode: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.subcode = subcode
        self.reason = reason


FAULTS = {
    "timed-out": Fault(2150858793, "w:TimedOut", "The operation did not finish in time."),
    "no-shell": Fault(
        2150858843, "w:InvalidSelectors", "The shell was not found on the server (it expired)."
    ),
    "quota": Fault(
        2150859173,
        "w:QuotaLimit",
        "The maximum number of concurrent shells for this user has been exceeded.",
    ),
    "other": Fault(2150859046, "w:InternalError", "The WinRM client cannot complete it."),
    "denied": Fault(5, "w:AccessDenied", "Access is denied."),
}
NO_COMMAND = Fault(2150858843, "w:InvalidSelectors", "The command was not found in the shell.")
TOO_LARGE = Fault(None, "w:EncodingLimit", "The request exceeds MaxEnvelopeSizekb of the service.")


class Message:
    """One request."""

    def __init__(self, root: ET.Element) -> None:
        self._root = root
        self._action = self._in_header("a:Action")
        self.action = self._action.rpartition("/")[2]
        self.id = self._in_header("a:MessageID")
        selector = root.find("s:Header/w:SelectorSet/w:Selector[@Name='ShellId']", NAMES)
        self.shell_id = (selector.text or "") if selector is not None else ""
        timeout = re.fullmatch(r"PT([0-9.]+)S", self._in_header("w:OperationTimeout"))
        assert timeout, "no operation timeout"
        self.timeout_s = float(timeout[1])

    def _in_header(self, path: str) -> str:
        return self._root.findtext(f"s:Header/{path}", "", NAMES)

    def text(self, name: str) -> str:
        """The text of the first element of that name in the body."""
        return self._root.findtext(f"s:Body//{name}", "", NAMES)

    def attribute(self, name: str, attribute: str) -> str:
        """An attribute of the first element of that name in the body."""
        found = self._root.find(f"s:Body//{name}", NAMES)
        return found.get(attribute, "") if found is not None else ""

    def reply(self, content: str, action: str = "") -> bytes:
        """The answer with that body."""
        return (
            f"<s:Envelope {_DECLARED}><s:Header><a:Action>{action or self._action + 'Response'}"
            f"</a:Action><a:MessageID>uuid:{uuid.uuid4()}</a:MessageID>"
            f"<a:RelatesTo>{self.id}</a:RelatesTo></s:Header>"
            f"<s:Body>{content}</s:Body></s:Envelope>"
        ).encode()

    def fault(self, fault: Fault) -> bytes:
        """The answer that says what went wrong."""
        code = f' Code="{fault.code}"' if fault.code is not None else ""
        return self.reply(
            "<s:Fault><s:Code><s:Value>s:Receiver</s:Value>"
            f"<s:Subcode><s:Value>{fault.subcode}</s:Value></s:Subcode></s:Code>"
            f'<s:Reason><s:Text xml:lang="en-US">{escape(fault.reason)}</s:Text></s:Reason>'
            f'<s:Detail><f:WSManFault{code} Machine="host"><f:Message>{escape(fault.reason)}'
            "</f:Message></f:WSManFault></s:Detail></s:Fault>",
            f"{NAMES['w'].rpartition('/')[0]}/fault",
        )


def read(body: bytes) -> Message:
    """The request in an HTTP body."""
    return Message(ET.fromstring(body))


def created(shell_id: str) -> str:
    """The body that tells a new shell's id."""
    return (
        "<x:ResourceCreated><a:ReferenceParameters><w:SelectorSet>"
        f'<w:Selector Name="ShellId">{shell_id}</w:Selector>'
        "</w:SelectorSet></a:ReferenceParameters></x:ResourceCreated>"
    )


def commanded(command_id: str) -> str:
    """The body that tells a new command's id."""
    return f"<rsp:CommandResponse><rsp:CommandId>{command_id}</rsp:CommandId></rsp:CommandResponse>"


def received(command_id: str, streams: list[tuple[str, bytes]], exit_code: int | None) -> str:
    """The body with output; Done where there is an exit code."""
    parts = [
        f'<rsp:Stream Name="{name}" CommandId="{command_id}">'
        f"{base64.b64encode(data).decode()}</rsp:Stream>"
        for name, data in streams
    ]
    if exit_code is None:
        parts.append(f'<rsp:CommandState CommandId="{command_id}" State="{_STATE}/Running"/>')
    else:
        parts += [
            f'<rsp:Stream Name="{name}" CommandId="{command_id}" End="true"/>'
            for name in ("stdout", "stderr")
        ]
        parts.append(
            f'<rsp:CommandState CommandId="{command_id}" State="{_STATE}/Done">'
            f"<rsp:ExitCode>{exit_code}</rsp:ExitCode></rsp:CommandState>"
        )
    return f"<rsp:ReceiveResponse>{''.join(parts)}</rsp:ReceiveResponse>"


def configuration(quotas: Quotas) -> str:
    """The body of winrm/config, as far as it is about limits."""
    return (
        "<cfg:Config>"
        f"<cfg:MaxEnvelopeSizekb>{quotas.max_envelope_size_kb}</cfg:MaxEnvelopeSizekb>"
        f"<cfg:MaxTimeoutms>{quotas.max_timeout_ms}</cfg:MaxTimeoutms>"
        "<cfg:MaxBatchItems>32000</cfg:MaxBatchItems>"
        "<cfg:Service><cfg:MaxConcurrentOperationsPerUser>1500"
        "</cfg:MaxConcurrentOperationsPerUser><cfg:MaxConnections>300</cfg:MaxConnections>"
        "</cfg:Service>"
        "<cfg:Winrs><cfg:AllowRemoteShellAccess>true</cfg:AllowRemoteShellAccess>"
        "<cfg:IdleTimeout>7200000</cfg:IdleTimeout>"
        "<cfg:MaxConcurrentUsers>2147483647</cfg:MaxConcurrentUsers>"
        "<cfg:MaxMemoryPerShellMB>2147483647</cfg:MaxMemoryPerShellMB>"
        f"<cfg:MaxShellsPerUser>{quotas.max_shells_per_user}</cfg:MaxShellsPerUser></cfg:Winrs>"
        "</cfg:Config>"
    )
