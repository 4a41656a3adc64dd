"""What the scripts of the self-test answer; they are used by nothing else."""

from __future__ import annotations

import msgspec

from standby.host.hyperv.verbs import Verb


class Texts(msgspec.Struct, frozen=True):
    """selftest_echo.ps1, selftest_errors.ps1."""

    texts: list[str] = []


class Names(msgspec.Struct, frozen=True):
    """Scripts about folders and files: the paths that are there now."""

    names: list[str] = []


class Size(msgspec.Struct, frozen=True):
    """selftest_share_files.ps1: bytes of a file that could be opened."""

    size: int


ECHO: Verb[Texts] = Verb("selftest_echo", Texts, is_repeatable=True)
ERRORS: Verb[Texts] = Verb("selftest_errors", Texts, is_repeatable=True)
MAKE_FOLDERS: Verb[Names] = Verb("selftest_make_folders", Names, is_repeatable=True)
LIST_FOLDERS: Verb[Names] = Verb("selftest_list_folders", Names, is_repeatable=True)
REMOVE_FOLDERS: Verb[Names] = Verb("selftest_remove_folders", Names, is_repeatable=True)
NEW_DISKS: Verb[Names] = Verb("selftest_new_disks", Names, deadline_s=600)
SHARE_FILES: Verb[Size] = Verb("selftest_share_files", Size, is_repeatable=True)
