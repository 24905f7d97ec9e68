"""A KEDA of our own: asks an external scaler as KEDA's operator does (pkg/scalers/external_scaler.go)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc

from extproc._pb import externalscaler_pb2 as pb

SERVICE = "/externalscaler.ExternalScaler/"


class KedaClient:
    """One trigger of one ScaledObject. Its connection is the operator's: it outlives the scaler."""

    def __init__(
        self,
        address: str,
        *,
        name: str = "llama",
        ca: Path | None = None,
        pair: tuple[Path, Path] | None = None,
        index: int = 0,
        **metadata: str,
    ) -> None:
        # Short waits for a connection that was refused: KEDA's own are seconds.
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 100)]
        if ca is None:
            self._channel = grpc.aio.insecure_channel(address, options=options)
        else:
            certificate, key = (each.read_bytes() for each in pair) if pair is not None else (None, None)
            credentials = grpc.ssl_channel_credentials(ca.read_bytes(), key, certificate)
            self._channel = grpc.aio.secure_channel(address, credentials, options=options)
        own = {"scalerAddress": address, "enableTLS": str(ca is not None).lower()}
        self.ref = pb.ScaledObjectRef(name=name, namespace="llm", scalerMetadata={**own, **metadata})
        self._index = index

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> KedaClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _ask(self, method: str, request: Any, response: Any, *, wait: bool = False) -> Any:
        call = self._channel.unary_unary(
            SERVICE + method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )
        return await call(request, timeout=30, wait_for_ready=wait)

    async def is_active(self, *, wait: bool = False) -> bool:
        answer = await self._ask("IsActive", self.ref, pb.IsActiveResponse, wait=wait)
        return bool(answer.result)

    async def metric_spec(self) -> tuple[str, int]:
        """The metric's name as HPA has it, and the target in thousandths, as KEDA makes a quantity of it."""
        answer = await self._ask("GetMetricSpec", self.ref, pb.GetMetricSpecResponse)
        return self._spec(answer)

    async def metrics(self, name: str, *, wait: bool = False) -> int:
        """The metric's total in thousandths; `name` as HPA has it."""
        prefix = f"s{self._index}-"
        assert name.startswith(prefix)
        request = pb.GetMetricsRequest(scaledObjectRef=self.ref, metricName=name.removeprefix(prefix))
        (value,) = (await self._ask("GetMetrics", request, pb.GetMetricsResponse, wait=wait)).metricValues
        assert value.metricName == request.metricName
        read = value.metricValueFloat if value.metricValueFloat > 0 else float(value.metricValue)
        return int(read * 1_000)

    async def stream_active(self) -> AsyncIterator[bool]:
        call = self._channel.unary_stream(
            f"{SERVICE}StreamIsActive",
            request_serializer=pb.ScaledObjectRef.SerializeToString,
            response_deserializer=pb.IsActiveResponse.FromString,
        )(self.ref)
        try:
            async for answer in call:
                yield bool(answer.result)
        finally:
            call.cancel()

    async def stream_specs(self) -> AsyncIterator[tuple[str, int]]:
        call = self._channel.unary_stream(
            f"{SERVICE}StreamMetricSpec",
            request_serializer=pb.ScaledObjectRef.SerializeToString,
            response_deserializer=pb.GetMetricSpecResponse.FromString,
        )(self.ref)
        try:
            async for answer in call:
                yield self._spec(answer)
        finally:
            call.cancel()

    def _spec(self, answer: Any) -> tuple[str, int]:
        (spec,) = answer.metricSpecs
        target = int(spec.targetSizeFloat * 1_000) if spec.targetSizeFloat > 0 else spec.targetSize * 1_000
        return f"s{self._index}-{spec.metricName}", target


class FakePools:
    """What a scaler is told of its pools; no plan before one is put in."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.plans: dict[str, Any] = {}
        self.waiting: Mapping[str, int] = {}
        self.wanting: set[str] = set()

    def pools(self) -> list[str]:
        return self.names

    def plan(self, pool: str) -> Any:
        return self.plans.get(pool)

    def held(self, pool: str) -> int:
        return self.waiting.get(pool, 0)

    def asked(self, pool: str) -> bool:
        return self.held(pool) > 0 or pool in self.wanting
