"""From nothing to a configuration that is sound, each step saying the next."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from standby.host.folder import new_machine
from standby.server.config import load_config
from standby.units import MiB


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_init_then_edit_then_check_then_plan(run, here: Path, with_thread_movers: None) -> None:
    assert run("init").out == (
        "wrote standby.toml\nnext: edit the paths in standby.toml, then run `standby check`\n"
    )
    first = run("check", expect=10)
    assert "vms does not exist" in first.out
    assert first.out.endswith("next: edit standby.toml, then run `standby check` again\n")

    text = Path("standby.toml").read_text()
    Path("standby.toml").write_text(re.sub(r'path = "vms"', 'path = "machines"', text))
    Path("machines").mkdir()
    second = run("check", expect=3)
    assert "matches none of the 0 VMs of host production" in second.out

    new_machine(here / "machines", "web01", disks={"scsi:0:0": 4 * MiB})
    third = run("check")
    assert third.out == (
        "standby.toml: everything is as it should be\n"
        "next: `standby job plan nightly` says what a session would do\n"
    )
    assert "web01: replicate" in run("job", "plan", "nightly").out


def test_init_takes_paths_and_names_the_file_in_the_next_step(run, tmp_path: Path) -> None:
    folder = tmp_path / "etc" / "standby"
    ended = run("init", folder, "--source", "/srv/vms", "--target", "/mnt/dr", "--json")
    path = folder / "standby.toml"
    assert ended.json["path"] == str(path)
    assert ended.json["next"][1] == f"standby check --config {path}"
    config = load_config(path)
    assert config.hosts["production"].path == Path("/srv/vms")
    assert config.hosts["recovery"].path == Path("/mnt/dr")
    assert config.installation == ended.json["installation"]


def test_init_never_overwrites_unasked(run, here: Path) -> None:
    Path("standby.toml").write_text("mine")
    assert "--force" in run("init", expect=10).err
    assert Path("standby.toml").read_text() == "mine"
    run("init", "--force", "--installation", "site-a")
    assert load_config(here / "standby.toml").installation == "site-a"


def test_init_refuses_a_name_that_the_file_would_refuse(run, here: Path) -> None:
    assert "--installation" in run("init", "--installation", "a b", expect=2).err
    assert not Path("standby.toml").exists()


def test_check_as_json(run, site) -> None:
    ended = run("check", "--config", site.config, "--json")
    assert ended.json == {
        "findings": [],
        "errors": 0,
        "next": f"`standby job plan job --config {site.config}` says what a session would do",
    }
    site.config.write_text(site.config.read_text().replace('"repository"', '"source/inside"'))
    ended = run("check", "--config", site.config, "--json", expect=10)
    assert ended.json["errors"] == 1
    assert set(ended.json["findings"][0]) == {"level", "where", "problem", "hint"}


def test_check_shows_a_vm_that_cannot_be_read(run, site) -> None:
    toml = site.folder / "source" / "vm1" / "vm.toml"
    toml.write_text(toml.read_text() + "\nmemroy = 1\n")
    ended = run("check", "--config", site.config, expect=10)
    assert "unknown key" in ended.out


def test_version(run) -> None:
    from standby import __version__

    assert run("version").out == f"standby {__version__}\n"
    assert run("--version").out == f"standby {__version__}\n"
    assert "kernel " in run("version", "--verbose").out
    assert json.loads(run("version", "--json").out)["standby"] == __version__
