"""The [wan.NAME] tables of standby.toml: pairs of WAN accelerators, and their tenant key.

    [wan.main]
    source = "a"                      # the mover at the source site, with the role wan
    target = "b"                      # the one at the target site, which keeps the global cache
    if_away = "direct"                # disks go on without them; "wait": as for any mover
    mode = "cache"                    # "full": what resembles the newest point, too, where the
                                      # target's mover has its root; "auto": of these and packed
                                      # batches what is fastest; "direct": the pair is not used
    key = "file:/etc/standby/tenant.key"

    [jobs.nightly]
    wan = "main"

The key names content in the cache (RULES 21): only sources with the same key share it. Without
`key` the pairs of an installation have one that is made when it is first needed, beside the state
database. Backup servers that share a PostgreSQL have to be given the same one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from standby.clock import new_token
from standby.errors import ConfigurationError
from standby.files import File, is_there, rename_to_new, sync_folder
from standby.server.masking import SECRETS
from standby.server.references import read_reference
from standby.strict_toml import Table, nearest

KEY_FILE_NAME = "standby-wan.key"
KEY_BYTES = 32
IF_AWAY = ("direct", "wait")
MODES = ("auto", "cache", "full", "direct")
_KEY_HINT = "64 hexadecimal digits: `openssl rand -hex 32` makes such a key"


@dataclass(frozen=True, slots=True)
class WanConfig:
    """A pair of WAN accelerators: the movers `source` and `target`, and `key`, the reference to
    their tenant key ('': the installation's own). `if_away` is direct or wait; `mode` cache,
    full, auto, or direct, with which the pair is not used."""

    name: str
    source: str
    target: str
    key: str = ""
    if_away: str = "direct"
    mode: str = "cache"


def parse_wan(name: str, table: Table, movers: Mapping[str, bool]) -> WanConfig:
    """One table; ConfigurationError for the first thing that is wrong. `movers` says of each
    whether it is plain."""
    source, target = (_mover(table, key, movers) for key in ("source", "target"))
    if source == target:
        raise table.error(
            "target",
            f"is the source, {source}",
            "a pair has one mover at each site; without two sites there is nothing to save",
        )
    wan = WanConfig(
        name,
        source,
        target,
        table.secret("key", ""),
        table.text("if_away", "direct", choices=IF_AWAY),
        table.text("mode", "cache", choices=MODES),
    )
    table.done()
    return wan


def _mover(table: Table, key: str, movers: Mapping[str, bool]) -> str:
    name = table.text(key)
    if name not in movers:
        hint = nearest(name, list(movers)) or f"known: {', '.join(movers) or 'none'}"
        raise table.error(key, f"there is no mover named {name!r}", hint)
    if movers[name]:
        raise table.error(
            key,
            f"mover {name} is plain",
            "WAN accelerators are for two machines: they are given the tenant key, over TLS only",
        )
    return name


# --- the tenant key --------------------------------------------------------------------------


def tenant_key(wan: WanConfig, configured_in: Path, state: Path) -> str:
    """The pair's key as 64 hexadecimal digits; masked from now on. References count from the
    folder `configured_in`; `state` is the folder of the state database, where the installation's
    own key is made if it is not there. ConfigurationError for one that is none."""
    where = f"[wan.{wan.name}] key"
    if wan.key:
        return _checked(where, read_reference(wan.key, where, configured_in), wan.key)
    path = state / KEY_FILE_NAME
    if not is_there(path):
        _make(path)
    return _checked(where, read_reference(f"file:{path}", where, state), str(path))


def _checked(where: str, text: str, place: str) -> str:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigurationError(where, f"{place} holds no key of {KEY_BYTES} bytes", _KEY_HINT)
    return SECRETS.add(key.hex())


def _make(path: Path) -> None:
    """A new key, mode 600. Another process may make one at the same time: the first one counts."""
    temporary = path.with_name(f".{path.name}.{new_token(4)}.new")
    with File(temporary, create=True) as file:
        file.write(f"{new_token(KEY_BYTES)}\n".encode(), 0)
        file.sync()
    if not rename_to_new(temporary, path):
        temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
