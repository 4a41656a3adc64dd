"""Independent readers, sample images, and the one place that decides what a missing one means.

On a developer's machine a missing tool skips the test that needs it. With CI=true it fails that
test: a check that silently did not run is worse than none.
"""

from __future__ import annotations

import bz2
import functools
import gzip
import hashlib
import importlib
import itertools
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, NoReturn

import pytest

_ROOT = Path(__file__).resolve().parent.parent
_CHUNK = 4 << 20
_PATIENCE_S = 240


def in_ci() -> bool:
    """True where nothing may be missing."""
    return os.environ.get("CI", "").lower() == "true"


def missing(what: str) -> NoReturn:
    """Skip the test because `what` is not here; in CI, fail it."""
    if in_ci():
        pytest.fail(f"{what} is missing, and CI=true requires it", pytrace=False)
    pytest.skip(f"{what} is missing")


def require_tool(name: str) -> Path:
    """The path of the program `name`, also looked for where only root's PATH leads."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")
    if found is None:
        missing(f"the program {name}")
    return Path(found)


def require_module(name: str) -> ModuleType:
    """The Python module `name`."""
    try:
        return importlib.import_module(name)
    except ImportError:
        missing(f"the Python module {name}")


def run(*command: str | Path, accept: Sequence[int] = (0,)) -> subprocess.CompletedProcess[str]:
    """The ended command with its output as text; another exit code than `accept` fails the test
    with that output."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    if done.returncode not in accept:
        pytest.fail(f"{words} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


# --- hashing ---------------------------------------------------------------------------------


def sha256_of(stream: BinaryIO, length: int | None = None) -> str:
    """sha256 in hex of `length` bytes (None: all) from the stream's place."""
    digest = hashlib.sha256()
    left = length
    while left is None or left > 0:
        data = stream.read(_CHUNK if left is None else min(_CHUNK, left))
        if not data:
            break
        digest.update(data)
        if left is not None:
            left -= len(data)
    assert not left, f"the stream ends {left} bytes early"
    return digest.hexdigest()


def sha256_of_file(path: Path) -> str:
    """sha256 in hex of the file's bytes."""
    with path.open("rb") as file:
        return sha256_of(file)


def sha256_of_disk(disk: Any, step: int = _CHUNK) -> str:
    """sha256 in hex of a `standby.ports.VirtualDisk`'s content."""
    digest = hashlib.sha256()
    for offset in range(0, disk.virtual_size, step):
        buffer = bytearray(min(step, disk.virtual_size - offset))
        disk.read_into(offset, buffer)
        digest.update(buffer)
    return digest.hexdigest()


# --- independent readers ---------------------------------------------------------------------
# Which one is right about what: dynamic and fixed disks of 512-byte sectors, all; differencing
# disks and 4096-byte sectors, 7z and dissect; a dirty log, qemu-img only.


def qemu_img_check(path: Path) -> None:
    """qemu-img finds nothing wrong with the disk file."""
    run(require_tool("qemu-img"), "check", path)


def qemu_img_sha256(path: Path, folder: Path, *, format: str = "vhdx") -> str:
    """sha256 of the content as qemu-img reads it, converted into a file in `folder`."""
    raw = folder / f"{path.name}.qemu-img.raw"
    run(require_tool("qemu-img"), "convert", "-f", format, "-O", "raw", path, raw)
    try:
        return sha256_of_file(raw)
    finally:
        raw.unlink()


def seven_zip_sha256(path: Path) -> str:
    """sha256 of the content as 7z reads it; parents are found by the file's own locator."""
    command = [str(require_tool("7zz")), "e", "-so", "-tvhdx", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        found = sha256_of(process.stdout)  # type: ignore[arg-type]
        problem = process.stderr.read().decode(errors="replace")
    if process.returncode:
        pytest.fail(f"7z ended with {process.returncode} on {path}:\n{problem}")
    return found


def dissect_sha256(path: Path, parent: Path | None = None) -> str:
    """sha256 of the content as dissect.hypervisor reads it; it finds the parent by the locator,
    `parent` only says that there is one. Whole blocks are read: its reads across a block's end
    are wrong."""
    vhdx = require_module("dissect.hypervisor.disk.vhdx")
    disk = vhdx.VHDX(path)
    try:
        assert (parent is None) == (disk.parent is None)
        digest = hashlib.sha256()
        for offset in range(0, disk.size, disk.block_size):
            disk.seek(offset)
            digest.update(disk.read(min(disk.block_size, disk.size - offset)))
        return digest.hexdigest()
    finally:  # it closes nothing itself
        layer = disk
        while layer is not None:
            layer.fh.close()
            layer = layer.parent


def libvhdi_sha256(path: Path, *parents: Path) -> str:
    """sha256 of the content as libvhdi reads it through `parents`, nearest first. It is wrong
    about blocks of state ZERO in a child."""
    pyvhdi = require_module("pyvhdi")
    layers = [pyvhdi.file() for _ in (path, *parents)]
    try:
        for layer, place in zip(layers, (path, *parents), strict=True):
            layer.open(str(place))
        for child, above in itertools.pairwise(layers):
            child.set_parent(above)
        return sha256_of(layers[0], layers[0].get_media_size())
    finally:
        for layer in layers:
            layer.close()


# --- sample images ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample image as the manifest describes it."""

    packed: str
    """Path of the packed file below the samples folder."""
    file_sha256: str
    content_sha256: str
    is_dirty: bool
    """Its log holds entries to replay."""

    @property
    def name(self) -> str:
        """The file's name unpacked."""
        return Path(self.packed).stem


def _find_samples() -> Path | None:
    chosen = os.environ.get("STANDBY_SAMPLES")
    folder = Path(chosen) if chosen else _ROOT.parent / "shared" / "samples" / "vhdx"
    return folder if (folder / "MANIFEST.md").is_file() else None


def samples_folder() -> Path:
    """The folder of packed samples with its MANIFEST.md: STANDBY_SAMPLES, else beside the
    project."""
    folder = _find_samples()
    if folder is None:
        missing("the folder of sample images (STANDBY_SAMPLES)")
    return folder


@functools.cache
def known_samples() -> dict[str, Sample]:
    """All samples by unpacked name, none where the folder is missing: for parametrizing, which
    happens before a test can be skipped (so have one test beside it that calls
    `samples_folder`)."""
    folder = _find_samples()
    if folder is None:
        return {}
    found = {}
    text = (folder / "MANIFEST.md").read_text(encoding="utf-8")
    for packed, body in re.findall(r"^### (\S+)\n(.*?)(?=^##)", text, re.M | re.S):
        of_file = re.search(r"sha256 of the \.vhdx: `(\w{64})`", body)
        of_content = re.search(r"sha256 of the virtual disk content: `(\w{64})`", body)
        assert of_file is not None
        assert of_content is not None
        found[Path(packed).stem] = Sample(packed, of_file[1], of_content[1], "DIRTY LOG" in body)
    row = r"^\| (handmade/\S+) \|[^|]*\| `(\w{64})` \| `(\w{64})` \|"
    for packed, of_hand_file, of_hand_content in re.findall(row, text, re.M):
        is_dirty = "dirty" in packed
        found[Path(packed).stem] = Sample(packed, of_hand_file, of_hand_content, is_dirty)
    return found


def unpack_sample(packed: str, folder: Path) -> Path:
    """The sample `packed` (its path below the samples folder) unpacked into `folder`."""
    source = samples_folder() / packed
    target = folder / source.stem
    if source.suffix == ".zip":
        with zipfile.ZipFile(source) as archive:
            (entry,) = archive.namelist()
            with archive.open(entry) as stream:
                _copy(stream, target)  # type: ignore[arg-type]
        return target
    opener: Any = {".gz": gzip.open, ".bz2": bz2.open}[source.suffix]
    with opener(source, "rb") as stream:
        _copy(stream, target)
    return target


def _copy(stream: BinaryIO, target: Path) -> None:
    with target.open("wb") as file:
        while data := stream.read(_CHUNK):
            if data.count(0) == len(data):
                file.seek(len(data), os.SEEK_CUR)
            else:
                file.write(data)
        file.truncate(file.tell())
