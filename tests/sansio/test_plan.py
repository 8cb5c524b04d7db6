"""What the caller configured, checked."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from mcp_oauth.sansio import plan, uris
from mcp_oauth.sansio.errors import Reason
from mcp_oauth.sansio.grant import Grant, Registration, Scopes
from mcp_oauth.sansio.plan import PROTECTED_PARAMS, ClientMetadataDocument, Dynamic, Plan, PreRegistered

PLAN = Plan("https://h.example/mcp")


def test_the_defaults_pass() -> None:
    assert plan.check(PLAN) is None


def test_round_trip() -> None:
    full = replace(
        PLAN,
        preregistered=PreRegistered("id", "s3cret", auth_method="client_secret_post"),
        metadata_document=ClientMetadataDocument("https://c.example/c.json"),
        resource="https://other.example",
        scopes=("a",),
        trusted_issuer=(("a", "b"),),
        authorization_params=(("audience", "x"),),
    )
    assert msgspec.json.decode(msgspec.json.encode(full), type=Plan) == full
    assert "s3cret" not in repr(full)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        pytest.param("https://h.example", None, id="SPEC-https"),
        pytest.param("http://127.0.0.1:8000/mcp", None, id="RULES-1.3-loopback"),
        pytest.param("http://localhost/mcp", None, id="RULES-1.3-localhost"),
        pytest.param("https://10.0.0.1/mcp", None, id="RULES-1.3-the-server-itself-private"),
        pytest.param("http://h.example", "http, which is for loopback only", id="RULES-1.3-http"),
        pytest.param("h.example/mcp", "not an absolute", id="SPEC-missing-scheme"),
        pytest.param("ftp://h.example", "not an absolute", id="RULES-1.3-odd-scheme"),
        pytest.param("https://u:p@h.example", "not an absolute", id="RFC3986-3.2.1-userinfo"),
        pytest.param("", "not an absolute", id="empty"),
    ],
)
def test_server_url(url: str, message: str | None) -> None:
    failure = plan.check(Plan(url))
    assert (failure is None) == (message is None)
    if failure and message:
        assert failure.reason is Reason.SERVER_URL
        assert message in failure.message
        assert failure.url == uris.without_query(url)
        assert "u:p" not in repr(failure)


WRONG = [
    *(
        pytest.param({option: ((name, "x"),)}, f"{option} must not set {name}", id=f"RULES-2.16-{option}-{name}")
        for option in ("authorization_params", "token_params")
        for name in sorted(PROTECTED_PARAMS)
    ),
    pytest.param(
        {"token_params": (("a", ""), ("state", ""), ("code", ""))},
        "must not set code, state",
        id="RULES-2.16-all-are-told",
    ),
    *(
        pytest.param({option: ("a", bad)}, f"{option}: {bad!r} is not a scope", id=f"RFC6749-3.3-{option}-{bad!r}")
        for option in ("scopes", "scope_limit")
        for bad in ("", "a b", 'a"', "a\\", "é", "\x7f", "\n")
    ),
    pytest.param(
        {"dynamic": Dynamic(scopes=("a b",))}, "scopes of the client: 'a b' is not a scope", id="RFC6749-3.3-client"
    ),
    *(
        pytest.param({option: client}, f"redirect_uri: {why}", id=f"RULES-2.13-{option}-{n}")
        for n, (uri, why) in enumerate(
            (
                ("http://h.example/cb", "http is for loopback only"),
                ("https://h.example/cb#a", "it has a fragment"),
                ("myapp://cb", "not an absolute URL"),
            )
        )
        for option, client in (
            ("preregistered", PreRegistered("id", redirect_uri=uri)),
            ("metadata_document", ClientMetadataDocument("https://c.example/c", uri)),
            ("dynamic", Dynamic(redirect_uri=uri)),
            ("dynamic", Dynamic(more_redirect_uris=("https://ok.example/cb", uri))),
        )
    ),
    pytest.param(
        {"metadata_document": ClientMetadataDocument("http://c.example/c")},
        "client metadata document: its URL must be https",
        id="RULES-2.12-https",
    ),
    pytest.param(
        {"preregistered": PreRegistered("id", auth_method="client_secret_basic")},
        "auth_method: client_secret_basic needs a client_secret",
        id="RFC6749-2.3.1-no-secret",
    ),
    pytest.param(
        {"preregistered": PreRegistered("id", "", auth_method="client_secret_post")},
        "auth_method: client_secret_post needs a client_secret",
        id="RFC6749-2.3.1-empty-secret",
    ),
    *(
        pytest.param({"resource": bad}, "resource: neither", id=f"RFC8707-2-{bad!r}")
        for bad in ("", "alway", "https://h/#a", "https://h/ a", "1:a")
    ),
    *(
        pytest.param({"dynamic": Dynamic(extra=((name, "x"),))}, f"extra must not set {name}", id=f"RULES-2.16-{name}")
        for name in ("grant_types", "redirect_uris", "response_types", "scope")
    ),
    *(
        pytest.param({"login_seconds": bad}, "login_seconds must be more than 0", id=f"login-seconds-{bad}")
        for bad in (0.0, -1.0, float("nan"))
    ),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong(options: dict[str, Any], message: str) -> None:
    failure = plan.check(replace(PLAN, **options))
    assert failure is not None
    assert failure.reason is Reason.CONFIGURATION
    assert message in failure.message


RIGHT = [
    pytest.param(
        {"preregistered": PreRegistered("id", "s", auth_method="client_secret_basic")}, id="secret-and-method"
    ),
    pytest.param({"preregistered": PreRegistered("id", auth_method="none")}, id="public-client"),
    pytest.param(
        {"preregistered": PreRegistered("id", "s", redirect_uri="https://h.example/cb")}, id="FN-35-fixed-redirect"
    ),
    pytest.param({"metadata_document": ClientMetadataDocument("https://c.example/c")}, id="cimd"),
    pytest.param({"dynamic": None}, id="never-register"),
    pytest.param({"dynamic": Dynamic(redirect_uri="myapp:/cb"), "allow_any_redirect": True}, id="RULES-2.13-opt-in"),
    pytest.param({"resource": "never"}, id="FN-9-never"),
    pytest.param({"resource": "api://4711"}, id="FN-9-override"),
    pytest.param({"resource": "URN:X:1"}, id="RFC3986-3.1-scheme-in-capitals"),
    pytest.param({"scopes": ("!~", "https://h/a.b", "X"), "scope_limit": ()}, id="RFC6749-3.3-scopes"),
    pytest.param({"login_seconds": 0.5}, id="login-seconds-a-half"),
    pytest.param({"authorization_params": (("audience", "x"),), "token_params": (("x", "y"),)}, id="FN-41-extras"),
]


@pytest.mark.parametrize("options", RIGHT)
def test_right(options: dict[str, Any]) -> None:
    assert plan.check(replace(PLAN, **options)) is None


@pytest.mark.parametrize(
    ("uri", "alone", "opted_in"),
    [
        pytest.param("http://127.0.0.1/cb", True, True, id="RFC8252-7.3-ipv4"),
        pytest.param("http://[::1]:1234/cb", True, True, id="RFC8252-7.3-ipv6"),
        pytest.param("http://localhost:1234/cb", True, True, id="FN-38-localhost"),
        pytest.param("https://h.example/cb?x=1", True, True, id="RULES-2.13-https"),
        pytest.param("myapp://cb", False, True, id="RFC8252-7.1-private-use"),
        pytest.param("com.example.app:/cb", False, True, id="RFC8252-7.1-one-slash"),
        pytest.param("myapp://cb#x", False, False, id="RFC6749-3.1.2-fragment"),
        pytest.param("https://h.example/cb#x", False, False, id="RFC6749-3.1.2-https-fragment"),
        pytest.param("http://h.example/cb", False, False, id="SPEC-http-never-but-on-loopback"),
        pytest.param("HTTP://h.example/cb", False, False, id="SPEC-http-in-capitals"),
        pytest.param("https:cb", False, False, id="RFC3986-4.3-no-authority"),
        pytest.param("/cb", False, False, id="RFC6749-3.1.2-relative"),
        pytest.param("my app://cb", False, False, id="RFC3986-3.1-no-scheme"),
        pytest.param("myapp:// cb", False, False, id="RFC3986-blank"),
        pytest.param("", False, False, id="empty"),
    ],
)
def test_redirect_refusal(uri: str, alone: bool, opted_in: bool) -> None:
    assert (plan.redirect_refusal(uri) is None) is alone
    assert (plan.redirect_refusal(uri, allow_any=True) is None) is opted_in


@pytest.mark.parametrize(
    ("url", "why"),
    [
        pytest.param("https://c.example/client.json", None, id="CIMD-3-url"),
        pytest.param("https://c.example/a?b", None, id="CIMD-3-query-allowed"),
        pytest.param("https://c.example/..a/b.", None, id="CIMD-3-dots-are-no-dot-segments"),
        pytest.param("http://127.0.0.1/c", "https", id="CIMD-3-https"),
        pytest.param("https://u@c.example/c", "userinfo", id="CIMD-3-userinfo"),
        pytest.param("c.example/c", "https", id="CIMD-3-absolute"),
        pytest.param("https://c.example/c#a", "fragment", id="CIMD-3-fragment"),
        pytest.param("https://c.example", "path", id="CIMD-3-no-path"),
        pytest.param("https://c.example/", "path", id="CIMD-3-root"),
        pytest.param("https://c.example/a/../b", "dot segments", id="CIMD-3-dot-segments"),
        pytest.param("https://c.example/./b", "dot segments", id="CIMD-3-single-dot"),
        pytest.param("https://c.example/a/%2E%2e", "dot segments", id="CIMD-3-encoded-dots"),
    ],
)
def test_document_url_refusal(url: str, why: str | None) -> None:
    refusal = plan.document_url_refusal(url)
    assert (refusal is None) if why is None else (refusal is not None and why in refusal)


DCR = Registration("https://as.example", "id", "dcr", "none")
CIMD = Registration("https://as.example", "https://c.example/c", "cimd", "none")
HERE = "https://h.example/mcp"
DOCUMENT = ClientMetadataDocument("https://c.example/c")


@pytest.mark.parametrize(
    ("options", "client", "resource", "requested", "agrees"),
    [
        pytest.param({}, DCR, HERE, ("a",), True, id="RULES-4.3-dynamic"),
        pytest.param({"dynamic": None}, DCR, HERE, (), False, id="RULES-4.3-never-registers"),
        pytest.param({}, replace(DCR, kind="preregistered"), HERE, (), False, id="RULES-4.3-not-configured-any-more"),
        pytest.param({"preregistered": PreRegistered("id")}, DCR, HERE, (), True, id="RULES-4.3-same-client-id"),
        pytest.param({"preregistered": PreRegistered("x")}, DCR, HERE, (), False, id="RULES-4.3-other-client-id"),
        pytest.param({"metadata_document": DOCUMENT}, CIMD, HERE, (), True, id="RULES-4.3-cimd"),
        pytest.param({"metadata_document": DOCUMENT}, DCR, HERE, (), True, id="RULES-4.3-cimd-and-its-fallback"),
        pytest.param({}, CIMD, HERE, (), False, id="RULES-4.3-no-document"),
        pytest.param(
            {"metadata_document": replace(DOCUMENT, url="https://c.example/d")},
            CIMD,
            HERE,
            (),
            False,
            id="RULES-4.3-other-document",
        ),
        pytest.param({}, DCR, None, (), False, id="RULES-4.3-resource-always-and-not-sent"),
        pytest.param({"resource": "never"}, DCR, None, (), True, id="RULES-4.3-resource-never"),
        pytest.param({"resource": "never"}, DCR, HERE, (), False, id="RULES-4.3-resource-never-and-sent"),
        pytest.param({"resource": "urn:x"}, DCR, "urn:x", (), True, id="RULES-4.3-resource-override"),
        pytest.param({"resource": "urn:x"}, DCR, HERE, (), False, id="RULES-4.3-resource-override-other"),
        pytest.param({"scopes": ("a",)}, DCR, HERE, ("b", "a"), True, id="RULES-4.3-scopes-asked-for"),
        pytest.param({"scopes": ("a", "c")}, DCR, HERE, ("a",), False, id="FN-44-scopes-not-asked-for"),
        pytest.param({"scopes": ("a",)}, DCR, HERE, None, False, id="FN-44-nothing-asked-for"),
        pytest.param({"scopes": ()}, DCR, HERE, None, True, id="FN-44-no-scopes-wanted"),
    ],
)
def test_agrees(
    options: dict[str, Any], client: Registration, resource: str | None, requested: Scopes | None, agrees: bool
) -> None:
    grant = Grant("https://as.example", client, "t", "at", 0.0, "l", resource=resource, requested=requested)
    assert plan.agrees(replace(PLAN, **options), grant) is agrees


SECRET = Registration(
    "https://as.example", "id", "preregistered", "client_secret_post", "http://127.0.0.1:1/c", client_secret="s"
)
ITS_OWN = PreRegistered("id", "s", "https://as.example", "http://127.0.0.1:1/c", "client_secret_post")
OPEN = replace(PLAN, any_client=True)


@pytest.mark.parametrize(
    ("before", "client", "after"),
    [
        pytest.param(OPEN, SECRET, replace(OPEN, preregistered=ITS_OWN, dynamic=None), id="FN-35-registered-by-hand"),
        pytest.param(OPEN, CIMD, replace(OPEN, metadata_document=DOCUMENT), id="FN-36-cimd"),
        pytest.param(
            OPEN,
            replace(CIMD, redirect_uri="http://localhost:1/c"),
            replace(OPEN, metadata_document=replace(DOCUMENT, redirect_uri="http://localhost:1/c")),
            id="FN-38-cimd-with-its-redirect",
        ),
        pytest.param(OPEN, DCR, OPEN, id="FN-31-dynamic"),
        pytest.param(OPEN, None, OPEN, id="no-grant"),
        pytest.param(PLAN, SECRET, PLAN, id="RULES-4.3-a-configured-client-stays"),
    ],
)
def test_who_configured_no_client_goes_on_as_the_one_of_the_grant(
    before: plan.Plan, client: Registration | None, after: plan.Plan
) -> None:
    grant = None if client is None else Grant("https://as.example", client, "t", "at", 0.0, "l", resource=HERE)
    assert plan.as_client_of(before, grant) == after
    assert grant is None or plan.agrees(after, grant) is (before is OPEN)
