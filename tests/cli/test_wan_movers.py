"""`standby wan …` of caches that movers have open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simulation.wan_site import DATA, MORE, WanSite
from standby.server.fleet import Fleet

STATUS = {"pair", "source", "target", "mode", "if_away", "problem", "cache"}
STATUS |= {"sending", "receiving"}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WanSite]:
    made = WanSite(tmp_path / "site", MORE)
    made.twin("vm1")
    made.run()
    monkeypatch.setattr(Fleet, "_link", lambda fleet, mover: made.link(mover))
    yield made
    made.close()


@pytest.fixture
def wan(run: Any, site: WanSite) -> Any:
    """`standby wan …` with the site's configuration."""

    def runs(verb: str, *arguments: object, **more: Any) -> Any:
        return run("wan", verb, *arguments, "--config", site.config, **more)

    return runs


def test_status_verify_clear_and_populate_of_a_mover(wan: Any, site: WanSite) -> None:
    (found,) = wan("status", "--json").json["pairs"]
    assert set(found) == STATUS
    assert found["cache"]["pieces"] == DATA // 4096
    assert found["sending"] == {"under_way": 0, "waiting": 0, "at_once": 16}
    assert "0 of 16" in wan("status").out
    alone = wan("status", "--pair", "main", "--json").json
    assert (alone["is_in_use"], alone["pieces"]) == (True, DATA // 4096)
    assert "6144 pieces" in wan("status", "--mover", "wb").out

    found = wan("verify", "--mover", "wb", "--json").json
    assert (found["is_ok"], found["pieces"], found["unnamed_pieces"]) == (True, DATA // 4096, 0)
    assert wan("verify", "--pair", "main").out.startswith("mover wb: ok, 6144 pieces")

    assert "would remove 1 segments" in wan("clear", "--pair", "main", "--dry-run").out
    assert wan("clear", "--pair", "main", "--yes", "--json").json["segments"] == 1
    replica = site.folder / "target" / "vm1_replica"
    named = wan("populate", "--pair", "main", replica, "--dry-run", "--json").json
    assert (named["cache"], len(named["disks"])) == ("mover wb", 2)
    assert "would take 2 disks" in wan("populate", "--pair", "main", replica, "--dry-run").out
    found = wan("populate", "--pair", "main", replica, "--json").json
    assert (found["disks"], found["pieces_added"], found["evicted"]) == (2, DATA // 4096, 0)
    again = wan("populate", "--mover", "wb", replica).out
    assert again.startswith("mover wb: 2 disks, 24.0 MiB read, 0 new pieces")


def test_an_accelerator_that_is_away_is_said_to_be(wan: Any, site: WanSite) -> None:
    site.away.add("wb")
    site.machines["wb"].vanish()
    (found,) = wan("status", "--json", expect=3).json["pairs"]
    assert found["cache"] is None
    assert "no route to host" in found["problem"]
    assert "no route to host" in wan("status", expect=3).out
    assert "no route to host" in wan("verify", "--pair", "main", expect=15).err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("verify",), "Name one cache"),
        (("verify", "folder", "--pair", "main"), "Name one cache"),
        (("clear", "--mover", "wb", "--pair", "main"), "Name one cache"),
        (("populate", "--pair", "main", "place", "--limit", "1G"), "mover.toml"),
        (("populate", "place"), "Missing argument"),
        (("status", "--mover", "nobody"), "no mover named 'nobody'"),
    ],
)
def test_which_cache_is_meant_must_be_clear(wan: Any, arguments: Any, said: str) -> None:
    ended = wan(*arguments, expect=None)
    assert ended.code in (2, 10)
    assert said in ended.err
