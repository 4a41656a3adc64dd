"""The first phase of a connection: which export, and how replies will look."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from standby.disk.serve import protocol
from standby.disk.serve.channel import Channel
from standby.disk.serve.export import Export
from standby.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class Session:
    """What a negotiation agreed on."""

    export: Export
    structured: bool
    """Replies to reads come in chunks."""
    allocation: bool
    """Block status may be asked for base:allocation."""


class _Invalid(Exception):
    """An option that is answered with an error, negotiation going on."""

    def __init__(self, kind: int, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def negotiate(channel: Channel, exports: Mapping[str, Export]) -> Session | None:
    """The session that the client asks for, or None when it only looked and left.

    Raises ProtocolError when what it says is not the protocol, LinkError when it is gone.
    """
    channel.send(
        protocol.GREETING.pack(
            protocol.INIT_MAGIC,
            protocol.OPTION_MAGIC,
            protocol.FLAG_FIXED_NEWSTYLE | protocol.FLAG_NO_ZEROES,
        )
    )
    (flags,) = protocol.CLIENT_FLAGS.unpack(channel.receive(protocol.CLIENT_FLAGS.size))
    if flags & ~(protocol.FLAG_FIXED_NEWSTYLE | protocol.FLAG_NO_ZEROES):
        raise ProtocolError(channel.peer, f"unknown client flags {flags:#x}")
    return _Negotiation(channel, exports, flags).run()


class _Negotiation:
    def __init__(self, channel: Channel, exports: Mapping[str, Export], flags: int) -> None:
        self._channel = channel
        self._exports = exports
        self._flags = flags
        self._structured = False
        self._allocation_of: Export | None = None
        """The export that base:allocation was chosen for."""

    def run(self) -> Session | None:
        for _ in range(protocol.OPTIONS_MAX):
            option, data = self._receive_option()
            if option == protocol.OPT_EXPORT_NAME:
                return self._export_name(data)
            if not self._flags & protocol.FLAG_FIXED_NEWSTYLE:
                raise ProtocolError(self._channel.peer, f"option {option} without fixed newstyle")
            if option == protocol.OPT_ABORT:
                self._reply(option, protocol.REP_ACK)
                return None
            try:
                export = self._answer(option, data)
            except _Invalid as exc:
                self._reply(option, exc.kind, str(exc).encode())
                continue
            if export is not None:
                return self._session(export)
        raise ProtocolError(self._channel.peer, f"more than {protocol.OPTIONS_MAX} options")

    def _receive_option(self) -> tuple[int, bytes]:
        head = self._channel.receive(protocol.OPTION.size)
        magic, option, length = protocol.OPTION.unpack(head)
        if magic != protocol.OPTION_MAGIC:
            raise ProtocolError(self._channel.peer, f"option magic {magic:#x}")
        if length > protocol.OPTION_LENGTH_MAX:
            raise ProtocolError(self._channel.peer, f"option {option} of {length} bytes")
        return option, self._channel.receive(length)

    def _reply(self, option: int, kind: int, data: bytes = b"") -> None:
        self._channel.send(protocol.option_reply(option, kind, data))

    def _answer(self, option: int, data: bytes) -> Export | None:
        """Answer one option; the export when transmission begins."""
        if option == protocol.OPT_LIST:
            self._list(data)
        elif option == protocol.OPT_STRUCTURED_REPLY:
            if data:
                raise _Invalid(protocol.REP_ERR_INVALID, "this option has no data")
            self._structured = True
            self._reply(option, protocol.REP_ACK)
        elif option in (protocol.OPT_LIST_META_CONTEXT, protocol.OPT_SET_META_CONTEXT):
            self._meta_context(option, data)
        elif option in (protocol.OPT_INFO, protocol.OPT_GO):
            export = self._info(option, data)
            return export if option == protocol.OPT_GO else None
        else:
            raise _Invalid(protocol.REP_ERR_UNSUPPORTED, f"option {option} is not supported")
        return None

    def _session(self, export: Export) -> Session:
        return Session(export, self._structured, self._allocation_of is export)

    def _find(self, raw_name: bytes) -> Export:
        try:
            name = raw_name.decode()
        except UnicodeDecodeError:
            raise _Invalid(protocol.REP_ERR_INVALID, "the name is not UTF-8") from None
        if len(raw_name) > protocol.NAME_LENGTH_MAX:
            raise _Invalid(protocol.REP_ERR_INVALID, "the name is too long")
        export = self._exports.get(name)
        if export is None and not name and len(self._exports) == 1:
            export = next(iter(self._exports.values()))
        if export is None:
            raise _Invalid(protocol.REP_ERR_UNKNOWN, f"no export named {name[:256]!r}")
        return export

    def _export_name(self, data: bytes) -> Session:
        try:
            export = self._find(data)
        except _Invalid as exc:  # the only answer this option knows
            raise ProtocolError(self._channel.peer, str(exc)) from exc
        padding = b"" if self._flags & protocol.FLAG_NO_ZEROES else bytes(124)
        self._channel.send(protocol.EXPORT_REPLY.pack(export.size, export.flags) + padding)
        return self._session(export)

    def _list(self, data: bytes) -> None:
        if data:
            raise _Invalid(protocol.REP_ERR_INVALID, "this option has no data")
        for name in self._exports:
            raw = name.encode()
            body = struct.pack(">I", len(raw)) + raw
            self._reply(protocol.OPT_LIST, protocol.REP_SERVER, body)
        self._reply(protocol.OPT_LIST, protocol.REP_ACK)

    def _info(self, option: int, data: bytes) -> Export:
        fields = _Fields(data)
        export = self._find(fields.text())
        asked = {fields.number(">H") for _ in range(fields.number(">H"))}
        fields.end()
        info = struct.pack(">HQH", protocol.INFO_EXPORT, export.size, export.flags)
        self._reply(option, protocol.REP_INFO, info)
        if protocol.INFO_NAME in asked:
            name = struct.pack(">H", protocol.INFO_NAME) + export.name.encode()
            self._reply(option, protocol.REP_INFO, name)
        if protocol.INFO_BLOCK_SIZE in asked or export.sector_size != 512:
            sizes = struct.pack(">HIII", protocol.INFO_BLOCK_SIZE, *export.block_sizes)
            self._reply(option, protocol.REP_INFO, sizes)
        self._reply(option, protocol.REP_ACK)
        return export

    def _meta_context(self, option: int, data: bytes) -> None:
        if not self._structured:
            raise _Invalid(protocol.REP_ERR_INVALID, "structured replies come first")
        is_set = option == protocol.OPT_SET_META_CONTEXT
        if is_set:
            self._allocation_of = None
        fields = _Fields(data)
        export = self._find(fields.text())
        queries = [fields.text() for _ in range(fields.number(">I"))]
        fields.end()
        name = protocol.ALLOCATION_CONTEXT.encode()
        wanted = {name} if is_set else {name, name.partition(b":")[0] + b":"}
        if wanted & set(queries) or (not is_set and not queries):
            context = protocol.ALLOCATION_ID if is_set else 0
            self._reply(option, protocol.REP_META_CONTEXT, struct.pack(">I", context) + name)
            if is_set:
                self._allocation_of = export
        self._reply(option, protocol.REP_ACK)


class _Fields:
    """The data of an option, taken apart with every length checked."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def _take(self, length: int) -> bytes:
        stop = self._position + length
        if stop > len(self._data):
            raise _Invalid(protocol.REP_ERR_INVALID, "a length exceeds the option's data")
        taken = self._data[self._position : stop]
        self._position = stop
        return taken

    def number(self, layout: str) -> int:
        (value,) = struct.unpack(layout, self._take(struct.calcsize(layout)))
        return int(value)

    def text(self) -> bytes:
        return self._take(self.number(">I"))

    def end(self) -> None:
        if self._position != len(self._data):
            raise _Invalid(protocol.REP_ERR_INVALID, "the option has data left over")
