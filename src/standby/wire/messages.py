"""Every message of the protocol, msgspec-typed, tagged by its class name.

Connections between machines begin with `Hello` and `Welcome` or `Refused`. Control connections
carry `Call` and its answers `Reply` or `Failed`; data connections carry the rest. A message of an
unknown tag, a missing field or a wrong type is a ProtocolError.
"""

from __future__ import annotations

from typing import Any

import msgspec

from standby.errors import ProtocolError


class Message(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Base of all messages."""


# --- the beginning of a connection between machines -----------------------------------------


class Hello(Message, frozen=True, tag=True):
    """First frame of the side that connected: the protocol version it speaks, the role (one of its
    certificate's) it speaks in, its release for people to read."""

    version: int
    role: str
    release: str


class Welcome(Message, frozen=True, tag=True):
    """The answer to a `Hello` that is accepted."""

    version: int
    release: str


class Refused(Message, frozen=True, tag=True):
    """The answer to anything else, and the last frame: `errors.error_to_wire`."""

    error: dict[str, Any]


class Challenge(Message, frozen=True, tag=True):
    """Plain links only: who listens, and what the other side's proof must be about."""

    name: str
    roles: list[str]
    nonce: bytes


class Proof(Message, frozen=True, tag=True):
    """Plain links only: that `name` knows the secret (`wire.plain`)."""

    name: str
    nonce: bytes
    proof: bytes


# --- links that stand between tasks (wire.standing) -------------------------------------------


class Stand(Message, frozen=True, tag=True):
    """Instead of `Attach`: the link is to stand, for one task after the other. What follows, either
    way, are terse frames (`wire.terse`)."""

    nonce: bytes


class Stands(Message, frozen=True, tag=True):
    """The answer to `Stand`."""

    nonce: bytes


class Begin(Message, frozen=True, tag=True):
    """A turn of a standing link: for the task of whose ticket that is the handle
    (`wire.standing.Standing.handle`), answered by `Attached`."""

    handle: bytes


class Over(Message, frozen=True, tag=True):
    """The last word of either side in a turn."""


# --- enrolment (no client certificate yet) ---------------------------------------------------


class GetAuthority(Message, frozen=True, tag=True):
    """Asks for the authority's certificate, to compare it with a token's fingerprint."""


class AuthorityCertificate(Message, frozen=True, tag=True):
    """The authority's certificate, PEM."""

    authority: bytes


class Enrol(Message, frozen=True, tag=True):
    """An enrolment token's secret and a certificate request (PEM)."""

    secret: bytes
    request: bytes


class Enrolled(Message, frozen=True, tag=True):
    """The certificate issued for the request, the authority's, and its list of revoked ones."""

    certificate: bytes
    authority: bytes
    revoked: bytes


# --- control ---------------------------------------------------------------------------------


class Call(Message, frozen=True, tag=True):
    """The backup server asks a mover for `verb` with `arguments`; answered once by `id`."""

    id: int
    verb: str
    arguments: dict[str, Any]


class Reply(Message, frozen=True, tag=True):
    """The result of call `id`, in builtin types."""

    id: int
    result: Any


class Failed(Message, frozen=True, tag=True):
    """Call `id` (or, on a data connection, the task) failed: `errors.error_to_wire`."""

    id: int
    error: dict[str, Any]


class Progress(Message, frozen=True, tag=True):
    """What task `id` has done so far: counters in bytes, by name."""

    id: int
    counters: dict[str, int]


# --- data: source to target ------------------------------------------------------------------


class Attach(Message, frozen=True, tag=True):
    """First message on a data connection for a task: what follows belongs to `task`. Between
    service movers it comes once before with the task's `ticket`, answered by `Attached`."""

    task: str
    ticket: str = ""


class OfferMemory(Message, frozen=True, tag=True):
    """Between plain movers, after `Attached`: batches may lie in `slots` slots of shared memory
    (`wire.shared_memory.taken`)."""

    place: str
    mark: bytes
    slots: int
    slot_size: int


class MemoryTaken(Message, frozen=True, tag=True):
    """The answer: whether this side could open it; if not, everything travels on the link."""

    is_taken: bool


class GetIndex(Message, frozen=True, tag=True):
    """Asks for the non-zero pages the target holds and their nodes."""


class GetLeaves(Message, frozen=True, tag=True):
    """Asks for the leaves of these pages as the target holds them; at most 64 pages."""

    pages: list[int]


class GetNodes(Message, frozen=True, tag=True):
    """Asks for the 64 children of these nodes of the digest tree as the target holds them. `level`
    is theirs: 5 (4 TiB) down to 1 (256 KiB), whose children are leaves; at most 64 of level 2, and
    of level 1 in at most 64 pages, 4096 of the others."""

    level: int
    numbers: list[int]


class Batch(Message, frozen=True, tag=True):
    """Extents of a disk. Payload: `rows` x (offset, length, kind) int64, then leaves uint64 of all
    data pieces (absent when `digest` is set), then the data of all data rows unless it lies in
    shared-memory `slot`. With `packing` the payload behind the message is one zstd frame of all
    that. `digest` is the xxh3-128 of the leaves the receiver has to compute itself."""

    rows: int
    pieces: int
    data_length: int
    slot: int = -1
    packing: str = ""
    digest: bytes = b""


class Mark(Message, frozen=True, tag=True):
    """Everything below `offset` has been scanned and, where changed, sent before this."""

    offset: int


class Finish(Message, frozen=True, tag=True):
    """No more batches: commit, read back, and say `Finished` or `Resend`."""


# --- data: source to repository --------------------------------------------------------------


class StageClear(Message, frozen=True, tag=True):
    """Drop what is staged of the disk, and its mark."""


class StagePut(Message, frozen=True, tag=True):
    """Stage these pages. Payload: 4096 uint64 leaves for each; at most 64 pages. Not answered."""

    pages: list[int]


class StageMark(Message, frozen=True, tag=True):
    """Everything below `offset` of the checkpoint was put before this. Not answered."""

    checkpoint_id: str
    offset: int


class StageSync(Message, frozen=True, tag=True):
    """Asks for `Staged` once everything before it is stored."""


class StageRoot(Message, frozen=True, tag=True):
    """Asks for the digest root of what a commit would make."""


class Staged(Message, frozen=True, tag=True):
    """Repository to source, first and after `StageSync`: what is staged reaches to this mark."""

    checkpoint_id: str
    offset: int


class StagedRoot(Message, frozen=True, tag=True):
    """Repository to source: the answer to `StageRoot`."""

    root: bytes


# --- data: target to source ------------------------------------------------------------------


class Attached(Message, frozen=True, tag=True):
    """The ticket was right: the connection is the task's now."""


class Index(Message, frozen=True, tag=True):
    """Payload: `count` page numbers int64, then `count` nodes of 16 bytes."""

    count: int


class Leaves(Message, frozen=True, tag=True):
    """Payload: `count` x 4096 uint64, in the order asked for."""

    count: int


class Nodes(Message, frozen=True, tag=True):
    """Payload: for each of `count` nodes, in the order asked for, 8 bytes with a bit set for each
    child that is not zero (little-endian); behind them these children, 16 bytes each, leaves 8."""

    count: int


class SlotFree(Message, frozen=True, tag=True):
    """The shared-memory slot may be filled again."""

    slot: int


class Acknowledged(Message, frozen=True, tag=True):
    """`written` bytes of this task are in the extent log now (RULES 7)."""

    written: int


class Resend(Message, frozen=True, tag=True):
    """These (offset, length) ranges read back wrong; send them once more, then `Finish`."""

    ranges: list[tuple[int, int]]


class Finished(Message, frozen=True, tag=True):
    """Everything is written, in the extent log, and reads back as it was sent."""

    written: int
    zeroed: int


# --- data: between WAN accelerators ----------------------------------------------------------
#
# Beside these what the disk's two proxies say to each other passes through, all but batches. The
# payloads are those of `wan/FORMAT.md`, section "Frames".


class WanReady(Message, frozen=True, tag=True, omit_defaults=True):
    """Target's accelerator to the source's, first: whether it answers questions, how many may be
    open, and the window of a stream (2^window_log bytes) that it takes. `point`: frames may refer
    to the disk's newest restore point, which that session made ('': there is none yet); None, they
    may not."""

    asks: bool
    questions: int
    window_log: int
    point: str | None = None


class WanQuestion(Message, frozen=True, tag=True):
    """Payload: a question, answered by a `WanAnswer` in the order of the questions."""


class WanAnswer(Message, frozen=True, tag=True):
    """Payload: the answer."""


class WanFrame(Message, frozen=True, tag=True):
    """A batch. Payload: `zeros` bytes that say which runs are zero now (`road.wan_batches`), then
    the frame of all others, if there are any."""

    zeros: int = 0


class WanReceipt(Message, frozen=True, tag=True):
    """Payload: the receipt of a frame, when what it gave is on its way to the target."""


class WanAgain(Message, frozen=True, tag=True):
    """Payload: a frame of the units that a receipt misses."""


_ANY = (
    Hello
    | Welcome
    | Refused
    | Challenge
    | Proof
    | GetAuthority
    | AuthorityCertificate
    | Stand
    | Stands
    | Begin
    | Over
    | Enrol
    | Enrolled
    | Call
    | Reply
    | Failed
    | Progress
    | Attach
    | Attached
    | OfferMemory
    | MemoryTaken
    | GetIndex
    | GetLeaves
    | GetNodes
    | Nodes
    | Batch
    | Mark
    | Finish
    | Index
    | Leaves
    | StageClear
    | StagePut
    | StageMark
    | StageSync
    | StageRoot
    | Staged
    | StagedRoot
    | SlotFree
    | Acknowledged
    | Resend
    | Finished
    | WanReady
    | WanQuestion
    | WanAnswer
    | WanFrame
    | WanReceipt
    | WanAgain
)

_encoder = msgspec.msgpack.Encoder()


def encoded(message: Message) -> bytes:
    """`message` as msgpack."""
    return _encoder.encode(message)


def decoder() -> msgspec.msgpack.Decoder[Message]:
    """A decoder of any message; one per thread."""
    return msgspec.msgpack.Decoder(_ANY)


def decoded(data: memoryview, using: msgspec.msgpack.Decoder[Message], peer: str) -> Message:
    """The message in `data`; raises ProtocolError."""
    try:
        return using.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ProtocolError(peer, f"malformed message: {exc}") from exc
