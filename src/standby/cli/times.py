"""Times as people read them."""

from __future__ import annotations

from datetime import datetime, tzinfo


def when(at: datetime | None, now: datetime, zone: tzinfo) -> str:
    """'2026-11-23 22:00 (in 3 h 20 min)', local to `zone`; '-' for None."""
    if at is None:
        return "-"
    minutes = round((at - now).total_seconds() / 60)
    if minutes <= 0:
        distance = "now"
    elif minutes < 60:
        distance = f"in {minutes} min"
    elif minutes < 48 * 60:
        distance = f"in {minutes // 60} h {minutes % 60} min"
    else:
        distance = f"in {minutes // 1440} days"
    return f"{at.astimezone(zone):%Y-%m-%d %H:%M} ({distance})"
