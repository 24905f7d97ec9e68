"""The pods' deletion costs, against a Kubernetes API of our own (two verbs of it)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from extproc.config.scaling import PodDeletionCost
from extproc.scaling.pods import COST, MARK, PodCosts, api_of, changes
from tests.stand.cluster import cluster, pod
from tests.stand.waits import until


def settings(folder: Path) -> PodDeletionCost:
    (folder / "token").write_text("the-account\n")
    return PodDeletionCost(namespace="llm", account_dir=str(folder))


def driven(run: Any) -> None:
    asyncio.run(asyncio.wait_for(run(), 60))


def test_who_goes_first_is_the_cheapest() -> None:
    """Costs rise with the order; who stays has none; what is written already is left alone."""
    pods = [pod("a", "10.0.0.1"), pod("b", "10.0.0.2"), pod("c", "10.0.0.3"), pod("pending")]
    assert changes(pods, ("10.0.0.3", "10.0.0.1")) == {
        "c": {COST: "-2", MARK: ""},
        "a": {COST: "-1", MARK: ""},
    }
    pods[2] = pod("c", "10.0.0.3", **{COST: "-2", MARK: ""})
    assert changes(pods, ("10.0.0.3", "10.0.0.1")) == {"a": {COST: "-1", MARK: ""}}
    assert changes(pods, ()) == {"c": {COST: None, MARK: None}}


def test_a_cost_of_somebody_elses_comes_back() -> None:
    """A pod's own cost is kept in our mark and put back; one that is ending is left alone."""
    own = pod("a", "10.0.0.1", **{COST: "100"})
    assert changes([own], ()) == {}
    assert changes([own], ("10.0.0.1",)) == {"a": {COST: "-1", MARK: "100"}}
    marked = pod("a", "10.0.0.1", **{COST: "-1", MARK: "100"})
    assert changes([marked], ()) == {"a": {COST: "100", MARK: None}}
    ending = pod("a", "10.0.0.1", **{COST: "-1", MARK: ""})
    ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert changes([ending], ()) == {}


def test_plans_are_written_and_taken_back(tmp_path: Path) -> None:
    """Over pages, of several pools, with IPv6; nothing is asked where nobody else leaves."""

    async def run() -> None:
        pods = [
            pod("a", "10.0.0.1"),
            pod("b", "10.0.0.2"),
            pod("c", "fd00::3"),
            pod("d", "10.0.0.4"),
            pod("e"),
        ]
        async with cluster(*pods) as api:
            costs = PodCosts(settings(tmp_path), api=api.url)
            costs.put("llama", ("10.0.0.2:8000", "10.0.0.1:8000"))
            costs.put("mistral", ("[fd00::3]:8000",))
            assert not costs.written("llama")
            costs.start()
            await until(lambda: costs.written("llama") and costs.written("mistral"))
            assert api.costs() == {"b": "-3", "a": "-2", "c": "-1"}
            asked = len(api.asked)
            costs.put("llama", ("10.0.0.2:8000", "10.0.0.1:8000"))
            costs.put("llama", ())
            assert not costs.written("llama")
            await until(lambda: costs.written("llama"))
            assert api.costs() == {"c": "-1"}
            assert [each for each in api.asked[asked:] if each.startswith("patch")] == ["patch a", "patch b"]
            await costs.stop()

    driven(run)


def test_what_an_earlier_service_wrote_is_put_right(tmp_path: Path) -> None:
    """A restart in the middle: marks of pods that do not leave any more are taken away at the start."""

    async def run() -> None:
        marked = {COST: "-1", MARK: ""}
        async with cluster(pod("a", "10.0.0.1", **marked), pod("b", "10.0.0.2", **{COST: "5"})) as api:
            costs = PodCosts(settings(tmp_path), api=api.url)
            costs.start()
            await until(lambda: costs.written("llama"))
            assert api.costs() == {"b": "5"}
            await costs.stop()

    driven(run)


def test_a_refusal_names_the_right_and_is_tried_again(tmp_path: Path) -> None:
    """Without the right to list: said in words; once it is given, who leaves by then is written."""

    async def run() -> None:
        async with cluster(pod("a", "10.0.0.1"), pod("b", "10.0.0.2")) as api:
            api.status = 403
            costs = PodCosts(settings(tmp_path), api=api.url, retry_s=0.05)
            costs.put("llama", ("10.0.0.1:8000",))
            costs.start()
            await until(lambda: costs.failures > 1)
            assert costs.trouble.endswith("the service account needs list on pods")
            assert not costs.written("llama")
            costs.put("llama", ("10.0.0.2:8000",))
            api.status = 200
            await until(lambda: costs.written("llama"))
            assert api.costs() == {"b": "-1"}
            assert costs.trouble == ""
            await costs.stop()

    driven(run)


@pytest.mark.parametrize("api", ["", "http://127.0.0.1:1"])
def test_no_cluster_is_said(tmp_path: Path, api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside a pod, and where nobody answers; nothing is raised."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.delenv("KUBERNETES_API", raising=False)

    async def run() -> None:
        costs = PodCosts(settings(tmp_path), api=api, retry_s=60.0)
        costs.put("llama", ("10.0.0.1:8000",))
        costs.start()
        await until(lambda: costs.failures == 1)
        assert ("no KUBERNETES_SERVICE_HOST" if not api else "the Kubernetes API") in costs.trouble
        await costs.stop()

    driven(run)


def test_the_api_is_where_the_kubelet_says() -> None:
    """Its two variables, with IPv6; nothing outside a cluster."""
    assert api_of({}) == ""
    assert api_of({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) == "https://10.0.0.1:443"
    given = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}
    assert api_of(given) == "https://[fd00::1]:6443"
