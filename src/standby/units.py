"""Sizes in bytes: one place for the powers of two that the rest of the code counts in."""

import re

KiB = 1 << 10
MiB = 1 << 20
GiB = 1 << 30
TiB = 1 << 40


def format_bytes(count: int) -> str:
    """`count` for people: '0 B', '4.0 KiB', '2.4 GiB'; binary units, one decimal."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(value) < 1024 or unit == "PiB":
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def parse_size(text: str) -> int:
    """Bytes meant by '4096', '64K', '64 KiB', '1.5G', '2TiB' (binary units throughout).

    Raises ValueError naming the text when it is none of these or not a whole number of bytes.
    """
    cleaned = text.strip().replace(" ", "")
    factor = 1
    lowered = cleaned.lower()
    for index, letter in enumerate("kmgtp", start=1):
        for suffix in (letter + "ib", letter + "b", letter):
            if lowered.endswith(suffix):
                factor = 1 << (10 * index)
                cleaned = cleaned[: -len(suffix)]
                break
        if factor != 1:
            break
    else:
        if lowered.endswith("b"):
            cleaned = cleaned[:-1]
    try:
        value = float(cleaned) * factor if "." in cleaned else int(cleaned) * factor
    except ValueError:
        raise ValueError(
            f"{text!r} is not a size; write for example 512M, 64 GiB or 4096"
        ) from None
    if value < 0 or value != int(value):
        raise ValueError(f"{text!r} is not a whole, non-negative number of bytes")
    return int(value)


_RATES = {
    "kbit": 1e3 / 8,
    "mbit": 1e6 / 8,
    "gbit": 1e9 / 8,
    "kb": 1e3,
    "mb": 1e6,
    "gb": 1e9,
    "kib": KiB,
    "mib": MiB,
    "gib": GiB,
}


def parse_rate(text: str) -> int:
    """Bytes per second meant by '100 Mbit/s', '1 Gbit/s', '12.5 MB/s' or '10 MiB/s'; networks
    count bits in decimal units. Raises ValueError naming the text when it is none of these."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([kmg]i?b|[kmg]bit)/s", _squeezed(text))
    if match is None:
        raise ValueError(f"{text!r} is not a rate; write for example 100 Mbit/s, 12.5 MB/s")
    return int(float(match[1]) * _RATES[match[2]])


def _squeezed(text: str) -> str:
    return text.replace(" ", "").lower()


def format_rate(rate_bps: float) -> str:
    """Bytes per second as a network's people say it: '800 kbit/s', '100 Mbit/s', '2.5 Gbit/s'."""
    bits = rate_bps * 8
    for unit, size in (("Gbit/s", 1e9), ("Mbit/s", 1e6)):
        if bits >= size:
            return f"{bits / size:.4g} {unit}"
    return f"{bits / 1e3:.4g} kbit/s"


def counted(count: int, what: str) -> str:
    """`count` of `what`, a word whose plural has an s: "1 disk", "2 disks"."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
