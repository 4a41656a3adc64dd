"""One VM's part in a session, with what is made good within it: a damaged repository, and movers
that died or could not be reached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from standby.errors import NoProxy, SessionStopped, StandbyError
from standby.model.machine import Machine
from standby.model.report import DiskReport, MachineReport
from standby.ports import IntentReleasing
from standby.server.context import SessionContext
from standby.server.crew import Crew, Handle
from standby.server.crew_handle import CrewHandle
from standby.server.driver import MachineDriver
from standby.server.journey import Journey, JourneyBook
from standby.server.patience import Patience
from standby.server.remote_host import impatient
from standby.server.waits import waits_end_when

Lend = Callable[[Machine, tuple[str, ...], tuple[str, str] | None], AbstractContextManager[Crew]]
"""Lends a crew for the VM: (VM, target proxies to avoid, crew to join), see `Crews.lent`."""


def replicate(context: SessionContext, machine: Machine, lend: Lend) -> MachineReport:
    """The VM's report; never raises but for what ends the process."""
    with waits_end_when(context.end_of(machine.name)):
        return _replicated(context, machine, lend)


def _replicated(context: SessionContext, machine: Machine, lend: Lend) -> MachineReport:
    if context.is_cancelled.is_set() or machine.name in context.stopped:
        text = str(SessionStopped(context.job.name, machine.name))
        return MachineReport(machine.name, machine.id, outcome="interrupted", error=text)
    journey = JourneyBook(context, machine.id).found() if context.may_join else None
    before: Sequence[DiskReport] = ()
    if journey is not None and journey.is_sent:
        before, journey = journey.reports, None
    driver, proxy = _driven(context, machine, lend, (), journey, before)
    if driver is None:
        outcome = "interrupted" if context.end_of(machine.name)() else "failed"
        return MachineReport(machine.name, machine.id, outcome=outcome, error=proxy)
    patience = Patience(context.clock, driver.crew.reconnect)
    joined = journey.intent if journey is not None else ""
    went_on: list[str] = []
    left_out = dict(driver.crew.left_out)
    while _is_worth_another_try(context, driver):
        why = why_ended(driver.report.error, driver.crew.target, driver.is_refusal)
        text = f"went on after: {why}"
        if driver.is_refusal and text in went_on:
            break  # what one side does not understand it will not understand later
        went_on.append(text)
        if len(went_on) > 1 and not patience.wait(context.end_of(machine.name)):
            break
        release_left(context, machine, driver.crew.reconnect.every_s, joined)
        # The writer that was lost may hang with the replica open: the next one fences it.
        anew = replace(context, take_over=True)
        again, proxy = _driven(anew, machine, lend, (proxy,), before=driver.before)
        if again is None:
            break
        _count_lost(driver.report, again.report)
        left_out |= again.crew.left_out
        driver = again
    if went_on and proxy:
        went_on[-1] += f"; through target proxy {proxy}"
    report = _healed(context, machine, lend, driver)
    problem = release_left(context, machine, driver.crew.reconnect.every_s, joined)
    if problem:
        report.alarms.append(problem)
        context.store.raise_alarm("checkpoint", context.job.name, machine.name, problem)
    report.warnings = list(dict.fromkeys([*report.warnings, *left_out.values(), *went_on]))
    return report


def why_ended(error: str, target: Handle, is_refusal: bool) -> str:
    """What ended an attempt: a target mover that was started anew does not know what it is asked
    about, which by itself tells nobody why. One that was refused, and is still, is not back."""
    lost = target.lost if is_refusal and isinstance(target, CrewHandle) else ""
    if not lost or lost in error:
        return error
    return f"mover {target.name} was lost ({lost}), and came back without the work ({error})"


def release_left(
    context: SessionContext, machine: Machine, patience_s: float, joined: str = ""
) -> str:
    """Release the VM's checkpoints that an attempt of this session left, and that of the intent
    `joined`: one that it could not release for the host's mover was away, one that was made and
    never told of. The mover is waited for `patience_s`. What is wrong when one is still there, ''
    when none is."""
    host, store = impatient(context.source, patience_s), context.store
    try:
        store.check()
    except StandbyError:
        return ""  # they are the next server's
    for intent in store.open_intents(context.source.name):
        is_ours = (intent.session, intent.machine_id) == (context.session, machine.id)
        if not is_ours and intent.id != joined:
            continue
        try:
            if intent.checkpoint is not None:
                host.release_checkpoint(intent.checkpoint)
            elif isinstance(host, IntentReleasing):
                host.release_intent(intent.id)
            store.checkpoint_released(intent.id)
        except StandbyError as exc:
            return f"checkpoint not released: {exc}"  # another one would wait as long
    return ""


def _count_lost(before: MachineReport, now: MachineReport) -> None:
    """What an attempt that failed read and sent is in the report of the next one too; what it
    wrote, the next one has found (`SessionContext.found`)."""
    lost = {disk.place: disk for disk in before.disks}
    for disk in now.disks:
        other = lost.get(disk.place)
        if other is not None:
            disk.sent += other.sent
            disk.read += other.read
            disk.resent_blocks += other.resent_blocks


def _driven(
    context: SessionContext,
    machine: Machine,
    lend: Lend,
    avoid: tuple[str, ...],
    journey: Journey | None = None,
    before: Sequence[DiskReport] = (),
) -> tuple[MachineDriver | None, str]:
    """The driver, run to its end, and its target proxy; or None, and why no crew could be had."""
    try:
        joins = (journey.crew, journey.target_proxy) if journey is not None else None
        with lend(machine, avoid, joins) as crew:
            context.crews.append(crew)
            context.at_work[machine.name] = crew
            if context.is_cancelled.is_set() or machine.name in context.stopped:
                crew.cut()
            try:
                driver = MachineDriver(context, machine, crew, journey, before)
                driver.run()
                return driver, crew.target_proxy
            finally:
                context.crews.remove(crew)
                context.at_work.pop(machine.name, None)
    except NoProxy as exc:
        return None, str(replace(exc, machine=exc.machine or machine.name))
    except StandbyError as exc:
        return None, str(exc)


def _is_worth_another_try(context: SessionContext, driver: MachineDriver) -> bool:
    return (
        driver.report.outcome == "interrupted"
        and driver.is_link_trouble
        and driver.crew.can_retry
        and not context.is_cancelled.is_set()
        and driver.machine.name not in context.stopped
    )


def _healed(
    context: SessionContext, machine: Machine, lend: Lend, driver: MachineDriver
) -> MachineReport:
    """Damage in the repository costs a comparison with the target's digests: what is damaged goes,
    and the VM begins again."""
    error = driver.repository_error
    if error is None or driver.report.outcome != "failed":
        return driver.report
    try:
        with lend(machine, (), None) as crew:  # the driver's own is not to be asked any more
            done = crew.heal_repository(driver.key, error)
    except StandbyError:
        return driver.report
    text = f"{error}; {done}"
    again, _ = _driven(context, machine, lend, (), before=driver.before)
    if again is None:
        return driver.report
    again.report.alarms.append(text)
    context.store.raise_alarm("repository", context.job.name, machine.name, text)
    return again.report
