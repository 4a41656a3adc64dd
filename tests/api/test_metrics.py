"""/metrics: the values, who may read them, and that nothing waits for a target."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from api.conftest import ServedSite, serving
from cli.conftest import small_site
from simulation.site import Site


def values(served: ServedSite, **more: str) -> dict[str, dict[tuple[str, ...], float]]:
    """{metric: {label values in order of their names: value}}."""
    answer = served.call("GET", "/metrics", expect=200, **more)
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        sample.name: {
            tuple(item.labels[key] for key in sorted(item.labels)): item.value
            for item in family.samples
            if item.name == sample.name
        }
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }


def test_what_a_session_did_is_counted_once(served: ServedSite) -> None:
    before = values(served)
    assert before["standby_sessions_total"]["job", "done"] == 0
    served.server.start("job")
    for _ in range(2):
        after = values(served)
        assert after["standby_sessions_total"]["job", "done"] == 1
        assert after["standby_sent_bytes_total"][("job",)] >= 3 << 20
        assert after["standby_written_bytes_total"][("job",)] == 3 << 20
    assert after["standby_replica_points"]["job", "vm1", "vm1_replica"] == 1
    assert after["standby_tasks"][("running",)] == 0


def test_sessions_before_the_servers_start_are_not_counted(replicated: ServedSite) -> None:
    assert sum(values(replicated)["standby_sessions_total"].values()) == 0
    replicated.server.start("job")
    assert sum(values(replicated)["standby_sessions_total"].values()) == 1


def test_the_age_of_the_newest_point_is_what_its_target_says(replicated: ServedSite) -> None:
    values(replicated)  # has the target asked
    status = replicated.server.replicas.show("vm1_replica")
    age_s = values(replicated)["standby_replica_point_age_seconds"]["job", "vm1", "vm1_replica"]
    assert status.newest_age_s is not None
    assert 0 <= age_s < status.newest_age_s + 60


def test_queue_alarms_slots_and_who_is_active(served: ServedSite) -> None:
    served.post("/jobs/job/start", expect=202)
    served.server.store.raise_alarm("rpo", "job", "vm1", "too old")
    found = values(served)
    assert found["standby_queue_sessions"][("queued",)] == 1
    assert found["standby_alarms_open"]["job", "rpo"] == 1
    assert found["standby_slots_limit"]["server", ""] == 4
    assert found["standby_active"][()] == 0
    (version,) = found["standby_build_info"]
    assert version[0]


def test_metrics_ask_for_a_token_unless_they_are_open(tmp_path: Path) -> None:
    site = small_site(tmp_path / "site")
    with serving(site) as served:
        served.call("GET", "/metrics", role="", expect=401)
        served.call("GET", "/metrics", role="viewer", expect=200)
    with serving(Site(tmp_path / "open", more="[server]\nmetrics_open = true")) as served:
        served.call("GET", "/metrics", role="", expect=200)
        served.call("GET", "/api/v1/jobs", role="", expect=401)
