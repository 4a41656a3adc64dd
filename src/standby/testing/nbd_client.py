"""A small NBD client for tests: it says exactly what it is told, nonsense included."""

from __future__ import annotations

import socket
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

from standby.disk.serve import protocol


class NbdError(Exception):
    """An error number in a reply."""

    def __init__(self, number: int) -> None:
        super().__init__(f"NBD error {number}")
        self.number = number


@dataclass(frozen=True)
class OptionReply:
    """One reply to an option."""

    kind: int
    data: bytes

    @property
    def is_error(self) -> bool:
        """Whether it refuses the option."""
        return self.kind >= 1 << 31


class NbdClient:
    """One connection, synchronous. `go` begins transmission; the commands then raise NbdError."""

    def __init__(self, address: Path | socket.socket, *, client_flags: int = 3) -> None:
        if isinstance(address, socket.socket):
            self.socket = address
        elif sys.platform == "win32":
            raise OSError("this system has no Unix sockets; connect a TCP socket and pass it")
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(str(address))
            # A server that hangs must fail the test, not hold it up.
            self.socket.settimeout(60)
        self.structured = False
        self.size = 0
        self.flags = 0
        self.block_sizes: tuple[int, int, int] | None = None
        self._cookie = 0
        try:
            greeting = self.receive(protocol.GREETING.size)
        except OSError:
            self.socket.close()
            raise
        magic, option_magic, self.handshake_flags = protocol.GREETING.unpack(greeting)
        assert (magic, option_magic) == (protocol.INIT_MAGIC, protocol.OPTION_MAGIC)
        self.socket.sendall(protocol.CLIENT_FLAGS.pack(client_flags))

    def receive(self, length: int) -> bytes:
        """`length` bytes, or ConnectionError when the server closes first."""
        data = bytearray()
        while len(data) < length:
            part = self.socket.recv(length - len(data))
            if not part:
                raise ConnectionError(f"closed after {len(data)} of {length} bytes")
            data += part
        return bytes(data)

    # --- negotiation ---

    def send_option(self, option: int, data: bytes = b"") -> None:
        """Send one option."""
        head = protocol.OPTION.pack(protocol.OPTION_MAGIC, option, len(data))
        self.socket.sendall(head + data)

    def option(self, option: int, data: bytes = b"") -> list[OptionReply]:
        """Send one option; all its replies, the last one an ACK or an error."""
        self.send_option(option, data)
        replies: list[OptionReply] = []
        while not replies or (replies[-1].kind != protocol.REP_ACK and not replies[-1].is_error):
            head = self.receive(protocol.OPTION_REPLY.size)
            magic, echoed, kind, length = protocol.OPTION_REPLY.unpack(head)
            assert (magic, echoed) == (protocol.OPTION_REPLY_MAGIC, option)
            replies.append(OptionReply(kind, self.receive(length)))
        return replies

    def ask_structured(self) -> None:
        """Agree on structured replies."""
        assert self.option(protocol.OPT_STRUCTURED_REPLY)[-1].kind == protocol.REP_ACK
        self.structured = True

    def set_allocation(self, name: str = "") -> list[OptionReply]:
        """Choose base:allocation for an export."""
        query = _text(protocol.ALLOCATION_CONTEXT)
        data = _text(name) + struct.pack(">I", 1) + query
        return self.option(protocol.OPT_SET_META_CONTEXT, data)

    def info(self, name: str = "", *, go: bool = False, kinds: tuple[int, ...] = (3,)) -> None:
        """Ask for (or `go` to) an export and note its size, flags, block sizes; NbdError when
        refused."""
        data = _text(name) + struct.pack(f">H{len(kinds)}H", len(kinds), *kinds)
        replies = self.option(protocol.OPT_GO if go else protocol.OPT_INFO, data)
        if replies[-1].is_error:
            raise NbdError(replies[-1].kind)
        for reply in replies[:-1]:
            (kind,) = struct.unpack_from(">H", reply.data)
            if kind == protocol.INFO_EXPORT:
                self.size, self.flags = struct.unpack_from(">QH", reply.data, 2)
            elif kind == protocol.INFO_BLOCK_SIZE:
                self.block_sizes = struct.unpack_from(">III", reply.data, 2)

    def go(self, name: str = "", *, structured: bool = False, allocation: bool = False) -> None:
        """Begin transmission on an export."""
        if structured or allocation:
            self.ask_structured()
        if allocation:
            assert self.set_allocation(name)[-1].kind == protocol.REP_ACK
        self.info(name, go=True)

    # --- transmission ---

    def send_request(
        self, kind: int, offset: int = 0, length: int = 0, flags: int = 0, data: bytes = b""
    ) -> int:
        """Send one request; its cookie."""
        self._cookie += 1
        head = protocol.REQUEST.pack(
            protocol.REQUEST_MAGIC, flags, kind, self._cookie, offset, length
        )
        self.socket.sendall(head + data)
        return self._cookie

    def receive_simple(self, cookie: int) -> None:
        """A reply without structure; NbdError when it is one."""
        magic, error, echoed = protocol.SIMPLE_REPLY.unpack(
            self.receive(protocol.SIMPLE_REPLY.size)
        )
        assert (magic, echoed) == (protocol.SIMPLE_REPLY_MAGIC, cookie)
        if error:
            raise NbdError(error)

    def receive_chunks(self, cookie: int) -> list[tuple[int, bytes]]:
        """(kind, data) of a structured reply; NbdError when it is one."""
        chunks: list[tuple[int, bytes]] = []
        while True:
            magic, flags, kind, echoed, length = protocol.CHUNK.unpack(
                self.receive(protocol.CHUNK.size)
            )
            assert (magic, echoed) == (protocol.CHUNK_MAGIC, cookie)
            data = self.receive(length)
            chunks.append((kind, data))
            if flags & protocol.CHUNK_DONE:
                break
        kind, data = chunks[-1]
        if kind == protocol.CHUNK_ERROR:
            raise NbdError(struct.unpack_from(">I", data)[0])
        return chunks

    def read(self, offset: int, length: int) -> bytes:
        """READ."""
        cookie = self.send_request(protocol.CMD_READ, offset, length)
        if not self.structured:
            self.receive_simple(cookie)
            return self.receive(length)
        found = bytearray(length)
        for kind, data in self.receive_chunks(cookie):
            if kind == protocol.CHUNK_OFFSET_DATA:
                (at,) = struct.unpack_from(">Q", data)
                found[at - offset : at - offset + len(data) - 8] = data[8:]
        return bytes(found)

    def command(
        self, kind: int, offset: int = 0, length: int = 0, flags: int = 0, data: bytes = b""
    ) -> None:
        """Any command with a reply that has no structure."""
        self.receive_simple(self.send_request(kind, offset, length, flags, data))

    def write(self, offset: int, data: bytes, *, fua: bool = False) -> None:
        """WRITE."""
        flags = protocol.CMD_FLAG_FUA if fua else 0
        self.command(protocol.CMD_WRITE, offset, len(data), flags, data)

    def flush(self) -> None:
        """FLUSH."""
        self.command(protocol.CMD_FLUSH)

    def block_status(self, offset: int, length: int, *, one: bool = False) -> list[tuple[int, int]]:
        """(length, state) pairs."""
        flags = protocol.CMD_FLAG_REQ_ONE if one else 0
        cookie = self.send_request(protocol.CMD_BLOCK_STATUS, offset, length, flags)
        if not self.structured:
            self.receive_simple(cookie)
            raise AssertionError("a status without structure")
        ((kind, data),) = self.receive_chunks(cookie)
        assert kind == protocol.CHUNK_BLOCK_STATUS
        numbers = struct.unpack(f">{len(data) // 4}I", data)
        assert numbers[0] == protocol.ALLOCATION_ID
        return list(zip(numbers[1::2], numbers[2::2], strict=True))

    def disconnect(self) -> None:
        """DISC and close."""
        self.send_request(protocol.CMD_DISCONNECT)
        self.socket.close()

    def close(self) -> None:
        """Close without a word."""
        self.socket.close()


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack(">I", len(raw)) + raw
