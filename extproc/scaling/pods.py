"""Tells Kubernetes which pods are to go first, by the annotation that its ReplicaSets go by.

Owns the two annotations: `controller.kubernetes.io/pod-deletion-cost` (KEP-2255; the lowest goes first, pods
that are not ready before all) and our own mark beside it, by which a later service finds what an earlier one
wrote. Needs the right to list and to patch pods in the replicas' namespace. Written on a change of who leaves
and at no other time, as Kubernetes' documentation asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from extproc.config.scaling import PodDeletionCost

log = logging.getLogger(__name__)

COST: Final = "controller.kubernetes.io/pod-deletion-cost"
#: Its value is what the cost was before, "" for none.
MARK: Final = "steersman/leaving"
#: Pods a page, and pages; a pool has at most 1,000 replicas.
PAGE, PAGES_MAX = 500, 20
TIMEOUT_S: Final = 10.0
#: How long after a failure it is tried again; doubled each time, up to the longest.
RETRY_S, RETRY_S_MAX = 1.0, 60.0


def api_of(environ: Mapping[str, str] = os.environ) -> str:
    """Where the API server is, as the kubelet tells every container; "" outside a cluster."""
    if given := environ.get("KUBERNETES_API"):
        return given
    host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "443")
    return f"https://{f'[{host}]' if ':' in host else host}:{port}" if host else ""


def changes(pods: list[dict[str, Any]], leaving: tuple[str, ...]) -> dict[str, dict[str, str | None]]:
    """Annotations to write, by pod; None takes one away. `leaving`: the pods' IPs, who goes first first."""
    costs = {ip: number - len(leaving) for number, ip in enumerate(leaving)}
    found: dict[str, dict[str, str | None]] = {}
    for pod in pods:
        metadata = pod["metadata"]
        if metadata.get("deletionTimestamp"):
            continue
        says = metadata.get("annotations") or {}
        cost = costs.get(pod.get("status", {}).get("podIP") or "")
        if cost is None:
            if MARK in says:
                found[metadata["name"]] = {COST: says[MARK] or None, MARK: None}
        elif says.get(COST) != str(cost) or MARK not in says:
            found[metadata["name"]] = {COST: str(cost), MARK: says.get(MARK, says.get(COST, ""))}
    return found


class PodCosts:
    """Keeps the annotations as the plans have it; a failure is tried again with who leaves by then."""

    def __init__(self, settings: PodDeletionCost, *, api: str = "", retry_s: float = RETRY_S) -> None:
        self.settings, self._retry_s = settings, retry_s
        self._api = api or api_of()
        self._account = Path(settings.account_dir)
        self._leaving: dict[str, tuple[str, ...]] = {}
        #: Who leaves as it was written last; None: what an earlier service wrote is still to be looked at.
        self._written: dict[str, tuple[str, ...]] | None = None
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.patches = self.failures = 0
        self.trouble = ""

    def put(self, pool: str, leaving: tuple[str, ...]) -> None:
        """Who of a pool is to go, the first first; addresses. Returns at once."""
        if self._leaving.get(pool, ()) != leaving:
            self._leaving = {**self._leaving, pool: leaving}
            self._wake.set()

    def written(self, pool: str) -> bool:
        """Whether Kubernetes knows who of the pool is to go."""
        return self._written is not None and self._written.get(pool, ()) == self._leaving.get(pool, ())

    def start(self) -> None:
        """Begin; on the event loop. What an earlier service wrote is put right first."""
        self._wake.set()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End; what is written stays: who was to go still is, and the next service looks."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def status(self) -> dict[str, object]:
        """How it goes."""
        return {"patches": self.patches, "failures": self.failures, "trouble": self.trouble}

    async def _run(self) -> None:
        wait_s = self._retry_s
        while True:
            await self._wake.wait()
            self._wake.clear()
            leaving = self._leaving
            try:
                await self._write(leaving)
            except (OSError, ValueError, KeyError, TypeError) as error:
                self.failures += 1
                if not self.trouble:
                    log.warning("scaling.pod_deletion_cost: %s; trying again", error)
                self.trouble = str(error) or type(error).__name__
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, RETRY_S_MAX)
                self._wake.set()
            else:
                self._written, self.trouble, wait_s = leaving, "", self._retry_s

    async def _write(self, leaving: Mapping[str, tuple[str, ...]]) -> None:
        """Raises OSError, ValueError, KeyError or TypeError where the API does not do as it is asked."""
        if not self._api:
            raise OSError("no KUBERNETES_SERVICE_HOST: this is no pod; take scaling.pod_deletion_cost out")
        import aiohttp

        token = (await asyncio.to_thread((self._account / "token").read_text)).strip()
        tls: Any = True
        if self._api.startswith("https"):
            authority = str(self._account / "ca.crt")
            tls = await asyncio.to_thread(ssl.create_default_context, cafile=authority)
        pods = f"{self._api}/api/v1/namespaces/{self.settings.namespace}/pods"
        async with aiohttp.ClientSession(
            headers={"authorization": f"Bearer {token}"},
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
            connector=aiohttp.TCPConnector(ssl=tls),
        ) as session:
            try:
                found = await self._listed(session, pods)
                ips = tuple(_ip(address) for each in leaving.values() for address in each)
                for name, annotations in changes(found, ips).items():
                    async with session.patch(
                        f"{pods}/{name}",
                        json={"metadata": {"annotations": annotations}},
                        headers={"content-type": "application/merge-patch+json"},
                    ) as answer:
                        # One that is gone meanwhile is as it should be.
                        if answer.status != 404:
                            _good(answer.status, "patch")
                            self.patches += 1
            except (aiohttp.ClientError, TimeoutError) as error:
                raise OSError(f"the Kubernetes API: {error or type(error).__name__}") from error

    async def _listed(self, session: Any, pods: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        query = {"labelSelector": self.settings.selector, "limit": str(PAGE)}
        for _ in range(PAGES_MAX):
            async with session.get(pods, params=query) as answer:
                _good(answer.status, "list")
                page = await answer.json()
            found += page["items"]
            more = (page.get("metadata") or {}).get("continue")
            if not more:
                break
            query["continue"] = more
        return found


def _good(status: int, verb: str) -> None:
    if status in (401, 403):
        raise PermissionError(
            f"the Kubernetes API refuses ({status}): the service account needs {verb} on pods"
        )
    if status != 200:
        raise OSError(f"the Kubernetes API answered {status} to {verb} pods")


def _ip(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")
