"""Disk files of a Hyper-V host for its self-test, through what this machine sees of its folders."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from standby.disk import vhdx
from standby.disk.chain import open_chain
from standby.disk.merge import merge_payload
from standby.errors import ConfigurationError
from standby.files import sync_folder
from standby.host.seen_paths import mapped_path


class LocalDisks:
    """`selftest_walk.SeenDisks` on this machine. `paths` maps folders of the host to its own."""

    def __init__(self, paths: Mapping[str, str], seen_by: str) -> None:
        self._paths = paths
        self.seen_by = seen_by

    def _path(self, path: str) -> Path:
        seen = mapped_path(path, self._paths)
        if seen is None:
            raise ConfigurationError(path, "no path of this machine's proxy leads there")
        return Path(seen)

    def is_folder(self, path: str) -> bool:
        """Whether the folder is there."""
        return self._path(path).is_dir()

    def make(self, path: str, size: int, sectors: Mapping[int, bytes]) -> str:
        """A dynamic disk with these bytes at these offsets; its page-83 id, lower case."""
        with vhdx.create(self._path(path), size, sparse=False) as disk:
            for offset, data in sectors.items():
                disk.write(offset, data)
            return str(disk.info.page83).strip("{}").lower()

    def child(self, path: str, parent: str, sectors: Mapping[int, bytes]) -> None:
        """A differencing disk over `parent` with these bytes of its own."""
        below = self._path(parent)
        with vhdx.create_child(
            self._path(path), below, parent_path_on_host=parent, sparse=False
        ) as disk:
            for offset, data in sectors.items():
                disk.write(offset, data)

    def write(self, path: str, sectors: Mapping[int, bytes]) -> None:
        """Put these bytes into a disk that is there."""
        with open_chain(self._path(path), writable=True, sparse=False) as disk:
            for offset, data in sectors.items():
                disk.write(offset, data)

    def merge(self, base: str, child: str, above: str) -> None:
        """Put `child` into `base`, which `above` then stands on, in the order of RULES 15; `child`
        goes."""
        low, middle, top = self._path(base), self._path(child), self._path(above)
        old = vhdx.read_info(low).data_write_guid
        with (
            vhdx.open_vhdx(low, writable=True, keep_data_write_guid=True, sparse=False) as under,
            vhdx.open_vhdx(middle) as merged,
        ):
            merge_payload(merged, under)
            new = merged.data_write_guid
        self._relink(top, new, low, base, old)
        with vhdx.open_vhdx(low, writable=True, keep_data_write_guid=True, sparse=False) as under:
            under.set_data_write_guid(new)
        self._relink(top, new, low, base, None)
        middle.unlink()

    def _relink(self, top: Path, guid: str, low: Path, base: str, also: str | None) -> None:
        relative = os.path.relpath(low, top.parent).replace("/", "\\")
        with vhdx.open_vhdx(top, writable=True, keep_data_write_guid=True, sparse=False) as disk:
            disk.set_parent_locator(guid, f".\\{relative}", base, also)

    def rename(self, path: str, over: str) -> None:
        """One file over another, at once."""
        new = self._path(over)
        self._path(path).replace(new)
        sync_folder(new.parent)

    def content(self, path: str) -> bytes:
        """All that a disk shows, with its chain."""
        with open_chain(self._path(path)) as disk:
            data = bytearray(disk.virtual_size)
            disk.read_into(0, data)
        return bytes(data)
