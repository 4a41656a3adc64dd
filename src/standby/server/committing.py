"""After a VM's transfer: the point committed on both sides, older points retired."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import msgspec

from standby import killpoints
from standby.errors import (
    DiskError,
    LinkError,
    MoverDied,
    RepositoryError,
)
from standby.model.machine import Checkpoint
from standby.model.replica import (
    ReplicaState,
)
from standby.server.crew import RepositoryView
from standby.server.machine_work import MachineWork
from standby.server.plan import DiskPlan, Mode
from standby.server.retention import (
    changed_share,
    held_text,
    is_change_worth_an_alarm,
    is_changed_share_unusual,
)
from standby.server.store import CHANGED_SHARE


class Committing(MachineWork):
    """Commit and retention."""

    # --- commit ------------------------------------------------------------------------------

    def _commit(
        self,
        checkpoint: Checkpoint,
        plans: dict[str, DiskPlan],
        point: str,
        roots: dict[str, str],
        trackers: dict[str, str],
    ) -> None:
        identities = {disk.place: disk.identity for disk in checkpoint.disks}
        self.crew.target.call(
            "commit_point",
            path=self._path,
            point=point,
            taken_at=checkpoint.taken_at,
            consistency=checkpoint.consistency,
            session=self.context.session,
            machine=msgspec.to_builtins(self.machine),
            disks=[
                {
                    "disk_id": plan.disk_id,
                    "place": plan.place,
                    "excluded": plan.mode is Mode.EXCLUDED,
                    "root": roots.get(plan.disk_id, ""),
                    "tracker_id": trackers.get(plan.place, ""),
                    "identity": identities[plan.place],
                }
                for plan in plans.values()
            ],
            state_files=self._state_files or {},
            changed_bytes=sum(disk.changed for disk in self.report.disks),
        )

    def _commit_repository(
        self, repository: RepositoryView, point: str, roots: dict[str, str]
    ) -> None:
        """The point exists already: trouble here costs time next session, nothing else."""
        digests = {disk: bytes.fromhex(root) for disk, root in roots.items()}
        try:
            repository.commit(self.key, point, digests)
        except (RepositoryError, DiskError) as exc:
            self.report.warnings.append(f"{exc}; the next session compares with the target")
            with contextlib.suppress(RepositoryError, DiskError, LinkError, MoverDied):
                repository.discard(self.key)
        except (LinkError, MoverDied) as exc:
            self.report.warnings.append(f"repository: {exc}; the next session compares with it")
        killpoints.reach("repository commit")

    @contextlib.contextmanager
    def _left_to_the_next(self) -> Iterator[None]:
        """What a mover that is away keeps from being done is a warning: the next session does
        it."""
        try:
            yield
        except (LinkError, MoverDied) as exc:
            self.report.warnings.append(f"left to the next session: {exc}")

    # --- retention ---------------------------------------------------------------------------

    def _retain(self, repository: RepositoryView) -> None:
        """Merge away what is over the job's count, unless this session looks like ransomware."""
        context = self.context
        share = changed_share(self.report)
        history = context.store.changed_share_history(self.report.replica, 10)
        is_held = context.store.holds_retention(self._identity)
        is_unusual = share is not None and is_changed_share_unusual(history, share)
        if is_unusual and is_change_worth_an_alarm(self.report):
            text = (
                f"{share:.1%} of the disks changed, far more than usual; retention is held until "
                f"`standby job acknowledge {context.job.name}`"
            )
            self._alarm(CHANGED_SHARE, text)
            is_held = True
        elif is_held:
            self.report.warnings.append(held_text(context.job.name))
        points: list[str] = self.crew.target.call("points", path=self._path)
        if not is_held:
            # What retention may leave is written down first: after a kill in the middle of it
            # fewer points are no loss.
            keep = context.job.restore_points
            self._remember(ReplicaState.READY, points, min(len(points), keep))
            kept = self.crew.target.call("retire_points", path=self._path, keep=keep)
            points = kept["points"]
            self.report.warnings.extend(kept["warnings"])
            with contextlib.suppress(RepositoryError, DiskError, LinkError, MoverDied):
                repository.drop_points(self.key, set(points))
        self._remember(ReplicaState.READY, points)
