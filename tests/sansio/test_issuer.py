"""Authorization server metadata: where it is looked for, in which order, and when it may be believed."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from mcp_oauth.sansio import issuer
from mcp_oauth.sansio.errors import Reason
from mcp_oauth.sansio.issuer import Query
from mcp_oauth.sansio.messages import Response
from mcp_oauth.sansio.plan import PROTECTED_PARAMS, Plan
from mcp_oauth.sansio.steps import Done, Failed
from tests.sansio.worlds import DOWN, HTML, Run, World, document, play, redirect, rows, transitions

ROOT_AS = "https://as.example"
TENANT = "https://as.example/tenant1"
OAUTH = "https://as.example/.well-known/oauth-authorization-server"
OPENID = "https://as.example/.well-known/openid-configuration"
APPENDED = "https://as.example/tenant1/.well-known/openid-configuration"
PLAN = Plan("https://h.example/mcp")


def metadata(issuer: str = ROOT_AS, **more: Any) -> Response:
    usual = {
        "issuer": issuer,
        "authorization_endpoint": "https://as.example/authorize",
        "token_endpoint": "https://as.example/token",
        "code_challenge_methods_supported": ["S256"],
    }
    return document({**usual, **more})


def find(world: World, listed: str = ROOT_AS, plan: Plan = PLAN, others: tuple[str, ...] = ()) -> Run:
    return play(issuer, issuer.begin(Query(plan, listed, others)), world)


TENANT_URLS = [f"{OAUTH}/tenant1", f"{OPENID}/tenant1", APPENDED]
ORDER = [
    pytest.param(ROOT_AS, {OAUTH: metadata()}, [OAUTH], id="SPEC-oauth-first"),
    pytest.param(ROOT_AS, {OPENID: metadata()}, [OAUTH, OPENID], id="SPEC-then-openid"),
    pytest.param(f"{ROOT_AS}/", {OPENID: metadata(f"{ROOT_AS}/")}, [OAUTH, OPENID], id="RFC8414-3.1-terminating-slash"),
    pytest.param(TENANT, {f"{OAUTH}/tenant1": metadata(TENANT)}, TENANT_URLS[:1], id="SPEC-path-insertion-order-1"),
    pytest.param(TENANT, {f"{OPENID}/tenant1": metadata(TENANT)}, TENANT_URLS[:2], id="SPEC-path-insertion-order-2"),
    pytest.param(TENANT, {APPENDED: metadata(TENANT)}, TENANT_URLS, id="SPEC-path-appending-last"),
    pytest.param(ROOT_AS, {OAUTH: HTML, OPENID: metadata()}, [OAUTH, OPENID], id="FN-23-html-with-200"),
    pytest.param(ROOT_AS, {OAUTH: Response(403), OPENID: metadata()}, [OAUTH, OPENID], id="RULES-2.3-403-is-a-miss"),
    pytest.param(ROOT_AS, {OAUTH: document(a=1), OPENID: metadata()}, [OAUTH, OPENID], id="RULES-2.3-another-document"),
    pytest.param(
        ROOT_AS,
        {OAUTH: redirect("https://e.example"), OPENID: metadata()},
        [OAUTH, OPENID],
        id="RULES-2.3-refused-redirect",
    ),
    pytest.param(
        ROOT_AS,
        {OAUTH: redirect("/as"), f"{ROOT_AS}/as": metadata()},
        [OAUTH, f"{ROOT_AS}/as"],
        id="RULES-1.4-first-url",
    ),
]


@pytest.mark.parametrize(("listed", "world", "asked"), ORDER)
def test_order(listed: str, world: World, asked: list[str]) -> None:
    played = find(world, listed)
    assert played.asked == asked
    assert played.end.value.issuer == listed
    assert played.notices == []


@pytest.mark.parametrize(
    ("listed", "asked"),
    [pytest.param(ROOT_AS, [OAUTH, OPENID], id="root"), pytest.param(TENANT, TENANT_URLS, id="path")],
)
def test_nothing_there(listed: str, asked: list[str]) -> None:
    played = find({asked[0]: HTML}, listed)
    assert played.asked == asked
    error = played.end.error
    assert (error.reason, error.url) == (Reason.NO_ISSUER_METADATA, listed)
    assert error.message == f"{listed} publishes no authorization server metadata"
    assert [str(attempt) for attempt in error.attempts] == [
        f"{asked[0]}: HTTP 200, another document",
        *(f"{url}: HTTP 404" for url in asked[1:]),
    ]


def refused(**more: Any) -> World:
    return {OAUTH: metadata(**more)}


REFUSED = [
    pytest.param(
        {OAUTH: Response(503), OPENID: metadata()},
        Reason.SERVER_UNAVAILABLE,
        f"could not be read: {OAUTH}: HTTP 503",
        id="RULES-2.3-503",
    ),
    pytest.param({OAUTH: Response(429), OPENID: metadata()}, Reason.SERVER_UNAVAILABLE, "HTTP 429", id="RULES-2.3-429"),
    pytest.param({OAUTH: DOWN, OPENID: metadata()}, Reason.SERVER_UNAVAILABLE, "no route", id="RULES-2.3-no-answer"),
    pytest.param(
        refused(issuer="https://honest.example"),
        Reason.ISSUER_MISMATCH,
        'asked for issuer "https://as.example", the document says "https://honest.example"',
        id="RFC8414-3.3-issuer-mismatch",
    ),
    pytest.param(refused(issuer=f"{ROOT_AS}/"), Reason.ISSUER_MISMATCH, "", id="FN-19-a-slash-is-a-mismatch"),
    pytest.param(refused(issuer="https://AS.example"), Reason.ISSUER_MISMATCH, "", id="RULES-2.5-plain-string"),
    pytest.param(refused(issuer=f"{ROOT_AS}?a=1"), Reason.ISSUER_MISMATCH, "", id="RULES-2.5-query-not-told"),
    pytest.param(refused(token_endpoint=None), Reason.BAD_ISSUER_METADATA, "no token_endpoint", id="RFC8414-2-token"),
    pytest.param(
        refused(authorization_endpoint=""),
        Reason.BAD_ISSUER_METADATA,
        "no authorization_endpoint",
        id="RFC8414-2-authorization",
    ),
    *(
        pytest.param(
            refused(**{name: f"{ROOT_AS}/x#y"}), Reason.URL_REFUSED, f"{name} has a fragment", id=f"RULES-2.6-{name}"
        )
        for name in ("authorization_endpoint", "token_endpoint", "registration_endpoint", "revocation_endpoint")
    ),
    *(
        pytest.param(
            refused(**{name: "http://as.example/x"}), Reason.URL_REFUSED, f"{name} refused", id=f"RULES-1.3-{name}"
        )
        for name in ("authorization_endpoint", "token_endpoint", "registration_endpoint", "revocation_endpoint")
    ),
    pytest.param(
        refused(authorization_endpoint="javascript:alert(1)"), Reason.URL_REFUSED, "well-formed", id="FN-29-odd-scheme"
    ),
    pytest.param(
        refused(token_endpoint="http://127.0.0.1/"), Reason.URL_REFUSED, "out of reach", id="RULES-1.3-loopback"
    ),
    *(
        pytest.param(
            refused(authorization_endpoint=f"{ROOT_AS}/a?tenant=1&{name}"),
            Reason.BAD_ISSUER_METADATA,
            f"own query holds {name}",
            id=f"RULES-2.6-{name}",
        )
        for name in sorted(PROTECTED_PARAMS)
    ),
    pytest.param(
        refused(authorization_endpoint=f"{ROOT_AS}/a?state=1&tenant=a?b"),
        Reason.BAD_ISSUER_METADATA,
        "own query holds state",
        id="RULES-2.6-a-second-question-mark",
    ),
    pytest.param(refused(code_challenge_methods_supported=None), Reason.NO_S256, "S256", id="FN-26-methods-absent"),
    pytest.param(
        refused(code_challenge_methods_supported=["plain"]), Reason.NO_S256, "S256", id="RULES-2.7-plain-only"
    ),
]


@pytest.mark.parametrize(("world", "reason", "message"), REFUSED)
def test_refused(world: World, reason: Reason, message: str) -> None:
    played = find(world)
    assert isinstance(played.end, Failed)
    assert played.end.error.reason is reason
    assert message in played.end.error.message
    if reason is not Reason.URL_REFUSED:
        assert played.end.error.url == OAUTH
    assert played.asked == [OAUTH]
    assert [attempt.url for attempt in played.end.error.attempts] == [OAUTH]  # FN 53


@pytest.mark.parametrize(
    ("listed", "url", "message"),
    [
        pytest.param("https://as.example?a=1", ROOT_AS, "an issuer has no query and no fragment", id="RULES-2.5-query"),
        pytest.param("https://as.example/#a", f"{ROOT_AS}/", "an issuer has no query and no", id="RULES-2.5-fragment"),
        pytest.param("http://as.example", "http://as.example", "issuer refused: http://as", id="RULES-1.3-http"),
        pytest.param("https://10.0.0.1", "https://10.0.0.1", "issuer refused: https://10.", id="RULES-1.3-private"),
        pytest.param(
            "https://u:p@as.example", ROOT_AS, f"issuer refused: {ROOT_AS} is not a", id="RFC3986-3.2.1-userinfo"
        ),
        pytest.param("as.example", "as.example", "issuer refused: as.example is not a", id="RFC8414-2-issuer-is-a-url"),
    ],
)
def test_never_asked(listed: str, url: str, message: str) -> None:
    played = find({}, listed)
    assert played.asked == []
    assert played.end.error.reason is Reason.URL_REFUSED
    assert played.end.error.message.startswith(message)
    assert played.end.error.url == url
    assert "u:p" not in repr(played.end) + str(played.end.error)


@pytest.mark.parametrize(
    ("published", "pairs", "others", "notices"),
    [
        pytest.param(
            "https://x.example", ((ROOT_AS, "https://x.example"),), (), ["trusted-issuer"], id="RULES-2.5-pair"
        ),
        pytest.param(f"{ROOT_AS}/", ((ROOT_AS, f"{ROOT_AS}/"),), (), ["trusted-issuer"], id="FN-19-google"),
        pytest.param(f"{ROOT_AS}/", (), (f"{ROOT_AS}/",), [], id="RULES-2.8-origin-with-slash"),
        pytest.param("https://x.example", ((TENANT, "https://x.example"),), (), None, id="RULES-2.5-of-another-entry"),
        pytest.param("https://x.example/", ((ROOT_AS, "https://x.example"),), (), None, id="RULES-2.5-no-pattern"),
        pytest.param("https://x.example", (("https://x.example", ROOT_AS),), (), None, id="RULES-2.5-not-reversed"),
    ],
)
def test_trusted_issuer(
    published: str, pairs: tuple[tuple[str, str], ...], others: tuple[str, ...], notices: list[str] | None
) -> None:
    played = find({OAUTH: metadata(published)}, plan=replace(PLAN, trusted_issuer=pairs), others=others)
    if notices is None:
        assert played.end.error.reason is Reason.ISSUER_MISMATCH
    else:
        assert (played.end.value.issuer, played.notices) == (published, notices)


def test_a_refused_endpoint_is_told_without_its_query() -> None:
    error = find(refused(token_endpoint="http://as.example/t?k=1")).end.error
    assert error.url == "http://as.example/t"
    assert error.message == "token_endpoint refused: http://as.example/t is http, which is for loopback only"
    assert find(refused(token_endpoint="https://as.example/t?k=1#f")).end.error.url == "https://as.example/t"


MESSAGES = [
    ({"issuer": "https://x.example"}, f'asked for issuer "{ROOT_AS}", the document says "https://x.example"'),
    ({"token_endpoint": None}, "the metadata has no token_endpoint"),
    (
        {"authorization_endpoint": f"{ROOT_AS}/?state&code"},
        "the authorization endpoint's own query holds code, state",
    ),
    ({"code_challenge_methods_supported": []}, f"{ROOT_AS} does not declare S256"),
]


@pytest.mark.parametrize(("members", "message"), MESSAGES)
def test_message(members: dict[str, Any], message: str) -> None:
    assert find(refused(**members)).end.error.message == message


def test_an_unreadable_answer_is_told() -> None:
    message = f"the authorization server's metadata could not be read: {OAUTH}: no route to host"
    assert find({OAUTH: DOWN}).end.error.message == message


def test_every_attempt_is_told() -> None:
    """FN 53."""
    error = find({OAUTH: HTML, OPENID: metadata("https://x.example")}).end.error
    assert [(attempt.url, attempt.status) for attempt in error.attempts] == [(OAUTH, 200), (OPENID, 200)]


def test_trusted_issuer_says_whom() -> None:
    plan = replace(PLAN, trusted_issuer=((ROOT_AS, "https://x.example?a=1"),))
    [notice] = find({OAUTH: metadata("https://x.example?a=1")}, plan=plan).end.notices
    assert notice.message == "https://x.example is trusted for https://as.example, as configured"


ACCEPTED = [
    pytest.param({"code_challenge_methods_supported": None}, {"assume_s256": True}, id="RULES-2.7-assume-s256"),
    pytest.param({"code_challenge_methods_supported": ["plain", "S256"]}, {}, id="RULES-2.7-among-others"),
    pytest.param({"authorization_endpoint": f"{ROOT_AS}/a?tenant=1"}, {}, id="RULES-2.6-own-query-kept"),
    pytest.param({"token_endpoint": "https://other.example/T%20?x=1"}, {}, id="RULES-2.1-byte-for-byte"),
    pytest.param({"token_endpoint": "https://10.0.0.1/"}, {"allow_private": True}, id="RULES-1.3-opt-in"),
    pytest.param(
        {"token_endpoint": "http://localhost:1/"}, {"server_url": "http://[::1]:2/mcp"}, id="RULES-1.3-loopback"
    ),
]


@pytest.mark.parametrize(("members", "options"), ACCEPTED)
def test_accepted(members: dict[str, Any], options: dict[str, Any]) -> None:
    played = find(refused(**members), plan=replace(PLAN, **options))
    assert isinstance(played.end, Done)
    [name] = members
    expected = tuple(members[name]) if isinstance(members[name], list) else members[name]
    assert getattr(played.end.value, name) == expected


def test_the_bound_is_reached() -> None:
    starts = {url: redirect(f"/{n}/1") for n, url in enumerate(TENANT_URLS)}
    hops = {f"{ROOT_AS}/{n}/{i}": redirect(f"/{n}/{i + 1}") for n in range(3) for i in range(1, 4)}
    assert len(find({**starts, **hops}, TENANT).asked) == issuer.MOST_EFFECTS == 12


def test_the_table_is_what_happens() -> None:
    worlds: list[World] = [{OPENID: metadata()}, {OAUTH: DOWN}, {}]
    assert set().union(*(transitions(find(world)) for world in worlds)) == rows(issuer)
