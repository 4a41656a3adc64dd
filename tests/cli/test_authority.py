"""`standby ca` and `standby mover enroll`: from nothing to a member, and out again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.conftest import Run
from cli.processes import started
from standby.cli import cli
from standby.wire.authority import Authority
from standby.wire.enrolment import EnrolmentServer
from standby.wire.identity import IdentityFolder


@pytest.fixture
def folder(run, tmp_path: Path) -> Path:
    run("ca", "init", "--authority", tmp_path / "ca", "--installation", "site")
    return tmp_path


def enrolled(run, folder: Path, name: str = "px1") -> IdentityFolder:
    token = run("ca", "token", name, "--role", "source", "--authority", folder / "ca").out.strip()
    authority = Authority(folder / "ca")
    with EnrolmentServer("127.0.0.1:0", authority, IdentityFolder(folder / "identity")) as server:
        run("mover", "enroll", "--server", server.address, "--token", token,
            "--identity", folder / name)  # fmt: skip
    return IdentityFolder(folder / name)


def test_init_makes_the_authority_and_the_servers_identity(folder: Path) -> None:
    own = IdentityFolder(folder / "identity")
    assert (own.name, own.roles) == ("server", ("server",))
    assert own.facts.installation == "site"


def test_init_takes_names_and_places_from_the_configuration(run, site, tmp_path: Path) -> None:
    config = site.folder / "standby.toml"
    done = run("ca", "init", "--config", config, "--json").json
    assert Path(done["authority"]) == site.folder / "authority"
    assert Path(done["identity"]) == site.folder / "identity"
    assert (site.folder / "authority" / "key.pem").exists()
    assert (
        run("ca", "list", "--config", config, "--json").json["installation"]
        == (done["installation"])
    )


def test_a_second_init_is_refused(run, folder: Path) -> None:
    arguments = ("ca", "init", "--authority", folder / "ca", "--installation", "other")
    ended = run(*arguments, "--json", expect=15)
    assert ended.json["error"]["class"] == "CertificateError"


def test_a_token_on_standard_input_enrols(run, folder: Path) -> None:
    token = run("ca", "token", "px1", "--role", "source", "--role", "target",
                "--authority", folder / "ca", "--json").json["token"]  # fmt: skip
    authority = Authority(folder / "ca")
    with EnrolmentServer("127.0.0.1:0", authority, IdentityFolder(folder / "identity")) as server:
        found = CliRunner().invoke(
            cli,
            ["mover", "enroll", "--server", server.address, "--identity", str(folder / "px1"),
             "--json"],
            input=f"{token}\n",
        )  # fmt: skip
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert (told["name"], told["roles"]) == ("px1", ["source", "target"])
    assert token not in found.stdout


def test_a_wrong_token_is_refused_before_anybody_is_asked(run, folder: Path) -> None:
    ended = run("mover", "enroll", "--server", "127.0.0.1:1", "--token", "standby-AAAA",
                "--identity", folder / "px1", expect=15)  # fmt: skip
    assert "no enrolment token" in ended.err
    assert not (folder / "px1").exists()


def test_a_refused_enrolment_leaves_nothing_behind(run, folder: Path) -> None:
    token = run("ca", "token", "px1", "--role", "source", "--authority", folder / "ca").out.strip()
    px1 = folder / "px1"
    arguments = ("mover", "enroll", "--server", "127.0.0.1:1", "--token", token, "--identity", px1)
    run(*arguments, expect=15)
    assert not px1.exists()
    px1.mkdir()
    (px1 / "mine").write_text("x")
    run(*arguments, expect=15)
    assert [path.name for path in px1.iterdir()] == ["mine"]
    (px1 / "mine").unlink()
    px1.rmdir()
    kept = enrolled(run, folder).facts
    run(*arguments, expect=15)
    assert IdentityFolder(px1).facts == kept


def test_a_revocation_is_said_once(run, folder: Path) -> None:
    serial = enrolled(run, folder).facts.serial
    ended = run("ca", "revoke", "px1", "--authority", folder / "ca", "--yes")
    assert (ended.out, ended.err) == (f"revoked {serial}\n", "")


def test_list_revoke_and_renew(run, folder: Path) -> None:
    identity = enrolled(run, folder)
    place = ("--authority", folder / "ca")
    assert "px1" in run("ca", "list", *place).out
    planned = run("ca", "revoke", "px1", *place, "--dry-run", "--json").json
    assert planned == {"dry_run": True, "revoked": [identity.facts.serial]}
    assert run("ca", "revoke", "px1", *place, expect=2).err  # nobody to ask
    assert run("ca", "revoke", "px1", *place, "--yes", "--json").json == {
        "dry_run": False,
        "list_number": 2,
        "revoked": [identity.facts.serial],
    }
    assert IdentityFolder(folder / "identity").list_number == 2
    states = {row["name"]: row["state"] for row in
              run("ca", "list", *place, "--json").json["certificates"]}  # fmt: skip
    assert states == {"server": "good", "px1": "revoked"}
    assert "nothing was left" in run("ca", "revoke", "px1", *place, "--yes").out
    run("ca", "revoke", "px9", *place, "--yes", expect=10)
    run("ca", "revoke", "px9", *place, "--dry-run", expect=10)
    before = IdentityFolder(folder / "identity").facts.serial
    assert run("ca", "renew", *place, "--json").json["serial"] != before


def test_without_an_authority_the_command_that_makes_one_is_named(run, tmp_path: Path) -> None:
    ended = run("ca", "list", "--authority", tmp_path / "none", expect=15)
    assert "standby ca init" in ended.err


def test_serve_takes_enrolments_until_it_is_ended(run, folder: Path) -> None:
    place = ("--authority", folder / "ca")
    token = run("ca", "token", "px1", "--role", "source", *place).out.strip()
    with started("ca", "serve", *place, "--listen", "127.0.0.1:0", "--json") as process:
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())["address"]
        run("mover", "enroll", "--server", address, "--token", token, "--identity", folder / "px1")
        assert json.loads(process.stdout.readline())["enrolled"] == "px1"
        process.terminate()
        assert process.wait(20) == 0


def test_a_serial_is_shown_whole_and_taken_as_other_tools_write_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from standby.wire import authority

    place = ("--authority", tmp_path / "authority")
    run("ca", "init", *place, "--installation", "test")
    made = authority.Authority(tmp_path / "authority")
    monkeypatch.setattr(authority.x509, "random_serial_number", lambda: 0xABC)
    made.issue(IdentityFolder(tmp_path / "px1").request(), "px1", ("source",))
    assert run("ca", "list", *place).out.splitlines()[-1].endswith(" 0abc")
    for text in ("0ABC", "0a:bc"):
        told = run("ca", "revoke", text, *place, "--dry-run", "--json").json
        assert told["revoked"] == ["abc"]
