"""One VM's session through a pair of WAN accelerators: five machines, four hops."""

from __future__ import annotations

from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import msgspec

from road.cutting import Cutter
from road.driving import Session, content
from road.plain import WAIT_S, Machine, Server
from standby.clock import new_token
from standby.host.folder import new_machine
from standby.road.connections import BETWEEN_WANS, FROM_WAN, TO_WAN, new_ticket
from standby.road.replica import ReplicaFolder
from standby.road.service_config import WanConfig
from standby.road.wan_verbs import WanVerbs
from standby.units import MiB
from standby.wan.limits import Limits
from standby.wan.remembering import SourceMemory

KEY = bytes(range(32)).hex()
LIMITS = Limits(256 * MiB, 4 * MiB, segment_bytes=2 * MiB, keep_free_bytes=0)
DISK = 24 * MiB
WINDOW_LOG = 20


class Pair:
    """A source and a target, each beside its WAN accelerator; a cutter between the accelerators."""

    def __init__(
        self,
        folder: Path,
        cache: Path | None,
        *,
        mode: str = "digest",
        reads_replicas: bool = False,
        store_bytes: int = 32 * MiB,
    ) -> None:
        """`reads_replicas`: the target's accelerator has the replicas' root."""
        self.folder = folder
        self.cache = cache
        self.mode = mode
        self.reads_replicas = reads_replicas
        self.store_bytes = store_bytes
        self.source = Machine("src", folder / "src", ("source", "host", "repository"))
        self.target = Machine("dst", folder / "dst", ("target",))
        self.near = self._new_near()
        self.far = self._new_far()
        self.cutter = Cutter(self.far.address)
        self.servers = {m.name: Server(m) for m in (self.near, self.far)}
        self.sessions: list[WanSession] = []

    def _new_near(self) -> Machine:
        limits = WanConfig(None, LIMITS, WINDOW_LOG, self.store_bytes)
        return Machine("near", self.folder / "near", ("wan",), wan=limits)

    def _new_far(self) -> Machine:
        folder = self.folder / ("dst" if self.reads_replicas else "far")
        return Machine("far", folder, ("wan",), wan=WanConfig(self.cache, LIMITS))

    def machine(self, name: str, size: int = DISK) -> Path:
        """A VM in a folder of its own; its disk."""
        (self.folder / "src" / name).mkdir()
        new_machine(self.folder / "src" / name, name, {"scsi:0:0": size})
        return self.folder / "src" / name / name / "disk0.vhdx"

    def session(self, name: str) -> WanSession:
        """A session of that VM."""
        made = WanSession(self, name)
        self.sessions.append(made)
        return made

    def replica(self, name: str) -> bytes:
        """What the newest restore point holds."""
        folder = ReplicaFolder(self.folder / "dst" / f"{name}_replica")
        newest = folder.newest()
        assert newest is not None
        chain = folder.chain_paths(newest, folder.record().disks[0].id)
        return content(chain[0], chain[1:])

    def restart_far(self) -> None:
        """The target's accelerator ends, and begins anew."""
        self.servers["far"].close()
        self.far.close()
        self.cutter.close()
        self.far = self._new_far()
        self.cutter = Cutter(self.far.address)
        self.servers["far"] = Server(self.far)

    def restart_near(self) -> None:
        """The source's accelerator ends, and begins anew: it remembers nothing."""
        self.servers["near"].close()
        self.near.close()
        self.near = self._new_near()
        self.servers["near"] = Server(self.near)

    @property
    def memory(self) -> SourceMemory:
        """What the source's accelerator remembers."""
        (verbs,) = (role for role in self.near.mover._roles if isinstance(role, WanVerbs))
        return verbs._memory

    def close(self) -> None:
        for session in self.sessions:
            session.close()
        for server in self.servers.values():
            server.close()
        for machine in (self.source, self.target, self.near, self.far):
            machine.close()
        self.cutter.close()


class WanSession(Session):
    """Session, its disk sent by way of the accelerators."""

    def __init__(self, pair: Pair, name: str) -> None:
        super().__init__(pair.source, pair.target, source_root=f"data:{name}")
        self.compression = "none"
        self.pair = pair
        self.wan_sent: dict[str, Any] = {}
        self.wan_received: dict[str, Any] = {}
        self.key_text = KEY

    def ticket(self, task: str, direction: str, connects: Any, waits: Any, address: str) -> Any:
        """The specs of both ends of one hop."""
        generation = self.state.generation
        made = msgspec.to_builtins(
            new_ticket(
                task,
                self.key,
                self.disk_id,
                generation,
                direction,
                connects.name,
                waits.name,
            )
        )
        where = {"name": waits.name, "address": address}
        return {"accept": made}, {"connect": where, "ticket": made}

    def transfer(
        self, task: str = "", *, mark: int = 0, baseline: str = "", is_remote: bool = True
    ) -> list[Future[Any]]:
        """All four begun: target, its accelerator, the source's, source."""
        pair = self.pair
        task = task or f"vm scsi:0:0 {new_token(4)}"
        near, far, target = pair.near, pair.far, pair.target
        at_near, at_source = self.ticket(task, TO_WAN, pair.source, near, near.address)
        at_far, from_near = self.ticket(task, BETWEEN_WANS, near, far, pair.cutter.address)
        at_target, from_far = self.ticket(task, FROM_WAN, far, target, target.address)
        given: dict[str, Any] = {
            "task": task,
            "session": self.session,
            "replica": self.key,
            "disk_id": self.disk_id,
            "virtual_size": self.checkpoint.disks[0].virtual_size,
            "key": self.key_text,
        }
        return [
            self.receive(task, at_target),
            pair.servers["far"].start(
                "wan_receive",
                **given,
                incoming=at_far,
                outgoing=from_far,
                path=self.path if pair.reads_replicas else "",
            ),
            pair.servers["near"].start(
                "wan_send", **given, mode=pair.mode, incoming=at_near, outgoing=from_near
            ),
            self.send(task, at_source, "data:repository", mark, baseline),
        ]

    def results(self, futures: list[Future[Any]]) -> None:
        super().results(futures)
        self.wan_received, self.wan_sent = futures[1].result(), futures[2].result()

    def begin_all(self, *, mark: int = 0, baseline: str = "") -> list[Future[Any]]:
        """Everything up to the transfer, and that begun."""
        self.prepare()
        self.take_checkpoint()
        self.begin()
        return self.transfer(mark=mark, baseline=baseline)

    def end_all(self) -> None:
        """What comes after the transfer."""
        self.release()
        self.commit()
        self.target.call("close_replica", path=self.path)


def errors(futures: list[Future[Any]]) -> list[BaseException | None]:
    """What each of the four ended with; all must end."""
    _, late = wait(futures, WAIT_S)
    assert not late, "a task hangs"
    return [future.exception() for future in futures]
