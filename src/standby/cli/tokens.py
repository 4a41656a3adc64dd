"""`standby token …`: who may call the backup server's API."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import click

from standby.cli.output import json_option, print_json, print_table
from standby.cli.serving import config_option, opened_server


@click.group()
def token() -> None:
    """Tokens of the API: viewer looks, operator runs jobs and fails over, admin does all.

    Run it on the backup server's machine, where its state database is reached.

    \b
    Example:
      standby token add monitoring --role viewer --expires 365d
      standby token revoke monitoring
    """


@token.command()
@click.argument("name")
@click.option(
    "--role", required=True, type=click.Choice(["viewer", "operator", "admin"]), help="What it may."
)
@click.option("--expires", metavar="DURATION", help="As in 90d; default: it does not end.")
@config_option
@json_option
def add(name: str, role: str, expires: str | None, config: Path, as_json: bool) -> None:
    """Make a token under the NAME, which the records will show. It is printed once, and only its
    hash is kept. A name is used once, also after it was revoked.

    \b
    Example: standby token add alice --role operator --expires 90d
    """
    from standby.server.api.tokens import new_api_token
    from standby.strict_toml import parse_duration

    valid = None
    if expires is not None:
        try:
            valid = timedelta(seconds=parse_duration(expires))
        except (ValueError, OverflowError) as exc:
            raise click.BadParameter(str(exc), param_hint="--expires") from None
    with opened_server(config) as server:
        made, text = new_api_token(
            server.store, server.clock, name, role, valid=valid, by="command line"
        )
    if as_json:
        told = {"name": made.name, "role": made.role, "expires_at": made.expires_at}
        print_json({**told, "token": text})
        return
    click.echo(text)
    click.echo("keep it now: it is not shown again; STANDBY_TOKEN=file:PATH reads it", err=True)


@token.command("list")
@config_option
@json_option
def list_tokens(config: Path, as_json: bool) -> None:
    """All tokens ever made, with their ends; never the tokens themselves.

    \b
    Example: standby token list
    """
    with opened_server(config) as server:
        found = server.store.tokens.list()
        now = server.clock.now().isoformat()

    def state(expires_at: str, revoked_at: str) -> str:
        if revoked_at:
            return "revoked"
        return "ended" if expires_at and expires_at <= now else "good"

    if as_json:
        told = [
            {
                "name": item.name,
                "role": item.role,
                "state": state(item.expires_at, item.revoked_at),
                "created_at": item.created_at,
                "expires_at": item.expires_at,
                "last_used_at": item.last_used_at,
                "revoked_at": item.revoked_at,
            }
            for item in found
        ]
        print_json({"tokens": told})
        return
    rows = [
        (
            item.name,
            item.role,
            state(item.expires_at, item.revoked_at),
            item.expires_at[:19] or "never",
            item.last_used_at[:19] or "never",
        )
        for item in found
    ]
    if rows:
        print_table("", ("token", "role", "state", "ends (UTC)", "last used (UTC)"), rows)
    else:
        click.echo("no tokens yet; `standby token add NAME --role viewer` makes one")


@token.command()
@click.argument("name")
@config_option
@json_option
def revoke(name: str, config: Path, as_json: bool) -> None:
    """End the token NAME now, for ever.

    \b
    Example: standby token revoke alice
    """
    with opened_server(config) as server:
        ended = server.store.tokens.revoke(name)
    if as_json:
        print_json({"name": ended.name, "revoked_at": ended.revoked_at})
    else:
        click.echo(f"token {ended.name} is revoked")
