"""Commands that messages name can be typed as they stand."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import pytest

from standby.cli import hints


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    hints.remember([])


@pytest.mark.parametrize(
    ("given", "text", "wanted"),
    [
        ([], "see `standby job plan`", "see `standby job plan`"),
        (["--config", "a b.toml"], "`standby job plan`", "`standby job plan --config 'a b.toml'`"),
        (["--config=x"], "`standby check`, or not", "`standby check --config x`, or not"),
        (["--config", "x"], "`standby mover run` there", "`standby mover run` there"),
        (["--config", "x"], "`standby job plan --config y`", "`standby job plan --config y`"),
        (["--server", "http://s"], "`standby replica x`", "`standby replica x --server http://s`"),
        (["--server", "http://s"], "`standby token add`", "`standby token add`"),
        (["--target=/t", "--config=x"], "`standby replica x`", "`standby replica x --target /t`"),
        (["--target", "/t"], "`standby job start n`", "`standby job start n`"),
        (["--config"], "`standby job start n`", "`standby job start n`"),
    ],
)  # fmt: skip
def test_a_command_takes_what_says_where_it_works(given: list[str], text: str, wanted: str) -> None:
    hints.remember(["replica", "failover", *given])
    assert hints.with_options(text) == wanted


def test_what_a_refusal_names_does_what_it_says(run, replicated) -> None:
    target = replicated.folder / "target"
    run("replica", "failover", "vm1_replica", "--yes", "--target", target)
    refused = run("replica", "failover", "vm1_replica", "--yes", "--target", target, expect=None)
    assert refused.code != 0
    (named,) = [part for part in refused.err.split("`") if "undo-failover" in part]
    assert named.endswith(f"--target {target}")
    run(*shlex.split(named)[1:], "--yes")
