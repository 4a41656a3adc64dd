"""`standby infrastructure check`: every part of the installation, tried from whoever needs it.

The server connects to each mover (`mover_check`); each mover that sends connects to those it would
send to; paths are looked at by whoever opens them (`place_check`). All of it at once, each bounded
by a deadline, so that a machine that is away costs its own line only. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from standby.clock import Clock
from standby.errors import StandbyError
from standby.server.config import Config
from standby.server.fleet import Fleet
from standby.server.mover_check import SERVER, Check, Level, Movers
from standby.server.place_check import place_checks
from standby.server.proxies import all_proxies
from standby.server.wan_config import WanConfig

__all__ = ["Check", "Level", "Progress", "checked"]

AT_ONCE = 16

Progress = Callable[[int, int], None]


def checked(
    fleet: Fleet, config: Config, clock: Clock, progress: Progress | None = None
) -> list[Check]:
    """Every check, in order of who made it and of what."""
    movers = Movers(fleet, config, clock)
    tasks: list[Callable[[], list[Check]]] = [
        lambda mover=mover: movers.connected(mover)  # type: ignore[misc]
        for mover in config.movers.values()
    ]
    done = 0
    found: list[Check] = []

    def run(wanted: Sequence[Callable[[], list[Check]]], total: int) -> None:
        nonlocal done
        for checks in pool.map(lambda task: task(), wanted):
            found.extend(checks)
            done += 1
            if progress is not None:
                progress(done, total)

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="check") as pool:
        later = [*_roads(config, movers), *place_checks(config, movers), *_keys(config)]
        try:
            run(tasks, len(tasks) + len(later))
            run(later, len(tasks) + len(later))
        finally:
            movers.close()
    return sorted(found, key=lambda item: (item.seen_from != SERVER, item.seen_from, item.what))


def _roads(config: Config, movers: Movers) -> list[Callable[[], list[Check]]]:
    """A check for each pair of movers that a job may use: those that send to those that receive,
    and to those that keep the repository; where there are WAN accelerators, the way over them."""
    pairs: set[tuple[str, str, str, str]] = set()
    for job in config.jobs.values():
        source, target = config.hosts[job.source], config.hosts[job.target]
        if (source.is_folder and not source.mover) or not target.mover:
            continue
        senders = _side(config, job.proxies, "source", source.name)
        receivers = _side(config, job.target_proxies, "target", target.name)
        pairs |= {(one, other, "target", "source") for one in senders for other in receivers}
        keeper = config.stores[job.repository].mover
        pairs |= {(one, keeper, "repository", "source") for one in senders if keeper}
        wan = config.wans.get(job.wan)
        if wan is not None and wan.mode != "direct":
            pairs |= {(one, wan.source, "wan", "source") for one in senders}
            pairs.add((wan.source, wan.target, "wan", "wan"))
            pairs |= {(wan.target, other, "target", "wan") for other in receivers}
    return [
        lambda pair=pair: _road(config, movers, *pair)  # type: ignore[misc]
        for pair in sorted(pairs)
        if pair[0] != pair[1]
    ]


def _side(config: Config, chosen: Sequence[str], side: str, host: str) -> set[str]:
    """The movers of the proxies that may work on that side for the host."""
    found = all_proxies(config)
    own = config.hosts[host].mover
    return {
        proxy.mover
        for name, proxy in found.items()
        if proxy.mover
        and proxy.side in (side, "both")
        and (not chosen or name in chosen)
        and (proxy.maps_of(host) or proxy.mover == own)
    }


def _road(
    config: Config, movers: Movers, sender: str, receiver: str, role: str, own_role: str
) -> list[Check]:
    """Nothing where one of them is not what it would have to be there: what it is needed as, its
    own line says."""
    for mover, wanted in ((sender, own_role), (receiver, role)):
        if wanted not in movers.described.get(mover, {"roles": [wanted]})["roles"]:
            return []
    address = config.movers[receiver].address
    what = f"mover {receiver} as {role}"
    try:
        took_s = movers.call(
            sender, "probe", name=receiver, address=address, role=role, own_role=own_role
        )
    except StandbyError as exc:
        hint = f"{sender} must reach {address}: name, route, firewall; both enrolled here"
        if "roles are" in str(exc):  # mover.toml says more than the certificate
            is_ours = "it speaks as" in str(exc)
            who, lacking = (sender, own_role) if is_ours else (receiver, role)
            hint = f"enrol {who} with the role {lacking}: `standby ca token {who} --role {lacking}`"
        return [Check(Level.ERROR, f"mover {sender}", what, str(exc), hint)]
    text = f"connected at {address} in {took_s * 1000:.0f} ms"
    return [Check(Level.OK, f"mover {sender}", what, text)]


def _keys(config: Config) -> list[Callable[[], list[Check]]]:
    """A check for each tenant key that the file names; one that is not named is made when it is
    needed."""
    return [
        lambda wan=wan: [_key(config, wan)]  # type: ignore[misc]
        for wan in config.wans.values()
        if wan.key
    ]


def _key(config: Config, wan: WanConfig) -> Check:
    what = f"WAN accelerators {wan.name} key"
    try:
        config.wan_key(wan.name)
    except StandbyError as exc:
        return Check(Level.ERROR, SERVER, what, str(exc))
    return Check(Level.OK, SERVER, what, "can be read")
