"""Checks of the service: does it decide, and does what it decides come back to it?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from extproc.doctor import dump
from extproc.doctor.checks.envoy import without_envoy
from extproc.doctor.evidence import Elsewhere, EnvoySeen, Evidence, Failed, ProbeSeen, ServiceSeen
from extproc.doctor.finding import Check, Said, error, note, warning

#: Fewer requests than this say nothing of a share.
ENOUGH: Final = 20
#: A share of expired reservations above this means that ends are lost.
EXPIRED_SHARE_MAX: Final = 0.01
#: Clocks of one deployment differ by less than this.
CLOCK_MS_MAX: Final = 2_000


def without_service(evidence: Evidence) -> str:
    """Why no service can be looked at."""
    return "" if evidence.service is not None else "no service answers"


def service_of(evidence: Evidence) -> ServiceSeen:
    """The service that was seen; after `without_service` said nothing."""
    assert evidence.service is not None
    return evidence.service


def reachable(evidence: Evidence) -> Iterator[Said]:
    """Each service answers, and takes decisions."""
    for address, seen in evidence.services.items():
        if isinstance(seen, Elsewhere):
            yield note(
                f"the service at {address} could not be looked at: {seen.why}",
                "run doctor there too, or give its admin port: --address https://HOST:PORT, with a token in "
                "$STEERSMAN_TOKEN",
            )
        elif isinstance(seen, Failed):
            yield error(
                f"no service at {address}: {seen.why}",
                "start it (steersman serve -f FILE, or steersman up), or correct gateway.services and "
                "service.listen; another place is given with --address",
            )
        elif not seen.serving:
            yield error(
                f"the service at {address} says NOT_SERVING: it drains, so Envoy sends it nothing",
                "wait for its successor, or start it again",
            )


def gateway(evidence: Evidence) -> Iterator[Said]:
    """A request without a prompt, all the way: client, Envoy, service."""
    seen = evidence.gateway
    where = evidence.config.gateway.listen
    if isinstance(seen, Failed):
        yield error(
            f"nothing answers clients at gateway.listen {where}: {seen.why}",
            "start Envoy with this file's bootstrap, or correct gateway.listen",
        )
    elif seen[0] >= 500:
        yield error(
            f"GET {where}/health through Envoy gives {seen[0]}: {' '.join(seen[1].split())[:120]}",
            "Envoy does not reach the service: see the findings on ext_proc and the service",
        )


def settling(evidence: Evidence) -> Iterator[Said]:
    """Decisions come back as settled ends."""
    seen = service_of(evidence)
    counts = seen.later["counts"]
    routed = counts.get("routed", 0) + counts.get("routed.degraded", 0)
    settled = sum(count for name, count in counts.items() if name.startswith("settled."))
    expired = counts.get("expired", 0)
    running = int(seen.later.get("in_flight", 0))
    if routed - running >= 1 and not settled and (expired or routed - running >= ENOUGH):
        yield error(
            f"{routed} requests were decided and none was ever settled: the decision's metadata or the "
            "access "
            "log does not come back",
            "see envoy.metadata and envoy.access-log; the access log must reach the service's own port",
        )
    elif expired > EXPIRED_SHARE_MAX * max(routed, ENOUGH):
        yield warning(
            f"{expired} of {routed} reservations expired: the ends of those requests never came",
            "see envoy.access-log; records are lost too while the service is killed or away",
        )
    if unknown := counts.get("settled.unknown", 0):
        yield note(
            f"{unknown} records named tenants or reservations that this service does not know",
            "normal after a restart, or when several services share an Envoy",
        )


def first_tokens(evidence: Evidence) -> Iterator[Said]:
    """Envoy tells of first tokens, so that a replica's queue is known at once."""
    counts = service_of(evidence).later["counts"]
    ended, came = counts.get("settled.ok", 0), counts.get("events.first_token", 0)
    if ended >= ENOUGH and not came:
        yield warning(
            f"{ended} requests ended and not one first-token event came (fine where nobody streams)",
            "see that Envoy has the lua filter, and that service.listen has an address of gateway.services",
        )
    unknown = counts.get("events.unknown", 0)
    if unknown > came:
        yield warning(
            f"{unknown} first-token events were of requests that another service decided",
            "make service.listen name the very address that stands in gateway.services",
        )


def lua(evidence: Evidence) -> Iterator[Said]:
    """The script that sees first chunks runs without errors."""
    assert isinstance(evidence.envoy, EnvoySeen)
    errors = sum(
        value for name, value in evidence.envoy.stats.items() if ".lua." in name and name.endswith("errors")
    )
    if errors:
        yield warning(
            f"Envoy's Lua filter failed {errors} times",
            "see Envoy's log; render the bootstrap with this version",
        )


def ads(evidence: Evidence) -> Iterator[Said]:
    """Envoys take what the service tells them of pools and endpoints."""
    seen = service_of(evidence)
    if seen.grown("roster", "ads", "nacks"):
        yield error(
            "Envoy refuses the pools that the service tells it (ADS NACK)",
            "see the service's log for Envoy's reason; service and Envoy may be of different versions",
        )
    envoy = evidence.envoy
    if isinstance(envoy, EnvoySeen):
        clusters = dump.clusters(envoy.config_dump).values()
        told = any("eds_cluster_config" in cluster for cluster in clusters)
        asks = _asks_ads(envoy)
        if (told or asks) and not seen.count("roster", "ads", "streams"):
            yield error(
                "Envoy was rendered with --mode ads, and no Envoy has a stream to this service",
                "point cluster steersman to this service; until then endpoints do not change",
            )


def _asks_ads(envoy: EnvoySeen) -> bool:
    for each in envoy.config_dump.get("configs", []):
        if "bootstrap" in each:
            return "ads_config" in each["bootstrap"].get("dynamic_resources", {})
    return False


def faults(evidence: Evidence) -> Iterator[Said]:
    """Nothing fails inside the service, and no bound is reached."""
    seen = service_of(evidence)
    for name, count in seen.later["counts"].items():
        if name.startswith("exception."):
            yield warning(
                f"the service failed {count} times at {name.removeprefix('exception.')}",
                "see its log for the traceback, and report it",
            )
        elif name.startswith("bound."):
            setting = name.removeprefix("bound.")
            yield warning(
                f"the bound {setting} was reached {count} times: those requests got 429",
                f"raise limits.{setting}",
            )
        elif name == "reload.refused":
            yield warning(
                f"{count} changes of the configuration were refused since the service's start",
                f"steersman check -f {evidence.file}; a change that needs a restart is named in the log",
            )


def tokenizers(evidence: Evidence) -> Iterator[Said]:
    """Pools with a tokenizer are counted with it."""
    for pool, seen in service_of(evidence).later.get("tokens", {}).items():
        if seen.get("problem"):
            yield warning(
                f"pool {pool}: prompts are estimated, its tokenizer is not gone by: {seen['problem']}",
                "write the path of the served model's tokenizer.json into pools[].tokenizer, or leave it out",
            )


def probe(evidence: Evidence) -> Iterator[Said]:
    """One token, all the way to a replica and back into the books."""
    seen = evidence.probe
    if isinstance(seen, Failed):
        yield error(
            f"a prompt through the gateway failed: {seen.why}", "see the findings on Envoy and the service"
        )
        return
    if seen.status != 200:
        mends = {
            401: "the key is not one of the file's; make one: steersman tenant key new TENANT",
            403: "the key's tenant may not use that model: tenants[].models",
            404: "no pool serves that model; name one with --model",
            429: "the tenant's quota or the fleet is full: steersman tenants",
        }
        text = " ".join(seen.body.split())[:160]
        yield error(
            f"a prompt through the gateway got {seen.status}: {text}",
            mends.get(seen.status, "see steersman fleet"),
        )
        return
    if not seen.settled:
        yield error(
            "a prompt was answered, and its end did not come back to the service within 5 s",
            "see envoy.metadata and envoy.access-log",
        )
    if seen.first_token is False:
        yield warning(
            "a streamed prompt was answered, and no first-token event came",
            "see envoy.counting (lua), and that service.listen has an address of gateway.services",
        )


def _no_probe(evidence: Evidence) -> str:
    asked = isinstance(evidence.probe, ProbeSeen) or not evidence.probe.why.startswith("no prompt was sent")
    return "" if asked else "no prompt was sent: give a key with --key, or --probe"


def clocks(evidence: Evidence) -> Iterator[Said]:
    """Clocks that agree: quotas, keys' ends, agents' reports and traces go by them."""
    skews = []
    seen = evidence.service
    if seen is not None and seen.clock_ahead_ms is not None:
        skews.append((f"the service at {seen.address}", seen.clock_ahead_ms))
    if isinstance(evidence.envoy, EnvoySeen) and evidence.envoy.clock_ahead_ms is not None:
        skews.append((f"Envoy at {evidence.envoy.admin}", evidence.envoy.clock_ahead_ms))
    for who, ahead_ms in skews:
        if abs(ahead_ms) > CLOCK_MS_MAX:
            way = "ahead of" if ahead_ms > 0 else "behind"
            yield error(
                f"the clock of {who} is {abs(ahead_ms) / 1000:.1f} s {way} this machine's",
                "synchronise the clocks (chrony or systemd-timesyncd; timedatectl shows whether it is)",
            )


def _offline(evidence: Evidence) -> str:
    return "" if evidence.services else "not asked (--offline)"


CHECKS: Final = (
    Check(
        id="service.reachable",
        about="the service answers and takes decisions",
        look=reachable,
        missing=_offline,
    ),
    Check(
        id="service.gateway", about="a request passes Envoy and the service", look=gateway, missing=_offline
    ),
    Check(
        id="service.settling", about="decided requests are settled", look=settling, missing=without_service
    ),
    Check(
        id="service.first-tokens", about="first tokens are told", look=first_tokens, missing=without_service
    ),
    Check(id="service.lua", about="Envoy's script does not fail", look=lua, missing=without_envoy),
    Check(id="service.ads", about="Envoys take what they are told", look=ads, missing=without_service),
    Check(
        id="service.faults",
        about="nothing failed inside, no bound was reached",
        look=faults,
        missing=without_service,
    ),
    Check(
        id="service.tokenizers",
        about="tokenizers are their pools' models'",
        look=tokenizers,
        missing=without_service,
    ),
    Check(
        id="service.probe", about="a prompt of one token passes and is settled", look=probe, missing=_no_probe
    ),
    Check(id="service.clocks", about="the clocks agree", look=clocks, missing=_offline),
)
