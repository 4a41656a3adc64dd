"""What the server tells of results and alarms, to webhooks."""

from __future__ import annotations

from standby.model.report import SessionReport
from standby.model.session import SessionRun
from standby.server.store.tables import Alarm


def result_payload(run: SessionRun, report: SessionReport) -> dict[str, object]:
    """Of a session, or an attempt of one, that has ended."""
    return {
        "job": run.job,
        "session": run.id,
        "report": report.id,
        "reason": str(run.reason),
        "outcome": report.outcome,
        "started_at": report.started_at,
        "ended_at": report.ended_at,
        "machines": [
            {
                "machine": item.machine,
                "replica": item.replica,
                "outcome": item.outcome,
                "point": item.point,
                "error": item.error,
                "warnings": list(item.warnings),
                "alarms": list(item.alarms),
            }
            for item in report.machines
        ],
    }


def alarm_payload(alarm: Alarm) -> dict[str, object]:
    """Of an alarm that was raised."""
    return {
        "alarm": alarm.id,
        "kind": alarm.kind,
        "job": alarm.job,
        "machine": alarm.machine,
        "text": alarm.text,
        "raised_at": alarm.raised_at,
    }
