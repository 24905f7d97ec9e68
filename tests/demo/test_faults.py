"""faults.py, cards.py, fleet.py: orders and their mistakes, faults on cards, and the files of a demo."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest
import yaml

from extproc.config.load import load
from extproc.demo.cards import Cards, read_faults
from extproc.demo.faults import KINDS, FaultError, WrongOrderError, resolve, strike
from extproc.demo.replicas import PORTS_NEEDED, DemoFleet, lay_out
from extproc.demo.running import RunningDemo, RunningNode, RunningReplica
from steersman_agent.config import load as load_agent
from steersman_agent.nvml_fake import FakeNvml


@pytest.fixture
def fleet(tmp_path: Path) -> DemoFleet:
    return lay_out(tmp_path, [20_000 + n for n in range(PORTS_NEEDED)], speed=2.0, seed=1)


@pytest.fixture
def demo(fleet: DemoFleet, tmp_path: Path) -> RunningDemo:
    """One of which nothing runs."""
    return RunningDemo(
        pid=os.getpid(),
        began=1,
        url="",
        service="127.0.0.1:9",
        service_pid=None,
        run_dir=str(tmp_path),
        replicas=tuple(
            RunningReplica(
                number=each.number,
                name=each.name,
                address=each.address,
                pool=each.pool,
                node=each.node,
                gpu=each.gpu,
                clock_mhz=each.card.clock_mhz,
                pid=os.getppid(),
            )
            for each in fleet.replicas
        ),
        nodes=tuple(RunningNode(name=n.name, faults=str(n.faults), agent_pid=None) for n in fleet.nodes),
    )


def test_the_files_are_good_for_those_who_read_them(fleet: DemoFleet, tmp_path: Path) -> None:
    """The service's and the agents' own checks pass; the tokens fit and are private; one is unlisted."""
    config = load(fleet.config)
    listed = {endpoint.address for pool in config.pools for endpoint in pool.endpoints}
    told = set()
    for node in fleet.nodes:
        agent = load_agent(node.agent)
        told |= {replica.address for replica in agent.replicas}
        assert agent.token_file is not None
        assert stat.S_IMODE(agent.token_file.stat().st_mode) == 0o600
    assert told - listed == {each.address for each in fleet.replicas if each.registered}
    assert len(told) == 4
    secrets = [path.read_text() for path in tmp_path.glob("*.token")]
    assert not any(secret in fleet.config.read_text() for secret in secrets)
    assert yaml.safe_load(fleet.config.read_text())["telemetry"]["nodes"][0]["name"] == "node-a"


def test_faults_are_laid_on_a_card_and_seen_by_nvml(
    fleet: DemoFleet, demo: RunningDemo, tmp_path: Path
) -> None:
    """XIDs add up, other cards stay well; a note says what was done."""
    cards = Cards(fleet)

    async def main() -> None:
        await strike(demo, "xid", value="48", target="strong-a100")
        await strike(demo, "xid", value="94", target="3")
        done = await strike(demo, "ecc", value=None, target=fleet.replicas[2].address)
        assert done.did == "2 uncorrected ECC errors on the card of 3 strong-a100"

    asyncio.run(main())
    cards.write()
    faults = read_faults(fleet.nodes[0].faults, cards=2)
    assert faults == [{}, {"xids": [48, 94], "ecc_uncorrected": 2}]
    lib = FakeNvml(fleet.nodes[0].cards)
    lib.nvmlInit()
    assert lib.nvmlDeviceGetCount() == 2
    assert [lib.nvmlDeviceGetTotalEccErrors((n,), 1, 0) for n in (0, 1)] == [0, 2]
    assert lib.nvmlDeviceGetName((0,)) == "NVIDIA A100-SXM4-80GB"
    assert "XID 48 (double-bit ECC error) on 3 strong-a100" in (tmp_path / "notes.log").read_text()


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '{"a": 1}'])
def test_a_broken_file_of_faults_is_no_fault(tmp_path: Path, text: str) -> None:
    """The demo goes on."""
    path = tmp_path / "f.json"
    path.write_text(text, encoding="utf-8")
    assert read_faults(path, cards=2) == [{}, {}]


@pytest.mark.parametrize(
    ("kind", "value", "target", "message"),
    [
        ("xyz", None, None, "'xyz' is no kind of fault; write one of xid, throttle"),
        ("xid", "many", None, "xid=many: write a whole number from 1 to 1023, such as xid=79"),
        ("xid", "7.5", None, "xid=7.5: write a whole number"),
        ("throttle", "2", None, "throttle=2: write a number from 0.05 to 0.95, such as throttle=0.4"),
        ("slow", "nan", None, "slow=nan: write a number"),
        ("hang", "3", None, "hang takes no value; write hang, and a target after it"),
        ("agent", "sleep", None, "agent=sleep: write agent=stop"),
        ("service", None, "1", "service strikes the one service; leave '1' out"),
        ("xid", None, "9", "'9' is no part of this demo; write one of 1 (cheap-a100), 2 (cheap-h100)"),
    ],
)
def test_a_wrong_order_says_what_to_write(
    demo: RunningDemo, kind: str, value: str | None, target: str | None, message: str
) -> None:
    """And does nothing."""
    with pytest.raises(WrongOrderError) as raised:
        asyncio.run(strike(demo, kind, value=value, target=target))
    assert message in str(raised.value)
    assert not Path(demo.run_dir, "notes.log").exists()


@pytest.mark.parametrize(("kind", "what"), [("crash", "2 cheap-h100"), ("agent", "the agent of node-a")])
def test_what_is_no_child_of_the_demo_is_not_signalled(demo: RunningDemo, kind: str, what: str) -> None:
    """Here the pids are another process's, or none."""
    with pytest.raises(FaultError, match=f"{what} does not run just now"):
        asyncio.run(strike(demo, kind, value=None, target=None))


@pytest.mark.parametrize(
    ("target", "replicas", "nodes"),
    [
        (None, [2], ["node-a"]),
        ("4", [4], ["node-h"]),
        ("strong-a100", [3], ["node-a"]),
        ("node-h", [2, 4], ["node-h"]),
    ],
)
def test_targets(demo: RunningDemo, target: str | None, replicas: list[int], nodes: list[str]) -> None:
    """A replica stands for its node, and a node for its replicas."""
    order = resolve(demo, "replica", value=None, target=target)
    assert [each.number for each in order.replicas] == replicas
    assert [each.name for each in order.nodes] == nodes
    assert len(resolve(demo, "everything", value=None, target=None).replicas) == 4
    assert set(KINDS) >= {"xid", "clear"}


def test_a_fault_that_cannot_be_written_is_said(demo: RunningDemo, fleet: DemoFleet) -> None:
    """The demo has ended meanwhile, and its folder is gone."""
    gone = tuple(RunningNode(name=n.name, faults="/nonexistent/f.json", agent_pid=None) for n in fleet.nodes)
    ended = RunningDemo(**{name: getattr(demo, name) for name in demo.__struct_fields__} | {"nodes": gone})
    with pytest.raises(FaultError, match="has the demo ended"):
        asyncio.run(strike(ended, "ecc", value=None, target=None))
