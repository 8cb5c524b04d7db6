"""Which scopes are asked for (spec, "Scope Selection Strategy")."""

from __future__ import annotations

import pytest

from mcp_oauth.sansio import scopes
from mcp_oauth.sansio.grant import Grant, Registration, Scopes
from mcp_oauth.sansio.metadata import AuthorizationServerMetadata
from mcp_oauth.sansio.plan import Plan

OFFLINE = ("openid", "offline_access")

REQUESTS = [
    pytest.param(("a",), ("b",), ("c",), None, ("a",), id="RULES-2.15-explicit-first"),
    pytest.param((), ("b",), ("c",), OFFLINE, None, id="RULES-2.15-explicitly-none"),
    pytest.param(("a",), ("b",), ("c",), OFFLINE, ("a",), id="FN-44-explicit-is-left-alone"),
    pytest.param(("a", "offline_access"), None, None, None, ("a", "offline_access"), id="FN-44-explicit-offline"),
    pytest.param(None, ("b",), ("c",), None, ("b",), id="suite-scope-from-www-authenticate"),
    pytest.param(None, None, ("c", "d"), None, ("c", "d"), id="suite-scope-from-scopes-supported"),
    pytest.param(None, (), ("c",), None, ("c",), id="SPEC-empty-challenge-is-none"),
    pytest.param(None, None, None, None, None, id="suite-scope-omitted-when-undefined"),
    pytest.param(None, None, (), None, None, id="SPEC-nothing-supported"),
    pytest.param(None, None, None, OFFLINE, None, id="RULES-2.15-omitted-stays-omitted"),
    pytest.param(None, ("b",), None, OFFLINE, ("b", "offline_access"), id="suite-offline-access-scope"),
    pytest.param(None, None, ("c",), OFFLINE, ("c", "offline_access"), id="RULES-2.15-offline-with-metadata"),
    pytest.param(None, ("b",), None, ("b",), ("b",), id="suite-offline-access-not-supported"),
    pytest.param(None, None, ("c", "offline_access"), ("c",), ("c",), id="RULES-2.15-offline-only-if-the-AS-lists-it"),
    pytest.param(None, ("offline_access", "b"), None, None, ("b",), id="RULES-2.15-challenged-offline-not-listed"),
    pytest.param(None, ("offline_access", "b"), None, OFFLINE, ("b", "offline_access"), id="RULES-2.15-offline-once"),
    pytest.param(None, None, ("offline_access",), OFFLINE, None, id="RULES-2.15-offline-is-no-scope-of-a-resource"),
    pytest.param(None, ("b", "b", "a"), None, None, ("b", "a"), id="RFC6749-3.3-each-once-in-order"),
]


@pytest.mark.parametrize(("explicit", "challenged", "supported", "listed", "expected"), REQUESTS)
def test_to_request(
    explicit: Scopes | None,
    challenged: Scopes | None,
    supported: Scopes | None,
    listed: Scopes | None,
    expected: Scopes | None,
) -> None:
    plan = Plan("https://h.example", scopes=explicit)
    metadata = AuthorizationServerMetadata("https://a.example", scopes_supported=listed)
    assert scopes.to_request(plan, challenged, supported, metadata) == expected


def grant(requested: Scopes | None, granted: Scopes | None = None) -> Grant:
    client = Registration("i", "c", "dcr", "none")
    return Grant("i", client, "t", "a", 0.0, "l", requested=requested, granted=granted)


STEP_UPS = [
    pytest.param(None, grant(("a", "b")), ("b", "c"), ("a", "b", "c"), id="RULES-3.5-union-with-requested"),
    pytest.param(None, grant(("a",), ("a", "z")), ("c",), ("a", "c"), id="RULES-3.5-not-what-the-AS-added"),
    pytest.param(None, grant(("a", "b"), ("a",)), ("c",), ("a", "b", "c"), id="RULES-3.5-requested-though-not-granted"),
    pytest.param(None, grant(None), ("c",), ("c",), id="RULES-3.5-nothing-requested"),
    pytest.param(None, grant(None, ("a",)), ("c",), ("a", "c"), id="SPEC-step-up-nothing-requested-but-granted"),
    pytest.param(None, None, ("c",), ("c",), id="RULES-3.5-no-grant"),
    pytest.param(("c", "d"), grant(("a",)), ("c",), ("a", "c"), id="RULES-3.5-within-the-limit"),
    pytest.param(("c", "d"), grant(("a",)), ("c", "e"), None, id="RULES-3.5-beyond-the-limit"),
    pytest.param((), grant(("a",)), ("c",), None, id="RULES-3.5-no-step-up-at-all"),
    pytest.param((), grant(("a",)), (), ("a",), id="RULES-3.5-nothing-challenged"),
]


@pytest.mark.parametrize(("limit", "kept", "challenged", "expected"), STEP_UPS)
def test_to_step_up(limit: Scopes | None, kept: Grant | None, challenged: Scopes, expected: Scopes | None) -> None:
    assert scopes.to_step_up(Plan("https://h.example", scope_limit=limit), kept, challenged) == expected


def test_union() -> None:
    assert scopes.union() == ()
    assert scopes.union(("b", "a"), ["a", "c"], ()) == ("b", "a", "c")


@pytest.mark.parametrize(
    ("requested", "granted", "missing"),
    [
        pytest.param(("a", "b"), ("b",), ("a",), id="RULES-2.15-less-than-requested"),
        pytest.param(("a",), ("b", "a"), (), id="RULES-2.15-more-than-requested"),
        pytest.param(("a",), (), ("a",), id="RULES-2.15-nothing-granted"),
        pytest.param(None, ("a",), (), id="RULES-2.15-nothing-requested"),
        pytest.param(("a",), None, (), id="RULES-2.15-unknown"),
    ],
)
def test_missing(requested: Scopes | None, granted: Scopes | None, missing: Scopes) -> None:
    assert scopes.missing(requested, granted) == missing
