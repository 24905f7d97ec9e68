"""What sites sign: nothing is believed that the right key has not made, for this use, here, now and once."""

from __future__ import annotations

import json
from base64 import b64encode, urlsafe_b64decode, urlsafe_b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.remote.identity import (
    LEEWAY_S,
    LIFE_S,
    QUESTION,
    REQUEST,
    TOKEN_BYTES_MAX,
    SiteClaims,
    TakenClaims,
    accept,
    issue,
)
from extproc.core.remote.signing import (
    KEYS_MAX,
    KeyKind,
    SiteKey,
    Untrusted,
    by_id,
    read_keys,
    sign,
    signing_key,
)
from tests.core.remote.stand import pair

KEY, OTHER = SiteKey("k1", b"a" * 64), SiteKey("k2", b"b" * 64)
#: Of a site that signs with Ed25519: what it has, and what the others have of it.
PRIVATE, PUBLIC = pair("e1", b"e" * 32)
KNOWN = by_id({"shop": (KEY, PUBLIC), "stranger": (OTHER,)})
NOW_S = 1_000_000.0
BOTH = pytest.mark.parametrize("key", [KEY, PRIVATE], ids=["HS256", "EdDSA"])


def token(key: SiteKey = KEY, to: str = "hub", **given: Any) -> str:
    return issue("shop", to, key, **{"name": "n1", "now_s": NOW_S, "tenant": "acme", **given})


def taken(
    word: str, memory: TakenClaims | None = None, *, now_s: float = NOW_S, kind: str = REQUEST
) -> SiteClaims:
    return accept(word, KNOWN, TakenClaims() if memory is None else memory, own="hub", now_s=now_s, kind=kind)


@BOTH
def test_what_is_signed_is_taken_with_what_it_claims(key: SiteKey) -> None:
    """Tenant, class and hops come as they were given."""
    claims = taken(token(key, service_class="gold", hops=2))
    assert (claims.iss, claims.aud, claims.tenant) == ("shop", "hub", "acme")
    assert (claims.service_class, claims.hops) == ("gold", 2)


@pytest.mark.parametrize(
    ("word", "why"),
    [
        (token(OTHER), "another site than its key's"),
        (token(SiteKey("k1", b"c" * 64)), "signature is wrong"),
        (token(pair("e1", b"f" * 32)[0]), "signature is wrong"),
        # By HMAC with what everybody may know as the secret; and a shared secret's name on an Ed25519 mark.
        (token(SiteKey("e1", PUBLIC.secret)), "another algorithm"),
        (token(SiteKey("k1", PRIVATE.secret, KeyKind.PRIVATE)), "another algorithm"),
        (token(SiteKey("k9", b"a" * 64)), "key is unknown"),
        (token(to="elsewhere"), "another site"),
        (token(kind=QUESTION), "no token of kind"),
        (token(now_s=NOW_S - LIFE_S - LEEWAY_S - 1), "expired"),
        (token(now_s=NOW_S + LEEWAY_S + 1), "ahead of this clock"),
        (token(hops=0), "cannot be read"),
        ("", "no signed token"),
        ("a.b.c", "no signed token"),
        ("x" * (TOKEN_BYTES_MAX + 1), "more than"),
        ("é.é.é", "no signed token"),
    ],
)
def test_what_is_not_believed(word: str, why: str) -> None:
    """Each says why, and nothing of what came."""
    with pytest.raises(Untrusted, match=why):
        taken(word)


def test_a_life_that_is_too_long_is_not_believed() -> None:
    """Not even of who has the key: the memory of what was used would have to be as long."""
    claims = SiteClaims(iss="shop", aud="hub", iat=NOW_S, exp=NOW_S + 3_600, jti="n", tenant="acme")
    with pytest.raises(Untrusted, match="longer"):
        taken(sign(claims, KEY, kind=REQUEST))


@BOTH
@pytest.mark.parametrize("algorithm", ["none", "HS384", "RS256", "ES256", "Ed25519", "hs256", ""])
def test_the_algorithm_is_ours(algorithm: str, key: SiteKey) -> None:
    """What a token says of it is not obeyed."""
    head, claims, mark = token(key).split(".")
    header = {**json.loads(urlsafe_b64decode(head + "==")), "alg": algorithm}
    new = urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()
    for end in (mark, ""):
        with pytest.raises(Untrusted):
            taken(f"{new}.{claims}.{end}")


@given(st.data(), st.sampled_from([KEY, PRIVATE]))
def test_no_byte_can_be_changed(data: st.DataObject, key: SiteKey) -> None:
    """Whatever is changed of a token, it is not taken."""
    word = token(key)
    at = data.draw(st.integers(0, len(word) - 1))
    other = data.draw(st.characters(min_codepoint=33, max_codepoint=126).filter(lambda c: c != word[at]))
    with pytest.raises(Untrusted):
        taken(word[:at] + other + word[at + 1 :])


@given(st.floats(-LEEWAY_S, LEEWAY_S + LIFE_S - 1e-3))
def test_clocks_may_differ_by_the_leeway(late_s: float) -> None:
    """Within it either way, and no claims are taken twice in all that time."""
    memory, word = TakenClaims(), token()
    taken(word, memory, now_s=NOW_S + late_s)
    with pytest.raises(Untrusted, match="before"):
        taken(word, memory, now_s=NOW_S + late_s)
    with pytest.raises(Untrusted):
        taken(word, memory, now_s=NOW_S + LEEWAY_S + LIFE_S)


def test_what_was_taken_is_forgotten_once_it_holds_no_more() -> None:
    """Memory does not grow with all that ever came."""
    memory = TakenClaims()
    for i in range(1_000):
        taken(token(name=str(i), now_s=NOW_S + i), memory, now_s=NOW_S + i)
    assert len(memory) <= LIFE_S + LEEWAY_S + 1


def test_a_full_memory_takes_nothing() -> None:
    """At the bound no claims are taken that could not be known again."""
    memory = TakenClaims(2)
    for i in range(2):
        taken(token(name=str(i)), memory)
    with pytest.raises(Untrusted, match="2 tokens"):
        taken(token(name="2"), memory)
    later_s = NOW_S + LIFE_S + LEEWAY_S + 1
    assert taken(token(name="3", now_s=later_s), memory, now_s=later_s).jti == "3"


def test_a_file_of_keys() -> None:
    """The first signs; comments and blank lines are nothing; a key is not shown."""
    keys = read_keys(f"# for hub\n\nnew {'s' * 32}  # since November\nold {'t' * 32}\n")
    assert [key.id for key in keys] == ["new", "old"]
    assert "s" * 32 not in repr(keys)


def _line(key: SiteKey) -> str:
    return f"{key.id} {key.kind.value} {b64encode(key.secret).decode()}\n"


def test_a_file_of_pairs() -> None:
    """The first that can sign does, which a public key is not. A secret may stand beside them."""
    keys = read_keys(_line(PUBLIC) + _line(PRIVATE._replace(id="mine")) + f"old {'s' * 32}\n")
    assert [(key.id, key.signs, key.verifies) for key in keys] == [
        ("e1", False, True),
        ("mine", True, False),
        ("old", True, True),
    ]
    assert signing_key(keys).id == "mine"
    assert repr(keys[1]) == "SiteKey('mine')"


def test_what_this_site_signs_is_nobody_elses_word() -> None:
    """Its own private key verifies nothing, and may sign for several sites."""
    known = by_id({"a": (PRIVATE, pair("a1", b"1" * 32)[1]), "b": (PRIVATE, pair("b1", b"2" * 32)[1])})
    assert sorted(known) == ["a1", "b1"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "holds no key"),
        (_line(PUBLIC), "ed25519-private"),
        (_line(PRIVATE), "ed25519-public"),
        ("k ed25519-public short\n", "32 bytes in base64"),
        (f"k ed25519-public {'ü' * 44}\n", "32 bytes in base64"),
        (f"k rsa-public {'a' * 43}=\n", "line 1"),
        ("one\n", "line 1"),
        ("a b c\n", "line 1"),
        ("k short\n", "32"),
        (f"k {'s' * 32}\nk {'t' * 32}\n", "twice"),
        ("".join(f"k{i} {'s' * 32}{i}\n" for i in range(KEYS_MAX + 1)), "at most"),
        (f"ü {'s' * 32}", "line 1"),
    ],
)
def test_a_file_that_is_none(text: str, why: str) -> None:
    """Each mistake says where and what to write."""
    with pytest.raises(ValueError, match=why):
        read_keys(text)


def test_no_site_can_speak_for_another() -> None:
    """Neither an id nor a secret may be of two sites."""
    with pytest.raises(ValueError, match="rename"):
        by_id({"a": (KEY,), "b": (SiteKey("k1", b"z" * 64),)})
    with pytest.raises(ValueError, match="its own"):
        by_id({"a": (KEY,), "b": (SiteKey("k3", KEY.secret),)})
    with pytest.raises(ValueError, match="its own"):
        by_id({"a": (PUBLIC,), "b": (PUBLIC._replace(id="e3"),)})
