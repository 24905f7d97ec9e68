"""Other sites, asked once a second what they offer; and the keys shared with them, read again on a change.

Owns the pace, the connections, and what becomes of an answer that is none. An edge asks at the gateway of the
other site, in the way that its requests go: so what is measured is their way, and what fails is theirs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from extproc.config.load import ConfigError
from extproc.config.model import Config
from extproc.config.site_keys import SiteKeys, files, site_keys
from extproc.core.contract import SITE_HEADER, SITE_PATH
from extproc.core.remote.digest import DIGEST_BYTES_MAX, read_digest
from extproc.core.remote.links import SiteLink
from extproc.core.remote.signing import Untrusted
from extproc.core.scheduler import Scheduler
from extproc.patience import patient
from extproc.service.parts import Part
from extproc.upstream import ReplicaAccess, file_seen, read_bounded, tls_trouble
from extproc.wire.sites import SiteDoor, SitePolicy

if TYPE_CHECKING:
    from aiohttp import ClientSession

    from extproc.state.taken import SharedTaken

log = logging.getLogger(__name__)

ASK_EVERY_S: Final = 1.0
#: A way of a second is no way for requests.
ASK_TIMEOUT_S: Final = 1.5
#: What is repeated of an answer that is no digest.
SAID_CHARS_MAX: Final = 300


class NoDigestError(Exception):
    """Somebody answered, and not with a digest; the text says what, and the mend."""


def site_policy(config: Config, keys: SiteKeys) -> SitePolicy | None:
    """What the file and its keys come to; None where there are no other sites."""
    site = config.site
    if site is None:
        return None
    return SitePolicy(
        own=site.name,
        forwards={peer.name: peer.tenant for peer in site.peers if peer.forwards},
        known=keys.known,
        signing=keys.signing,
        leeway_s=site.clock_leeway_s,
    )


async def fetch(
    session: ClientSession, address: str, token: str, access: ReplicaAccess, name: str
) -> tuple[str, int]:
    """A gateway's digest, and how long it took (nanoseconds). Raises OSError, TimeoutError, NoDigestError."""
    import aiohttp

    how = access.asking(name)
    how["headers"][SITE_HEADER] = token
    url = f"{access.scheme}://{address}{access.path_prefix}{SITE_PATH}"
    begun_ns = time.perf_counter_ns()
    try:
        async with session.get(url, allow_redirects=False, **how) as answer:
            took_ns = time.perf_counter_ns() - begun_ns
            data = await read_bounded(answer.content, DIGEST_BYTES_MAX)
            if data is None:
                raise NoDigestError(f"its digest has more than {DIGEST_BYTES_MAX} bytes")
            text = data.decode("utf-8", "replace")
    except aiohttp.ClientError as error:
        raise OSError(tls_trouble(error) or str(error)) from error
    if answer.status != 200:
        raise NoDigestError(f"it answers {answer.status}: {text[:SAID_CHARS_MAX]}")
    return text, took_ns


class SitesPart(Part):
    """Asks the sites that pools are, and keeps the door's keys. `way` says how an endpoint is asked."""

    name = "sites"

    def __init__(
        self,
        config: Config,
        scheduler: Scheduler,
        *,
        door: Callable[[], SiteDoor | None],
        way: Callable[[str], tuple[ReplicaAccess, str]],
        clock: Callable[[], int],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._config, self._scheduler, self._door, self._way = config, scheduler, door, way
        self._clock, self._wall = clock, wall
        self._session: ClientSession | None = None
        self._task: asyncio.Task[None] | None = None
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._told: dict[str, str] = {}
        self._seen = [file_seen(path) for path in files(config)]
        self._unusable = ""
        self.reread = 0
        self._shared: SharedTaken | None = None

    def apply(self, config: Config) -> None:
        """Another configuration; its keys were read with it."""
        self._config = config
        self._seen = [file_seen(path) for path in files(config)]

    async def start(self) -> None:
        """Begin to ask."""
        if (sharing := self._config.sharing) is not None:
            from extproc.state.taken import SharedTaken

            self._shared = SharedTaken(sharing.redis, prefix=sharing.prefix, clock=self._clock)
            self._share()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Ask no more."""
        tasks = [*self._asking.values(), *([] if self._task is None else [self._task])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
        if self._shared is not None:
            await self._shared.close()

    def _share(self) -> None:
        """A door that came with a reload goes by what others took as well."""
        if (door := self._door()) is not None:
            door.shared = self._shared

    def status(self) -> object:
        """What is known of each site, by the pool that it is here."""
        door, now_ns = self._door(), self._clock()
        links = self._scheduler.sites.links.by_pool
        return {
            "own": "" if door is None else door.policy.own,
            "links": {pool: link.plain(now_ns=now_ns) for pool, link in links.items()},
            "tokens_remembered": 0 if door is None else len(door.taken),
            "tokens_shared": None if self._shared is None else dict(self._shared.counts),
            "reread": self.reread,
            "unusable": self._unusable,
        }

    async def _run(self) -> None:
        while True:
            try:
                self._share()
                await self._reread()
                self._ask_all()
            except Exception as error:
                log.error("asking the other sites failed", exc_info=error)
            await asyncio.sleep(ASK_EVERY_S)

    async def _reread(self) -> None:
        config, door = self._config, self._door()
        seen = await asyncio.to_thread(lambda: [file_seen(path) for path in files(config)])
        if door is None or seen == self._seen or config is not self._config:
            return
        self._seen = seen
        try:
            keys = await asyncio.to_thread(site_keys, config)
        except ConfigError as error:
            self._unusable = str(error.problems[0])
            log.error("%s; the keys that were read last hold", self._unusable)
            return
        policy = site_policy(config, keys)
        if config is self._config and policy is not None:
            door.policy, self._unusable = policy, ""
            self.reread += 1
            log.info("the keys shared with other sites were read again")

    def _ask_all(self) -> None:
        door = self._door()
        if door is None:
            return
        for pool, link in self._scheduler.sites.links.by_pool.items():
            running = self._asking.get(pool)
            if running is None or running.done():
                ask = self._ask(pool, link, door)
                self._asking[pool] = asyncio.get_running_loop().create_task(ask)

    async def _ask(self, pool: str, link: SiteLink, door: SiteDoor) -> None:
        try:
            await self._asked(pool, link, door)
        except (NoDigestError, Untrusted) as error:
            link.refused(str(error))
        except TimeoutError:
            link.missed(f"no answer within {ASK_TIMEOUT_S} s")
        except OSError as error:
            link.missed(str(error) or type(error).__name__)
        self._tell(pool, link)

    async def _asked(self, pool: str, link: SiteLink, door: SiteDoor) -> None:
        """Raises what a link is told of."""
        import aiohttp

        found = self._scheduler.fleet.pools.get(pool)
        addresses = [each.address for each in found.endpoints] if found is not None else []
        if not addresses:
            raise OSError("its pool has no endpoint")
        if self._session is None:
            # The time is our own (`patient`): while we stall, no site is away.
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None), trust_env=False)
        # Where the last one was not reached, another may be.
        address = addresses[link.lost % len(addresses)]
        access, name = self._way(address)
        token, nonce = door.question(link.site)
        asked_ns, asked_s = self._clock(), self._wall()
        link.asks(now_ns=asked_ns)
        async with patient(ASK_TIMEOUT_S):
            text, way_ns = await fetch(self._session, address, token, access, name)
        policy = door.policy
        word = read_digest(text, policy.known, own=policy.own, of=link.site, nonce=nonce)
        middle_s = (asked_s + self._wall()) / 2
        link.heard(word, asked_ns=asked_ns, way_ns=way_ns, offset_s=word.at - middle_s)

    def _tell(self, pool: str, link: SiteLink) -> None:
        """Say once what changed."""
        if link.trouble == self._told.get(pool, ""):
            return
        self._told[pool] = link.trouble
        if link.trouble:
            log.warning("site %s (pool %s): %s", link.site, pool, link.trouble)
        else:
            log.info("site %s (pool %s) says what it offers", link.site, pool)
