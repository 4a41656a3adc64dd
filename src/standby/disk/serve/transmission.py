"""The second phase of a connection: requests and replies, one at a time, in bounded memory."""

from __future__ import annotations

import struct
from typing import NamedTuple

from standby.disk.serve import protocol
from standby.disk.serve.channel import Channel
from standby.disk.serve.export import error_number
from standby.disk.serve.negotiation import Session
from standby.errors import LinkError, ProtocolError, StandbyError
from standby.units import MiB

BUFFER = 2 * MiB
"""One buffer per connection; longer reads and writes pass through it in parts. Clients ask for
256 KiB (nbdcopy) to 2 MiB (qemu-img) at a time."""


class _Request(NamedTuple):
    flags: int
    kind: int
    cookie: int
    offset: int
    length: int


class _Refused(Exception):
    """A request answered with an error number, the connection going on."""

    def __init__(self, error: int, text: str) -> None:
        super().__init__(text)
        self.error = error


_ALLOWED_FLAGS = {
    protocol.CMD_READ: 0,
    protocol.CMD_WRITE: protocol.CMD_FLAG_FUA,
    protocol.CMD_FLUSH: 0,
    protocol.CMD_TRIM: protocol.CMD_FLAG_FUA,
    protocol.CMD_WRITE_ZEROES: protocol.CMD_FLAG_FUA | protocol.CMD_FLAG_NO_HOLE,
    protocol.CMD_BLOCK_STATUS: protocol.CMD_FLAG_REQ_ONE,
}
_CHANGES = (protocol.CMD_WRITE, protocol.CMD_TRIM, protocol.CMD_WRITE_ZEROES)


class Transmission:
    """Answers the requests of one connection until the client leaves."""

    def __init__(self, channel: Channel, session: Session) -> None:
        self._channel = channel
        self._session = session
        self._export = session.export
        self._buffer = memoryview(bytearray(BUFFER))
        self._head = bytearray(protocol.REQUEST.size)

    def run(self) -> None:
        """Return after DISC; raise LinkError when the client is gone, ProtocolError on nonsense."""
        while True:
            self._channel.receive_into(self._head)
            magic, *rest = protocol.REQUEST.unpack(self._head)
            if magic != protocol.REQUEST_MAGIC:
                raise ProtocolError(self._channel.peer, f"request magic {magic:#x}")
            request = _Request(*rest)
            if request.kind == protocol.CMD_DISCONNECT:
                return
            self._serve(request)

    def _serve(self, request: _Request) -> None:
        """Answer one request. Data of a write are taken from the channel whatever happens."""
        try:
            if request.kind == protocol.CMD_READ:
                self._check(request)
                self._read(request)
                return
            if request.kind == protocol.CMD_BLOCK_STATUS:
                self._check(request)
                self._block_status(request)
                return
            if request.kind == protocol.CMD_WRITE:
                self._write(request)
            else:
                self._check(request)
                self._change(request)
            if request.flags & protocol.CMD_FLAG_FUA:
                self._export.flush()
        except _Refused as exc:
            self._fail(request, exc.error, str(exc))
        except LinkError:
            raise
        except (StandbyError, PermissionError) as exc:
            self._fail(request, error_number(exc), str(exc))
        else:
            self._channel.send(protocol.simple_reply(request.cookie))

    def _check(self, request: _Request) -> None:
        """Refuse a request that this export cannot mean."""
        allowed = _ALLOWED_FLAGS.get(request.kind)
        if allowed is None:
            raise _Refused(protocol.EINVAL, f"unknown command {request.kind}")
        if request.flags & ~allowed:
            raise _Refused(protocol.EINVAL, f"flags {request.flags:#x} on {request.kind}")
        if request.kind == protocol.CMD_FLUSH:
            if request.offset or request.length:
                raise _Refused(protocol.EINVAL, "a flush has no range")
            return
        if request.kind in _CHANGES and not self._export.writable:
            raise _Refused(protocol.EPERM, "the export is read-only")
        if request.offset + request.length > self._export.size:
            is_full = request.kind in _CHANGES
            error = protocol.ENOSPC if is_full else protocol.EINVAL
            raise _Refused(error, "the range ends outside the disk")
        if request.kind == protocol.CMD_READ and request.length > protocol.PAYLOAD_MAX:
            raise _Refused(protocol.EINVAL, "the read is longer than the announced maximum")
        if request.kind in (protocol.CMD_WRITE, protocol.CMD_WRITE_ZEROES) and (
            (request.offset | request.length) % self._export.sector_size
        ):
            raise _Refused(protocol.EINVAL, "the range is not whole sectors")

    def _fail(self, request: _Request, error: int, text: str) -> None:
        structured = request.kind in (protocol.CMD_READ, protocol.CMD_BLOCK_STATUS)
        if structured and self._session.structured:
            self._channel.send(protocol.error_chunk(request.cookie, error, text))
        else:
            self._channel.send(protocol.simple_reply(request.cookie, error))

    def _read(self, request: _Request) -> None:
        structured = self._session.structured
        stop = request.offset + request.length
        if request.length == 0:
            if structured:
                empty = protocol.chunk(request.cookie, protocol.CHUNK_NONE, 0, is_done=True)
                self._channel.send(empty)
            else:
                self._channel.send(protocol.simple_reply(request.cookie))
            return
        for position in range(request.offset, stop, BUFFER):
            part = self._buffer[: min(BUFFER, stop - position)]
            try:
                self._export.read_into(position, part)
            except StandbyError as exc:
                if structured or position == request.offset:
                    raise
                # The reply has begun and has no place left for an error: hang up.
                raise LinkError(self._channel.peer, f"read failed midway: {exc}") from exc
            if structured:
                head = protocol.chunk(
                    request.cookie,
                    protocol.CHUNK_OFFSET_DATA,
                    8 + len(part),
                    is_done=position + len(part) == stop,
                )
                self._channel.send(head + struct.pack(">Q", position), part)
            elif position == request.offset:
                self._channel.send(protocol.simple_reply(request.cookie), part)
            else:
                self._channel.send(part)

    def _write(self, request: _Request) -> None:
        if request.length > protocol.PAYLOAD_MAX:
            raise ProtocolError(self._channel.peer, f"a write of {request.length} bytes")
        position, stop = request.offset, request.offset + request.length
        try:
            self._check(request)
            while position < stop:
                part = self._buffer[: min(BUFFER, stop - position)]
                position += len(part)
                self._channel.receive_into(part)
                self._export.write(position - len(part), part)
        except LinkError:
            raise
        except (_Refused, StandbyError, PermissionError):
            self._channel.discard(stop - position)
            raise

    def _change(self, request: _Request) -> None:
        if request.kind == protocol.CMD_FLUSH:
            self._export.flush()
        elif request.kind == protocol.CMD_TRIM:
            self._export.trim(request.offset, request.length)
        else:
            keep_space = bool(request.flags & protocol.CMD_FLAG_NO_HOLE)
            self._export.zero(request.offset, request.length, keep_space=keep_space)

    def _block_status(self, request: _Request) -> None:
        if not self._session.allocation:
            raise _Refused(protocol.EINVAL, "base:allocation was not negotiated")
        if request.length == 0:
            raise _Refused(protocol.EINVAL, "block status of nothing")
        is_one = bool(request.flags & protocol.CMD_FLAG_REQ_ONE)
        count_max = 1 if is_one else protocol.DESCRIPTORS_MAX
        found = self._export.allocation(request.offset, request.length, count_max)
        flat = [number for pair in found for number in pair]
        body = struct.pack(f">I{len(flat)}I", protocol.ALLOCATION_ID, *flat)
        head = protocol.chunk(request.cookie, protocol.CHUNK_BLOCK_STATUS, len(body), is_done=True)
        self._channel.send(head, body)
