"""Checks of other sites: are they reached, do they take our word, and do clocks agree?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from extproc.doctor.checks.service import service_of, without_service
from extproc.doctor.evidence import Evidence
from extproc.doctor.finding import Check, Said, error, warning

#: Of the leeway so much is left unsaid: a clock that drifts is seen before it matters.
LEEWAY_SHARE: Final = 0.5


def _links(evidence: Evidence) -> Iterator[tuple[str, Mapping[str, Any]]]:
    sites = service_of(evidence).later.get("sites")
    links = sites.get("links", {}) if isinstance(sites, Mapping) else {}
    yield from links.items()


def linked(evidence: Evidence) -> Iterator[Said]:
    """Each other site says what it offers."""
    for pool, link in _links(evidence):
        trouble, site = link["trouble"], link["site"]
        if not trouble:
            continue
        seen = f"site {site} (pool {pool}): {trouble}"
        if link["away"] or link["trouble"] == "not asked yet":
            mend = "see that its gateway runs, and that pools[].endpoints and upstream name it"
        elif "clock" in trouble:
            mend = "let both machines follow one time (NTP)"
        elif "key" in trouble or "signature" in trouble:
            mend = "give both sites the same line 'ID SECRET' in the files of site.peers[].keys_file"
        elif "404" in trouble:
            mend = "its gateway has no 'site' section: add one there, with this site under peers"
        else:
            mend = "set site.name, peers and forwards on both sides as docs/sites.md shows"
        yield error(seen, mend)


def clocks(evidence: Evidence) -> Iterator[Said]:
    """The other sites' clocks are well within the leeway."""
    site = evidence.config.site
    leeway_s = 0.0 if site is None else site.clock_leeway_s
    for pool, link in _links(evidence):
        ahead_s = float(link["clock_ahead_s"])
        if abs(ahead_s) > leeway_s * LEEWAY_SHARE:
            yield warning(
                f"the clock of site {link['site']} (pool {pool}) is {ahead_s:+.0f} s off this one's; from "
                f"{leeway_s:g} s on nothing that is signed is taken",
                "let both machines follow one time (NTP)",
            )


CHECKS: Final = (
    Check(id="sites.linked", about="other sites say what they offer", look=linked, missing=without_service),
    Check(id="sites.clocks", about="other sites' clocks agree", look=clocks, missing=without_service),
)
