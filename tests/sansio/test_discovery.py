"""How to log in at a server: documents in, requests in order and the result out.

The cases named `suite-…` are those of the official conformance suite.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mcp_oauth.sansio import discovery
from mcp_oauth.sansio.discovery import Discovered, Query
from mcp_oauth.sansio.errors import Attempt, Reason
from mcp_oauth.sansio.messages import Response
from mcp_oauth.sansio.plan import Plan, PreRegistered
from mcp_oauth.sansio.resource import Found
from mcp_oauth.sansio.steps import Await, Done, Failed, Misuse, Send, SendFailed, Woke
from tests.sansio.worlds import DOWN, HTML, Run, World, document, play, redirect, round_trip, rows, transitions

HOST = "https://h.example"
MCP = f"{HOST}/mcp"
PRM = f"{HOST}/.well-known/oauth-protected-resource"
OWN = f"{HOST}/.well-known/oauth-authorization-server"
OWN_OPENID = f"{HOST}/.well-known/openid-configuration"
A, B = "https://a.example", "https://b.example"
PLAN = Plan(MCP)
LEGACY = replace(PLAN, legacy_2025_03_26=True)


def prm(*servers: str, resource: str = MCP, **more: Any) -> Response:
    return document(resource=resource, authorization_servers=list(servers), **more)


def oauth(issuer: str) -> str:
    return f"{issuer}/.well-known/oauth-authorization-server"


def openid(issuer: str) -> str:
    return f"{issuer}/.well-known/openid-configuration"


def metadata(issuer: str, **more: Any) -> Response:
    usual = {
        "issuer": issuer,
        "authorization_endpoint": f"{issuer}/authorize",
        "token_endpoint": f"{issuer}/token",
        "code_challenge_methods_supported": ["S256"],
    }
    return document({**usual, **more})


def discover(world: World, plan: Plan = PLAN, **asked: Any) -> Run:
    return play(discovery, discovery.begin(Query(plan, **asked)), world)


def error(world: World, plan: Plan = PLAN, **asked: Any) -> Any:
    end = discover(world, plan, **asked).end
    assert isinstance(end, Failed)
    return end.error


TENANT = f"{A}/tenant1"
FOUND = [
    pytest.param((PRM,), {PRM: prm(HOST), OWN: metadata(HOST)}, [PRM, OWN], (MCP, HOST), id="suite-metadata-default"),
    pytest.param(
        (),
        {f"{PRM}/mcp": prm(HOST), OWN_OPENID: metadata(HOST)},
        [f"{PRM}/mcp", OWN, OWN_OPENID],
        (MCP, HOST),
        id="suite-metadata-var1",
    ),
    pytest.param(
        (),
        {PRM: prm(TENANT, resource=HOST), f"{oauth(A)}/tenant1": metadata(TENANT)},
        [f"{PRM}/mcp", PRM, f"{oauth(A)}/tenant1"],
        (HOST, TENANT),
        id="suite-metadata-var2",
    ),
    pytest.param(
        (f"{HOST}/custom/metadata",),
        {f"{HOST}/custom/metadata": prm(TENANT), openid(TENANT): metadata(TENANT)},
        [f"{HOST}/custom/metadata", f"{oauth(A)}/tenant1", f"{openid(A)}/tenant1", openid(TENANT)],
        (MCP, TENANT),
        id="suite-metadata-var3",
    ),
    pytest.param(
        (),
        {OWN: metadata(HOST)},
        [f"{PRM}/mcp", PRM, OWN],
        (MCP, HOST),
        id="suite-2025-03-26-oauth-metadata-backcompat",
    ),
    pytest.param(
        (),
        {OWN_OPENID: metadata(f"{HOST}/")},
        [f"{PRM}/mcp", PRM, OWN, OWN_OPENID],
        (MCP, f"{HOST}/"),
        id="RULES-2.8-origin-with-slash",
    ),
    pytest.param(
        (),
        {f"{PRM}/mcp": HTML, OWN: metadata(HOST)},
        [f"{PRM}/mcp", PRM, OWN],
        (MCP, HOST),
        id="FN-23-html-is-a-definite-miss",
    ),
    pytest.param(
        ("http://h.example/prm",),
        {f"{PRM}/mcp": prm(A), oauth(A): metadata(A)},
        [f"{PRM}/mcp", oauth(A)],
        (MCP, A),
        id="RULES-1.3-http-candidate-passed-over",
    ),
]


@pytest.mark.parametrize(("challenged", "world", "asked", "result"), FOUND)
def test_found(challenged: tuple[str, ...], world: World, asked: list[str], result: tuple[str, str]) -> None:
    played = discover(world, challenged=challenged)
    assert played.asked == asked
    assert (played.end.value.resource, played.end.value.metadata.issuer) == result
    assert not played.end.value.guessed


def test_what_is_discovered() -> None:
    world = {f"{PRM}/mcp": prm(A, scopes_supported=["x"]), oauth(A): metadata(A, scopes_supported=["y"])}
    found = discover(world).end.value
    assert found == Discovered(MCP, found.metadata, ("x",), A)
    assert found.metadata.scopes_supported == ("y",)


def test_without_metadata_the_server_lists_nobody() -> None:
    found = discover({OWN: metadata(HOST, scopes_supported=["y"])}).end.value
    assert found == Discovered(MCP, found.metadata, None, None)


# --- Which authorization server ---------------------------------------------------------------------------------------

C = "https://c.example"
ALL: dict[str, Response | SendFailed] = {oauth(url): metadata(url) for url in (A, B, C)}
TRUST = (("https://b.example/listed", B),)


@pytest.mark.parametrize(
    ("listed", "stored", "preferred", "trusted", "chosen"),
    [
        pytest.param((A, B), None, None, (), A, id="RULES-2.4-document-order"),
        pytest.param((A, B), None, B, (), B, id="RULES-2.4-preference"),
        pytest.param((A, B), B, None, (), B, id="RULES-2.4-stored"),
        pytest.param((A, B, C), B, C, (), B, id="RULES-2.4-stored-before-preference"),
        pytest.param((A, B), C, None, (), A, id="suite-authorization-server-migration"),
        pytest.param((A, B), C, B, (), B, id="RULES-2.4-preference-when-stored-is-not-listed"),
        pytest.param((A, B), None, C, (), A, id="RULES-2.4-preference-not-listed"),
    ],
)
def test_choice(listed: tuple[str, ...], stored: str | None, preferred: str | None, trusted: Any, chosen: str) -> None:
    plan = replace(PLAN, prefer_issuer=preferred, trusted_issuer=trusted)
    played = discover({f"{PRM}/mcp": prm(*listed), **ALL}, plan, stored_issuer=stored)
    assert played.asked == [f"{PRM}/mcp", oauth(chosen)]
    assert (played.end.value.listed, played.end.value.metadata.issuer, played.notices) == (chosen, chosen, [])


@pytest.mark.parametrize(
    ("stored", "preferred"),
    [
        pytest.param(B, None, id="stored"),
        pytest.param(None, B, id="preferred"),
        pytest.param(None, f"{B}/listed", id="preferred-as-listed"),
    ],
)
def test_choice_by_the_published_name(stored: str | None, preferred: str | None) -> None:
    """RULES 2.4, 2.5: a grant is kept under the issuer as published, the resource lists it otherwise."""
    listed = f"{B}/listed"
    plan = replace(PLAN, trusted_issuer=((listed, B),), prefer_issuer=preferred)
    world = {f"{PRM}/mcp": prm(A, listed), f"{oauth(B)}/listed": metadata(B)}
    played = discover(world, plan, stored_issuer=stored)
    assert played.asked == [f"{PRM}/mcp", f"{oauth(B)}/listed"]
    assert (played.end.value.listed, played.end.value.metadata.issuer) == (listed, B)
    assert played.notices == ["trusted-issuer"]


@pytest.mark.parametrize(
    ("first", "asked"),
    [
        pytest.param({}, [oauth(A), openid(A)], id="RULES-2.4-publishes-nothing"),
        pytest.param({oauth(A): Response(503)}, [oauth(A)], id="RULES-2.4-503"),
        pytest.param({oauth(A): DOWN}, [oauth(A)], id="RULES-2.4-no-answer"),
    ],
)
def test_the_next_one_if_one_is_unavailable(first: World, asked: list[str]) -> None:
    played = discover({f"{PRM}/mcp": prm(A, B), oauth(B): metadata(B), **first})
    assert played.asked == [f"{PRM}/mcp", *asked, oauth(B)]
    assert played.end.value.metadata.issuer == B
    assert played.notices == ["issuer-unavailable"]


def test_the_next_one_is_told_printably() -> None:
    played = discover({f"{PRM}/mcp": prm(A, "https://b.example/\x1b[2J?key=s3cret")})
    assert [notice.message for notice in played.end.notices] == [f"{A} is unavailable; trying https://b.example/%1B[2J"]
    assert played.end.error.reason is Reason.URL_REFUSED


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        pytest.param(metadata(B), Reason.ISSUER_MISMATCH, id="RULES-2.4-issuer-mismatch"),
        pytest.param(metadata(A, code_challenge_methods_supported=["plain"]), Reason.NO_S256, id="RULES-2.4-no-s256"),
        pytest.param(metadata(A, token_endpoint=None), Reason.BAD_ISSUER_METADATA, id="RULES-2.4-no-token-endpoint"),
        pytest.param(metadata(A, token_endpoint="http://x.example"), Reason.URL_REFUSED, id="RULES-2.4-url-refused"),
    ],
)
def test_never_the_next_one_after_a_failed_check(first: Response, reason: Reason) -> None:
    played = discover({f"{PRM}/mcp": prm(A, B), oauth(A): first, oauth(B): metadata(B)})
    assert played.end.error.reason is reason
    assert played.asked == [f"{PRM}/mcp", oauth(A)]
    assert [attempt.url for attempt in played.end.error.attempts] == played.asked  # FN 53


@pytest.mark.parametrize(
    "listed",
    [pytest.param("http://a.example", id="RULES-1.3-http"), pytest.param("https://127.0.0.1", id="RULES-1.3-loopback")],
)
def test_an_issuer_out_of_reach_ends_it(listed: str) -> None:
    played = discover({f"{PRM}/mcp": prm(listed, B), oauth(B): metadata(B)})
    assert played.end.error.reason is Reason.URL_REFUSED
    assert played.asked == [f"{PRM}/mcp"]
    assert [attempt.url for attempt in played.end.error.attempts] == played.asked


def test_all_unavailable_tells_of_all() -> None:
    found = error({f"{PRM}/mcp": prm(A, B), oauth(B): Response(500)})
    assert found.reason is Reason.SERVER_UNAVAILABLE
    assert [str(attempt) for attempt in found.attempts] == [
        f"{PRM}/mcp: HTTP 200",
        f"{oauth(A)}: HTTP 404",
        f"{openid(A)}: HTTP 404",
        f"{oauth(B)}: HTTP 500",
    ]


def test_five_authorization_servers_at_most() -> None:
    listed = [f"https://as{n}.example" for n in range(9)]
    played = discover({f"{PRM}/mcp": prm(*listed)})
    assert played.asked[1:] == [url for issuer in listed[:5] for url in (oauth(issuer), openid(issuer))]


@pytest.mark.parametrize(
    ("known", "accepted"),
    [
        pytest.param((), True, id="RULES-2.5-unknown"),
        pytest.param(((B, f"{B}/token"),), True, id="RULES-2.5-known-with-this-endpoint"),
        pytest.param(((A, "https://x.example"),), True, id="RULES-2.5-another-is-known"),
        pytest.param(((B, "https://x.example"),), False, id="RULES-2.5-known-with-another-endpoint"),
    ],
)
def test_trusted_issuer_known_elsewhere(known: tuple[tuple[str, str], ...], accepted: bool) -> None:
    plan = replace(PLAN, trusted_issuer=((A, B),))
    end = discover({f"{PRM}/mcp": prm(A), oauth(A): metadata(B)}, plan, known=known).end
    assert isinstance(end, Done) == accepted
    if isinstance(end, Failed):
        assert end.error.reason is Reason.ISSUER_MISMATCH
        assert end.error.message == f"{B} is known with another token endpoint than {A} gives it"


@pytest.mark.parametrize(
    ("published", "known", "accepted"),
    [
        pytest.param(A, (), True, id="RULES-2.5-unknown"),
        pytest.param(A, ((A, f"{A}/token"),), True, id="RULES-2.5-known-with-this-endpoint"),
        pytest.param(A, ((A, "https://x.example"),), False, id="RULES-2.5-known-with-another-endpoint"),
        pytest.param(HOST, ((HOST, "https://x.example"),), True, id="RULES-2.5-its-own-name"),
        pytest.param(f"{HOST}/", ((f"{HOST}/", "https://x.example"),), True, id="RULES-2.5-its-own-name-with-slash"),
    ],
)
def test_trusted_issuer_at_the_servers_own_origin(
    published: str, known: tuple[tuple[str, str], ...], accepted: bool
) -> None:
    plan = replace(PLAN, trusted_issuer=((HOST, A),))
    end = discover({OWN: metadata(published)}, plan, known=known).end
    assert isinstance(end, Done) == accepted
    if isinstance(end, Done):
        assert (end.value.metadata.issuer, end.value.listed, end.value.resource) == (published, None, MCP)
    else:
        assert end.error.message == f"{A} is known with another token endpoint than {HOST} gives it"
        assert end.error.url == f"{A}/token"


def test_an_issuer_under_its_own_name_may_move_its_token_endpoint() -> None:
    end = discover({f"{PRM}/mcp": prm(A), oauth(A): metadata(A)}, known=((A, "https://old.example"),)).end
    assert isinstance(end, Done)


# --- No protected resource metadata (2025-03-26) ----------------------------------------------------------------------

SECRET = replace(LEGACY, preregistered=PreRegistered("id", "s3cret"))
NO_GUESS = [
    pytest.param(PLAN, {}, {}, id="RULES-2.8-not-asked-for"),
    pytest.param(SECRET, {}, {}, id="RULES-2.8-never-with-a-secret"),
    pytest.param(LEGACY, {}, {"resource_metadata_seen": True}, id="RULES-2.8-once-had-metadata"),
    pytest.param(LEGACY, {PRM: Response(403)}, {}, id="RULES-2.8-403-is-not-absent"),
    pytest.param(LEGACY, {OWN: Response(401)}, {}, id="RULES-2.8-401-is-not-absent"),
    pytest.param(LEGACY, {OWN_OPENID: HTML}, {}, id="RULES-2.8-html-is-not-absent"),
    pytest.param(LEGACY, {OWN: redirect("https://x.example")}, {}, id="RULES-2.8-redirect-is-not-absent"),
]


@pytest.mark.parametrize(("plan", "world", "asked"), NO_GUESS)
def test_no_guess(plan: Plan, world: World, asked: dict[str, Any]) -> None:
    found = error(world, plan, **asked)
    assert (found.reason, found.url) == (Reason.NO_RESOURCE_METADATA, MCP)
    assert found.message == f"{MCP} publishes no OAuth metadata"
    assert [attempt.url for attempt in found.attempts] == [f"{PRM}/mcp", PRM, OWN, OWN_OPENID]


GUESS = [
    pytest.param(LEGACY, {}, id="suite-2025-03-26-oauth-endpoint-fallback"),
    pytest.param(LEGACY, {PRM: Response(405), OWN: Response(410)}, id="RULES-2.8-405-and-410"),
    pytest.param(replace(LEGACY, preregistered=PreRegistered("id")), {}, id="RULES-2.8-a-public-client-has-no-secret"),
]


@pytest.mark.parametrize(("plan", "world"), GUESS)
def test_guess(plan: Plan, world: World) -> None:
    played = discover(world, plan)
    assert played.asked == [f"{PRM}/mcp", PRM, OWN, OWN_OPENID]
    found = played.end.value
    assert (found.guessed, found.resource, found.listed, found.scopes_supported) == (True, MCP, None, None)
    assert found.metadata.issuer == HOST
    assert found.metadata.authorization_endpoint == f"{HOST}/authorize"
    assert found.metadata.token_endpoint == f"{HOST}/token"
    assert found.metadata.registration_endpoint == f"{HOST}/register"
    assert found.metadata.revocation_endpoint is None
    assert found.metadata.code_challenge_methods_supported == ("S256",)


ENDS = [
    pytest.param({f"{PRM}/mcp": Response(500)}, (), Reason.SERVER_UNAVAILABLE, 1, id="RULES-2.8-no-definite-miss-500"),
    pytest.param({PRM: DOWN}, (), Reason.SERVER_UNAVAILABLE, 2, id="RULES-2.8-no-definite-miss-no-answer"),
    pytest.param({}, ("http://h.example/prm",), Reason.URL_REFUSED, 2, id="RULES-2.8-no-definite-miss-refused"),
    pytest.param({OWN: Response(502)}, (), Reason.SERVER_UNAVAILABLE, 3, id="RULES-2.3-origin-502"),
    pytest.param({OWN: metadata(A)}, (), Reason.ISSUER_MISMATCH, 3, id="RFC8414-3.3-origin-mismatch"),
    pytest.param({f"{PRM}/mcp": prm(A, resource=B)}, (), Reason.RESOURCE_MISMATCH, 1, id="suite-resource-mismatch"),
    pytest.param(
        {f"{PRM}/mcp": prm(A), oauth(A): metadata(B)},
        (),
        Reason.ISSUER_MISMATCH,
        2,
        id="suite-metadata-issuer-mismatch",
    ),
    pytest.param(
        {f"{PRM}/mcp": prm(A), OWN: metadata(HOST)}, (), Reason.NO_ISSUER_METADATA, 3, id="RULES-2.8-PRM-so-no-origin"
    ),
]


@pytest.mark.parametrize(("world", "challenged", "reason", "requests"), ENDS)
def test_ends(world: World, challenged: tuple[str, ...], reason: Reason, requests: int) -> None:
    played = discover(world, LEGACY, challenged=challenged)
    assert played.end.error.reason is reason
    assert len(played.asked) == requests
    assert [attempt.url for attempt in played.end.error.attempts if attempt.url in played.asked] == played.asked


def test_the_query_of_the_server_is_never_told() -> None:
    found = error({}, Plan(f"{MCP}?key=s3cret"))
    assert "s3cret" not in str(found) + repr(found)
    assert found.message == f"{MCP} publishes no OAuth metadata"


# --- The machine ------------------------------------------------------------------------------------------------------


def test_resume_does_not_read_the_resource_again() -> None:
    read = Found(None, (Attempt(PRM, 404),))
    played = play(discovery, discovery.resume(Query(LEGACY), read), {})
    assert played.asked == [OWN, OWN_OPENID]
    assert played.end.value.guessed


def test_the_bound_is_reached() -> None:
    listed = [f"https://as{n}.example/t" for n in range(5)]
    starts = [f"{HOST}/{n}" for n in range(4)] + [f"{PRM}/mcp", PRM]
    starts += [
        url for issuer in listed for url in (oauth(issuer[:-2]) + "/t", openid(issuer[:-2]) + "/t", openid(issuer))
    ]
    world: dict[str, Response | SendFailed] = {}
    for n, start in enumerate(starts):
        home = "/".join(start.split("/")[:3])
        urls = [start, *(f"{home}/hop/{n}/{i}" for i in (1, 2, 3))]
        world |= {url: redirect(after) for url, after in pairwise(urls)}
    world[f"{HOST}/hop/5/3"] = prm(*listed)
    played = discover(world, challenged=tuple(starts[:4]))
    assert len(played.asked) == discovery.MOST_EFFECTS == 84


def test_the_table_is_what_happens() -> None:
    listed: World = {f"{PRM}/mcp": prm(A, B)}
    worlds: list[World] = [
        {f"{PRM}/mcp": DOWN},
        {PRM: prm(A)},
        {f"{PRM}/mcp": prm(A, resource=B)},
        {**listed, openid(A): metadata(A)},
        {**listed, oauth(A): DOWN, oauth(B): DOWN},
        {**listed, oauth(A): metadata(B)},
        {OWN_OPENID: metadata(HOST)},
        {OWN: DOWN},
        {},
    ]
    assert set().union(*(transitions(discover(world)) for world in worlds)) == rows(discovery)


def test_misuse() -> None:
    for world in ({}, {f"{PRM}/mcp": prm(A)}):
        for step in discover(world).steps[:-1]:
            with pytest.raises(Misuse):
                discovery.advance(step.state, Woke())


URLS = [
    f"{PRM}/mcp",
    PRM,
    OWN,
    OWN_OPENID,
    oauth(A),
    openid(A),
    oauth(B),
    openid(B),
    f"{HOST}/x",
    "https://e.example/x",
]
values = st.sampled_from(
    [MCP, HOST, A, B, f"{A}/token", f"{A}#x", "http://a.example", "", "\x00", 7, None, [A, B], ["S256"], True]
)
names = st.sampled_from(
    [
        "resource",
        "authorization_servers",
        "issuer",
        "authorization_endpoint",
        "token_endpoint",
        "code_challenge_methods_supported",
    ]
)
bodies = st.one_of(
    st.binary(max_size=40),
    st.dictionaries(names, values).map(msgspec.json.encode),
    st.sampled_from([prm(A, B).body, metadata(A).body, metadata(B).body, metadata(HOST).body]),
)
headers = st.one_of(
    st.just(()), st.sampled_from([*URLS, "/x", "?a=1", "//e.example", "\x00"]).map(lambda url: (("location", url),))
)
responses = st.builds(Response, st.sampled_from([200, 200, 301, 308, 404, 429, 500]), headers, bodies)
answers = st.one_of(responses, st.builds(SendFailed, st.text(max_size=5), st.booleans()))
plans = st.builds(
    Plan,
    st.sampled_from([MCP, HOST, f"{MCP}?k=1"]),
    trusted_issuer=st.sampled_from([(), ((A, B),)]),
    prefer_issuer=st.sampled_from([None, A, B]),
    strict_resource=st.booleans(),
    assume_s256=st.booleans(),
    legacy_2025_03_26=st.booleans(),
)


@given(st.data(), plans, st.lists(st.sampled_from(URLS), max_size=5), st.sampled_from([None, A, B]))
def test_whatever_is_answered(data: st.DataObject, plan: Plan, challenged: list[str], stored: str | None) -> None:
    """DESIGN 1: it never raises, ends within its bound, goes through JSON, and asks only whom it was told to ask."""
    step = discovery.begin(Query(plan, tuple(challenged), stored))
    named = {HOST, *("/".join(url.split("/")[:3]) for url in challenged)}
    for _ in range(discovery.MOST_EFFECTS + 1):
        if not isinstance(step, Await):
            break
        assert round_trip(discovery, step) == step
        assert isinstance(step.effect, Send)
        assert "/".join(step.effect.request.url.split("/")[:3]) in named
        event = data.draw(answers)
        named |= set(listed(event))
        state, step = step.state, discovery.advance(step.state, event)
        assert discovery.advance(state, event) == step
    assert isinstance(step, Done | Failed)


def listed(event: Response | SendFailed) -> Iterator[str]:
    """The authorization servers that a document lists."""
    body = event.body if isinstance(event, Response) else b""
    try:
        members = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return
    servers = members.get("authorization_servers") if isinstance(members, dict) else None
    yield from (server for server in servers or () if isinstance(server, str)) if isinstance(servers, list) else ()
