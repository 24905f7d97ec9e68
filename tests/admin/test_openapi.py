"""The API's description against its routes and against what they answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from extproc.admin.openapi import document
from extproc.admin.server import ROUTES
from extproc.core.outcome import Reject

Stand = Callable[..., None]
EXPERIMENT = """
experiments:
  try:
    pools: [chat]
    arms: {control: {strategy: steer}, other: {strategy: queue}}
"""


def valid(value: Any, schema: dict[str, Any]) -> None:
    """Raises what is wrong with a value by a schema of the document."""
    components = {"components": document("test")["components"]}
    Draft202012Validator({**schema, **components}).validate(value)


def test_the_document_is_openapi() -> None:
    """By a validator of others."""
    validate(document("1.2.3"))


def test_it_has_every_route_and_no_other() -> None:
    """Method, path, name, and the scope that it needs."""
    paths = document("test")["paths"]
    described = {(method.upper(), path): about for path, it in paths.items() for method, about in it.items()}
    assert set(described) == {(route.method, route.path) for route in ROUTES}
    for route in ROUTES:
        about = described[route.method, route.path]
        assert about["operationId"] == route.name
        assert (about.get("security") == [{"token": ["write"]}]) is (route.scope == "write")
        assert (about.get("security") == [{}]) is (route.scope == "open")


def test_answers_are_as_described(stand: Stand) -> None:
    """Each JSON answer by its schema, with traffic behind it; refusals by the errors'."""
    paths = document("test")["paths"]

    async def body(port: Any) -> None:
        for tenant in ("acme", "globex"):
            port.settle(port.admit(tenant), ttft_ns=20_000_000, prompt_tokens=9, output_tokens=7)
        waiting = port.admit()
        port.app.scheduler.turned_away(
            "acme", Reject(status=404, code="model", message="no"), now_ns=port.app.clock()
        )
        port.app.administering._live_series.step(now_ns=port.app.clock() + 2_000_000_000)
        values = {"address": waiting.address, "name": "acme", "id": waiting.id}
        bodies: dict[str, dict[str, Any]] = {
            "order_Tenant": {"name": "acme"},
            "order_Shadow": {"tenant": "acme", "quota": {"requests_per_minute": 1}},
            "order_Explain": {"id": waiting.id},
            "order_Drain": {"address": waiting.address, "draining": False},
            "order_ClearFaults": {"address": waiting.address},
            "order_Scaling": {"what": "advice"},
            "order_Credit": {"tenant": "acme", "why": "a test", "everything": True},
            "order_PurgeCache": {"all": True},
        }
        seen = set()
        for path, methods in paths.items():
            for method, about in methods.items():
                if about["operationId"] in ("events", "start_experiment", "stop_experiment"):
                    continue
                given = bodies.get(about["operationId"], {}) if method == "post" else None
                at = path.format(**values).removeprefix("/")
                status, found = await port.ask(method.upper(), at, body=given)
                answer = about["responses"][str(status)]
                if "$ref" in answer:
                    assert status == 404, (path, found)  # a part that is not switched on
                    valid(found, {"$ref": "#/components/schemas/Error"})
                    continue
                content = answer["content"]
                if "application/json" in content:
                    valid(found, content["application/json"]["schema"])
                seen.add(about["operationId"])
        assert {"status", "fleet", "endpoint", "tenants", "tenant", "decisions", "explain"} <= seen
        assert {"experiments", "strategies", "history", "session", "drain", "clear_faults", "readyz"} <= seen
        status, found = await port.get("api/v1/decisions")
        assert [each["kind"] for each in found["decisions"]] == ["refused", "placed", "placed", "placed"]
        status, found = await port.get("api/v1/status")
        assert found["use"]["tenants"]["acme"]["limits"]
        assert found["tenants"]["acme"]["ttft_p50_ms"] == 20.0
        assert len(found["endpoints"]) == 2

    config = f"""
pools:
  - name: chat
    models: [m]
    endpoints: [{{address: "10.0.0.1:80"}}, {{address: "10.0.0.2:80"}}]
tenants:
  - {{name: acme, keys: [{{sha256: "{"a" * 64}"}}], quota: {{requests_per_minute: 100}}}}
  - {{name: globex, keys: [{{sha256: "{"b" * 64}"}}]}}
"""
    stand(body, ", auth: none", config + EXPERIMENT)
