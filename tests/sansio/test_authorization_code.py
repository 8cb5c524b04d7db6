"""The authorization code grant: the request, the redirect judged in order, the exchange that happens once."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlencode

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from mcp_oauth.sansio import authorization_code
from mcp_oauth.sansio.authorization_code import (
    MOST_EFFECTS,
    MOST_ROUNDS,
    MOST_STRAYS,
    PATIENCE,
    RETRIES,
    Authorized,
    AwaitingRedirect,
    Exchanging,
)
from mcp_oauth.sansio.errors import HIDDEN, Reason
from mcp_oauth.sansio.grant import AuthMethod, Registration
from mcp_oauth.sansio.messages import Request, Response, header
from mcp_oauth.sansio.metadata import AuthorizationServerMetadata
from mcp_oauth.sansio.plan import PROTECTED_PARAMS, Plan, check
from mcp_oauth.sansio.steps import (
    Await,
    Done,
    Event,
    Failed,
    Misuse,
    Notice,
    OpenBrowser,
    Redirected,
    Send,
    Sleep,
    StillWaiting,
    UserFailed,
    Woke,
)
from mcp_oauth.sansio.token_endpoint import TokenAnswer
from mcp_oauth.sansio.values import Seed
from tests.sansio.walks import (
    CANARY,
    LOST,
    NOW,
    RESTED,
    UNSENT,
    advance,
    answer,
    keeps_promises,
    later,
    play_anything,
    table,
    walk,
)
from tests.sansio.worlds import Run, rows, transitions

ISSUER = "https://as.example/t"
TOKEN = f"{ISSUER}/token"
REDIRECT = "http://127.0.0.1:5000/callback/x"
RESOURCE = "https://MCP.example/%7emcp?a=1"
CODE, SECRET, ACCESS, REFRESH = (f"{CANARY}-{name}" for name in ("code/+", "secret", "access", "refresh"))
SEED = Seed(bytes(range(32)))
STATE, VERIFIER = SEED.text("state"), authorization_code.code_verifier(SEED)
PLAN = Plan("https://mcp.example/mcp")
METADATA = AuthorizationServerMetadata(ISSUER, f"{ISSUER}/authorize?own=1", TOKEN)
CLIENT = Registration(ISSUER, "the client", "dcr", "none")


def begin(plan: Plan = PLAN, *, promised: bool = False, **change: Any) -> Any:
    """The first step of a login; `promised`: the server says that it sends `iss`."""
    arguments: dict[str, Any] = {
        "metadata": replace(METADATA, authorization_response_iss_parameter_supported=promised),
        "client": CLIENT,
        "redirect_uri": REDIRECT,
        "resource": RESOURCE,
        "scopes": ("a", "b"),
        "consent": False,
        "seed": SEED,
        **change,
    }
    return authorization_code.begin(plan, arguments.pop("metadata"), arguments.pop("client"), **arguments)


def login(*events: Event, **change: Any) -> Run:
    """A walk that also keeps `state` and verifier to itself."""
    run = walk(authorization_code, begin(**change), *events)
    keeps_promises(authorization_code, run, STATE, VERIFIER)
    return run


def back(*params: tuple[str, str], ours: str = STATE) -> Redirected:
    """The redirect with our `state` and these parameters."""
    return Redirected(f"{REDIRECT}?{urlencode([('state', ours), *params])}")


def asked(step: Any) -> list[tuple[str, str]]:
    """The parameters of the authorization request."""
    assert isinstance(step, Await)
    assert isinstance(step.effect, OpenBrowser)
    endpoint, _, query = step.effect.url.partition("?")
    assert endpoint == f"{ISSUER}/authorize"
    return parse_qsl(query, keep_blank_values=True, strict_parsing=True)


def sent(step: Any) -> Request:
    assert isinstance(step, Await)
    assert isinstance(step.effect, Send)
    return step.effect.request


GOOD = back(("code", CODE))
TWICE = (("iss", ISSUER), ("code", CODE)) * 2
TOKENS = answer(200, access_token=ACCESS, token_type="Bearer", expires_in=60, refresh_token=REFRESH)


class TestRequest:
    def test_parameters(self) -> None:
        """RFC 6749 section 4.1.1, RFC 7636 section 4.3, RFC 8707 section 2.1; the endpoint's own query stays."""
        step = begin()
        assert asked(step) == [
            ("own", "1"),
            ("response_type", "code"),
            ("client_id", "the client"),
            ("redirect_uri", REDIRECT),
            ("state", STATE),
            ("code_challenge", authorization_code.code_challenge(VERIFIER)),
            ("code_challenge_method", "S256"),
            ("scope", "a b"),
            ("resource", RESOURCE),
        ]
        assert step.effect == OpenBrowser(step.effect.url, REDIRECT, STATE, PATIENCE, opened=False)
        assert VERIFIER not in step.effect.url

    def test_rfc_7636_appendix_b(self) -> None:
        challenge = authorization_code.code_challenge("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk")
        assert challenge == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"

    def test_rfc_7636_4_1_the_verifier(self) -> None:
        assert len(VERIFIER) == 128
        assert set(VERIFIER) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
        assert VERIFIER != STATE

    @table(
        "change, name, values",
        {
            "RULES-2.15-no-scopes": ({"scopes": None}, "scope", []),
            "RULES-2.15-empty-scopes": ({"scopes": ()}, "scope", []),
            "RULES-2.16-resource-never": ({"resource": None}, "resource", []),
            "RULES-2.9-consent": ({"consent": True}, "prompt", ["consent"]),
            "RULES-2.9-no-consent": ({"consent": False}, "prompt", []),
            "FN-41-own-prompt-wins": (
                {"consent": True, "plan": replace(PLAN, authorization_params=(("prompt", "login consent"),))},
                "prompt",
                ["login consent"],
            ),
            "FN-41-extras": (
                {"plan": replace(PLAN, authorization_params=(("audience", "x"), ("access_type", "offline")))},
                "access_type",
                ["offline"],
            ),
        },
    )
    def test_options(self, change: dict[str, Any], name: str, values: list[str]) -> None:
        assert [value for key, value in asked(begin(**change)) if key == name] == values

    @pytest.mark.parametrize("option", ["authorization_params", "token_params"])
    @pytest.mark.parametrize(
        "name", ["state", "redirect_uri", "client_id", "response_type", "resource", "scope", "code_verifier"]
    )
    def test_rules_2_16_extras_override_nothing(self, option: str, name: str) -> None:
        assert name in PROTECTED_PARAMS
        why = check(replace(PLAN, **{option: ((name, "x"),)}))
        assert why is not None
        assert why.message == f"{option} must not set {name}"

    def test_what_is_sent_is_protected(self) -> None:
        """RULES 2.16, so that a new parameter of ours is not forgotten there."""
        ours = [name for name, _ in asked(begin()) if name != "own"]
        ours += [name for name, _ in parse_qsl(sent(login(GOOD).end).body.decode())]
        assert set(ours) <= PROTECTED_PARAMS

    def test_a_seed_gives_one_login(self) -> None:
        assert begin() == begin()
        other = begin(seed=Seed(bytes(32)))
        assert not {value for _, value in asked(other)} & {STATE, dict(asked(begin()))["code_challenge"]}


class TestRedirect:
    @table(
        "params, promised, reason",
        {
            "RFC9207-2.4-row-1": ((("code", CODE), ("iss", ISSUER)), True, None),
            "RFC9207-2.4-row-1-another": ((("code", CODE), ("iss", "https://evil")), True, Reason.CALLBACK_ISSUER),
            "RULES-2.14-iss-missing-though-promised": ((("code", CODE),), True, Reason.CALLBACK_ISSUER),
            "RFC9207-2.4-row-3": ((("code", CODE), ("iss", ISSUER)), False, None),
            "RFC9207-2.4-row-3-another": ((("code", CODE), ("iss", "https://evil")), False, Reason.CALLBACK_ISSUER),
            "RFC9207-2.4-row-4": ((("code", CODE),), False, None),
            "SPEC-iss-slash": ((("code", CODE), ("iss", ISSUER + "/")), True, Reason.CALLBACK_ISSUER),
            "SPEC-iss-case": ((("code", CODE), ("iss", "https://AS.example/t")), True, Reason.CALLBACK_ISSUER),
            "SPEC-iss-port": ((("code", CODE), ("iss", "https://as.example:443/t")), True, Reason.CALLBACK_ISSUER),
            "SPEC-iss-percent": ((("code", CODE), ("iss", "https://as.example/%74")), True, Reason.CALLBACK_ISSUER),
            "RULES-2.14-iss-empty": ((("code", CODE), ("iss", "")), False, Reason.CALLBACK_ISSUER),
            "SPEC-error-with-another-iss": ((("error", "x"), ("iss", "https://evil")), False, Reason.CALLBACK_ISSUER),
            "SPEC-error-without-promised-iss": ((("error", "access_denied"),), True, Reason.CALLBACK_ISSUER),
            "RFC6749-4.1.2.1-error": ((("error", "server_error"), ("iss", ISSUER)), True, Reason.CALLBACK_ERROR),
            "RFC6749-4.1.2.1-denied": ((("error", "access_denied"),), False, Reason.ACCESS_DENIED),
            "RULES-2.11-invalid-client": ((("error", "invalid_client"),), False, Reason.CLIENT_REFUSED),
            "RULES-2.14-error-before-code": ((("error", "x"), ("code", CODE)), False, Reason.CALLBACK_ERROR),
            "FN-33-empty-error": ((("error", ""), ("code", CODE)), False, None),
            "RULES-2.14-nothing": ((), False, Reason.CALLBACK_WITHOUT_CODE),
            "RULES-2.14-empty-code": ((("code", ""),), False, Reason.CALLBACK_WITHOUT_CODE),
            "RFC6749-A.11-line-break": ((("code", "a\n"),), False, Reason.CALLBACK_WITHOUT_CODE),
            "RFC6749-A.11-not-ascii": ((("code", "é"),), False, Reason.CALLBACK_WITHOUT_CODE),
            "RFC6749-A.11-all": ((("code", " !~"),), False, None),
            "RULES-2.14-two-codes": ((("code", CODE), ("code", CODE)), False, Reason.CALLBACK_DUPLICATE),
            "RULES-2.14-two-states": ((("code", CODE), ("state", "x")), False, Reason.CALLBACK_DUPLICATE),
            "RULES-2.14-two-iss": ((("iss", ISSUER), ("iss", ISSUER)), False, Reason.CALLBACK_DUPLICATE),
            "RULES-2.14-two-errors": ((("error", "a"), ("error", "b")), False, Reason.CALLBACK_DUPLICATE),
            "RULES-2.14-two-descriptions": ((("error_description", "a"),) * 2, False, Reason.CALLBACK_DUPLICATE),
            "RULES-2.14-duplicates-before-iss": ((("code", "a"), ("code", "b")), True, Reason.CALLBACK_DUPLICATE),
            "RFC6749-4.1.2-unknown-is-ignored": ((("x", "1"), ("x", "2"), ("code", CODE)), False, None),
        },
    )
    def test_judged(self, params: tuple[tuple[str, str], ...], promised: bool, reason: Reason | None) -> None:
        step = login(back(*params), promised=promised).end
        if reason is None:
            assert sent(step).url == TOKEN
            return
        assert isinstance(step, Failed)
        assert step.error.reason is reason
        assert "https://evil" not in f"{step.error}{step.error!r}", "nothing of the answer is repeated"

    @table(
        "error, told, message, code",
        {
            "FN-53-both": ("x", "told", f"{ISSUER} answered x: told", "x"),
            "FN-53-alone": ("x", None, f"{ISSUER} answered x", "x"),
            "FN-53-printable": ("x\x1b", "a\nb", f"{ISSUER} answered x: a b", "x"),
            "FN-53-not-endless": ("x" * 99, None, f"{ISSUER} answered {'x' * 80}", "x" * 80),
            "FN-54-state": ("x", f"for {STATE}", f"{ISSUER} answered x: for {HIDDEN}", "x"),
            "FN-54-verifier": (VERIFIER, None, f"{ISSUER} answered {HIDDEN}", HIDDEN),
            "FN-54-code": ("x", f"code {CODE}", f"{ISSUER} answered x: code {HIDDEN}", "x"),
            "SPEC-error-uri-is-not-followed": ("x", None, f"{ISSUER} answered x", "x"),
        },
    )
    def test_error(self, error: str, told: str | None, message: str, code: str) -> None:
        params = [("error", error), ("code", CODE), ("error_uri", "https://evil.example/")]
        end = login(back(*params, *([("error_description", told)] if told else []))).end
        assert (end.error.message, end.error.oauth_error) == (message, code)

    @table(
        "message, event, promised",
        {
            "SPEC-missing": (f"the redirect lacks the iss that {ISSUER} promises", GOOD, True),
            "SPEC-another": (f"the redirect's iss is not {ISSUER}", back(("iss", "https://e")), True),
            "RULES-2.14-twice": ("the redirect has iss, code more than once", back(*TWICE), False),
            "RULES-2.14-nothing": (f"{ISSUER} sent neither a usable code nor an error", back(), False),
        },
    )
    def test_messages(self, message: str, event: Event, promised: bool) -> None:
        assert login(event, promised=promised).end.error.message == message

    @table(
        "url, ours",
        {
            "FN-45-pasted-url": (f"  {REDIRECT}?code=x&state={STATE}#_=_\n", True),
            "FN-45-pasted-query": (f"code=x&state={STATE}", True),
            "FN-45-pasted-query-with-its-mark": (f"?code=x&state={STATE}", True),
            "RULES-2.14-no-state": (f"{REDIRECT}?code=x", False),
            "RULES-2.14-unknown-state": (f"{REDIRECT}?code=x&state={STATE}x", False),
            "RULES-2.14-state-in-the-fragment": (f"{REDIRECT}?code=x#state={STATE}", False),
            "RULES-2.14-foreign-duplicates": (f"{REDIRECT}?code=x&code=y&state=x", False),
            "RULES-2.14-foreign-error": (f"{REDIRECT}?error=access_denied", False),
            "FN-40-favicon": ("http://127.0.0.1:5000/favicon.ico", False),
            "FN-45-pasted-nonsense": ("\ud800 \x00 %zz [", False),
        },
    )
    def test_ours_or_not(self, url: str, ours: bool) -> None:
        step = login(Redirected(url)).end
        assert isinstance(step, Await)
        assert isinstance(step.state, Exchanging if ours else AwaitingRedirect)

    @table(
        "more, reason",
        {
            "RFC6749-A.11": ("", Reason.CALLBACK_WITHOUT_CODE),
            "RFC6749-4.1.2.1": ("&error=x", Reason.CALLBACK_ERROR),
        },
    )
    def test_a_lone_surrogate_is_no_code(self, more: str, reason: Reason) -> None:
        """It comes from a terminal, not from a listener."""
        assert login(Redirected(f"code=\ud800&state={STATE}{more}")).end.error.reason is reason

    def test_strays_are_passed_over(self) -> None:
        """FN 40: the browser stays open, and our redirect still counts."""
        run = login(*[back(ours="x")] * MOST_STRAYS, GOOD)
        assert {step.effect for step in run.steps[1:-1]} == {replace(run.steps[0].effect, opened=True)}
        assert sent(run.end).url == TOKEN

    def test_but_not_for_ever(self) -> None:
        end = login(*[back(ours="x")] * (MOST_STRAYS + 1)).end
        assert (end.error.reason, end.error.message) == (Reason.CALLBACK_STATE, "only redirects of other logins came")


class TestPatience:
    @table(
        "seconds, waits",
        {
            "300": (300.0, [PATIENCE] * 60),
            "not-a-multiple": (14.5, [PATIENCE, PATIENCE, 4.5]),
            "short": (0.1, [0.1]),
            "an-hour-at-most": (1e9, [PATIENCE] * MOST_ROUNDS),
            "endless": (float("inf"), [PATIENCE] * MOST_ROUNDS),
        },
    )
    def test_rounds(self, seconds: float, waits: list[float]) -> None:
        run = login(*[StillWaiting()] * len(waits), plan=replace(PLAN, login_seconds=seconds))
        assert [step.effect.seconds for step in run.steps[:-1]] == waits
        assert [step.effect.opened for step in run.steps[:-1]] == [False] + [True] * (len(waits) - 1)
        assert run.end.error.reason is Reason.LOGIN_TIMED_OUT
        assert run.end.error.message == f"no answer from the browser in {sum(waits):g} seconds"

    def test_the_bound_is_exact(self) -> None:
        """DESIGN 1."""
        waits: list[Event] = [StillWaiting()] * (MOST_ROUNDS - 1)
        strays: list[Event] = [back(ours="x")] * MOST_STRAYS
        plan = replace(PLAN, login_seconds=1e9)
        run = login(*waits, *strays, GOOD, *RESTED * len(RETRIES), UNSENT, plan=plan)
        assert isinstance(run.end, Failed)
        assert len(run.events) == MOST_EFFECTS == 745

    def test_nobody_there(self) -> None:
        end = login(UserFailed("no browser\n")).end
        assert (end.error.reason, end.error.message) == (Reason.USER_UNAVAILABLE, "no browser")


def exchange(*events: Event, **change: Any) -> Any:
    return login(GOOD, *events, **change).end


def authorized(requested: tuple[str, ...] | None, scope: tuple[str, ...] | None, granted: Any) -> Authorized:
    answered = TokenAnswer(ACCESS, later(1).wall, later(61).wall, REFRESH, scope)
    return Authorized(answered, requested, granted)


class TestExchange:
    @table(
        "method, credentials",
        {
            "RFC6749-3.2.1-public": ("none", [("client_id", "the client")]),
            "FN-42-basic": ("client_secret_basic", []),
            "RULES-2.18-post": ("client_secret_post", [("client_id", "the client"), ("client_secret", SECRET)]),
        },
    )
    def test_request(self, method: AuthMethod, credentials: list[tuple[str, str]]) -> None:
        client = replace(CLIENT, auth_method=method, client_secret=SECRET)
        request = sent(exchange(client=client, plan=replace(PLAN, token_params=(("audience", "x"),))))
        assert (request.method, request.url) == ("POST", TOKEN)
        assert parse_qsl(request.body.decode("ascii")) == [
            ("grant_type", "authorization_code"),
            ("code", CODE),
            ("redirect_uri", REDIRECT),
            ("code_verifier", VERIFIER),
            ("resource", RESOURCE),
            ("audience", "x"),
            *credentials,
        ]

    @table(
        "requested, scope, granted, missing",
        {
            "RULES-2.15-as-requested": (("a", "b"), None, ("a", "b"), None),
            "RULES-2.15-nothing-requested": (None, None, None, None),
            "RULES-2.15-said": (None, "a", ("a",), None),
            "RULES-2.15-more": (("a",), "a b", ("a", "b"), None),
            "RULES-2.15-less": (("a", "b", "c"), "b", ("b",), "a c"),
            "RULES-2.15-none": (("a",), " ", (), "a"),
            "RULES-2.15-offline-access-is-the-refresh-token": (("a", "offline_access"), "a", ("a",), None),
        },
    )
    def test_scopes(self, requested: Any, scope: str | None, granted: Any, missing: str | None) -> None:
        said = answer(200, access_token=ACCESS, expires_in=60, refresh_token=REFRESH, scope=scope)
        notices = () if missing is None else (Notice("scopes-reduced", f"not granted: {missing}"),)
        listed = None if scope is None else tuple(scope.split())
        assert exchange(said, scopes=requested) == Done(authorized(requested, listed, granted), notices)

    def test_rules_2_15_offline_access_without_a_refresh_token(self) -> None:
        end = exchange(answer(200, access_token=ACCESS, scope="a"), scopes=("a", "offline_access"))
        assert end.notices == (Notice("scopes-reduced", "not granted: offline_access"),)

    def test_expiry_counts_from_the_sending(self) -> None:
        """RULES 2.17: the second try was sent by the third event."""
        end = exchange(UNSENT, Woke(), TOKENS)
        assert (end.value.answer.obtained_at, end.value.answer.expires_at) == (later(3).wall, later(63).wall)

    @table(
        "response, reason",
        {
            "RFC6749-5.2": (answer(400, error="invalid_grant"), Reason.EXCHANGE_REFUSED),
            "RULES-2.11-invalid-client": (answer(401, error="invalid_client"), Reason.CLIENT_REFUSED),
            "RULES-2.14-unavailable-is-not-repeated": (Response(503), Reason.EXCHANGE_REFUSED),
            "RULES-1.4-never-redirected": (Response(307, (("location", TOKEN),)), Reason.EXCHANGE_REFUSED),
            "RULES-2.17-unreadable": (Response(200), Reason.TOKEN_UNREADABLE),
            "RULES-2.14-may-have-arrived": (LOST, Reason.EXCHANGE_LOST),
        },
    )
    def test_once(self, response: Event, reason: Reason) -> None:
        end = exchange(response)
        assert isinstance(end, Failed)
        assert (end.error.reason, end.error.url) == (reason, TOKEN)

    def test_certainly_not_arrived(self) -> None:
        """Then, and only then, the same request goes out again."""
        run = login(GOOD, *RESTED * len(RETRIES), UNSENT)
        effects = [step.effect for step in run.steps[1:-1]]
        assert [effect.seconds for effect in effects if isinstance(effect, Sleep)] == [1.0, 2.0]
        sends = [effect for effect in effects if isinstance(effect, Send)]
        assert sends == [sends[0]] * (1 + len(RETRIES))
        assert (run.end.error.reason, run.end.error.url) == (Reason.EXCHANGE_LOST, TOKEN)
        assert run.end.error.message == "the code could not be exchanged: connection refused"

    @pytest.mark.parametrize("method", ["none", "client_secret_basic", "client_secret_post"])
    def test_fn_54_echoes(self, method: AuthMethod) -> None:
        """A server that repeats the request, as it came and as it was understood."""
        client = replace(CLIENT, auth_method=method, client_secret=SECRET if method != "none" else None)
        request = sent(exchange(client=client))
        pair = (header(request.headers, "authorization") or "").removeprefix("Basic ")
        for told in (request.body.decode("ascii"), f"{pair} {client.client_secret} {CODE} {VERIFIER}"):
            end = exchange(answer(400, error="x", error_description=told), client=client)
            text = f"{end.error}{end.error!r}"
            assert [each for each in (CANARY, VERIFIER, pair) if each and each in text] == []
            assert HIDDEN in text

    def test_nothing_single_use_is_left(self) -> None:
        """The result, and the state after the redirect, without what is spent."""
        run = login(GOOD, UNSENT, Woke(), TOKENS)
        last = msgspec.json.encode(run.end).decode()
        assert not [spent for spent in (VERIFIER, STATE, CODE) if spent in last]
        for step in run.steps[1:-1]:
            assert STATE not in msgspec.json.encode(step).decode()
        assert "seed" not in "".join(msgspec.json.encode(step).decode() for step in run.steps)


class TestMachine:
    def test_every_row_is_taken(self) -> None:
        tried: list[tuple[Event, ...]] = [
            (back(ours="x"), GOOD, UNSENT, Woke(), TOKENS),
            (back(("error", "x")),),
            (StillWaiting(), UserFailed("x")),
            (StillWaiting(),) * 60,
            (GOOD, Response(400)),
            (GOOD, LOST),
        ]
        taken = set[object]().union(*(transitions(login(*each)) for each in tried))
        assert taken == rows(authorization_code)

    @table(
        "events, wrong, message",
        {
            "redirect": ((), Woke(), "Woke does not answer what AwaitingRedirect"),
            "exchange": ((GOOD,), GOOD, "Redirected does not answer what Exchanging"),
            "rest": ((GOOD, UNSENT), TOKENS, "Response does not answer what Resting"),
        },
    )
    def test_misuse(self, events: tuple[Event, ...], wrong: Event, message: str) -> None:
        with pytest.raises(Misuse, match=message) as caught:
            advance(authorization_code, login(*events).end, wrong, NOW)
        assert CANARY not in str(caught.value)

    @given(st.data(), st.booleans())
    @settings(max_examples=200)
    def test_anything(self, data: st.DataObject, promised: bool) -> None:
        step = begin(replace(PLAN, login_seconds=20.0), promised=promised)
        run = play_anything(authorization_code, step, data, STATE)
        requests = [step.effect.request for step in run.steps[:-1] if isinstance(step.effect, Send)]
        assert {request.url for request in requests} <= {TOKEN}, "RULES 1.2"
        assert len({request.body for request in requests}) <= 1
