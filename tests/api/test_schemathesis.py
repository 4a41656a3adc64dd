"""Every route, with what its own OpenAPI document says is possible and what it says is not.

The examples are bounded and the same in every run; the application is the real one, on a port.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    response_schema_conformance,
    status_code_conformance,
)

from api.conftest import ServedSite, serving
from cli.conftest import small_site
from standby.server.api import door

EXAMPLES = 4
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    ignored_auth,
]
STARTS_GUESTS = ("/failover", "/power")
"""What may start a real guest is tried with names of nothing only."""


@pytest.fixture(scope="module")
def replicated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedSite]:
    site = small_site(tmp_path_factory.mktemp("api") / "site")
    site.run()
    with pytest.MonkeyPatch.context() as patch, serving(site) as served:
        patch.setattr(door, "FAILURES_MAX", 100_000)  # wrong tokens are part of what is tried
        yield served


@pytest.fixture(scope="module")
def schema(replicated: ServedSite) -> Any:
    headers = {"Authorization": f"Bearer {replicated.tokens['admin']}"}
    address = replicated.api.address
    return schemathesis.openapi.from_url(f"{address}/api/v1/openapi.json", headers=headers)


def operations(schema: Any) -> list[Any]:
    return [found.ok() for found in schema.get_all_operations()]


def names(replicated: ServedSite) -> dict[str, str]:
    """Names of what is there."""
    session = replicated.post("/jobs/job/start", expect=202)["session"]
    operation = replicated.post("/replicas/vm1_replica/verify", expect=202)
    replicated.ended(operation)
    return {
        "job": "job",
        "session": session,
        "replica": "vm1_replica",
        "operation": operation["id"],
    }


def try_out(served: ServedSite, operation: Any, mode: GenerationMode, **given: Any) -> None:
    headers = {"Authorization": f"Bearer {served.tokens['admin']}"}

    @hypothesis.settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode, **given))
    def tried(case: Any) -> None:
        if "wait_s" in (case.query or {}):
            case.query["wait_s"] = 0
        case.call_and_validate(headers=headers, checks=CHECKS, timeout=30)

    tried()


def test_every_route_keeps_to_its_description(replicated: ServedSite, schema: Any) -> None:
    known = names(replicated)
    seen = 0
    for operation in operations(schema):
        try_out(replicated, operation, GenerationMode.POSITIVE)
        if operation.path_parameters or operation.query or operation.body:
            try_out(replicated, operation, GenerationMode.NEGATIVE)
        given = {key: name for key, name in known.items() if f"{{{key}}}" in operation.path}
        if "{request}" in operation.path:
            given["request"] = "pause"
        if given and not operation.path.endswith(STARTS_GUESTS):
            try_out(replicated, operation, GenerationMode.POSITIVE, path_parameters=given)
        seen += 1
    assert seen >= 29


def test_every_route_but_healthz_asks_for_a_token(replicated: ServedSite, schema: Any) -> None:
    for operation in operations(schema):
        path = operation.path
        for name in ("job", "session", "replica", "operation", "request"):
            path = path.replace(f"{{{name}}}", "pause")
        for token in ("", "standby-0000"):
            answer = replicated.call(operation.method.upper(), path, role="", token=token or None)
            if path == "/healthz":
                assert answer.status == 200
            else:
                assert answer.status == 401, path
                assert answer.json["error"] == "Unauthorized"
