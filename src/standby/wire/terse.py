"""The frames of a link that stands between tasks: as little as says it.

    1      code of the message, see CODES
    1..4   message length m   LEB128, no longer than it must be
    1..4   payload length p   the same
    m      message: its fields as a msgpack array, in their order; nothing where it has none
    p      payload

Both sides know each other's version by then, and TLS keeps frames whole, so there is no magic: a
message without fields takes three bytes. Only messages between WAN accelerators have a code.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import msgspec

from standby.errors import ProtocolError
from standby.wire import frames, messages
from standby.wire.messages import Message

CODES: dict[int, type[Message]] = {
    0x01: messages.Begin,
    0x02: messages.Attached,
    0x03: messages.Over,
    0x04: messages.Failed,
    0x10: messages.GetLeaves,
    0x11: messages.GetNodes,
    0x12: messages.Leaves,
    0x13: messages.Nodes,
    0x20: messages.Batch,
    0x21: messages.Mark,
    0x22: messages.Acknowledged,
    0x23: messages.Finish,
    0x24: messages.Resend,
    0x25: messages.Finished,
    0x30: messages.WanReady,
    0x31: messages.WanQuestion,
    0x32: messages.WanAnswer,
    0x33: messages.WanFrame,
    0x34: messages.WanReceipt,
    0x35: messages.WanAgain,
}

HEADER_MIN = 3
_NUMBER_MAX = 4
"""Bytes of one length: 28 bits, more than a frame's limits."""

_codes = {kind: code for code, kind in CODES.items()}
_encoder = msgspec.msgpack.Encoder()


class Limits(Protocol):
    """What a frame may have (wire.link.Limits)."""

    @property
    def message_max(self) -> int: ...
    @property
    def payload_max(self) -> int: ...


class Header(NamedTuple):
    """What the first bytes of a frame say."""

    kind: type[Message]
    message_length: int
    payload_length: int


def packed(message: Message, payload_length: int) -> bytes:
    """The frame in front of its payload; ProtocolError where it breaks a limit."""
    code = _codes.get(type(message))
    if code is None:
        problem = f"{type(message).__name__} has no business on a standing link"
        raise ProtocolError("ourselves", problem)
    fields = msgspec.structs.astuple(message)
    body = _encoder.encode(fields) if fields else b""
    if len(body) > frames.MESSAGE_MAX or payload_length > frames.PAYLOAD_MAX:
        raise ProtocolError(
            "ourselves", f"frame of {len(body)}+{payload_length} bytes exceeds the limits"
        )
    return bytes([code]) + _number(len(body)) + _number(payload_length) + body


def _number(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


class Reader:
    """Takes terse frames apart; for one thread at a time."""

    def __init__(self) -> None:
        self._decoders: dict[type[Message], msgspec.msgpack.Decoder[Any]] = {}

    def parsed(self, data: memoryview, peer: str, limits: Limits) -> Header | None:
        """The header in `data`, HEADER_MIN bytes or more; None where it is longer by a byte at
        least. ProtocolError names what is wrong."""
        kind = CODES.get(data[0])
        if kind is None:
            raise ProtocolError(peer, f"frame of an unknown kind {data[0]:#x}")
        first = _parsed_number(data[1:], peer)
        if first is None:
            return None
        message_length, used = first
        second = _parsed_number(data[1 + used :], peer)
        if second is None:
            return None
        payload_length = second[0]
        if message_length > limits.message_max or (message_length > 0) != bool(_fields(kind)):
            raise ProtocolError(peer, f"{kind.__name__} of {message_length} bytes")
        if payload_length > limits.payload_max:
            raise ProtocolError(
                peer, f"payload length {payload_length} exceeds {limits.payload_max}"
            )
        return Header(kind, message_length, payload_length)

    def decoded(self, kind: type[Message], data: memoryview, peer: str) -> Message:
        """The message of that kind in `data`; ProtocolError."""
        if not len(data):
            return kind()
        decoder = self._decoders.get(kind)
        if decoder is None:
            types = tuple(field.type for field in _fields(kind))
            decoder = self._decoders[kind] = msgspec.msgpack.Decoder(tuple[types])  # type: ignore[valid-type]
        try:
            return kind(*decoder.decode(data))
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise ProtocolError(peer, f"malformed {kind.__name__}: {exc}") from exc


def _fields(kind: type[Message]) -> tuple[msgspec.structs.FieldInfo, ...]:
    found = _known.get(kind)
    if found is None:
        found = _known[kind] = msgspec.structs.fields(kind)
    return found


_known: dict[type[Message], tuple[msgspec.structs.FieldInfo, ...]] = {}


def _parsed_number(data: memoryview, peer: str) -> tuple[int, int] | None:
    """A number and the bytes it took; None where it does not end in `data`."""
    value = 0
    for index in range(min(len(data), _NUMBER_MAX)):
        value |= (data[index] & 0x7F) << (7 * index)
        if data[index] < 0x80:
            if index and not data[index]:
                raise ProtocolError(peer, "a length is longer than it must be")
            return value, index + 1
    if len(data) >= _NUMBER_MAX:
        raise ProtocolError(peer, "a length of more than 28 bits")
    return None
