"""What the target keeps, whoever orders otherwise (RULES 17)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TargetRules:
    """The target never goes below `keep_points_min` restore points of a replica, and never
    removes a point younger than `keep_days_min` days."""

    keep_points_min: int = 0
    keep_days_min: int = 0
