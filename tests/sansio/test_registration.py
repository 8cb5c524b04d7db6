"""Getting a client: pre-registered, by document, dynamically; the end of a registration."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mcp_oauth.sansio import registration
from mcp_oauth.sansio.errors import Reason
from mcp_oauth.sansio.grant import AuthMethod, Registration
from mcp_oauth.sansio.messages import Request, Response, header
from mcp_oauth.sansio.metadata import AuthorizationServerMetadata
from mcp_oauth.sansio.plan import ClientMetadataDocument, Dynamic, Plan, PreRegistered
from mcp_oauth.sansio.registration import MOST_REDIRECTS, Query, Registering
from mcp_oauth.sansio.steps import Await, Done, Event, Failed, Misuse, Send, Woke
from tests.sansio.walks import CANARY, LOST, NOW, UNSENT, advance, answer, later, play_anything, table, walk
from tests.sansio.worlds import rows, transitions

ISSUER = "https://as.example"
REDIRECT = "http://127.0.0.1:5000/callback/x"
SECRET, ACCESS, INITIAL = f"{CANARY}-secret", f"{CANARY}-access", f"{CANARY}-initial"
BASIC: AuthMethod = "client_secret_basic"
POST: AuthMethod = "client_secret_post"
REFUSED, UNAVAILABLE = Reason.REGISTRATION_REFUSED, Reason.REGISTRATION_UNAVAILABLE
UNREADABLE, NEEDED = Reason.REGISTRATION_UNREADABLE, Reason.CLIENT_INFORMATION_NEEDED

METADATA = AuthorizationServerMetadata(
    ISSUER, f"{ISSUER}/authorize", f"{ISSUER}/token", registration_endpoint=f"{ISSUER}/register?t=1"
)
CIMD = replace(METADATA, client_id_metadata_document_supported=True)
CLOSED = replace(METADATA, registration_endpoint=None)
DOCUMENT = ClientMetadataDocument("https://app.example/client.json")
PLAN = Plan("https://mcp.example/mcp")
WITH_INITIAL = replace(PLAN, dynamic=Dynamic(initial_access_token=INITIAL))
LATER = replace(PLAN, dynamic=Dynamic(scopes=("c", "a")))
QUERY = Query(PLAN, METADATA, ISSUER, REDIRECT, ("a", "b"))


def methods(*names: str) -> AuthorizationServerMetadata:
    return replace(METADATA, token_endpoint_auth_methods_supported=names)


def dcr(client_id: str = "new", **more: Any) -> Registration:
    members: dict[str, Any] = {"redirect_uri": REDIRECT, "scopes": ("a", "b"), "auth_method": "none", **more}
    return Registration(ISSUER, client_id, "dcr", **members)


def asked(step: Any) -> Request:
    """The request that a step sends."""
    assert isinstance(step, Await)
    assert isinstance(step.effect, Send)
    return step.effect.request


def body(step: Any) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.json.decode(asked(step).body)
    return document


class TestPriority:
    """Spec, "Client Registration": what is used without a request."""

    @table(
        "plan, metadata, expected",
        {
            "RULES-2.9-first": ({"preregistered": PreRegistered("pre")}, CIMD, ("preregistered", "pre")),
            "RULES-2.9-document-before-dynamic": ({}, CIMD, ("cimd", DOCUMENT.url)),
            "RULES-2.9-document": ({"dynamic": None}, CIMD, ("cimd", DOCUMENT.url)),
            "RULES-2.9-dynamic-where-documents-are-not-read": ({}, METADATA, ("dcr", "known")),
            "RULES-2.9-dynamic-without-document": ({"metadata_document": None}, CIMD, ("dcr", "known")),
            "RULES-2.9-none-left": ({"dynamic": None}, METADATA, None),
            "RULES-2.9-closed-server": ({}, CLOSED, None),
        },
    )
    def test_order(
        self, plan: dict[str, Any], metadata: AuthorizationServerMetadata, expected: tuple[str, str] | None
    ) -> None:
        query = replace(QUERY, plan=replace(PLAN, metadata_document=DOCUMENT), metadata=metadata, known=(dcr("known"),))
        query = replace(query, plan=replace(query.plan, **plan))
        end = walk(registration, registration.begin(query, NOW)).end
        kind = registration.kind(query.plan, metadata)
        if expected is None:
            assert isinstance(end, Failed)
            assert (end.error.reason, end.error.url, kind) == (NEEDED, ISSUER, None)
        else:
            assert isinstance(end, Done)
            client: Registration = end.value
            assert (client.kind, client.client_id, kind) == (*expected, expected[0])
            assert (client.issuer, client.auth_method) == (ISSUER, "none")
            assert (
                client.redirect_uri
                == {"preregistered": None, "cimd": DOCUMENT.redirect_uri, "dcr": REDIRECT}[expected[0]]
            )

    @table(
        "client, listed, supported, method",
        {
            "RULES-2.9-issuer-not-said": (PreRegistered("c"), None, None, "none"),
            "RULES-2.9-its-issuer": (PreRegistered("c", issuer=ISSUER), None, None, "none"),
            "FN-35-its-redirect": (PreRegistered("c", redirect_uri="http://localhost/c"), None, None, "none"),
            "RULES-2.5-as-it-is-listed": (PreRegistered("c", issuer="https://l"), "https://l", None, "none"),
            "RULES-2.9-another-issuer": (PreRegistered("c", issuer="https://l"), None, None, None),
            "RULES-2.5-plain-comparison": (PreRegistered("c", issuer=f"{ISSUER}/"), ISSUER, None, None),
            "RFC8414-2-default": (PreRegistered("c", SECRET), None, None, BASIC),
            "RULES-2.18-by-metadata": (PreRegistered("c", SECRET), None, (POST,), POST),
            "RULES-2.18-caller-knows": (PreRegistered("c", SECRET, auth_method=POST), None, (BASIC,), POST),
            "RULES-2.18-public": (PreRegistered("c", SECRET, auth_method="none"), None, (BASIC,), "none"),
        },
    )
    def test_preregistered(
        self, client: PreRegistered, listed: str | None, supported: tuple[str, ...] | None, method: AuthMethod | None
    ) -> None:
        metadata = replace(METADATA, token_endpoint_auth_methods_supported=supported)
        query = replace(QUERY, plan=replace(PLAN, preregistered=client), metadata=metadata, listed=listed)
        end = walk(registration, registration.begin(query, NOW)).end
        if method is None:
            assert isinstance(end, Failed)
            assert (end.error.reason, end.error.url) == (Reason.CLIENT_OF_ANOTHER_ISSUER, ISSUER)
            assert str(client.issuer) in end.error.message
        else:
            kept = Registration(
                ISSUER, "c", "preregistered", method, client.redirect_uri, client_secret=client.client_secret
            )
            assert end == Done(kept)

    @table(
        "client, supported, named",
        {
            "RULES-2.18-nothing-in-common": (
                PreRegistered("c", SECRET),
                ("tls_client_auth", "private_key_jwt"),
                "tls_client_auth, private_key_jwt",
            ),
            "RULES-2.18-secret-missing": (PreRegistered("c", auth_method=POST), (BASIC,), POST),
        },
    )
    def test_preregistered_without_a_method(
        self, client: PreRegistered, supported: tuple[str, ...], named: str
    ) -> None:
        query = replace(QUERY, plan=replace(PLAN, preregistered=client), metadata=methods(*supported))
        end = walk(registration, registration.begin(query, NOW)).end
        assert isinstance(end, Failed)
        assert (end.error.reason, end.error.url) == (NEEDED, ISSUER)
        assert f"by {named}, which" in end.error.message


class TestEarlierRegistrations:
    @table(
        "known, scopes, used",
        {
            "RULES-2.9-used-again": (dcr(), ("a", "b"), True),
            "FN-34-fewer-scopes": (dcr(), ("b",), True),
            "FN-34-no-scopes": (dcr(), None, True),
            "FN-34-scope-not-registered": (dcr(), ("a", "c"), False),
            "RFC7591-2-registered-without-scopes": (dcr(scopes=None), ("a",), False),
            "RULES-2.15-no-scopes-at-all": (dcr(scopes=None), None, True),
            "FN-37-other-redirect": (dcr(redirect_uri=REDIRECT + "/"), ("a",), False),
            "FN-37-unknown-redirect": (dcr(redirect_uri=None), ("a",), False),
            "FN-32-other-issuer": (replace(dcr(), issuer="https://evil"), ("a",), False),
            "RULES-2.10-lives": (dcr(client_secret_expires_at=NOW.wall + 60.5), ("a",), True),
            "RULES-2.10-at-its-end": (dcr(client_secret_expires_at=NOW.wall + 60), ("a",), False),
        },
    )
    def test_use(self, known: Registration, scopes: tuple[str, ...] | None, used: bool) -> None:
        step = registration.begin(replace(QUERY, scopes=scopes, known=(dcr("x", redirect_uri=None), known)), NOW)
        assert (step == Done(known)) == used
        assert isinstance(step, Done if used else Await)


class TestRequest:
    def test_standard_members_only(self) -> None:
        """FN 34."""
        step = registration.begin(QUERY, NOW)
        assert body(step) == {
            "client_name": "MCP client",
            "redirect_uris": [REDIRECT],
            "grant_types": ["authorization_code", "refresh_token"],
            "response_types": ["code"],
            "token_endpoint_auth_method": "none",
            "application_type": "native",
            "scope": "a b",
        }
        request = asked(step)
        assert (request.method, request.url) == ("POST", f"{ISSUER}/register?t=1")
        assert header(request.headers, "content-type") == "application/json"
        assert header(request.headers, "authorization") is None

    @table(
        "change, member, value",
        {
            "RULES-2.15-no-scopes": ({"scopes": None}, "scope", None),
            "RULES-2.15-empty-scopes": ({"scopes": ()}, "scope", None),
            "RULES-2.10-scopes-for-later": ({"plan": LATER}, "scope", "a b c"),
            "RULES-2.10-scopes-for-later-alone": ({"plan": LATER, "scopes": None}, "scope", "c a"),
            "SPEC-application-type-web": ({"redirect_uri": "https://app.example/cb"}, "application_type", "web"),
            "SPEC-application-type-localhost": (
                {"redirect_uri": "http://localhost:1/cb"},
                "application_type",
                "native",
            ),
            "SPEC-application-type-ipv6": ({"redirect_uri": "http://[::1]:1/cb"}, "application_type", "native"),
            "SPEC-application-type-own-scheme": ({"redirect_uri": "myapp://cb"}, "application_type", "native"),
            "RULES-2.10-empty-list": ({"metadata": methods()}, "token_endpoint_auth_method", "none"),
            "RULES-2.10-public": ({"metadata": methods(BASIC, "none")}, "token_endpoint_auth_method", "none"),
            "RULES-2.10-basic": ({"metadata": methods(BASIC)}, "token_endpoint_auth_method", BASIC),
            "RULES-2.10-post": ({"metadata": methods("x", POST)}, "token_endpoint_auth_method", POST),
            "FN-42-the-sdk-server-lists-post-first": (
                {"metadata": methods(POST, BASIC)},
                "token_endpoint_auth_method",
                POST,
            ),
            "RULES-2.10-first-of-the-list": ({"metadata": methods(BASIC, POST)}, "token_endpoint_auth_method", BASIC),
            "RULES-2.10-nothing-in-common": (
                {"metadata": methods("private_key_jwt")},
                "token_endpoint_auth_method",
                BASIC,
            ),
        },
    )
    def test_members(self, change: dict[str, Any], member: str, value: str | None) -> None:
        assert body(registration.begin(replace(QUERY, **change), NOW)).get(member) == value

    @table(
        "name, value, kept",
        {
            "FN-34-more-members": ("software_id", "x", "x"),
            "SPEC-adjusted-application-type": ("application_type", "web", "web"),
            "FN-figma-adjusted-method": ("token_endpoint_auth_method", POST, POST),
        },
    )
    def test_extras(self, name: str, value: str, kept: object) -> None:
        plan = replace(PLAN, dynamic=Dynamic("Me", client_uri="https://app.example", extra=((name, value),)))
        sent = body(registration.begin(replace(QUERY, plan=plan), NOW))
        assert (sent["client_name"], sent["client_uri"], sent[name]) == ("Me", "https://app.example", kept)

    def test_initial_access_token(self) -> None:
        step = registration.begin(replace(QUERY, plan=WITH_INITIAL), NOW)
        assert header(asked(step).headers, "authorization") == f"Bearer {INITIAL}"
        assert CANARY not in repr(step)


def register(event: Event, **change: Any) -> Any:
    return walk(registration, registration.begin(replace(QUERY, **change), NOW), event).end


ALL = {
    "client_id": "new",
    "client_secret": SECRET,
    "client_secret_expires_at": NOW.wall + 90,
    "token_endpoint_auth_method": POST,
    "redirect_uris": ["https://changed.example/cb"],
    "scope": "a",
    "registration_client_uri": f"{ISSUER}/register/new?x=y",
    "registration_access_token": ACCESS,
}
MANAGED = {"registration_client_uri": f"{ISSUER}/register/new?x=y", "registration_access_token": ACCESS}
CONFIDENTIAL: dict[str, Any] = {"client_secret": SECRET, "auth_method": POST}


class TestAnswer:
    def test_RULES_2_10_scopes_for_later_are_registered_and_need_no_other_client(self) -> None:
        asking = registration.begin(replace(QUERY, plan=LATER), NOW)
        assert isinstance(asking, Await)
        end = registration.advance(asking.state, answer(201, client_id="new"), now=NOW)
        assert isinstance(end, Done)
        assert end.value == dcr(scopes=("a", "b", "c"))
        stepping_up = replace(QUERY, plan=LATER, scopes=("a", "c"), known=(end.value,))
        assert registration.begin(stepping_up, NOW) == Done(end.value)

    @table(
        "response, client",
        {
            "FN-33-only-client_id": (answer(201, client_id="new"), dcr()),
            "FN-33-200": (answer(200, client_id="new"), dcr()),
            "FN-33-no-content-type": (Response(201, (), b'\xef\xbb\xbf{"client_id":"new"}'), dcr()),
            "RFC7591-3.2.1-all": (
                answer(201, **ALL),
                dcr(**CONFIDENTIAL, **MANAGED, client_secret_expires_at=NOW.wall + 90),
            ),
            "FN-33-null-is-absent": (answer(201, client_id="new", **dict.fromkeys([*ALL][1:], None)), dcr()),
            "FN-33-empty-is-absent": (answer(201, client_id="new", **dict.fromkeys([*ALL][1:], "")), dcr()),
            "RFC7591-3.2.1-zero-is-never": (
                answer(201, **{**ALL, "client_secret_expires_at": 0}),
                dcr(**CONFIDENTIAL, **MANAGED),
            ),
            "RFC7591-3.2.1-expiry-of-no-secret": (
                answer(201, **{**ALL, "client_secret": None, "token_endpoint_auth_method": "none"}),
                dcr(**MANAGED),
            ),
            "RULES-2.10-method-missing": (
                answer(201, client_id="new", client_secret=SECRET),
                dcr(client_secret=SECRET, auth_method=BASIC),
            ),
            "RULES-2.10-none-obeyed": (
                answer(201, client_id="new", client_secret=SECRET, token_endpoint_auth_method="none"),
                dcr(client_secret=SECRET),
            ),
            "RULES-2.10-none": (answer(201, client_id="new", token_endpoint_auth_method="none"), dcr()),
            "RULES-2.17-token-no-header-carries": (
                answer(201, client_id="new", registration_access_token="a\r\nb"),
                dcr(),
            ),
        },
    )
    def test_registered(self, response: Response, client: Registration) -> None:
        end = register(response)
        assert isinstance(end, Done)
        assert end.value == client
        assert [(notice.name, notice.message) for notice in end.notices] == [
            ("registered", f"registered at {ISSUER} as new")
        ]

    @table(
        "uri, kept",
        {
            "RULES-2.10-same-origin": (f"{ISSUER}/elsewhere?x#y", True),
            "RFC6454-4-same-origin": ("https://AS.example:443/r", True),
            "RULES-2.10-other-host": ("https://evil.example/r", False),
            "RULES-1.3-plain-http": ("http://as.example/r", False),
            "RULES-2.10-other-port": ("https://as.example:444/r", False),
            "RULES-2.10-relative": ("/r", False),
            "RULES-2.10-not-text": (7, False),
        },
    )
    def test_management_uri(self, uri: object, kept: bool) -> None:
        end = register(answer(201, client_id="new", registration_client_uri=uri))
        assert end.value.registration_client_uri == (uri if kept else None)

    def test_method_by_metadata(self) -> None:
        """RULES 2.10: a secret that no method of the server's uses stays at home."""
        end = register(answer(201, client_id="new", client_secret=SECRET), metadata=methods("none"))
        assert (end.value.auth_method, end.value.client_secret) == ("none", SECRET)

    def test_the_notice_is_printable(self) -> None:
        assert register(answer(201, client_id="a\x1b]0;b\n")).notices[0].message == f"registered at {ISSUER} as a ]0;b"

    @table(
        "response, reason, message",
        {
            "RFC7591-3.2.2": (
                answer(400, error="invalid_redirect_uri", error_description="no http"),
                REFUSED,
                "HTTP 400: invalid_redirect_uri: no http",
            ),
            "FN-42-error-in-200": (
                answer(200, client_id="x", error="invalid_client_metadata"),
                REFUSED,
                "HTTP 200: invalid_client_metadata",
            ),
            "FN-supabase-422": (answer(422, message="nope"), REFUSED, "HTTP 422: nope"),
            "FN-figma-403": (Response(403, (("content-type", "text/plain"),), b"no"), REFUSED, "HTTP 403"),
            "RFC7591-3.2.2-client-in-a-400": (answer(400, client_id="x"), REFUSED, "HTTP 400"),
            "FN-27-302-is-for-get": (Response(302, (("location", f"{ISSUER}/login"),)), REFUSED, "HTTP 302"),
            "FN-27-303-is-for-get": (Response(303, (("location", f"{ISSUER}/login"),)), REFUSED, "HTTP 303"),
            "FN-53-busy": (Response(429), UNAVAILABLE, "HTTP 429"),
            "FN-53-broken": (Response(500), UNAVAILABLE, "HTTP 500"),
            "FN-53-not-broken": (Response(499), REFUSED, "HTTP 499"),
            "RFC7591-3.2.1-nothing": (answer(201), UNREADABLE, "no client_id"),
            "FN-33-empty-id": (answer(201, client_id=""), UNREADABLE, "no client_id"),
            "RFC7591-3.2.1-number": (answer(201, client_id=7), UNREADABLE, "no client_id"),
            "RFC7591-3.2.1-html": (Response(201, (), b"<html>"), UNREADABLE, "no client_id"),
            "RFC7591-3.2.1-no-object": (Response(201, (), b'"x"'), UNREADABLE, "no client_id"),
            "RULES-2.10-secret-demanded-and-not-given": (
                answer(201, client_id="x", token_endpoint_auth_method=POST),
                NEEDED,
                f"by {POST}, which",
            ),
            "RULES-2.10-one-we-do-not-have": (
                answer(201, client_id="x", client_secret=SECRET, token_endpoint_auth_method="private_key_jwt"),
                NEEDED,
                "by private_key_jwt, which",
            ),
            "RULES-2.10-expired-at-once": (
                answer(201, client_id="x", client_secret=SECRET, client_secret_expires_at=NOW.wall + 1),
                Reason.CLIENT_EXPIRED,
                "has expired",
            ),
            "FN-53-lost": (LOST, UNAVAILABLE, "timed out"),
            "FN-53-unreachable": (UNSENT, UNAVAILABLE, "connection refused"),
        },
    )
    def test_not_registered(self, response: Event, reason: Reason, message: str) -> None:
        end = register(response)
        assert isinstance(end, Failed)
        assert end.error.reason is reason
        assert message in end.error.message
        assert end.error.url in (f"{ISSUER}/register", ISSUER)
        if reason in (REFUSED, UNAVAILABLE) and isinstance(response, Response):
            assert end.error.status == response.status

    def test_nothing_in_common(self) -> None:
        end = register(answer(201, client_id="x", client_secret=SECRET), metadata=methods("tls_client_auth"))
        assert "by tls_client_auth, which" in end.error.message

    def test_a_secret_just_before_its_end(self) -> None:
        """It serves this login; `usable` decides about the next."""
        expires = later(1).wall + 0.5
        end = register(answer(201, client_id="x", client_secret=SECRET, client_secret_expires_at=expires))
        assert end.value.client_secret_expires_at == expires

    def test_fn_54_an_echoed_initial_access_token(self) -> None:
        end = register(answer(401, error="invalid_token", error_description=f"bad {INITIAL}."), plan=WITH_INITIAL)
        assert end.error.message == "the registration endpoint answered HTTP 401: invalid_token: bad [hidden]."


def moved(location: str | None, status: int = 307) -> Response:
    return Response(status, (("Location", location),) if location is not None else ())


class TestRedirects:
    @table(
        "plan, response, target",
        {
            "FN-27-307": (PLAN, moved("/r2"), f"{ISSUER}/r2"),
            "FN-27-308": (PLAN, moved(f"{ISSUER}/r2?x", 308), f"{ISSUER}/r2?x"),
            "RULES-1.4-other-origin": (PLAN, moved("https://evil.example/r?code=1"), None),
            "RULES-1.4-other-origin-by-network-path": (PLAN, moved("//evil.example/r"), None),
            "RULES-1.3-downgrade": (PLAN, moved("http://as.example/r"), None),
            "RFC9110-10.2.2-no-location": (PLAN, moved(None), None),
            "RULES-1.4-never-with-an-initial-access-token": (WITH_INITIAL, moved("/r2"), None),
        },
    )
    def test_redirect(self, plan: Plan, response: Response, target: str | None) -> None:
        step = register(response, plan=plan)
        if target is not None:
            assert asked(step).url == target
            assert asked(step).body == asked(registration.begin(QUERY, NOW)).body
            return
        assert isinstance(step, Failed)
        assert step.error.reason is REFUSED
        assert step.error.url == f"{ISSUER}/register"
        assert "which is not followed" in step.error.message
        assert "?" not in step.error.message

    def test_rules_1_4_three_at_most(self) -> None:
        begun = registration.begin(QUERY, NOW)
        run = walk(registration, begun, *[moved(f"/r{n}") for n in range(MOST_REDIRECTS + 1)])
        assert [asked(step).url for step in run.steps[1:-1]] == [f"{ISSUER}/r{n}" for n in range(MOST_REDIRECTS)]
        assert len(run.events) == registration.MOST_EFFECTS
        assert run.end.error.message == "the registration endpoint redirects to /r3, which is not followed"
        assert run.end.error.url == f"{ISSUER}/r2"

    def test_the_last_one_may_answer(self) -> None:
        begun = registration.begin(QUERY, NOW)
        run = walk(registration, begun, *[moved("/r")] * MOST_REDIRECTS, answer(201, client_id="new"))
        assert run.end.value == dcr()


class TestMachine:
    def test_every_row_is_taken(self) -> None:
        begun = registration.begin(QUERY, NOW)
        events: list[tuple[Event, ...]] = [(moved("/r"), answer(201, client_id="c")), (Response(400),), (LOST,)]
        taken = set[object]().union(*(transitions(walk(registration, begun, *each)) for each in events))
        assert taken == rows(registration)

    def test_misuse(self) -> None:
        with pytest.raises(Misuse, match="Woke does not answer what Registering waits for"):
            advance(registration, registration.begin(QUERY, NOW), Woke(), NOW)

    @given(st.data())
    def test_anything(self, data: st.DataObject) -> None:
        plan = data.draw(st.sampled_from([PLAN, WITH_INITIAL]))
        run = play_anything(registration, registration.begin(replace(QUERY, plan=plan), NOW), data)
        for step in run.steps[:-1]:
            assert asked(step).url.startswith(f"{ISSUER}/"), "RULES 1.2"
        if isinstance(run.end, Done):
            assert run.end.value.redirect_uri == REDIRECT
            assert run.end.value.client_id

    def test_repr(self) -> None:
        state = Registering(QUERY, f"{ISSUER}/r?token={CANARY}", 1)
        assert CANARY not in repr(state)


class TestDeletion:
    CLIENT = dcr(registration_client_uri=f"{ISSUER}/register/new", registration_access_token=ACCESS)

    def test_request(self) -> None:
        request = registration.deletion_request(self.CLIENT)
        assert request is not None
        assert (request.method, request.url, request.body) == ("DELETE", f"{ISSUER}/register/new", b"")
        assert header(request.headers, "authorization") == f"Bearer {ACCESS}"
        assert header(request.headers, "user-agent")
        assert CANARY not in repr(request)

    @pytest.mark.parametrize("missing", ["registration_client_uri", "registration_access_token"])
    def test_rfc_7592_no_means(self, missing: Literal["registration_client_uri", "registration_access_token"]) -> None:
        assert registration.deletion_request(replace(self.CLIENT, **{missing: None})) is None

    @table(
        "status, deleted",
        {
            "RFC7592-2.3-deleted": (204, True),
            "RFC7592-2.3-deleted-with-words": (200, True),
            "RFC7592-2.3-unknown-client": (401, True),
            "RFC7592-2.3-gone": (404, True),
            "RFC7592-2.3-not-allowed": (403, False),
            "RFC7592-2.3-not-supported": (405, False),
            "RULES-1.4-never-redirected": (307, False),
            "RFC7592-2.3-unavailable": (503, False),
        },
    )
    def test_answer(self, status: int, deleted: bool) -> None:
        url = f"{ISSUER}/register/new?x"
        found = registration.deletion_failure(answer(status, error="x", error_description=f"bad {ACCESS}"), url)
        assert (found is None) == deleted
        if found is not None:
            assert (found.reason, found.status) == (REFUSED, status)
            assert found.url == f"{ISSUER}/register/new"
            assert CANARY not in f"{found}{found!r}"
