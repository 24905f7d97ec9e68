"""A live `steersman demo`, broken in every way on request: `steersman fleet` follows, clients do not notice.

In the order of the file.
"""

from __future__ import annotations

import pytest
from live.live_demo import FOLLOWS_S, HEALS_S, SLOW_FOLLOWS_S, LiveDemo

#: By conftest.py: also where the order of tests is random.
IN_ORDER = True
pytestmark = [pytest.mark.envoy, pytest.mark.slow, pytest.mark.timeout(400)]
CHAT_A, CHAT_H, CODE_A, CODE_H = range(4)


def test_a_replica_in_no_list_is_registered_by_its_agent_and_served(live: LiveDemo) -> None:
    """The fourth; all are healthy, told of within the heartbeat, with their cards."""
    assert any("4 strong-h100 was in no list: node-h registered it" in line for line in live.lines)
    live.sees(
        lambda now: all(each["announced"] and each["state"] == "ready" for each in now), what="all are ready"
    )
    fleet = live.fleet()
    assert [each["node"] for each in fleet] == ["node-a", "node-h", "node-a", "node-h"]
    assert [each["zone"] for each in fleet] == ["zone-a", "zone-h", "zone-a", "zone-h"]
    assert all(len(each["gpus"]) == 1 and each["gpus"][0]["memory_used_bytes"] for each in fleet)
    live.sees(lambda now: now[CODE_H]["ok"] > 0, what="the registered one serves", s_max=FOLLOWS_S)


def test_gpu_faults_move_health_and_no_client_notices(live: LiveDemo) -> None:
    """XID 79 silences, ECC errors halve, heat leaves the clock's share; a drain is a drain."""
    live.fault("xid=79", "cheap-a100")
    live.fault("throttle=0.3", "3")
    live.sees(
        lambda now: (
            now[CHAT_A]["health"] == 0.0
            and now[CHAT_A]["causes"]["gpu xid 79"]["kind"] == "hard"
            and now[CHAT_A]["gpus"][0]["lost"]
            and now[CODE_A]["health"] <= 0.31
            and now[CODE_A]["causes"]["gpu throttle"]["factor"] == 0.3
        ),
        what="XID and throttle",
    )
    live.fault("ecc", "2")
    live.fault("drain", "4")
    live.sees(
        lambda now: (
            now[CHAT_H]["causes"].get("gpu ecc", {}).get("factor") == 0.5
            and now[CODE_H]["draining"]
            and not now[CODE_H]["ready"]
        ),
        what="ECC and drain",
    )
    live.fault("clear")
    live.sees(
        lambda now: (
            all(each["ready"] for each in now)
            and not any(name.startswith("gpu") for each in now for name in each["causes"])
        ),
        what="clear",
    )


@pytest.mark.soak
def test_silent_agents_and_stragglers_are_suspects_and_no_client_notices(live: LiveDemo) -> None:
    """A halted agent's figures go stale and its replicas serve on; a killed one is back; slow is seen."""
    failed, before = live.failed, live.fleet()
    live.fault("slow", "cheap-a100")
    live.fault("agent=stop", "node-h")
    live.sees(
        lambda now: "telemetry" in now[CHAT_H]["causes"] and now[CHAT_H]["ready"] and now[CODE_H]["ready"],
        what="a silent agent",
    )
    live.sees(
        lambda now: (
            ("latency" in now[CHAT_A]["causes"] and now[CHAT_A]["health"] < 0.9)
            # What steer itself learns of its speed; or it had no use for it, and so nothing to learn.
            or now[CHAT_A]["speed_factor"] > 1.5
            or now[CHAT_H]["ok"] - before[CHAT_H]["ok"] > 20 + 4 * (now[CHAT_A]["ok"] - before[CHAT_A]["ok"])
        ),
        what="a straggler",
        s_max=SLOW_FOLLOWS_S,
    )
    live.fault("clear")
    live.sees(lambda now: (now[CHAT_H]["age_ms"] or 1e9) < 1500, what="the agent is back")
    live.fault("agent=kill", "node-a")
    live.until(
        lambda: any("agent node-a: was killed by SIGKILL" in line for line in live.lines),
        s_max=FOLLOWS_S,
        what="a death",
    )
    live.sees(lambda now: (now[CODE_A]["age_ms"] or 1e9) < 1500, what="the agent is back")
    assert live.failed == failed


def test_a_hung_and_a_crashed_replica_lose_at_most_what_ran_there(live: LiveDemo) -> None:
    """Both are silenced within seconds; whatever was asked afterwards is served."""
    before, ran = live.failed, sum(each["running"] or 0 for each in live.fleet())
    live.fault("crash", "2")
    live.fault("hang", "3")
    live.sees(
        lambda now: (
            (now[CHAT_H]["state"], now[CHAT_H]["health"]) == ("gone", 0.0)
            and (now[CODE_A]["state"], now[CODE_A]["health"]) == ("hung", 0.0)
        ),
        what="hung and gone",
    )
    assert live.failed - before <= ran + 8
    live.fault("clear")
    live.sees(lambda now: now[CHAT_H]["ready"] and now[CODE_A]["ready"], what="back", s_max=FOLLOWS_S)


@pytest.mark.soak
def test_a_killed_service_comes_back_and_knows_the_fleet_again(live: LiveDemo) -> None:
    """Also the replica that was registered; and after `clear` everything is whole."""
    live.fault("service")
    live.until(
        lambda: sum("service: ready" in line for line in live.lines) == 2, s_max=FOLLOWS_S, what="a restart"
    )
    live.fault("clear")
    live.sees(lambda now: all(each["state"] == "ready" for each in now), what="all are known")
    live.sees(
        lambda now: all(each["ready"] and each["health"] > 0.75 for each in now), what="healed", s_max=HEALS_S
    )
    before = live.failed
    assert live.failed == before
