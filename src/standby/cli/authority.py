"""`standby ca` and `standby mover enroll`: who belongs to an installation of several machines."""

from __future__ import annotations

import contextlib
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from standby.cli.output import (
    confirmed,
    dry_run_option,
    json_option,
    print_json,
    print_table,
    yes_option,
)
from standby.cli.serving import config_option

if TYPE_CHECKING:
    from standby.wire.authority import Authority

LISTEN = "0.0.0.0:9442"

authority_option = click.option(
    "--authority",
    "authority_folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="The authority's folder; default: the one that standby.toml names, [server] authority.",
)
identity_option = click.option(
    "--identity",
    "identity_folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="The backup server's own key and certificate; default: [server] identity of standby.toml, "
    "or `identity` beside the authority's folder.",
)


def _folders(
    config: Path, authority_folder: Path | None, identity_folder: Path | None
) -> tuple[Path, Path]:
    """Where the authority and the server's identity are."""
    if authority_folder is not None:
        return authority_folder, identity_folder or authority_folder.absolute().parent / "identity"
    from standby.server.config import load_config

    server = load_config(config).server
    return server.authority, identity_folder or server.identity


def _opened(config: Path, authority_folder: Path | None) -> Authority:
    from standby.wire.authority import Authority

    return Authority(_folders(config, authority_folder, None)[0])


@click.group()
def ca() -> None:
    """The installation's own certificate authority: which machines belong to it.

    \b
    Example:
      standby ca init                                  once, on the backup server's machine
      standby ca serve                                 take enrolments while this runs
      standby ca token px1 --role source --role target a token for one machine, good for 15 minutes
      standby mover enroll --server backup.example:9442   on that machine
    """


@ca.command("init")
@config_option
@authority_option
@identity_option
@click.option(
    "--installation", help="Its name; default: `installation` of standby.toml. Never changes."
)
@click.option("--name", default="server", show_default=True, help="The backup server's own name.")
@json_option
def ca_init(
    config: Path,
    authority_folder: Path | None,
    identity_folder: Path | None,
    installation: str | None,
    name: str,
    as_json: bool,
) -> None:
    """Make the authority, and the backup server's own certificate.

    \b
    Example: standby ca init --config /etc/standby/standby.toml
    """
    from standby.wire.authority import Authority
    from standby.wire.enrolment import own_identity

    place, own = _folders(config, authority_folder, identity_folder)
    if installation is None:
        from standby.server.config import load_config

        installation = load_config(config).installation
    made = Authority.create(place, installation)
    identity = own_identity(made, own, name)
    steps = ["standby ca serve", "standby ca token NAME --role target"]
    if as_json:
        print_json(
            {
                "authority": place,
                "identity": own,
                "installation": installation,
                "fingerprint": made.fingerprint.hex(),
                "not_after": identity.facts.not_after,
                "next": steps,
            }
        )
        return
    click.echo(
        f"made the authority of {installation} in {place}, and {own} for the backup server\n"
        f"SHA-256 {made.fingerprint.hex()}\n"
        f"Back {place} up where nobody else reads it: who has its key.pem is the installation.\n"
        f"next: `{steps[0]}`, and for each machine `{steps[1]}`"
    )


@ca.command("token")
@click.argument("name")
@click.option(
    "--role",
    "roles",
    multiple=True,
    required=True,
    type=click.Choice(["source", "target", "repository", "host", "wan", "server"]),
    help="What the machine may be; may be repeated.",
)
@config_option
@authority_option
@json_option
def ca_token(
    name: str, roles: tuple[str, ...], config: Path, authority_folder: Path | None, as_json: bool
) -> None:
    """A token that makes one machine the mover NAME, once, within 15 minutes.

    Whoever has it can take that place: carry it by a way you trust.

    \b
    Example: standby ca token px1 --role source --role host
    """
    token = _opened(config, authority_folder).make_token(name, roles)
    if as_json:
        print_json({"name": name, "roles": roles, "token": token, "minutes": 15})
        return
    click.echo(token)
    click.echo(
        f"good for 15 minutes, once; on {name}: standby mover enroll --server HOST:PORT", err=True
    )


@ca.command("list")
@config_option
@authority_option
@json_option
def ca_list(config: Path, authority_folder: Path | None, as_json: bool) -> None:
    """Every certificate issued, with its end and whether it is revoked.

    \b
    Example: standby ca list --json
    """
    from standby.clock import SYSTEM_CLOCK

    found = _opened(config, authority_folder)
    revoked, now = found.revoked(), SYSTEM_CLOCK.now()
    rows = [
        {
            "name": item.name,
            "roles": item.roles,
            "serial": item.serial,
            "not_before": item.not_before,
            "not_after": item.not_after,
            "state": "revoked"
            if item.serial in revoked
            else "expired"
            if item.not_after <= now
            else "good",
        }
        for item in found.issued()
    ]
    if as_json:
        print_json(
            {
                "installation": found.installation,
                "fingerprint": found.fingerprint.hex(),
                "list_number": found.list_number(),
                "certificates": rows,
            }
        )
        return
    print_table(
        "",
        ("name", "roles", "state", "good until", "serial"),
        [
            (
                str(row["name"]),
                ",".join(row["roles"]),  # type: ignore[arg-type]
                str(row["state"]),
                f"{row['not_after']:%Y-%m-%d %H:%M}",
                _whole(str(row["serial"])),
            )
            for row in rows
        ],
    )


def _whole(serial: str) -> str:
    """A serial in whole bytes, as other tools show it."""
    return serial.zfill(len(serial) + len(serial) % 2)


@ca.command("revoke")
@click.argument("which", metavar="NAME|SERIAL")
@config_option
@authority_option
@identity_option
@dry_run_option
@yes_option
@json_option
def ca_revoke(
    which: str,
    config: Path,
    authority_folder: Path | None,
    identity_folder: Path | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Revoke a machine's certificates, or one by its serial; its unused tokens too.

    A running backup server passes the list on, and running links of that machine end. It can be
    enrolled again with a new token.

    \b
    Example: standby ca revoke px1 --dry-run
    """
    from standby.errors import UnknownName
    from standby.files import is_there
    from standby.wire.authority import Authority
    from standby.wire.identity import CERTIFICATE, IdentityFolder

    place, own = _folders(config, authority_folder, identity_folder)
    found = Authority(place)
    revoked = found.revoked()
    issued = found.issued()
    if all(item.name != which for item in issued):  # as other tools write serials
        plain = which.lower().replace(":", "").lstrip("0")
        which = next((item.serial for item in issued if item.serial == plain), which)
    meant = [item for item in issued if which in (item.name, item.serial)]
    serials = tuple(item.serial for item in meant if item.serial not in revoked)
    plan = [f"revoke {item.serial} of {item.name}" for item in meant if item.serial in serials]
    if dry_run:
        if not meant:
            raise UnknownName("certificate", which, tuple(sorted({item.name for item in issued})))
        if as_json:
            print_json({"revoked": serials, "dry_run": True})
        else:
            click.echo("\n".join(plan) or f"{which} is revoked already")
        return
    if serials and not yes:  # with --yes what is done is said once, when it is
        confirmed(plan, f"Revoke {which}?", yes=yes, as_json=as_json)
    done = found.revoke(which)
    if is_there(own / CERTIFICATE):
        IdentityFolder(own).install_revocations(found.revocations())
    if as_json:
        print_json({"revoked": done, "dry_run": False, "list_number": found.list_number()})
    else:
        click.echo(
            "\n".join(f"revoked {serial}" for serial in done) or "nothing was left to revoke"
        )


@ca.command("renew")
@config_option
@authority_option
@identity_option
@json_option
def ca_renew(
    config: Path, authority_folder: Path | None, identity_folder: Path | None, as_json: bool
) -> None:
    """Renew the backup server's own certificate now.

    Movers need no command: theirs are renewed over their links when a third of their life is left.

    \b
    Example: standby ca renew
    """
    from standby.wire.authority import Authority
    from standby.wire.identity import IdentityFolder

    place, own = _folders(config, authority_folder, identity_folder)
    identity = IdentityFolder(own)
    pem = Authority(place).renew(identity.facts.serial, identity.request())
    identity.install_certificate(pem)
    facts = identity.facts
    if as_json:
        print_json({"name": facts.name, "serial": facts.serial, "not_after": facts.not_after})
    else:
        click.echo(f"{facts.name}: good until {facts.not_after:%Y-%m-%d %H:%M} UTC")


@ca.command("serve")
@config_option
@authority_option
@identity_option
@click.option("--listen", default=LISTEN, show_default=True, help="HOST:PORT to listen on.")
@json_option
def ca_serve(
    config: Path,
    authority_folder: Path | None,
    identity_folder: Path | None,
    listen: str,
    as_json: bool,
) -> None:
    """Take enrolments until interrupted.

    Only the holder of a token gets anything. Prints one line per event; with --json each is a
    JSON document of one line, the first {"ready": true, "address": …}.

    \b
    Example: standby ca serve --listen 192.0.2.10:9442
    """
    import msgspec

    from standby.cli.disk_serve import LOOK_S, _stopped_by_signals
    from standby.errors import StandbyError
    from standby.wire.authority import Authority
    from standby.wire.enrolment import EnrolmentServer, own_identity

    def said(text: str, **values: object) -> None:
        click.echo(msgspec.json.encode(values).decode() if as_json else text)
        sys.stdout.flush()

    def enrolled(address: str, name: str) -> None:
        said(f"enrolled {name} from {address}", enrolled=name, address=address)

    def refused(address: str, error: StandbyError) -> None:
        said(f"refused {address}: {error}", refused=str(error), address=address)

    place, own = _folders(config, authority_folder, identity_folder)
    authority = Authority(place)
    with _stopped_by_signals() as stop:
        identity = own_identity(authority, own)
        with EnrolmentServer(
            listen, authority, identity, on_enrolled=enrolled, on_refusal=refused
        ) as server:
            said(
                f"taking enrolments at {server.address}; Ctrl-C ends it",
                ready=True,
                address=server.address,
            )
            while not stop.wait(LOOK_S):
                pass


@click.command("enroll")
@click.option("--server", required=True, help="HOST:PORT of `standby ca serve`.")
@click.option(
    "--token",
    envvar="STANDBY_TOKEN",
    default="-",
    show_default=True,
    help="What `standby ca token` printed; - reads it from standard input, where no list of "
    "processes shows it. STANDBY_TOKEN names another default.",
)
@click.option(
    "--identity",
    "identity_folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("identity"),
    show_default=True,
    help="Where this machine's key and certificate go; mover.toml names it.",
)
@json_option
def enroll(server: str, token: str, identity_folder: Path, as_json: bool) -> None:
    """Make this machine a member of the installation that made the token.

    Its key is made here and stays here.

    \b
    Example: standby mover enroll --server backup.example:9442 --identity /etc/standby/identity
    """
    from standby.errors import DiskIO
    from standby.files import is_there
    from standby.wire.enrolment import enrol
    from standby.wire.identity import CERTIFICATE, KEY

    if token == "-":
        if sys.stdin is not None and sys.stdin.isatty():
            token = str(click.prompt("token", hide_input=True, err=True))
        else:
            token = sys.stdin.readline() if sys.stdin is not None else ""
    had_folder, had_key = is_there(identity_folder), is_there(identity_folder / KEY)
    try:
        facts = enrol(server, token, identity_folder).facts
    except BaseException:  # a key without a certificate is nobody's identity
        with contextlib.suppress(OSError, DiskIO):
            if not had_key and not is_there(identity_folder / CERTIFICATE):
                (identity_folder / KEY).unlink(missing_ok=True)
                if not had_folder:
                    shutil.rmtree(identity_folder)
        raise
    if as_json:
        print_json(
            {
                "identity": identity_folder,
                "installation": facts.installation,
                "name": facts.name,
                "roles": facts.roles,
                "not_after": facts.not_after,
            }
        )
        return
    click.echo(
        f"this machine is {facts.name} ({', '.join(facts.roles)}) of {facts.installation}; "
        f"{identity_folder} is good until {facts.not_after:%Y-%m-%d %H:%M} UTC and renews itself"
    )
