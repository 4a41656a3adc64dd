"""Seeds that a job counts on and that are not at the target: for `check` and `job plan`."""

from __future__ import annotations

from collections.abc import Mapping

from standby.errors import ConfigurationError
from standby.files import is_folder
from standby.road.replica import ReplicaFolder
from standby.road.seeding import seed_of
from standby.road.surveying import partials


def missing_seed(folder: ReplicaFolder, seeds: Mapping[str, str]) -> str:
    """What a session would say of the first disk without a seed, '' where each has one. `seeds`:
    by disk id, the name of the source's disk file. A disk that is on its way needs none. DiskIO
    where the folder cannot be looked into."""
    begun = {item.disk_id for item in partials(folder)} if is_folder(folder.path) else set()
    for disk_id, name in seeds.items():
        if disk_id not in begun:
            try:
                seed_of(folder, disk_id, name)
            except ConfigurationError as exc:
                return str(exc)
    return ""
