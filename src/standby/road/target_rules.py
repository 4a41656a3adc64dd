"""The target's own rules, from the file that stands on the target (RULES 17)."""

from __future__ import annotations

from pathlib import Path

from standby.files import is_taken
from standby.model.target_rules import TargetRules
from standby.strict_toml import read_toml

FILE_NAME = "standby-target.toml"


def load_target_rules(folder: Path, also: TargetRules = TargetRules()) -> TargetRules:  # noqa: B008
    """The rules in `<folder>/standby-target.toml`, `folder` being the target host's, and those of
    `also` (a service mover's own) where they are stricter; `also` alone where there is no such
    file. ConfigurationError when it is there but cannot be read or says something unknown, DiskIO
    where the system does not say whether it is there: nothing may be removed on a guess."""
    path = folder / FILE_NAME
    if not is_taken(path):
        return also
    table = read_toml(path)
    rules = TargetRules(
        keep_points_min=table.integer("keep_points_min", 0, maximum=1000),
        keep_days_min=table.integer("keep_days_min", 0, maximum=36500),
    )
    table.done()
    return TargetRules(
        max(rules.keep_points_min, also.keep_points_min),
        max(rules.keep_days_min, also.keep_days_min),
    )
