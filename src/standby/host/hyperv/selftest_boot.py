"""A guest of 128 bytes: the boot sector of the self-test's disk, which writes once a second.

What it writes is known beforehand, so that what a host froze, tracked, merged or started can be
compared with what it should be. Sector 1 counts; sector 2048 + 128 x (count mod 512) gets a copy.

    again: read sector 1; count += 1; write sector 1; write its copy; wait 18 ticks; again

Assembled from (GNU as, .code16, loaded at 0x7c00; the packet is INT 13h's of functions 42h, 43h):

    start: xorw %ax,%ax; movw %ax,%ds; movw %ax,%es; movw %ax,%ss; movw $0x7c00,%sp
           sti; movb %dl,drive
    again: movw $packet,%si; movw $1,packet+2; movl $1,packet+8
           movb $0x42,%ah; movb drive,%dl; int $0x13
           incl 0x8000
           movw $0x4300,%ax; movb drive,%dl; int $0x13
           movl 0x8000,%eax; andl $511,%eax; shll $7,%eax; addl $2048,%eax; movl %eax,packet+8
           movw $0x4300,%ax; movb drive,%dl; int $0x13
           movl 0x46c,%ebx
    wait:  hlt; movl 0x46c,%eax; subl %ebx,%eax; cmpl $18,%eax; jb wait
           jmp again
    drive: .byte 0; nop
    packet: .byte 16,0; .word 1; .word 0x8000; .word 0; .quad 1
"""

from __future__ import annotations

from standby.units import MiB

DISK_SIZE = 64 * MiB
SECTOR = 512
PLACES = 512
"""Sectors that are written in turn."""

PROGRAM = bytes.fromhex(
    "31c08ed88ec08ed0bc007cfb88166e7cbe707cc706727c010066c706787c01000000b4428a166e7ccd13"
    "66ff060080b800438a166e7ccd1366a100806625ff01000066c1e00766050008000066a3787cb800438a"
    "166e7ccd13668b1e6c04f466a16c046629d86683f81272f2eba20090"
    "10000100008000000100000000000000"
)


def boot_sector() -> bytes:
    """Sector 0."""
    return PROGRAM.ljust(510, b"\0") + b"\x55\xaa"


def counting_sector(count: int, text: str) -> bytes:
    """Sector 1, and each copy: the count in 4 bytes, then `text`."""
    return count.to_bytes(4, "little") + text.encode("ascii").ljust(SECTOR - 4, b".")


def count_of(content: bytes | bytearray) -> int:
    """How often the guest of that disk has written."""
    return int.from_bytes(content[SECTOR : SECTOR + 4], "little")


def offset_of(count: int) -> int:
    """Where the copy of that count lies."""
    return (2048 + 128 * (count % PLACES)) * SECTOR


def missing_copies(content: bytes | bytearray, first: int) -> list[int]:
    """Counts from `first` on whose copies are not on the disk: none but the last may be, where
    the guest was stopped between its two writes."""
    last = count_of(content)
    found = []
    for count in range(max(first, last - PLACES + 1), last + 1):
        at = offset_of(count)
        if int.from_bytes(content[at : at + 4], "little") != count:
            found.append(count)
    return found
