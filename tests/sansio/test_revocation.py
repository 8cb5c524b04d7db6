"""Revocation: in which order, how often, with which authentication, and a truthful result."""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mcp_oauth.sansio import revocation
from mcp_oauth.sansio.errors import Failure
from mcp_oauth.sansio.grant import AuthMethod, Grant, Registration
from mcp_oauth.sansio.messages import Request, Response, header
from mcp_oauth.sansio.revocation import MOST_EFFECTS, Revoked
from mcp_oauth.sansio.steps import Await, Done, Event, Misuse, Send, Sleep, Woke
from tests.sansio.walks import CANARY, LOST, NOW, UNSENT, advance, answer, play_anything, table, walk
from tests.sansio.worlds import Run, rows, transitions

ISSUER = "https://as.example"
URL = f"{ISSUER}/revoke?t=1"
SECRET, ACCESS, REFRESH = f"{CANARY}:secret", f"{CANARY}/access", f"{CANARY}/refresh"
BASIC: AuthMethod = "client_secret_basic"
POST: AuthMethod = "client_secret_post"
CLIENT = Registration(ISSUER, "the client", "dcr", "none")
GRANT = Grant(
    ISSUER, CLIENT, f"{ISSUER}/token", ACCESS, NOW.wall, "lineage", refresh_token=REFRESH, revocation_endpoint=URL
)
OK = Response(200)
BUSY = Response(503)


def revoke(*events: Event, grant: Grant = GRANT) -> Run:
    return walk(revocation, revocation.begin(grant), *events)


def sent(step: Any) -> Request:
    assert isinstance(step, Await)
    assert isinstance(step.effect, Send)
    return step.effect.request


def params(step: Any) -> list[tuple[str, str]]:
    return parse_qsl(sent(step).body.decode("ascii"), keep_blank_values=True, strict_parsing=True)


def results(run: Run) -> list[str | None]:
    """Reason by reason; None: revoked."""
    assert isinstance(run.end, Done)
    return [each.failure and each.failure.message for each in run.end.value]


class TestOrder:
    def test_rules_3_8_refresh_token_first(self) -> None:
        run = revoke(OK, OK)
        assert [params(step) for step in run.steps[:-1]] == [
            [("token", REFRESH), ("token_type_hint", "refresh_token"), ("client_id", "the client")],
            [("token", ACCESS), ("token_type_hint", "access_token"), ("client_id", "the client")],
        ]
        assert run.end == Done((Revoked("refresh_token", None), Revoked("access_token", None)))
        assert {(sent(step).method, sent(step).url) for step in run.steps[:-1]} == {("POST", URL)}

    def test_without_a_refresh_token(self) -> None:
        run = revoke(OK, grant=replace(GRANT, refresh_token=None))
        assert run.end == Done((Revoked("access_token", None),))

    def test_without_an_endpoint(self) -> None:
        assert revocation.begin(replace(GRANT, revocation_endpoint=None)) == Done(())


class TestAuthentication:
    @table(
        "registered, supported, used",
        {
            "RULES-2.18-not-said": (BASIC, None, BASIC),
            "RULES-2.18-not-said-public": ("none", None, "none"),
            "RULES-2.18-the-same": (POST, (BASIC, POST), POST),
            "RULES-2.18-its-own": (BASIC, (POST,), POST),
            "RULES-2.18-its-own-basic": (POST, ("private_key_jwt", BASIC), BASIC),
            "RULES-2.18-public-there": (BASIC, ("none",), "none"),
            "RULES-2.18-nothing-in-common": (BASIC, ("private_key_jwt",), BASIC),
        },
    )
    def test_method(self, registered: AuthMethod, supported: tuple[str, ...] | None, used: AuthMethod) -> None:
        client = replace(CLIENT, auth_method=registered, client_secret=SECRET)
        step = revocation.begin(replace(GRANT, registration=client, revocation_auth_methods=supported))
        credentials = {
            "none": [("client_id", "the client")],
            POST: [("client_id", "the client"), ("client_secret", SECRET)],
            BASIC: [],
        }
        assert params(step)[2:] == credentials[used]
        pair = f"the+client:{SECRET.replace(':', '%3A')}".encode()
        basic = f"Basic {base64.b64encode(pair).decode()}" if used == BASIC else None
        assert header(sent(step).headers, "authorization") == basic

    def test_rules_2_18_a_public_client_has_no_other(self) -> None:
        step = revocation.begin(replace(GRANT, revocation_auth_methods=(BASIC,)))
        assert params(step)[2:] == [("client_id", "the client")]


class TestResult:
    @table(
        "event, message",
        {
            "RFC7009-2.2-200": (OK, None),
            "RFC7009-2.2-the-body-says-nothing": (answer(200, error="x"), None),
            "RFC7009-2.2-204": (Response(204), None),
            "RFC7009-2.2.1-unsupported": (
                answer(400, error="unsupported_token_type", error_description="no"),
                "the revocation endpoint answered HTTP 400: unsupported_token_type: no",
            ),
            "RFC7009-2.2.1-invalid-client": (
                answer(401, error="invalid_client"),
                "the revocation endpoint answered HTTP 401: invalid_client",
            ),
            "RULES-1.4-never-redirected": (
                Response(307, (("location", "https://evil.example/"),)),
                "the revocation endpoint answered HTTP 307",
            ),
            "RULES-3.8-not-202": (Response(202), "the revocation endpoint answered HTTP 202"),
            "RULES-3.8-429": (Response(429), "the revocation endpoint answered HTTP 429"),
            "RULES-3.8-lost": (LOST, "the revocation endpoint could not be reached: timed out"),
            "RULES-3.8-unreachable": (UNSENT, "the revocation endpoint could not be reached: connection refused"),
        },
    )
    def test_reported(self, event: Event, message: str | None) -> None:
        """What becomes of one token does not keep the other from being revoked."""
        run = revoke(event, OK)
        assert results(run) == [message, None]
        assert results(revoke(OK, event)) == [None, message]
        failure = run.end.value[0].failure
        if failure is not None:
            assert failure.url == f"{ISSUER}/revoke"
            assert failure.status == getattr(event, "status", None)

    @pytest.mark.parametrize("method", ["none", BASIC, POST])
    def test_fn_54_echoes(self, method: AuthMethod) -> None:
        client = replace(CLIENT, auth_method=method, client_secret=SECRET)
        grant = replace(GRANT, registration=client)
        echo = f"{REFRESH} {SECRET} {sent(revocation.begin(grant)).body.decode()}"
        failure = revoke(answer(400, error="x", error_description=echo), OK, grant=grant).end.value[0].failure
        assert isinstance(failure, Failure)
        assert CANARY not in f"{failure}{failure!r}"
        assert "x: [hidden] [hidden] token=[hidden]&token_type_hint" in failure.message


class TestUnavailable:
    @table(
        "headers, seconds",
        {
            "RFC7009-2.2.1-not-said": ((), 1.0),
            "RFC9110-10.2.3-seconds": ((("Retry-After", "3"),), 3.0),
            "RFC9110-10.2.3-zero": ((("Retry-After", "0"),), 1.0),
            "RULES-3.8-bounded": ((("Retry-After", "3600"),), 5.0),
            "RFC9110-10.2.3-date": ((("Retry-After", "Fri, 31 Dec 1999 23:59:59 GMT"),), 1.0),
        },
    )
    def test_rest(self, headers: tuple[tuple[str, str], ...], seconds: float) -> None:
        run = revoke(Response(503, headers), Woke(), OK, OK)
        assert run.steps[1].effect == Sleep(seconds)
        assert run.steps[2].effect == run.steps[0].effect
        assert results(run) == [None, None]

    def test_rules_3_8_still_alive(self) -> None:
        """Asked twice, each; and no more effects than declared."""
        run = revoke(BUSY, Woke(), BUSY, BUSY, Woke(), BUSY)
        assert results(run) == ["the revocation endpoint answered HTTP 503"] * 2
        assert len(run.events) == MOST_EFFECTS

    def test_each_token_has_its_tries(self) -> None:
        assert results(revoke(BUSY, Woke(), BUSY, BUSY, Woke(), OK)) == [
            "the revocation endpoint answered HTTP 503",
            None,
        ]


class TestMachine:
    def test_every_row_is_taken(self) -> None:
        tried: list[tuple[Event, ...]] = [(BUSY, Woke(), OK, OK), (LOST, LOST)]
        taken = set[object]().union(*(transitions(revoke(*each)) for each in tried))
        assert taken == rows(revocation)

    @table("events, wrong", {"Revoking": ((), Woke()), "Resting": ((BUSY,), OK)})
    def test_misuse(self, events: tuple[Event, ...], wrong: Event) -> None:
        with pytest.raises(Misuse):
            advance(revocation, revoke(*events).end, wrong, NOW)

    @given(st.data())
    def test_anything(self, data: st.DataObject) -> None:
        run = play_anything(revocation, revocation.begin(GRANT), data)
        assert {sent(step).url for step in run.steps[:-1] if isinstance(step.effect, Send)} == {URL}, "RULES 1.2"
        assert [each.token for each in run.end.value] == ["refresh_token", "access_token"]
