"""Checks of the node agents: does every node speak, is it believed, is what it says fresh?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from extproc.doctor.checks.service import service_of, without_service
from extproc.doctor.evidence import Evidence
from extproc.doctor.finding import Check, Said, error, warning

#: Why reports are refused (telemetry/ingest.py), and what mends it.
REFUSALS: Final = {
    "unauthenticated": (
        "an agent's token (or certificate) is not one of telemetry.nodes",
        "put its token's SHA-256 into telemetry.nodes[].token_sha256, or the right one into its token_file",
    ),
    "unknown_node": (
        "an agent names a node that telemetry.nodes does not list",
        "list it there, or correct `node` in its agent.yaml",
    ),
    "not_this_node": (
        "an agent speaks with another node's token",
        "give each node a token of its own, and the same name in agent.yaml and telemetry.nodes",
    ),
    "clock_skew": (
        "an agent's clock differs from the service's by more than a minute",
        "synchronise the clocks of that node and of the service (chrony or systemd-timesyncd)",
    ),
    "late": (
        "an agent's reports come more than 3 s late",
        "see that node's load and network, and whether its clock was set back",
    ),
    "address_outside_networks": (
        "an agent registers replicas outside its node's networks",
        "correct telemetry.nodes[].networks, or the addresses in its agent.yaml",
    ),
    "address_of_another_node": (
        "two agents report on the same address",
        "let each replica stand in one agent.yaml alone",
    ),
}


def refused(evidence: Evidence) -> Iterator[Said]:
    """No report is refused now."""
    seen = service_of(evidence)
    counts = seen.later.get("telemetry", {}).get("counts", {})
    for name, count in counts.items():
        kind, _, code = name.partition(".")
        if kind != "rejected":
            continue
        what, mend = REFUSALS.get(code, (f"reports are refused: {code}", "see the service's log"))
        if seen.grown("telemetry", "counts", name):
            yield error(f"{what} ({count} times since the service's start, and still)", mend)
        elif _silent(evidence):
            yield error(f"{what} ({count} times since the service's start)", mend)
        elif code not in ("out_of_order", "replayed_boot"):
            yield warning(f"{what} ({count} times since the service's start, not just now)", mend)


def _silent(evidence: Evidence) -> list[str]:
    """Nodes of the file that no endpoint has been heard of from."""
    telemetry = evidence.config.telemetry
    if telemetry is None:
        return []
    heard = {each["node"] for each in service_of(evidence).later["endpoints"] if each["node"]}
    return [node.name for node in telemetry.nodes if node.name not in heard]


def silent(evidence: Evidence) -> Iterator[Said]:
    """Every node of the file has spoken."""
    for node in _silent(evidence):
        yield warning(
            f"node {node} has never reported to this service",
            f"start its agent (steersman agent -f agent.yaml with node: {node}), or take it out of "
            "telemetry.nodes",
        )


def stale(evidence: Evidence) -> Iterator[Said]:
    """What was heard is fresh: decisions with old figures are degraded ones."""
    for each in service_of(evidence).later["endpoints"]:
        if each["stale"] and each["node"]:
            age_s = (each["age_ms"] or 0) / 1000
            yield warning(
                f"{each['address']}: the last word of node {each['node']} is {age_s:.0f} s old",
                "see whether that node's agent runs and reaches telemetry.listen",
            )


def states(evidence: Evidence) -> Iterator[Said]:
    """Agents find their replicas well, and serving what they should."""
    for each in service_of(evidence).later["endpoints"]:
        state, where = each["state"], f"{each['address']} (node {each['node']})"
        if each["stale"]:
            continue
        if state == "wrong_model":
            yield error(
                f"the agent finds another model at {where}: {each['detail'] or ', '.join(each['models'])}",
                "start that engine with the pool's model, or correct the agent's replicas[].models",
            )
        elif state in ("hung", "gone"):
            yield error(
                f"the agent finds {where} {state}: {each['detail']}", "restart that engine; see its log"
            )
        elif state == "degraded":
            causes = ", ".join(each["causes"]) or each["detail"]
            yield warning(f"the agent finds {where} degraded: {causes}", "see steersman fleet for the cause")
        hard = [name for name, cause in each["causes"].items() if cause["kind"] == "hard"]
        if hard:
            yield error(
                f"{where} takes no requests: {', '.join(hard)}",
                "see steersman fleet; after the repair: steersman fleet clear-faults",
            )


def _missing(evidence: Evidence) -> str:
    if evidence.config.telemetry is None:
        return "the configuration has no 'telemetry' section"
    return without_service(evidence)


CHECKS: Final = (
    Check(id="agents.refused", about="no agent's report is refused", look=refused, missing=_missing),
    Check(id="agents.silent", about="every node of the file reports", look=silent, missing=_missing),
    Check(id="agents.stale", about="telemetry is fresh", look=stale, missing=_missing),
    Check(id="agents.states", about="agents find their replicas well", look=states, missing=_missing),
)
