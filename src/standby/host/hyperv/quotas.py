"""The limits of a host's WinRM service, read from it once, and what they mean for a door.

They are asked as `winrm get winrm/config` asks: one WS-Management Get, no script. An account that
may not read them gets what the oldest hosts have.
"""

from __future__ import annotations

import uuid
import xml.etree.ElementTree as ET
from dataclasses import dataclass

CHUNK_MAX = 512 * 1024
_HEADERS_MAX = 8 * 1024
"""Of an envelope, around its payload; pywinrm's are 2 KiB."""
_SHELLS_FOR_OTHERS = 2
"""Kept free of MaxShellsPerUser: for an administrator, and for a shell that is just ending."""
_OPERATION_MAX_S = 20


@dataclass(frozen=True, slots=True)
class Quotas:
    """MaxShellsPerUser, MaxEnvelopeSizekb and MaxTimeoutms; the defaults are the smallest that
    documentation gives for any release."""

    shells_per_user: int = 5
    envelope_kb: int = 150
    timeout_ms: int = 60000
    is_read: bool = False
    """Whether the host said so."""

    def scripts_at_once(self, wanted: int) -> int:
        """How many shells may be open, of the `wanted`."""
        return max(1, min(wanted, self.shells_per_user - _SHELLS_FOR_OTHERS))

    @property
    def chunk_bytes(self) -> int:
        """Bytes of input in one envelope, where they are base64."""
        room = self.envelope_kb * 1024 - _HEADERS_MAX
        return max(1024, min(CHUNK_MAX, room * 3 // 4))

    @property
    def operation_s(self) -> int:
        """Seconds that one Receive may wait for output."""
        return max(1, min(_OPERATION_MAX_S, self.timeout_ms // 1000 - 5))


def request(url: str) -> str:
    """The message that asks for winrm/config."""
    return f"""<s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope" \
xmlns:a="http://schemas.xmlsoap.org/ws/2004/08/addressing" \
xmlns:w="http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd"><s:Header>\
<a:To>{url}</a:To><a:ReplyTo><a:Address s:mustUnderstand="true">\
http://schemas.xmlsoap.org/ws/2004/08/addressing/role/anonymous</a:Address></a:ReplyTo>\
<a:Action s:mustUnderstand="true">http://schemas.xmlsoap.org/ws/2004/09/transfer/Get</a:Action>\
<w:ResourceURI s:mustUnderstand="true">http://schemas.microsoft.com/wbem/wsman/1/config\
</w:ResourceURI><w:MaxEnvelopeSize s:mustUnderstand="true">153600</w:MaxEnvelopeSize>\
<a:MessageID>uuid:{uuid.uuid4()}</a:MessageID><w:OperationTimeout>PT20S</w:OperationTimeout>\
</s:Header><s:Body/></s:Envelope>"""


def read(answer: bytes) -> Quotas:
    """The limits in the answer; what it does not say, or says as nonsense, keeps its default."""
    said = {
        element.tag.rpartition("}")[2]: element.text or ""
        for element in ET.fromstring(answer).iter()
    }
    usual = Quotas()
    return Quotas(
        _number(said, "MaxShellsPerUser", usual.shells_per_user),
        _number(said, "MaxEnvelopeSizekb", usual.envelope_kb),
        _number(said, "MaxTimeoutms", usual.timeout_ms),
        is_read=True,
    )


def _number(said: dict[str, str], name: str, usual: int) -> int:
    text = said.get(name, "").strip()
    return int(text) if text.isascii() and text.isdigit() and int(text) > 0 else usual
