"""One VM's session over service movers, step by step, as the backup server drives it."""

from __future__ import annotations

from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from road.plain import WAIT_S, Server
from standby.clock import SYSTEM_CLOCK, Clock, new_token
from standby.disk import open_disk
from standby.errors import LinkError
from standby.model.machine import Checkpoint
from standby.model.machine import Machine as Vm
from standby.model.replica import ReplicaIdentity
from standby.road.connections import TO_REPOSITORY, TO_TARGET, new_ticket
from standby.road.naming import new_point_id
from standby.road.points import TargetState, match_disks
from standby.units import MiB

KEY = "test/prod/{machine}/job"


class Session:
    """Drives one disk of one VM from `source` to `target`, with the repository at `keeper`."""

    def __init__(
        self,
        source: Any,
        target: Any,
        keeper: Any = None,
        *,
        clock: Clock = SYSTEM_CLOCK,
        session: str = "",
        server: str = "server",
        source_root: str = "data:",
        target_root: str = "data:",
    ) -> None:
        self.compression = "fast"
        self.source_root = source_root
        self.target_root = target_root
        self.machines = source, target, keeper or source
        self.clock = clock
        self.session = session or f"session-{new_token(4)}"
        self.source = Server(source, server)
        self.target = Server(target, server)
        self.keeper = Server(self.machines[2], server) if keeper else self.source
        self.vm: Vm
        self.state: TargetState
        self.checkpoint: Checkpoint
        self.path = ""
        self.point = ""
        self.disk_id = ""
        self.sent: dict[str, Any] = {}
        self.received: dict[str, Any] = {}

    def close(self) -> None:
        for server in {self.source, self.target, self.keeper}:
            server.close()

    @property
    def key(self) -> str:
        return KEY.format(machine=self.vm.id)

    # --- steps -----------------------------------------------------------------------------------

    def prepare(self, *, take_over: bool = False) -> None:
        found = self.source.call("host_machines", root=self.source_root, host="prod")
        self.vm = msgspec.convert(found[0], Vm)
        identity = ReplicaIdentity("test", "prod", self.vm.id, "job")
        opened = self.target.call(
            "open_replica",
            root=self.target_root,
            identity=msgspec.to_builtins(identity),
            wanted=f"{self.vm.name}_replica",
            session=self.session,
            take_over=take_over,
            must_exist=False,
            expected=self.target_root,
        )
        self.path = opened["path"]
        self.state = msgspec.convert(opened["state"], TargetState)
        matches = match_disks("r", self.state.known_disks, self.vm.disks)
        self.target.call("register_disks", path=self.path, disks=msgspec.to_builtins(matches.known))
        self.disk_id = matches.matched[self.vm.disks[0].place].id
        waiting = [p.point_id for p in self.state.partials if p.point_id > self.state.newest]
        self.point = max(waiting) if waiting else new_point_id(self.clock, self.state.newest)

    def take_checkpoint(self) -> None:
        taken = self.source.call(
            "host_take_checkpoint",
            root=self.source_root,
            host="prod",
            machine=msgspec.to_builtins(self.vm),
            intent_id=new_token(4),
        )
        self.checkpoint = msgspec.convert(taken, Checkpoint)

    def release(self) -> None:
        given = msgspec.to_builtins(self.checkpoint)
        for verb in ("host_confirm_checkpoint", "host_release_checkpoint"):
            self.source.call(verb, root=self.source_root, host="prod", checkpoint=given)

    def begin(self) -> dict[str, Any]:
        disk = self.checkpoint.disks[0]
        return self.target.call(
            "begin_disk",
            path=self.path,
            disk_id=self.disk_id,
            point=self.point,
            checkpoint=self.checkpoint.id,
            virtual_size=disk.virtual_size,
            logical_sector_size=disk.logical_sector_size,
            physical_sector_size=disk.physical_sector_size,
            page83=disk.page83,
            has_parent=bool(self.state.newest),
            copy=False,
            seed=False,
            seed_name="",
        )

    def tickets(self, task: str, direction: str = TO_TARGET, **changes: Any) -> tuple[Any, Any]:
        """The specs of the end that waits, and of the one that connects."""
        target = self.machines[1 if direction == TO_TARGET else 2]
        ticket = msgspec.to_builtins(
            new_ticket(
                task,
                self.key,
                self.disk_id,
                self.state.generation if direction == TO_TARGET else 0,
                direction,
                self.machines[0].name,
                target.name,
                clock=self.clock,
            )
        )
        ticket |= changes
        where = {"name": target.name, "address": target.address}
        return {"accept": ticket}, {"connect": where, "ticket": ticket}

    def transfer(
        self, task: str = "", *, mark: int = 0, baseline: str = "", is_remote: bool = True
    ) -> list[Future[Any]]:
        """Both ends (and the repository's) begun; their futures."""
        task = task or f"vm scsi:0:0 {new_token(4)}"
        at_target, at_source = self.tickets(task)
        futures = [self.receive(task, at_target)]
        repository: Any = "data:repository"
        if is_remote and self.keeper is not self.source:
            at_keeper, repository = self.tickets(task, TO_REPOSITORY)
            futures.append(self.serve_leaves(task, at_keeper))
        futures.append(self.send(task, at_source, repository, mark, baseline))
        return futures

    def receive(self, task: str, connection: Any) -> Future[Any]:
        return self.target.start(
            "receive_disk",
            path=self.path,
            disk_id=self.disk_id,
            task=task,
            connection=connection,
            verify_writes="cache",
        )

    def serve_leaves(self, task: str, connection: Any) -> Future[Any]:
        return self.keeper.start(
            "serve_leaves",
            task=task,
            connection=connection,
            repository="data:repository",
            replica=self.key,
            disk_id=self.disk_id,
            session=self.session,
            point_id=self.point,
            virtual_size=self.checkpoint.disks[0].virtual_size,
            builds_on_repository=self.builds_on_repository,
        )

    @property
    def builds_on_repository(self) -> bool:
        return bool(self.state.newest)

    def send(
        self, task: str, connection: Any, repository: Any, mark: int = 0, baseline: str = ""
    ) -> Future[Any]:
        disk = self.checkpoint.disks[0]
        baseline = baseline or ("repository" if self.builds_on_repository else "none")
        return self.source.start(
            "send_disk",
            task=task,
            connection=connection,
            disk={"root": self.source_root, "files": list(disk.files)},
            repository=repository,
            replica=self.key,
            disk_id=self.disk_id,
            session=self.session,
            point_id=self.point,
            checkpoint_id=self.checkpoint.id,
            baseline=baseline,
            builds_on_repository=self.builds_on_repository,
            candidates=None,
            resume_mark=mark,
            compression=self.compression,
            virtual_size=disk.virtual_size,
        )

    def results(self, futures: list[Future[Any]]) -> None:
        _, late = wait(futures, WAIT_S)
        assert not late, "a task hangs"
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:  # a broken link is what one end sees of the other's trouble
            raise min(errors, key=lambda error: isinstance(error, LinkError))
        self.received, self.sent = futures[0].result(), futures[-1].result()
        assert self.sent["root"] == self.received["root"]

    def commit(self) -> None:
        disk = self.vm.disks[0]
        self.target.call(
            "commit_point",
            path=self.path,
            point=self.point,
            taken_at=self.checkpoint.taken_at,
            consistency="offline",
            session=self.session,
            machine=msgspec.to_builtins(self.vm),
            disks=[
                {
                    "disk_id": self.disk_id,
                    "place": disk.place,
                    "excluded": False,
                    "root": self.sent["root"],
                    "tracker_id": "",
                    "identity": self.checkpoint.disks[0].identity,
                }
            ],
            state_files={},
            changed_bytes=self.sent["changed"],
        )
        self.keeper.call(
            "repository_commit",
            repository="data:repository",
            replica=self.key,
            point_id=self.point,
            disks={self.disk_id: self.sent["root"]},
        )
        ready = self.target.call("renew_ready", path=self.path)
        self.target.call(
            "keep_replica_machine",
            path=self.path,
            machine=msgspec.to_builtins(self.vm),
            ready=ready,
        )

    def run(self) -> str:
        """A whole session; the point."""
        self.prepare()
        self.take_checkpoint()
        self.begin()
        self.results(self.transfer())
        self.release()
        self.commit()
        self.target.call("close_replica", path=self.path)
        return self.point


def write(disk: Path, offset: int, length: int, seed: int = 1) -> None:
    """The guest writes."""
    opened = open_disk(disk, writable=True)
    data = np.random.default_rng(seed + offset).integers(0, 256, length, np.uint8)
    opened.write(offset, data.tobytes())
    opened.close()


def content(path: Path, parents: tuple[Path, ...] = ()) -> bytes:
    """All a disk holds."""
    disk = open_disk(path, parents=list(parents) or None)
    data = bytearray(disk.virtual_size)
    for start in range(0, disk.virtual_size, 4 * MiB):
        view = memoryview(data)[start : start + 4 * MiB]
        disk.read_into(start, view)
    disk.close()
    return bytes(data)
