"""The one door to the file system: positioned I/O, durability, holes, locks, clones.

Every system call that Windows lacks is here beside its Windows branch. Foreign `OSError`s become
`DiskIO` or `DiskFull` at this door. Tests wrap or replace `File` to record writes and syncs, to
tear them, and to inject errors.

`positioned` has `File`; `durability` what survives a power cut; `giving_back` removes large files;
`storage` is room, clones and the cache below; `mounts` how a share is mounted; `locks` byte locks;
`listing` what lies in a folder; `confinement` the walk that keeps a mover below its folders.
"""

from __future__ import annotations

from standby.files.confinement import (
    check_confined,
    check_links,
    confine,
    open_confined,
    plain_absolute,
)
from standby.files.copying import copy_range
from standby.files.durability import (
    make_folder_durably,
    make_folder_plainly,
    remove_durably,
    remove_plainly,
    rename_durably,
    rename_to_new,
    replaced_durably,
    sync_folder,
    write_durably,
    write_plainly,
)
from standby.files.giving_back import remove_large
from standby.files.listing import is_file, is_folder, is_taken, is_there, listed
from standby.files.locks import (
    ByteLock,
    is_byte_locked,
    is_range_locked,
)
from standby.files.mounts import mount_findings
from standby.files.positioned import (
    WRITE_SIZE,
    BlockFile,
    Buffer,
    File,
)
from standby.files.storage import (
    clone,
    drop_cached,
    free_bytes,
    start_writeback,
)

__all__ = [
    "WRITE_SIZE",
    "BlockFile",
    "Buffer",
    "ByteLock",
    "File",
    "check_confined",
    "check_links",
    "clone",
    "confine",
    "copy_range",
    "drop_cached",
    "free_bytes",
    "is_byte_locked",
    "is_file",
    "is_folder",
    "is_range_locked",
    "is_taken",
    "is_there",
    "listed",
    "make_folder_durably",
    "make_folder_plainly",
    "mount_findings",
    "open_confined",
    "plain_absolute",
    "remove_durably",
    "remove_large",
    "remove_plainly",
    "rename_durably",
    "rename_to_new",
    "replaced_durably",
    "start_writeback",
    "sync_folder",
    "write_durably",
    "write_plainly",
]
