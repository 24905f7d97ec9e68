"""What can be broken in a running demo, and how it is mended.

Owns the kinds of trouble, which part each strikes and what there is to see. Everything strikes from
outside, as trouble does: the demo's own process is told of nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from extproc.core.faults import XIDS, Recovery
from extproc.demo.cards import read_faults
from extproc.demo.running import RunningDemo, RunningNode, RunningReplica
from extproc.supervise.asking import ServiceLink, ServiceSilentError

#: The target where none is named: the faster replica of the busier pool.
DEFAULT_REPLICA, DEFAULT_NODE = 2, 0
#: A replica answers its control route at once, or is not there.
FAULT_S_MAX: Final = 2.0
#: How long `clear` waits for a service that is just being restarted.
SERVICE_BACK_S: Final = 8.0
SERVICE_LOOK_S: Final = 0.2
#: … and for the agents' word.
AGENTS_BACK_S: Final = 5.0
XID_MAX: Final = 1023
#: The XID after which a card does not answer its driver any more.
FELL_OFF_THE_BUS: Final = 79
HOT_C: Final = 91


class FaultError(Exception):
    """It cannot be done; the message says why and what to write instead."""


class WrongOrderError(FaultError):
    """It was asked for wrongly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What was done, and what to watch."""

    did: str
    watch: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultKind:
    """A kind of trouble: its default value in words, what it strikes, a line of help."""

    value: str | None
    strikes: str
    help: str


@dataclass(frozen=True, slots=True)
class DemoFault:
    """What was asked for: value None is the kind's default; targets are resolved."""

    demo: RunningDemo
    value: str | None
    replicas: Sequence[RunningReplica]
    nodes: Sequence[RunningNode]

    @property
    def names(self) -> str:
        """The replicas, for people."""
        return ", ".join(f"{each.number} {each.name}" for each in self.replicas)


async def _xid(order: DemoFault) -> Done:
    code = _number(order.value, "79", least=1, most=XID_MAX, whole=True, kind="xid")
    faults: dict[str, Any] = {"lost": True} if code == FELL_OFF_THE_BUS else {}
    for replica in order.replicas:
        before = _faults_of(order.demo, replica).get("xids", [])
        _lay(order.demo, replica, {**faults, "xids": [*before, code]})
    fault = XIDS.get(int(code))
    if fault is None:
        watch = "nothing: the fault table takes this code for noise"
    elif fault.factor <= 0.0:
        watch = (
            f"health goes to 0 at once, new requests elsewhere; what runs ends. Over {fault.recovery.value}"
        )
    else:
        watch = f"health falls towards {fault.factor:g}. Over {fault.recovery.value}"
    if fault is not None and fault.recovery is not Recovery.TIME:
        watch += ", or by `steersman demo-fault clear`"
    return Done(did=f"XID {code:g} ({fault.name if fault else 'noise'}) on {order.names}", watch=watch)


async def _throttle(order: DemoFault) -> Done:
    share = _number(order.value, "0.4", least=0.05, most=0.95, kind="throttle")
    for replica in order.replicas:
        clock = {"sm_clock_mhz": round(share * replica.clock_mhz), "temperature_c": HOT_C}
        _lay(order.demo, replica, {"throttle": ["hw_thermal_slowdown"], **clock})
    await _tell(order, {"slowdown": 1 / share})
    return Done(
        did=f"{order.names} throttled by heat to {share:.0%} of the clock, and as much slower",
        watch=f"health falls to {share:.2f}, traffic with it; nothing fails",
    )


async def _ecc(order: DemoFault) -> Done:
    for replica in order.replicas:
        _lay(order.demo, replica, {"ecc_uncorrected": 2})
    return Done(
        did=f"2 uncorrected ECC errors on the card of {order.names}", watch="health falls to 0.50; evidence"
    )


async def _hang(order: DemoFault) -> Done:
    await _tell(order, {"hang": True})
    return Done(
        did=f"{order.names} hangs: takes requests, makes no token",
        watch="state hung and health 0 within two seconds; what runs there waits until `clear`",
    )


async def _slow(order: DemoFault) -> Done:
    factor = _number(order.value, "6", least=1.1, most=100.0, kind="slow")
    await _tell(order, {"slowdown": factor})
    return Done(
        did=f"{order.names} makes every step {factor:g}× as slow",
        watch="cause latency, once a few answers have ended; work goes elsewhere sooner, as it piles up",
    )


async def _crash(order: DemoFault) -> Done:
    for replica in order.replicas:
        _kill(order.demo, replica.pid, signal.SIGKILL, f"{replica.number} {replica.name}")
    return Done(
        did=f"killed {order.names} (SIGKILL)",
        watch="state gone and health 0; its streams are cut, the rest is retried; back after 4 s, slowly",
    )


async def _drain(order: DemoFault) -> Done:
    async with _service(order.demo) as link:
        for replica in order.replicas:
            await link.drain(replica.address, draining=True)
    return Done(did=f"drains {order.names}", watch="state draining; what runs ends there, nothing new comes")


async def _agent(order: DemoFault) -> Done:
    how = order.value or "stop"
    if how not in ("stop", "kill"):
        raise WrongOrderError(
            f"agent={how}: write agent=stop (it falls silent) or agent=kill (it is restarted)"
        )
    signum = signal.SIGSTOP if how == "stop" else signal.SIGKILL
    for node in order.nodes:
        _kill(order.demo, node.agent_pid, signum, f"the agent of {node.name}")
    names = ", ".join(node.name for node in order.nodes)
    if how == "stop":
        watch = "ages grow, cause telemetry after 1.5 s, blind after 3 s; requests go on by our own books"
    else:
        watch = "ages grow for a second, until the restarted agent reports"
    return Done(did=f"{'halted' if how == 'stop' else 'killed'} the agent of {names}", watch=watch)


async def _kill_service(order: DemoFault) -> Done:
    _kill(order.demo, order.demo.service_pid, signal.SIGKILL, "the service")
    return Done(
        did="killed the service (SIGKILL)",
        watch="running streams go on; new requests get 503 until it is back, about a second",
    )


async def _clear(order: DemoFault) -> Done:
    for node in order.nodes:
        if order.demo.owns(node.agent_pid):
            _kill(order.demo, node.agent_pid, signal.SIGCONT, f"the agent of {node.name}")
    for replica in order.replicas:
        _lay(order.demo, replica, None)
    told = await asyncio.gather(*(_set(replica, {"clear": True}) for replica in order.replicas))
    ended: list[str] = []
    async with _service(order.demo, patience_s=SERVICE_BACK_S) as link:
        await _all_told(order, link)
        for replica in order.replicas:
            await link.drain(replica.address, draining=False)
            ended += await link.clear_faults(replica.address) or []
    did = f"cleared {order.names}" + (f"; faults ended: {', '.join(ended)}" if ended else "")
    away = [each.name for each, heard in zip(order.replicas, told, strict=True) if not heard]
    if away:
        did += f"; {', '.join(away)} is still away, and comes back whole"
    return Done(did=did, watch="after two quiet seconds health rises by 0.2 a second, to 1")


async def _all_told(order: DemoFault, link: ServiceLink) -> None:
    """Wait until the agents have spoken: a fault that a restarted service has yet to hear of would stay."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + AGENTS_BACK_S
    wanted = {replica.address for replica in order.replicas}
    while loop.time() < until_s:
        endpoints = (await link.status())["endpoints"]
        if wanted <= {
            each["address"] for each in endpoints if each["age_ms"] is not None and not each["stale"]
        }:
            return
        await asyncio.sleep(SERVICE_LOOK_S)


KINDS: Final = {
    "xid": FaultKind(value="79", strikes="replica", help="an XID event on the replica's GPU"),
    "throttle": FaultKind(value="0.4", strikes="replica", help="heat leaves this share of the clock"),
    "ecc": FaultKind(value=None, strikes="replica", help="uncorrected ECC errors on the GPU"),
    "hang": FaultKind(value=None, strikes="replica", help="takes requests, makes no token"),
    "crash": FaultKind(value=None, strikes="replica", help="SIGKILL of the replica; it loads again for 4 s"),
    "slow": FaultKind(value="6", strikes="replica", help="every step so many times as slow"),
    "drain": FaultKind(value=None, strikes="replica", help="an operator's drain"),
    "agent": FaultKind(value="stop", strikes="node", help="halts (stop) or kills (kill) a node's agent"),
    "service": FaultKind(value=None, strikes="service", help="SIGKILL of the service"),
    "clear": FaultKind(value=None, strikes="everything", help="mends all of it, or what TARGET names"),
}
_WORK: Final[dict[str, Callable[[DemoFault], Awaitable[Done]]]] = {
    "xid": _xid,
    "throttle": _throttle,
    "ecc": _ecc,
    "hang": _hang,
    "crash": _crash,
    "slow": _slow,
    "drain": _drain,
    "agent": _agent,
    "service": _kill_service,
    "clear": _clear,
}


async def strike(
    demo: RunningDemo, kind: str, *, value: str | None, target: str | None, noted: bool = True
) -> Done:
    """Do it, and note in the demo that somebody did. Raises FaultError, ServiceSilentError."""
    known = KINDS.get(kind)
    if known is None:
        raise WrongOrderError(f"{kind!r} is no kind of fault; write one of {', '.join(KINDS)}")
    if value is not None and known.value is None:
        raise WrongOrderError(f"{kind} takes no value; write {kind}, and a target after it")
    if known.strikes == "service" and target is not None:
        raise WrongOrderError(f"{kind} strikes the one service; leave {target!r} out")
    done = await _WORK[kind](resolve(demo, known.strikes, value=value, target=target))
    if noted:
        demo.note(f"demo-fault: {done.did}")
    return done


async def mend(demo: RunningDemo, target: str) -> None:
    """End what is wrong with a replica's card and its pace, and nothing else of it. Raises FaultError."""
    for replica in resolve(demo, "replica", value=None, target=target).replicas:
        _lay(demo, replica, None)
        await _set(replica, {"clear": True})


def resolve(demo: RunningDemo, strikes: str, *, value: str | None, target: str | None) -> DemoFault:
    """The order for a target: a replica's number, name or address, or a node, which means all on it."""
    if target is None and strikes == "everything":
        return DemoFault(demo, value, demo.replicas, demo.nodes)
    if target is None:
        replica = next(each for each in demo.replicas if each.number == DEFAULT_REPLICA)
        return DemoFault(demo, value, [replica], [demo.nodes[DEFAULT_NODE]])
    for node in demo.nodes:
        if target == node.name:
            return DemoFault(demo, value, [each for each in demo.replicas if each.node == node.name], [node])
    for replica in demo.replicas:
        if target in (str(replica.number), replica.name, replica.address):
            return DemoFault(demo, value, [replica], [demo.node_of(replica)])
    choices = [f"{each.number} ({each.name})" for each in demo.replicas]
    names = ", ".join([*choices, *(node.name for node in demo.nodes)])
    raise WrongOrderError(f"{target!r} is no part of this demo; write one of {names}")


def _number(
    text: str | None, default: str, *, least: float, most: float, kind: str, whole: bool = False
) -> float:
    said = default if text is None else text
    try:
        value = float(int(said) if whole else float(said))
    except ValueError:
        value = float("nan")
    if not least <= value <= most:
        what = "a whole number" if whole else "a number"
        raise WrongOrderError(
            f"{kind}={said}: write {what} from {least:g} to {most:g}, such as {kind}={default}"
        )
    return value


def _faults_of(demo: RunningDemo, replica: RunningReplica) -> dict[str, Any]:
    return read_faults(Path(demo.node_of(replica).faults), cards=replica.gpu + 1)[replica.gpu]


def _lay(demo: RunningDemo, replica: RunningReplica, faults: dict[str, Any] | None) -> None:
    """Add to what is wrong with a replica's card; None ends all of it."""
    path = Path(demo.node_of(replica).faults)
    cards = read_faults(path, cards=sum(each.node == replica.node for each in demo.replicas))
    cards[replica.gpu] = {**cards[replica.gpu], **faults} if faults is not None else {}
    new = path.with_suffix(f".{os.getpid()}")
    try:
        new.write_text(json.dumps(cards), encoding="utf-8")
        new.replace(path)
    except OSError as error:
        raise FaultError(f"{path}: cannot be written: {error.strerror}; has the demo ended?") from None


def _kill(demo: RunningDemo, pid: int | None, signum: signal.Signals, what: str) -> None:
    """Signal a part, and never a stranger that has its number by now."""
    if pid is None or not demo.owns(pid):
        raise FaultError(f"{what} does not run just now; it is being restarted: try again in a moment")
    os.kill(pid, signum)


async def _tell(order: DemoFault, fault: dict[str, Any]) -> None:
    for replica in order.replicas:
        if not await _set(replica, fault):
            raise FaultError(
                f"{replica.number} {replica.name} does not answer; it may be loading: try again in a moment"
            )


async def _set(replica: RunningReplica, fault: dict[str, Any]) -> bool:
    """Set a simulated replica's faults; false when it does not answer."""
    timeout = aiohttp.ClientTimeout(total=FAULT_S_MAX)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=False) as session,
            session.post(f"http://{replica.address}/sim/fault", json=fault) as answer,
        ):
            return answer.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


@asynccontextmanager
async def _service(demo: RunningDemo, *, patience_s: float = 0.0) -> AsyncIterator[ServiceLink]:
    """A link to the demo's service, once it answers within `patience_s`. Raises ServiceSilentError."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + patience_s
    link = ServiceLink(demo.service)
    try:
        while True:
            try:
                await link.status()
                break
            except ServiceSilentError:
                if loop.time() >= until_s:
                    raise
            await asyncio.sleep(SERVICE_LOOK_S)
        yield link
    finally:
        await link.close()
