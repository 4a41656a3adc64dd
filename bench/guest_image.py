"""Builds the guest of the tests: a Debian kernel and an initramfs with busybox, nothing else.

    python bench/guest_image.py FOLDER

downloads two Debian packages with `apt-get download` (no root needed, nothing is installed) and
leaves FOLDER/vmlinuz and FOLDER/initrd; what is there already is not built again. The guest reads
the kernel command line:

    standby.mode=marker   print "MARKER: <text>", the text at byte 1 MiB of /dev/sda; power off
    standby.mode=write    write records of 4 KiB from byte 2 MiB of /dev/sda on, every other one
    standby.records=N     synced, before "WROTE <n>" is printed; power off after N
    standby.mode=wait     print "WAITING", power off when the power button is pressed
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

KERNEL_PACKAGE = "linux-image-cloud-amd64"
SHELL_PACKAGE = "busybox-static"
MODULES = ("virtio_pci", "virtio_scsi", "sd_mod", "ahci", "button", "evdev")
"""What the guest loads, with whatever they need; one that the kernel lacks is left out."""
MARKER_OFFSET = 1 << 20
RECORDS_OFFSET = 2 << 20
RECORD = 4096

INIT = """\
#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
for module in /modules/*; do $b insmod $module; done
mode=marker
records=1
for word in $($b cat /proc/cmdline); do
    case $word in
        standby.mode=*) mode=${word#standby.mode=} ;;
        standby.records=*) records=${word#standby.records=} ;;
    esac
done
tries=0
while [ ! -b /dev/sda ] && [ $tries -lt 100 ]; do $b usleep 100000; tries=$((tries + 1)); done
case $mode in
    marker)
        text=$($b dd if=/dev/sda bs=4096 skip=256 count=1 2>/dev/null | $b tr -d '\\000')
        echo "MARKER: $text" ;;
    write)
        number=0
        while [ $number -lt $records ]; do
            [ $((number % 2)) = 0 ] && how=sync,notrunc || how=sync,notrunc,fsync
            printf 'record %d\\n' $number | $b dd of=/dev/sda bs=4096 seek=$((512 + number)) \\
                conv=$how 2>/dev/null && echo "WROTE $number" || echo "FAILED $number"
            number=$((number + 1))
        done
        echo "DONE" ;;
    wait)
        for events in /dev/input/event*; do
            { $b dd if=$events bs=24 count=1 >/dev/null 2>&1 && $b poweroff -f; } &
        done
        $b usleep 500000
        echo "WAITING"
        wait ;;
esac
$b poweroff -f
"""


def build(folder: Path) -> tuple[Path, Path]:
    """(kernel, initramfs) in `folder`, made anew unless this very recipe made those there."""
    kernel, initrd, stamp = folder / "vmlinuz", folder / "initrd", folder / "recipe"
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == recipe:
        return kernel, initrd
    folder.mkdir(parents=True, exist_ok=True)
    found = dict(_members(_downloaded(_kernel_package(), folder), _is_kernel_file))
    image = next(data for path, data in found.items() if "/vmlinuz-" in path)
    modules = {Path(path).stem: data for path, data in found.items() if path.endswith(".ko")}
    shell = dict(_members(_downloaded(SHELL_PACKAGE, folder), _is_shell))
    entries: dict[str, bytes | None] = dict.fromkeys(("dev", "proc", "bin", "modules"))
    entries |= {"init": INIT.encode(), "bin/busybox": next(iter(shell.values()))}
    for number, module in enumerate(_in_order(modules)):
        entries[f"modules/{number:02}-{module}.ko"] = modules[module]
    archive = gzip.compress(_cpio(entries), mtime=0)
    for path, data in ((kernel, image), (initrd, archive), (stamp, recipe.encode())):
        new = folder / f"{path.name}.{os.getpid()}.new"
        new.write_bytes(data)
        new.replace(path)
    return kernel, initrd


def _is_shell(path: str) -> bool:
    return path.endswith("/bin/busybox")


def _is_kernel_file(path: str) -> bool:
    return "/boot/vmlinuz-" in path or path.endswith(".ko")


def _run(*command: str, folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _kernel_package() -> str:
    """The package that the meta-package stands for."""
    for line in _run("apt-cache", "depends", KERNEL_PACKAGE, folder=Path.cwd()).splitlines():
        word, _, name = line.strip().partition(": ")
        if word == "Depends" and name.startswith("linux-image-"):
            return name
    sys.exit(f"{KERNEL_PACKAGE} is not known to apt; run apt-get update")


def _downloaded(package: str, folder: Path) -> Path:
    """The package's file, kept in `folder`."""
    if not any(folder.glob(f"{package}_*.deb")):
        with tempfile.TemporaryDirectory(dir=folder) as work:
            _run("apt-get", "download", "-q", package, folder=Path(work))
            (found,) = Path(work).glob(f"{package}_*.deb")
            found.replace(folder / found.name)
    return next(folder.glob(f"{package}_*.deb"))


def _members(package: Path, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE
    ) as unpacking:
        with tarfile.open(fileobj=unpacking.stdout, mode="r|") as archive:
            for member in archive:
                if member.isfile() and is_wanted(member.name):
                    file = archive.extractfile(member)
                    assert file is not None
                    yield member.name, file.read()


def _in_order(modules: dict[str, bytes]) -> list[str]:
    """Names of MODULES and what they need, what is needed first."""
    ordered: list[str] = []

    def add(name: str) -> None:
        if name in ordered or name not in modules:
            return
        start = modules[name].find(b"\0depends=") + len(b"\0depends=")
        needed = modules[name][start : modules[name].index(b"\0", start)].decode()
        for other in filter(None, needed.split(",")):
            add(other if other in modules else other.replace("_", "-"))
        ordered.append(name)

    for name in MODULES:
        add(name)
    return ordered


def _cpio(entries: dict[str, bytes | None]) -> bytes:
    """A "newc" archive (Documentation/driver-api/early-userspace/buffer-format.rst of Linux);
    None makes a folder. /dev/console is added, for the shell's output."""
    archive = bytearray()

    def put(number: int, name: str, mode: int, data: bytes, device: tuple[int, int]) -> None:
        encoded = name.encode() + b"\0"
        numbers = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
        archive.extend(b"070701" + b"".join(b"%08X" % value for value in numbers) + encoded)
        archive.extend(bytes(-len(archive) % 4) + data)
        archive.extend(bytes(-len(archive) % 4))

    number = 1
    for name, data in entries.items():
        put(number, name, 0o040755 if data is None else 0o100755, data or b"", (0, 0))
        number += 1
    put(number, "dev/console", 0o020600, b"", (5, 1))
    put(number + 1, "TRAILER!!!", 0, b"", (0, 0))
    return bytes(archive)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    for path in build(parser.parse_args().folder.absolute()):
        print(f"{path}  {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
