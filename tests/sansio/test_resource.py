"""Protected resource metadata: where it is looked for, in which order, and when it may be believed."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from mcp_oauth.sansio import resource
from mcp_oauth.sansio.errors import Reason
from mcp_oauth.sansio.messages import Response
from mcp_oauth.sansio.plan import Plan
from mcp_oauth.sansio.steps import Done, Failed, SendFailed
from tests.sansio.worlds import DOWN, HTML, Run, World, document, play, redirect, rows, transitions

MCP = "https://h.example/mcp"
PATH = "https://h.example/.well-known/oauth-protected-resource/mcp"
ROOT = "https://h.example/.well-known/oauth-protected-resource"
CUSTOM = "https://meta.example/prm"
PLAN = Plan(MCP)


def prm(resource: Any = MCP, **more: Any) -> Response:
    return document({"resource": resource, "authorization_servers": ["https://as.example"], **more})


def find(world: World, challenged: tuple[str, ...] = (), plan: Plan = PLAN) -> Run:
    return play(resource, resource.begin(plan, challenged), world)


ORDER = [
    pytest.param((), {PATH: prm()}, [PATH], id="SPEC-path-first"),
    pytest.param((), {ROOT: prm()}, [PATH, ROOT], id="SPEC-then-root"),
    pytest.param((), {PATH: HTML, ROOT: prm()}, [PATH, ROOT], id="FN-23-html-with-200"),
    pytest.param((), {PATH: Response(403), ROOT: prm()}, [PATH, ROOT], id="RULES-2.3-403-is-a-miss"),
    pytest.param((), {PATH: document(issuer="x"), ROOT: prm()}, [PATH, ROOT], id="RULES-2.3-another-document"),
    pytest.param((), {PATH: prm(resource=7), ROOT: prm()}, [PATH, ROOT], id="RFC9728-2-resource-is-required"),
    pytest.param((), {PATH: redirect("https://e.example"), ROOT: prm()}, [PATH, ROOT], id="RULES-2.3-refused-redirect"),
    pytest.param((), {PATH: redirect("/x"), "https://h.example/x": prm()}, [PATH, "https://h.example/x"], id="FN-27"),
    pytest.param((ROOT,), {ROOT: prm(), PATH: prm()}, [ROOT], id="SPEC-challenge-first"),
    pytest.param((CUSTOM,), {CUSTOM: prm()}, [CUSTOM], id="RFC9728-5.1-any-https-url"),
    pytest.param((CUSTOM,), {ROOT: prm()}, [CUSTOM, PATH, ROOT], id="SPEC-challenge-then-well-known"),
    pytest.param((ROOT,), {}, [ROOT, PATH], id="SPEC-each-url-once"),
    pytest.param((CUSTOM, ROOT, CUSTOM), {ROOT: prm()}, [CUSTOM, ROOT], id="FN-25-every-candidate"),
    pytest.param(
        tuple(f"{CUSTOM}{n}" for n in range(9)),
        {},
        [*(f"{CUSTOM}{n}" for n in range(4)), PATH, ROOT],
        id="FN-25-four-candidates-at-most",
    ),
    pytest.param(("http://h.example/prm",), {PATH: prm()}, [PATH], id="RULES-1.3-http-candidate-passed-over"),
    pytest.param(("/prm",), {PATH: prm()}, [PATH], id="RFC9728-5.1-relative-candidate-passed-over"),
    pytest.param(("https://127.0.0.1/prm", ROOT), {ROOT: prm()}, [ROOT], id="RULES-1.3-loopback-passed-over"),
]


@pytest.mark.parametrize(("challenged", "world", "asked"), ORDER)
def test_order(challenged: tuple[str, ...], world: World, asked: list[str]) -> None:
    played = find(world, challenged)
    assert played.asked == asked
    assert isinstance(played.end, Done)
    assert (played.end.value.metadata is None) == (not world)


def test_definite_misses_are_told() -> None:
    found = find({PATH: HTML}).end.value
    assert found.metadata is None
    assert [str(attempt) for attempt in found.attempts] == [f"{PATH}: HTTP 200, another document", f"{ROOT}: HTTP 404"]


def test_what_is_found() -> None:
    found = find({PATH: HTML, ROOT: prm("https://H.example", scopes_supported=["a"])}).end.value
    assert found.metadata.resource == "https://H.example"  # RULES 2.1: byte for byte
    assert found.metadata.authorization_servers == ("https://as.example",)
    assert [attempt.url for attempt in found.attempts] == [PATH, ROOT]


FAILURES = [
    pytest.param(
        {PATH: Response(500), ROOT: prm()}, (), Reason.SERVER_UNAVAILABLE, PATH, [PATH], id="RULES-2.3-500-no-fallback"
    ),
    pytest.param(
        {PATH: Response(429), ROOT: prm()}, (), Reason.SERVER_UNAVAILABLE, PATH, [PATH], id="RULES-2.3-429-no-fallback"
    ),
    pytest.param({PATH: DOWN, ROOT: prm()}, (), Reason.SERVER_UNAVAILABLE, PATH, [PATH], id="RULES-2.3-no-answer"),
    pytest.param(
        {CUSTOM: Response(502), PATH: prm()}, (CUSTOM,), Reason.SERVER_UNAVAILABLE, CUSTOM, [CUSTOM], id="RULES-2.3-502"
    ),
    pytest.param(
        {}, ("https://10.0.0.1/a?k=1",), Reason.URL_REFUSED, "https://10.0.0.1/a", [PATH, ROOT], id="RULES-1.3-private"
    ),
    pytest.param(
        {}, ("http://h.example/a",), Reason.URL_REFUSED, "http://h.example/a", [PATH, ROOT], id="RULES-1.3-http"
    ),
    pytest.param({}, ("/prm",), Reason.URL_REFUSED, "/prm", [PATH, ROOT], id="RFC9728-5.1-relative"),
    pytest.param(
        {PATH: prm("https://h.example/other")}, (), Reason.RESOURCE_MISMATCH, PATH, [PATH], id="RULES-2.2-sibling"
    ),
    pytest.param(
        {PATH: prm("https://other.example/mcp")}, (), Reason.RESOURCE_MISMATCH, PATH, [PATH], id="RFC9728-3.3-origin"
    ),
    pytest.param(
        {PATH: prm("https://h.example/m")}, (), Reason.RESOURCE_MISMATCH, PATH, [PATH], id="RULES-2.2-segment"
    ),
    pytest.param(
        {PATH: prm("http://h.example/mcp")}, (), Reason.RESOURCE_MISMATCH, PATH, [PATH], id="RULES-2.2-scheme"
    ),
    pytest.param(
        {CUSTOM: prm("https://meta.example/mcp")},
        (CUSTOM,),
        Reason.RESOURCE_MISMATCH,
        CUSTOM,
        [CUSTOM],
        id="RFC9728-3.3-the-server-asked-not-the-metadata-host",
    ),
    pytest.param(
        {PATH: prm(bearer_methods_supported=["body", "query"])},
        (),
        Reason.NO_HEADER_TOKENS,
        PATH,
        [PATH],
        id="RULES-2.2-bearer-methods-without-header",
    ),
    pytest.param(
        {PATH: prm(bearer_methods_supported=[])}, (), Reason.NO_HEADER_TOKENS, PATH, [PATH], id="RFC9728-2-no-methods"
    ),
    pytest.param(
        {PATH: prm(authorization_servers=[])}, (), Reason.NO_AUTHORIZATION_SERVER, PATH, [PATH], id="SPEC-at-least-one"
    ),
    pytest.param(
        {PATH: document(resource=MCP)}, (), Reason.NO_AUTHORIZATION_SERVER, PATH, [PATH], id="SPEC-MUST-include"
    ),
]


@pytest.mark.parametrize(("world", "challenged", "reason", "url", "asked"), FAILURES)
def test_failure(world: World, challenged: tuple[str, ...], reason: Reason, url: str, asked: list[str]) -> None:
    played = find(world, challenged)
    assert isinstance(played.end, Failed)
    assert (played.end.error.reason, played.end.error.url, played.asked) == (reason, url, asked)
    assert [attempt.url for attempt in played.end.error.attempts if attempt.url in asked] == asked  # FN 53
    assert played.end.error.message


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Response(500), f"the server's metadata could not be read: {PATH}: HTTP 500"),
        (prm(HTTP := "http://h.example/mcp?a"), f"the metadata describes {HTTP[:-2]}, which does not cover {MCP}"),
        (prm(bearer_methods_supported=[]), "the server takes no token in the Authorization header"),
        (prm(authorization_servers=[]), "the metadata names no authorization server"),
    ],
)
def test_message(answer: Response, message: str) -> None:
    assert find({PATH: answer}).end.error.message == message


def test_every_attempt_is_told() -> None:
    """FN 53."""
    error = find({CUSTOM: HTML}, (CUSTOM, "http://h.example/prm")).end.error
    assert [(attempt.url, attempt.status) for attempt in error.attempts] == [
        (CUSTOM, 200),
        ("http://h.example/prm", None),
        (PATH, 404),
        (ROOT, 404),
    ]


def test_a_refused_url_is_told() -> None:
    error = find({}, ("https://10.0.0.1/a?k=1",)).end.error
    refusal = f"https://10.0.0.1/a is a private address, out of reach for the server {MCP}"
    assert error.message == f"metadata URL refused: {refusal}"
    assert [str(attempt) for attempt in error.attempts][:1] == [f"https://10.0.0.1/a: {refusal}"]


@pytest.mark.parametrize(
    ("server", "named", "notices"),
    [
        pytest.param(MCP, MCP, [], id="RFC9728-3.3-equal"),
        pytest.param(MCP, f"{MCP}/", [], id="RULES-2.2-slash-added"),
        pytest.param(f"{MCP}/", MCP, [], id="RULES-2.2-slash-left-out"),
        pytest.param(MCP, "https://H.example:443/mcp", [], id="RULES-2.1-same-server-otherwise-written"),
        pytest.param("https://h.example", "https://h.example/", [], id="SPEC-canonical-without-slash"),
        pytest.param(MCP, "https://h.example", ["resource-broader-than-server"], id="RULES-2.2-origin"),
        pytest.param(f"{MCP}/a/b", MCP, ["resource-broader-than-server"], id="RULES-2.2-parent"),
        pytest.param(f"{MCP}?key=1", MCP, ["resource-broader-than-server"], id="RULES-2.2-without-the-query"),
        pytest.param(f"{MCP}?key=1", f"{MCP}?key=1", [], id="RULES-2.2-query-kept"),
    ],
)
def test_resource_accepted(server: str, named: str, notices: list[str]) -> None:
    played = find({ROOT: prm(named)}, (ROOT,), Plan(server))
    assert played.end.value.metadata.resource == named
    assert played.notices == notices


def test_a_parent_is_told() -> None:
    [notice] = find({PATH: prm("https://h.example")}).end.notices
    assert notice.message == f"tokens are for https://h.example, of which {MCP} is a part"


@pytest.mark.parametrize(
    ("named", "accepted"),
    [
        pytest.param(MCP, True, id="RULES-2.2-strict-equal"),
        pytest.param(f"{MCP}/", False, id="RULES-2.2-strict-slash"),
        pytest.param("https://h.example", False, id="RULES-2.2-strict-parent"),
    ],
)
def test_strict_resource(named: str, accepted: bool) -> None:
    end = find({PATH: prm(named)}, (), replace(PLAN, strict_resource=True)).end
    assert isinstance(end, Done) if accepted else end.error.reason is Reason.RESOURCE_MISMATCH
    if not accepted:
        assert end.error.message == f"the metadata describes {named}, and strict_resource demands {MCP}"
        assert end.error.url == PATH


def test_methods_with_header() -> None:
    assert isinstance(find({PATH: prm(bearer_methods_supported=["query", "header"])}).end, Done)


def test_the_query_of_the_server_is_asked_and_never_told() -> None:
    played = find({f"{PATH}?key=s3cret": prm("https://h.example/other?x")}, (), Plan(f"{MCP}?key=s3cret"))
    assert played.asked == [f"{PATH}?key=s3cret"]
    assert played.end.error.message == "the metadata describes https://h.example/other, which does not cover " + MCP
    assert "s3cret" not in repr(played.steps) + str(played.end.error)


PRIVATE = "https://10.0.0.1/prm"


@pytest.mark.parametrize(
    ("plan", "first"),
    [
        pytest.param(PLAN, PATH, id="RULES-1.3-private-out-of-reach"),
        pytest.param(replace(PLAN, allow_private=True), PRIVATE, id="RULES-1.3-opt-in"),
        pytest.param(Plan("http://127.0.0.1:8000/mcp"), PRIVATE, id="RULES-1.3-server-itself-loopback"),
    ],
)
def test_private_networks(plan: Plan, first: str) -> None:
    assert find({}, (PRIVATE,), plan).asked[0] == first


def test_the_bound_is_reached() -> None:
    challenged = tuple(f"https://h.example/{n}/0" for n in range(4))
    world = {
        **{f"https://h.example/{n}/{i}": redirect(f"/{n}/{i + 1}") for n in range(6) for i in range(3)},
        PATH: redirect("/4/1"),
        ROOT: redirect("/5/1"),
    }
    assert len(find(world, challenged).asked) == resource.MOST_EFFECTS == 24


def test_the_table_is_what_happens() -> None:
    worlds: list[dict[str, Response | SendFailed]] = [{ROOT: prm()}, {PATH: DOWN}, {PATH: prm("x")}]
    assert set().union(*(transitions(find(world)) for world in worlds)) == rows(resource)
