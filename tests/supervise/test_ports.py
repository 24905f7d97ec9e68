"""ports.py: addresses that are free, stale, taken, or not ours."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from extproc.config.load import loads
from extproc.config.model import Config
from extproc.supervise.ports import FREE_PORTS, free_ports, problems


def config(listen: str, admin: str, service: str) -> Config:
    return loads(
        f"gateway: {{auth: none, listen: '{listen}', envoy_admin: '{admin}'}}\n"
        f"service: {{listen: ['{service}']}}\n"
        "pools: [{name: m, models: [m], endpoints: [{address: '127.0.0.1:9'}]}]\n"
    )


def free() -> tuple[str, str, str]:
    first, second, third = (f"127.0.0.1:{port}" for port in free_ports(3))
    return first, second, third


def listening(address: Any, family: int = socket.AF_INET) -> socket.socket:
    taken = socket.socket(family)
    taken.bind(address)
    taken.listen()
    return taken


def test_free_ports_are_free_different_and_out_of_the_ephemeral_range() -> None:
    """Nobody else's outgoing connection can take one before it is used."""
    found = free_ports(20)
    assert len(set(found)) == 20
    assert all(port in FREE_PORTS for port in found)
    assert problems(config(*free())) == []


def test_every_taken_address_is_named_with_its_setting() -> None:
    """All at once, not the first alone."""
    listen, admin, service = free()
    host, _, port = listen.rpartition(":")
    with listening((host, int(port))), listening(("127.0.0.1", int(service.rpartition(":")[2]))):
        found = problems(config(listen, admin, service))
    assert [line.partition(":")[0] for line in found] == ["gateway.listen", "service.listen[0]"]
    assert all("is taken by another process; stop that one or set another port" in line for line in found)


def test_an_address_of_another_machine_is_said_to_be_one() -> None:
    """192.0.2.0/24 is for documentation: nobody has it."""
    _, admin, service = free()
    assert problems(config("192.0.2.1:8080", admin, service)) == [
        "gateway.listen: 192.0.2.1:8080 is not an address of this machine"
    ]


def test_a_stale_unix_socket_is_removed_a_living_one_and_a_file_are_not(tmp_path: Path) -> None:
    """A killed service leaves its socket behind; that must not keep the next one from starting."""
    listen, admin, _ = free()
    path = tmp_path / "s.sock"
    with listening(str(path), socket.AF_UNIX):
        found = problems(config(listen, admin, f"unix:{path}"))
        assert "is taken by another process" in found[0]
    assert path.is_socket()
    assert problems(config(listen, admin, f"unix:{path}")) == []
    assert not path.exists()
    path.write_text("mine")
    assert "is a file and no socket" in problems(config(listen, admin, f"unix:{path}"))[0]
    (missing,) = problems(config(listen, admin, f"unix:{tmp_path}/no/s.sock"))
    assert missing.endswith(f"s.sock cannot be made: {tmp_path}/no is not a folder; make it first")


def test_a_taken_telemetry_port_is_named() -> None:
    """Agents would find somebody else there."""
    listen, admin, service = free()
    with listening(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        found = loads(
            f"gateway: {{auth: none, listen: '{listen}', envoy_admin: '{admin}'}}\n"
            f"service: {{listen: ['{service}']}}\n"
            f"telemetry: {{listen: ['{address}'], auth: none}}\n"
            "pools: [{name: m, models: [m], endpoints: [{address: '127.0.0.1:9'}]}]\n"
        )
        assert problems(found) == [
            f"telemetry.listen[0]: {address} is taken by another process; stop that one or set another port"
        ]
