"""Ranges copied from one open file to another."""

from __future__ import annotations

from standby.files.positioned import WRITE_SIZE, BlockFile, File


def copy_range(source: BlockFile, place: int, length: int, target: BlockFile, offset: int) -> None:
    """Copy `length` bytes at `place` of `source` to `offset` of `target`.

    The system does it where it can: one call for each range, nothing passes through this process,
    and a file system that lets files share blocks copies nothing at all. Errors are those of
    reading the one and of writing the other.
    """
    done = 0
    if isinstance(source, File) and isinstance(target, File):
        while done < length:
            count = target.copy_from(source, place + done, length - done, offset + done)
            if not count:
                break
            done += count
    buffer = memoryview(bytearray(min(WRITE_SIZE, length - done)))
    while done < length:
        part = buffer[: length - done]
        source.read_into(part, place + done)
        target.write(part, offset + done)
        done += len(part)
