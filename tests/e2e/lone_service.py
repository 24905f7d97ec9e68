"""`steersman serve` alone on a file that tests change: no Envoy; it is asked over ext_proc itself."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import grpc
import yaml
from gateway import ASK_S, KEYS, STATUS_METHOD, free_ports, wait_for
from processes import STEERSMAN, Child

from extproc._pb import ext_proc_pb2 as ext_proc
from extproc.config.places import orders_at
from extproc.core.tenant import hash_key

PROCESS = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
#: How long a decision may take, on a machine that does much else.
ANSWER_S = 20.0
#: How acme begins in the file: what is put after it is its.
ACME = "- name: acme\n"


class Service:
    """`steersman serve` on a file of its own."""

    def __init__(self, folder: Path, *, tenants: int = 0) -> None:
        """Of the tenants that have keys here, and of so many others."""
        self.file, self.audit = folder / "steersman.yaml", folder / "audit.jsonl"
        # Nobody tells it of ends here: what it decides stays in flight, so there is much room.
        endpoints = [{"address": f"127.0.0.1:{9 + i}", "max_concurrent": 65_536} for i in range(32)]
        self.address = f"127.0.0.1:{free_ports(1)[0]}"
        config: dict[str, Any] = {
            "service": {"listen": [self.address], "drain_s": 0},
            "probes": {"enabled": False},  # nobody is there, and decisions are all that is asked for
            "audit": {"file": str(self.audit)},
            "pools": [{"name": "chat", "models": ["m"], "endpoints": endpoints}],
            "tenants": [{"name": name, "keys": [{"sha256": hash_key(key)}]} for name, key in KEYS.items()],
        }
        quota = {"requests_per_minute": 60}
        config["tenants"] += [
            {"name": f"t{i}", "keys": [{"sha256": hash_key(f"sk-t{i}")}], "quota": quota}
            for i in range(tenants)
        ]
        self.file.write_text("# ours\n" + yaml.dump(config, Dumper=yaml.CSafeDumper, sort_keys=False))
        arguments = [*STEERSMAN, "serve", "-f", str(self.file)]
        self.child = Child("service", arguments, folder)
        self.channel = grpc.insecure_channel(self.address)

    def status(self) -> dict[str, Any]:
        with grpc.insecure_channel(f"unix:{orders_at(self.address) or 'nobody.sock'}") as channel:
            found: dict[str, Any] = json.loads(channel.unary_unary(STATUS_METHOD)(b"", timeout=ASK_S))
        return found

    def ask(self, key: str) -> int:
        """One decision; 200 where it was routed."""
        headers = {":method": "POST", ":path": "/v1/completions", "authorization": f"Bearer {key}"}
        first = ext_proc.ProcessingRequest()
        for name, value in headers.items():
            first.request_headers.headers.headers.add(key=name, raw_value=value.encode())
        body = ext_proc.ProcessingRequest()
        body.request_body.body = b'{"model": "m", "prompt": "a secret prompt", "max_tokens": 5}'
        body.request_body.end_of_stream = True
        messages = [first.SerializeToString(), body.SerializeToString()]
        for data in self.channel.stream_stream(PROCESS)(iter(messages), timeout=ANSWER_S):
            answer = ext_proc.ProcessingResponse.FromString(data)
            if answer.HasField("immediate_response"):
                return int(answer.immediate_response.status.code)
        return 200

    def limits(self, tenant: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.status()["use"]["tenants"][tenant]["limits"]
        return found

    @property
    def history(self) -> Path:
        return self.file.with_name(f"{self.file.name}.history.jsonl")

    def events(self) -> list[str]:
        return [json.loads(line)["event"] for line in self.audit.read_text().splitlines()]

    def edit(self, old: str, new: str) -> None:
        """What an editor does: another text in the file's place."""
        before = self.file.read_text()
        assert old in before
        self.file.write_text(before.replace(old, new))


@contextlib.contextmanager
def serving(folder: Path, *, tenants: int = 0) -> Iterator[Service]:
    """A running one; it has ended afterwards."""
    found = Service(folder, tenants=tenants)
    found.child.start()
    try:
        wait_for("the service", found.status)
        yield found
    finally:
        found.child.stop()
        found.channel.close()


class Client:
    """Asks without a pause while its block runs, and counts statuses; -1 for what had no answer."""

    def __init__(self, service: Service, key: str) -> None:
        self._service, self._key = service, key
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.statuses: Counter[int] = Counter()
        self.longest_s = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._over.is_set():
            begun_s = time.monotonic()
            try:
                self.statuses[self._service.ask(self._key)] += 1
            except grpc.RpcError as error:
                self.statuses[-1] += 1
                print(error)
            self.longest_s = max(self.longest_s, time.monotonic() - begun_s)
