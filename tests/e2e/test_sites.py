"""Two sites through real Envoys: an edge that serves what is simple, and a centre that serves the rest."""

from __future__ import annotations

import http.client
import json
import secrets
import subprocess
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import openai
import pytest
from click.testing import CliRunner
from gateway import KEYS, Gateway, tenants, wait_for
from two_sites import BIG, COMPLEX, NOWHERE, PLACES, PROXY, SMALL, TwoSites, two_sites

from extproc.cli import group
from extproc.core.contract import SITE_HEADER, SITE_PATH
from extproc.core.remote.identity import QUESTION, issue
from extproc.core.remote.signing import SiteKey

pytestmark = pytest.mark.envoy

#: In the centre a tenant's quota is spent by one request of its own.
QUOTA = {"quota": {"requests_per_minute": 1}}


@pytest.fixture(scope="module")
def sites() -> Iterator[TwoSites]:
    with two_sites(centre={"tenants": tenants(globex=QUOTA)}) as made:
        yield made


@pytest.fixture(autouse=True)
def _connected(sites: TwoSites) -> None:
    sites.clock(0)
    sites.connected()


def test_simple_stays_and_complex_goes(sites: TwoSites) -> None:
    """The client is told that it went, and why; what is only there goes there."""
    status, told, body = sites.ask()
    assert (status, body["model"], "x-steersman-spilled" in told) == (200, "at the edge", False)
    status, told, body = sites.ask(text=COMPLEX)
    assert (status, body["model"]) == (200, "in the centre")
    assert told["x-steersman-spilled"] == "complex"
    assert sites.answered_by(BIG) == "in the centre"


def test_what_is_sent_along(sites: TwoSites) -> None:
    """The engine sees neither key nor what is signed; the centre knows the tenant; a body that is asked about
    before it comes is let in once; a client's own word is nothing."""
    before = sites.centre.tenant("acme")["ok"]
    text = COMPLEX + "x" * 100_000
    assert sites.answered_by(text=text) == "in the centre"
    headers, body = sites.far.seen[-1]
    assert json.loads(body)["messages"][0]["content"] == text
    assert not {"authorization", SITE_HEADER} & headers.keys()
    assert not [name for name in headers if name.startswith("x-steersman")]
    wait_for("its end", lambda: sites.centre.tenant("acme")["ok"] == before + 1)
    assert sites.ask(headers={SITE_HEADER: "mine"})[0] == 401


def test_a_stream_by_the_official_client(sites: TwoSites) -> None:
    """Its events come from the centre, with the usage that was asked for."""
    client = openai.OpenAI(base_url=f"{sites.edge.url}/v1", api_key=KEYS["acme"], max_retries=0)
    stream = client.chat.completions.create(
        model=BIG,
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
    )
    events = list(stream)
    assert "".join(each.choices[0].delta.content or "" for each in events if each.choices) == "w0 w1 w2 "
    assert events[-1].usage is not None
    assert events[-1].usage.completion_tokens == 3


def test_quotas_are_charged_once(sites: TwoSites) -> None:
    """The edge charges; the centre, where the tenant has one request a minute, charges its own clients."""
    chat = {"model": SMALL, "max_tokens": 5, "messages": [{"role": "user", "content": "hello"}]}
    asked = [sites.centre.call("/v1/chat/completions", chat, key=KEYS["globex"])[0] for _ in range(2)]
    assert asked[1] == 429
    before = sites.edge.tenant("globex")["output_tokens"]
    for _ in range(3):
        assert sites.answered_by(BIG, key=KEYS["globex"]) == "in the centre"
    # Each has three tokens by the engine's count.
    wait_for("the charges", lambda: sites.edge.tenant("globex")["output_tokens"] == before + 9)


def test_one_trace(sites: TwoSites) -> None:
    """From the client through both services to the engine."""
    trace_id = secrets.token_hex(16)
    parent = f"00-{trace_id}-{secrets.token_hex(8)}-01"
    assert sites.answered_by(BIG, headers={"traceparent": parent}) == "in the centre"
    assert sites.far.seen[-1][0]["traceparent"].split("-")[1] == trace_id

    def decided() -> bool:
        return sum(span.name == "steersman.decide" for span in sites.receiver.of(trace_id)) == 2

    wait_for("both services' spans", decided)


def test_the_link_is_cut_before_a_request(sites: TwoSites) -> None:
    """What would go there is served at home, before anybody knows of the cut and after; what is only there by
    a smaller model, for a tenant that says so."""
    sites.way.cut()
    try:
        for _ in range(5):
            assert sites.answered_by(text=COMPLEX) == "at the edge"
        assert SITE_HEADER not in sites.near.seen[-1][0]
        wait_for("that it is away", lambda: sites.link["away"])
        status, told, body = sites.ask(BIG)
        assert (status, body["model"]) == (200, "at the edge")
        assert json.loads(sites.near.seen[-1][1])["model"] == SMALL
        assert (told["x-steersman-spilled"], told["x-steersman-model"]) == ("centre_away", SMALL)
        assert sites.ask(BIG, key=KEYS["globex"])[0] in (429, 503)
    finally:
        sites.way.mend()
    sites.connected()
    assert sites.answered_by(BIG) == "in the centre"


def test_the_link_is_cut_in_mid_stream(sites: TwoSites) -> None:
    """The client's stream breaks; each site's books are closed by what it has seen itself."""
    before = sites.edge.tenant("acme")["output_tokens"]
    sites.far.flows.clear()
    try:
        connection = http.client.HTTPConnection("127.0.0.1", sites.edge.port, timeout=30)
        body = {"model": BIG, "max_tokens": 20, "stream": True}
        body["messages"] = [{"role": "user", "content": "hello"}]
        headers = {"authorization": f"Bearer {KEYS['acme']}", "content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        assert b"w0" in answer.readline()
        sites.way.reset()
        with pytest.raises((http.client.HTTPException, OSError)):
            answer.read()
        connection.close()
    finally:
        sites.far.flows.set()
    # The edge's own record: at least the token that came.
    wait_for("the edge's books", sites.edge.quiet)
    wait_for("the centre's books", sites.centre.quiet)
    assert before < sites.edge.tenant("acme")["output_tokens"] <= before + 20
    sites.connected()
    assert sites.answered_by(BIG) == "in the centre"


def test_the_centre_is_full() -> None:
    """What is complex stays while all places there are taken and others wait, and goes when one is free.

    Of a centre where few have waited yet: of one whose queue drains fast a place is expected at once.
    """
    with two_sites() as sites:
        _full_and_not(sites)


def _full_and_not(sites: TwoSites) -> None:
    sites.far.open.clear()
    taking = [threading.Thread(target=sites.ask, args=(BIG,)) for _ in range(2 * PLACES)]
    try:
        for each in taking:
            each.start()
        wait_for("that it is full", lambda: sites.centre.status()["held"] == PLACES)
        # Some of them may have waited for a moment before they began: what waits now must have waited longer.
        age = sites.link["answers"]
        wait_for("words of it", lambda: sites.link["answers"] > age + 2)
        _, told, body = sites.ask(text=COMPLEX)
        by = body["choices"][0]["message"]["content"]
        assert by == "at the edge", (told, sites.link, sites.centre.status()["in_flight"])
    finally:
        sites.far.open.set()
        for each in taking:
            each.join()
    wait_for("room there", lambda: sites.answered_by(text=COMPLEX) == "in the centre")


def test_the_centre_fails(sites: TwoSites) -> None:
    """Its engines answer 503: the request comes back and is served at home."""
    sites.far.status = 503
    try:
        assert sites.answered_by(text=COMPLEX) == "at the edge"
    finally:
        sites.far.status = 200
    wait_for("the centre", lambda: sites.answered_by(text=COMPLEX) == "in the centre")


def test_clocks_may_differ_by_a_minute_and_not_by_more(sites: TwoSites) -> None:
    """Sixty seconds either way change nothing; beyond the leeway the edge says so, and serves at home."""
    for off_s in (60, -60):
        sites.clock(off_s)
        assert sites.answered_by(BIG) == "in the centre"
        assert sites.answered_by(text=COMPLEX) == "in the centre"
    sites.clock(-600)
    wait_for("that it says so", lambda: "clock" in sites.link["trouble"])
    assert sites.answered_by(text=COMPLEX) == "at the edge"
    status, _, body = sites.ask(BIG, key=KEYS["globex"])
    assert status == 502, body


@pytest.mark.parametrize(
    "wrong", ["forged", "unknown key", "expired", "early", "audience", "kind", "replayed", "no"]
)
def test_a_word_that_is_not_to_be_believed(sites: TwoSites, wrong: str) -> None:
    """401, and the engine hears nothing of it."""
    key, now_s = sites.key, time.time()
    given: dict[str, Any] = {"name": secrets.token_hex(8), "now_s": now_s, "tenant": "acme"}
    to = "hub"
    if wrong == "forged":
        key = SiteKey(key.id, b"x" * 64)
    elif wrong == "unknown key":
        key = SiteKey("other", key.secret)
    elif wrong == "expired":
        given["now_s"] = now_s - 200
    elif wrong == "early":
        given["now_s"] = now_s + 200
    elif wrong == "audience":
        to = "elsewhere"
    elif wrong == "kind":
        given["kind"] = QUESTION
    token = issue("shop", to, key, **given)
    chat = {"model": SMALL, "max_tokens": 5, "messages": [{"role": "user", "content": "hello"}]}

    def ask(word: str) -> tuple[int, str]:
        headers = {SITE_HEADER: word}
        status, _, body = sites.centre.call("/v1/chat/completions", chat, key=None, headers=headers)
        return status, body.get("error", {}).get("code", "")

    if wrong == "replayed":
        assert ask(token)[0] == 200
    if wrong == "no":
        token = "no.such.token"
    seen = len(sites.far.seen)
    assert ask(token) == (401, "site_not_trusted")
    assert len(sites.far.seen) == seen


def test_nobody_else_is_told_what_there_is(sites: TwoSites) -> None:
    """The digest is for sites alone: neither a tenant's key nor a request's word opens it."""
    assert sites.centre.call(SITE_PATH, method="GET")[0] == 401
    word = issue("shop", "hub", sites.key, name=secrets.token_hex(8), now_s=time.time(), tenant="acme")
    assert sites.centre.call(SITE_PATH, method="GET", headers={SITE_HEADER: word})[0] == 401


def test_sites_that_name_each_other(sites: TwoSites) -> None:
    """A model that each believes the other to have: one hop, then 508."""
    status, _, body = sites.ask(NOWHERE, key=KEYS["globex"])
    assert (status, body["error"]["code"]) == (508, "loop_detected")


def test_keys_change_without_a_stop(sites: TwoSites) -> None:
    """The new key is added, then signs, then is the only one; requests go on all the while. So does a change
    to pairs, after which neither site has what the other one signs with."""
    old = (sites.folder / "shop.keys").read_text()
    new = f"second {secrets.token_hex(32)}\n"
    (shop, of_shop), (hub, of_hub) = _pair("shop-1"), _pair("hub-1")
    for at_shop, at_hub in (
        (old + new, old + new),
        (new + old, new + old),
        (new, new),
        (new + of_hub, new + of_shop),
        (shop + of_hub + new, hub + of_shop + new),
        (shop + of_hub, hub + of_shop),
    ):
        sites.keys(at_shop, at_hub)
        assert sites.answered_by(BIG) == "in the centre"
    assert sites.key.id == "shop-1"
    before = sites.link["answers"]
    wait_for("a word by the centre's own key", lambda: sites.link["answers"] > before and sites.link["fresh"])


def _pair(name: str) -> tuple[str, str]:
    """A site's line of a private key, and the other one's of its public half, as the docs have openssl make
    them."""
    made = {}
    key = subprocess.run(
        ["openssl", "genpkey", "-algorithm", "ed25519", "-outform", "DER"], capture_output=True, check=True
    ).stdout
    public = subprocess.run(
        ["openssl", "pkey", "-inform", "DER", "-pubout", "-outform", "DER"],
        input=key,
        capture_output=True,
        check=True,
    ).stdout
    for kind, der in (("private", key), ("public", public)):
        made[kind] = f"{name} ed25519-{kind} {b64encode(der[-32:]).decode()}\n"
    return made["private"], made["public"]


def test_the_way_is_measured(sites: TwoSites) -> None:
    """The status says how the way is."""
    link = sites.link
    assert (link["site"], link["trouble"], link["away"]) == ("hub", "", False)
    assert link["round_trip_ms"] >= 10.0  # twice the way's 5 ms


def errors(gateway: Gateway) -> list[str]:
    """Doctor's errors about a gateway."""
    done = CliRunner().invoke(group, ["doctor", "-f", str(gateway.config_file), "--json"])
    findings = json.loads(done.output)["findings"]
    return [each["id"] for each in findings if each["severity"] == "error"]


def test_doctor_finds_both_well_and_says_what_is_wrong_with_the_way(sites: TwoSites) -> None:
    """Neither the gateway there nor the clusters that come home are taken for a mistake."""
    for gateway in (sites.edge, sites.centre):
        wait_for("links that are well", lambda gateway=gateway: not errors(gateway))
    sites.clock(-600)
    wait_for("that it says so", lambda: "clock" in sites.link["trouble"])
    assert errors(sites.edge) == ["sites.linked"]


def _place_served(sites: TwoSites, text: str, country: str, *, by: str = PROXY) -> tuple[str, str]:
    """Whose engine serves a client there, and why it went; `by` is who says where it is."""
    body = {"model": SMALL, "max_tokens": 20, "messages": [{"role": "user", "content": text}]}
    headers = {"authorization": f"Bearer {KEYS['acme']}", "content-type": "application/json"}
    connection = http.client.HTTPConnection("127.0.0.1", sites.edge.port, timeout=30, source_address=(by, 0))
    with closing(connection):
        headers |= {"x-client-country": country, "x-forwarded-for": "198.51.100.7"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        said = json.loads(answer.read())
    assert answer.status == 200, said
    return said["choices"][0]["message"]["content"], answer.getheader("x-steersman-spilled", "")


def test_where_clients_are_says_which_site_serves_them(sites: TwoSites) -> None:
    """By the trusted proxy alone: on one side, or in their regions; the centre is told of the place."""
    assert _place_served(sites, COMPLEX, "hm") == ("at the edge", "")
    assert _place_served(sites, "hello", "AB") == ("in the centre", "place")
    assert _place_served(sites, COMPLEX, "ST") == ("at the edge", "")
    assert _place_served(sites, COMPLEX, "XX") == ("in the centre", "complex")
    assert _place_served(sites, COMPLEX, "HM", by="127.0.0.1") == ("in the centre", "complex")
    counts = sites.edge.status()["counts"]
    assert (counts["place.home"], counts["place.abroad"], counts["place.strict"]) == (1, 1, 1)
    assert sites.centre.status()["counts"]["place.abroad"] == 1
    # Where each of them is seen: the report of both sites, the spans, and what is said of one request.
    wait_for("the edge's report", lambda: _by_place(sites.edge) == {"home": 1, "abroad": 1, "strict": 1})
    wait_for("the centre's report", lambda: _by_place(sites.centre) == {"abroad": 1})
    wait_for("the spans", lambda: _spans_by_place(sites) == {"home": 2, "abroad": 4, "strict": 2})


def _spans_by_place(sites: TwoSites) -> Counter[str]:
    """Both sites' spans that say where their client is."""
    said = (span.attributes.get("steersman.place") for span in sites.receiver.spans)
    return Counter(place for place in said if place)


def _by_place(gateway: Gateway) -> dict[str, int]:
    """Requests that ended well, by where their clients are; not of those that are nowhere known."""
    command = ["report", "--address", gateway.service_address, "--by", "place", "--json"]
    lines = json.loads(CliRunner().invoke(group, command).output)["lines"]
    return {line["group"]["place"]: line["ok"] for line in lines if line["group"]["place"]}


def test_it_is_explained(sites: TwoSites) -> None:
    """What was done with a request says which site was chosen, and why."""
    _, told, _ = sites.ask(text=COMPLEX)
    address = sites.edge.service_address
    done = CliRunner().invoke(group, ["explain", "--address", address, told["x-request-id"], "--json"])
    assert json.loads(done.output)["site"].startswith("centre: "), done.output
