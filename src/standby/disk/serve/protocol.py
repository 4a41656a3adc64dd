"""The numbers and layouts of the NBD protocol that are served (fixed newstyle, all big-endian).

Source: the protocol document of the NetworkBlockDevice project (doc/proto.md). Structures apart
from logic: nothing here does I/O.
"""

from __future__ import annotations

import struct
from typing import Final

from standby.units import KiB, MiB

# --- negotiation ---

GREETING: Final = struct.Struct(">8sQH")  # NBDMAGIC, IHAVEOPT, handshake flags
INIT_MAGIC: Final = b"NBDMAGIC"
OPTION_MAGIC: Final = 0x49484156454F5054
FLAG_FIXED_NEWSTYLE: Final = 1
FLAG_NO_ZEROES: Final = 2

CLIENT_FLAGS: Final = struct.Struct(">I")
OPTION: Final = struct.Struct(">QII")  # magic, option, length
OPTION_REPLY: Final = struct.Struct(">QIII")  # magic, option, reply type, length
OPTION_REPLY_MAGIC: Final = 0x3E889045565A9
EXPORT_REPLY: Final = struct.Struct(">QH")  # size, transmission flags; then 124 zeros

OPT_EXPORT_NAME: Final = 1
OPT_ABORT: Final = 2
OPT_LIST: Final = 3
OPT_INFO: Final = 6
OPT_GO: Final = 7
OPT_STRUCTURED_REPLY: Final = 8
OPT_LIST_META_CONTEXT: Final = 9
OPT_SET_META_CONTEXT: Final = 10

REP_ACK: Final = 1
REP_SERVER: Final = 2
REP_INFO: Final = 3
REP_META_CONTEXT: Final = 4
_REP_ERROR: Final = 1 << 31
REP_ERR_UNSUPPORTED: Final = _REP_ERROR + 1
REP_ERR_INVALID: Final = _REP_ERROR + 3
REP_ERR_UNKNOWN: Final = _REP_ERROR + 6

INFO_EXPORT: Final = 0
INFO_NAME: Final = 1
INFO_BLOCK_SIZE: Final = 3

OPTION_LENGTH_MAX: Final = 64 * KiB
"""Longest option accepted: several names of the protocol's 4096 bytes each."""
OPTIONS_MAX: Final = 256
"""Options in one negotiation; a client that still asks is not going to ask for a disk."""
NAME_LENGTH_MAX: Final = 4096

# --- transmission ---

FLAG_HAS_FLAGS: Final = 1 << 0
FLAG_READ_ONLY: Final = 1 << 1
FLAG_SEND_FLUSH: Final = 1 << 2
FLAG_SEND_FUA: Final = 1 << 3
FLAG_SEND_TRIM: Final = 1 << 5
FLAG_SEND_WRITE_ZEROES: Final = 1 << 6
FLAG_CAN_MULTI_CONN: Final = 1 << 8

REQUEST: Final = struct.Struct(">IHHQQI")  # magic, flags, type, cookie, offset, length
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY: Final = struct.Struct(">IIQ")  # magic, error, cookie
SIMPLE_REPLY_MAGIC: Final = 0x67446698
CHUNK: Final = struct.Struct(">IHHQI")  # magic, flags, type, cookie, length
CHUNK_MAGIC: Final = 0x668E33EF
CHUNK_DONE: Final = 1

CHUNK_NONE: Final = 0
CHUNK_OFFSET_DATA: Final = 1
CHUNK_BLOCK_STATUS: Final = 5
CHUNK_ERROR: Final = (1 << 15) + 1

CMD_READ: Final = 0
CMD_WRITE: Final = 1
CMD_DISCONNECT: Final = 2
CMD_FLUSH: Final = 3
CMD_TRIM: Final = 4
CMD_WRITE_ZEROES: Final = 6
CMD_BLOCK_STATUS: Final = 7

CMD_FLAG_FUA: Final = 1 << 0
CMD_FLAG_NO_HOLE: Final = 1 << 1
CMD_FLAG_REQ_ONE: Final = 1 << 3

STATE_HOLE: Final = 1
STATE_ZERO: Final = 2
ALLOCATION_CONTEXT: Final = "base:allocation"
ALLOCATION_ID: Final = 1

EPERM: Final = 1
EIO: Final = 5
EINVAL: Final = 22
ENOSPC: Final = 28

PAYLOAD_MAX: Final = 32 * MiB
"""Longest read or write accepted, announced as the maximum block size: what clients that never
ask for block sizes assume, by the protocol document."""
DESCRIPTORS_MAX: Final = 1024
"""Ranges in one answer to a block status; the client asks on behind them."""


def option_reply(option: int, kind: int, data: bytes = b"") -> bytes:
    """One reply to an option."""
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(data)) + data


def simple_reply(cookie: int, error: int = 0) -> bytes:
    """A reply without structure; the data of a successful read follow it."""
    return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, cookie)


def chunk(cookie: int, kind: int, length: int, *, is_done: bool) -> bytes:
    """The head of one chunk of a structured reply, `length` bytes following."""
    return CHUNK.pack(CHUNK_MAGIC, CHUNK_DONE if is_done else 0, kind, cookie, length)


def error_chunk(cookie: int, error: int, text: str) -> bytes:
    """The last chunk of a structured reply that failed."""
    message = text.encode()[:1024]
    body = struct.pack(">IH", error, len(message)) + message
    return chunk(cookie, CHUNK_ERROR, len(body), is_done=True) + body
