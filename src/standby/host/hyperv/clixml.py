"""What powershell.exe writes to its error stream, as records: CLIXML, or plain text.

    #< CLIXML
    <Objs Version="1.1.0.1" xmlns="…"><S S="Error">the first line_x000D__x000A_</S>
      <S S="Error">At line:1 char:1_x000D__x000A_</S><Obj S="progress">…</Obj></Objs>

Warnings, verbose texts and progress land there as well as errors, so that a stream which is not
empty is no failure. On a host in another language the bytes may be of a code page: what is not
UTF-8 is replaced, and where the XML cannot be read at all, its texts are still taken out of it.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import unescape

SIZE_MAX = 1 << 20
"""Bytes of the stream that are looked at."""

_HEADER = "#< CLIXML"
_ESCAPED = re.compile(r"_x([0-9A-Fa-f]{4})_")
_TEXT = '<S S="'
_NOT_XML = re.compile(r"[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_BEGIN, _END = "<Objs", "</Objs>"


@dataclass(frozen=True, slots=True)
class Record:
    """One text of the stream: `kind` is error, warning, verbose, debug or information."""

    kind: str
    text: str


def records(data: bytes) -> tuple[Record, ...]:
    """The records in an error stream; texts of one kind in a row are one record. Progress is left
    out. Raises nothing, whatever the bytes."""
    text = data[:SIZE_MAX].decode("utf-8", "replace").lstrip("\ufeff")
    joined: list[Record] = []
    for record in _pieces(text):
        if joined and joined[-1].kind == record.kind:
            joined[-1] = Record(record.kind, joined[-1].text + record.text)
        else:
            joined.append(record)
    stripped = (Record(record.kind, record.text.strip()) for record in joined)
    return tuple(record for record in stripped if record.text)


def texts(found: Sequence[Record], kind: str) -> tuple[str, ...]:
    """The texts of one kind."""
    return tuple(record.text for record in found if record.kind == kind)


def first_lines(found: Sequence[Record], count: int = 5, width: int = 300) -> tuple[str, ...]:
    """The first lines of the errors, for a message."""
    lines = [line.strip() for text in texts(found, "error") for line in text.splitlines()]
    return tuple(line[:width] for line in lines if line)[:count]


def _pieces(text: str) -> Iterator[Record]:
    """Documents where there are any, plain text before and between them as errors. Linear in the
    text, whatever it is."""
    end = 0
    while (start := text.find(_BEGIN, end)) >= 0:
        yield from _plain(text[end:start])
        stop = text.find(_END, start)
        end = len(text) if stop < 0 else stop + len(_END)
        yield from _document(text[start:end])
    yield from _plain(text[end:])


def _plain(text: str) -> Iterator[Record]:
    text = text.replace(_HEADER, "").strip()
    if text:
        yield Record("error", text + "\n")


def _document(text: str) -> Iterator[Record]:
    try:
        root = ET.fromstring(_NOT_XML.sub("\ufffd", text))
    except ET.ParseError:
        yield from _taken_out(text)
        return
    for item in root:
        kind = item.get("S", "").lower()
        if not kind or kind == "progress":
            continue
        if item.tag.rpartition("}")[2] == "S":
            yield Record(kind, _unescaped(item.text or ""))
        else:  # an object, as Write-Information makes: its text stands in ToString
            for part in item:
                if part.tag.rpartition("}")[2] == "ToString":
                    yield Record(kind, _unescaped(part.text or "") + "\n")


def _taken_out(text: str) -> Iterator[Record]:
    for piece in text.split(_TEXT)[1:]:
        kind, _, rest = piece.partition('">')
        if kind.isalpha() and kind.lower() != "progress":
            yield Record(kind.lower(), _unescaped(unescape(rest.partition("</S>")[0])))


def _unescaped(text: str) -> str:
    """Escapes are of UTF-16: characters beyond 0xFFFF are two, and half of one is none."""
    wide = _ESCAPED.sub(lambda match: chr(int(match[1], 16)), text).replace("\r\n", "\n")
    return wide.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
