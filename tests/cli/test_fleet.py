"""`steersman fleet`: what it prints and orders, and its errors, against a service that runs here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from extproc.cli import group
from extproc.supervise.ports import free_ports

ADDRESS = "10.9.9.1:8000"


@pytest.fixture(autouse=True)
def _no_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever demo runs on this machine is not these tests'."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("STEERSMAN_ADDRESS", raising=False)


def fleet(service: str, *arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(group, ["fleet", "--address", service, *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_table_and_json_show_the_endpoint(service: str) -> None:
    """Exit 0; what no agent has told is a dash there and null here."""
    code, out, err = fleet(service)
    assert (code, err) == (0, "")
    assert ADDRESS in out
    assert "–" in out
    code, out, err = fleet(service, "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["endpoints"][0]["address"] == ADDRESS
    assert told["endpoints"][0]["waiting"] is None
    assert told["at"] > 1e9


def test_a_drain_holds_until_it_is_taken_back(service: str) -> None:
    """Both are shown by the next `fleet --json`; each says how to go on."""
    code, out, _ = fleet(service, "drain", ADDRESS)
    assert (code, out) == (0, f"{ADDRESS} drains; undo it with: steersman fleet undrain {ADDRESS}\n")
    assert json.loads(fleet(service, "--json")[1])["endpoints"][0]["draining"]
    code, out, _ = fleet(service, "undrain", ADDRESS)
    assert (code, out) == (0, f"{ADDRESS} takes requests again, unless its agent says otherwise\n")
    assert not json.loads(fleet(service, "--json")[1])["endpoints"][0]["draining"]


def test_clearing_no_fault_is_no_error(service: str) -> None:
    """It says that there was none."""
    assert fleet(service, "clear-faults", ADDRESS) == (0, f"{ADDRESS}: there was no fault to clear\n", "")


@pytest.mark.parametrize("order", ["drain", "undrain", "clear-faults"])
def test_an_address_that_is_not_in_the_fleet_is_named(service: str, order: str) -> None:
    """Exit 1, and where to look."""
    code, out, err = fleet(service, order, "10.9.9.9:1")
    assert (code, out) == (1, "")
    assert err == "10.9.9.9:1 is not in the fleet; `steersman fleet` lists what is\n"


@pytest.mark.parametrize(
    "arguments", [[], ["--json"], ["--watch"], ["drain", ADDRESS], ["clear-faults", ADDRESS]]
)
def test_nobody_there_is_said_with_the_address(arguments: list[str]) -> None:
    """Exit 1, no stack trace."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    code, out, err = fleet(address, *arguments)
    assert (code, out) == (1, "")
    assert err == (
        f"no Steersman answers at {address}; is it running? Give its service.listen with --address\n"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["xid"], 1, "no demo of this user runs (looked in "),
        (["xid", "--demo", "1"], 1, "no demo with pid 1 of this user runs"),
        ([], 2, "say what to break, such as: steersman demo-fault xid 2"),
    ],
)
def test_a_fault_without_a_demo_is_refused(arguments: list[str], code: int, said: str) -> None:
    """It says how to start one."""
    result = CliRunner().invoke(group, ["demo-fault", *arguments])
    assert result.exit_code == code
    assert said in result.stderr


def test_the_kinds_are_listed_without_a_demo() -> None:
    """Exit 0."""
    result = CliRunner().invoke(group, ["demo-fault", "--list"])
    assert result.exit_code == 0
    for kind in (
        "xid[=79]",
        "throttle[=0.4]",
        "agent[=stop]",
        "service",
        "clear",
        "no demo of this user runs",
    ):
        assert kind in result.stdout
