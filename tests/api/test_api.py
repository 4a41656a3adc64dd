"""The API's verbs over a real site."""

from __future__ import annotations

from api.conftest import ServedSite


def test_a_session_is_started_looked_after_and_reported(served: ServedSite) -> None:
    with served.looped():
        queued = served.post("/jobs/job/start", expect=202)
        found = served.get(f"/sessions/{queued['session']}?wait_s=60")
        assert found["has_ended"]
        assert found["run"]["state"] == "done"
        assert found["run"]["asked_by"] == "token admin"
        assert [task["state"] for task in found["tasks"]] == ["done"]
        (report,) = found["reports"]
        assert report["machines"][0]["outcome"] == "done"
        assert served.get(f"/sessions/{report['id']}/report") == report
        refused = served.post("/jobs/job/retry", expect=409)
        assert "nothing failed: all its VMs are done" in refused["message"]
        assert served.get("/sessions")["sessions"] == [report]
    (replica,) = served.get("/replicas")["replicas"]
    assert replica["name"] == "vm1_replica"
    assert served.get("/replicas/vm1_replica")["points"][-1]["id"] == report["machines"][0]["point"]
