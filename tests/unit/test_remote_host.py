"""What goes wrong on the way to a remote host names the host and its mover."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulation.installed import free_port
from standby.errors import LinkError, MoverAway, MoverDied, PeerBusy
from standby.server.checking import checked_alone
from standby.server.config import load_config
from standby.server.fleet import Station
from standby.server.remote_host import RemoteHost

TOML = """
[standby]
installation = "test"
[movers.hv1]
address = "127.0.0.1:{port}"
plain = true
[hosts.prod]
kind = "folder"
path = "/srv/vms"
mover = "hv1"
[hosts.dr]
kind = "folder"
path = "/srv/replicas"
mover = "hv1"
[repositories.main]
path = "/srv/repository"
mover = "hv1"
[jobs.nightly]
source = "prod"
target = "dr"
machines = ["*"]
"""


class Failing:
    """A fleet whose one mover meets an error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def mover(self, name: str) -> Failing:
        return self

    def place(self, station: Station) -> str:
        return "vms:"

    def call(self, verb: str, **arguments: object) -> object:
        raise self.error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MoverAway("hv1", "refused"), r"^mover hv1 of host prod cannot be reached: refused;"),
        (MoverDied("hv1", "exit status 1"), r"mover hv1 of host prod died \(exit status 1\)"),
        (LinkError("hv1", "cut"), "mover hv1 of host prod: cut"),
        (PeerBusy("hv1", "too many calls"), "mover hv1 of host prod: too many calls"),
    ],
)
def test_errors_name_host_and_mover_and_keep_their_class(error: Exception, text: str) -> None:
    host = RemoteHost("prod", Failing(error), Station("hv1", "/srv/vms"))  # type: ignore[arg-type]
    with pytest.raises(type(error), match=text):
        host.machines()


def test_a_check_tells_of_a_mover_that_is_away_and_does_not_wait(tmp_path: Path) -> None:
    (tmp_path / "standby.toml").write_text(TOML.format(port=free_port()))
    config = load_config(tmp_path)
    about = {item.where: item.problem for item in checked_alone(config)}
    assert list(about) == ["[movers.hv1]"], about
    assert "mover hv1 cannot be reached" in about["[movers.hv1]"]


def test_a_check_before_there_is_an_authority_says_how_to_make_it(tmp_path: Path) -> None:
    text = TOML.format(port=free_port()).replace("plain = true\n", "")
    (tmp_path / "standby.toml").write_text(text)
    (finding,) = checked_alone(load_config(tmp_path))
    assert finding.where == "[server] identity"
    assert "`standby ca init`" in finding.problem
    assert "enroll" not in finding.problem + finding.hint
