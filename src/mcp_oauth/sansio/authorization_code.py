"""The machine of the authorization code grant with PKCE (RFC 6749 section 4.1, RFC 7636): at most 745 effects.

It opens the browser, judges the redirect, and exchanges the code. A person takes time: the effect of waiting is
asked again every `PATIENCE` seconds, so that whoever runs this machine can do something in between.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter

from msgspec.structs import replace

from mcp_oauth.sansio import scopes as scoping
from mcp_oauth.sansio import token_endpoint, uris
from mcp_oauth.sansio.errors import Failure, Reason, conceal, failure
from mcp_oauth.sansio.grant import Registration, Scopes
from mcp_oauth.sansio.messages import Request, Response, printable
from mcp_oauth.sansio.metadata import AuthorizationServerMetadata
from mcp_oauth.sansio.plan import Params, Plan
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
    SendFailed,
    Sleep,
    Step,
    StillWaiting,
    Table,
    UserFailed,
    Woke,
)
from mcp_oauth.sansio.token_endpoint import TokenAnswer
from mcp_oauth.sansio.values import Now, Secret, Seed, Value, base64url

PATIENCE = 5.0
"""Seconds that one effect waits for the person."""
MOST_STRAYS = 20
"""Redirects of other logins that are passed over."""
RETRIES = (1.0, 2.0)
"""Seconds before the exchange is sent again, if the server certainly did not get it."""
MOST_ROUNDS = 720
"""Rounds of waiting: an hour."""
MOST_EFFECTS = MOST_ROUNDS + MOST_STRAYS + 1 + 2 * len(RETRIES)

_CODE = re.compile(r"[\x20-\x7e]+")
"""RFC 6749 appendix A.11."""


class Authorization(Value, frozen=True):
    """One authorization request: what is asked, and what its answer is held against."""

    shown = ("issuer", "redirect_uri", "scopes")

    issuer: str
    """Recorded before the browser opens."""
    iss_promised: bool
    """`authorization_response_iss_parameter_supported`."""
    token_endpoint: str
    client: Registration
    redirect_uri: str
    url: Secret
    """The authorization request."""
    state: Secret
    verifier: Secret
    resource: str | None
    scopes: Scopes | None
    token_params: Params
    seconds: float
    """That a person may take."""


class AwaitingRedirect(Value, frozen=True, tag="authorization_code.AwaitingRedirect"):
    """The browser is open."""

    shown = ("asked", "strays", "round")

    asked: Authorization
    strays: int = 0
    round: int = 0


class Exchanging(Value, frozen=True, tag="authorization_code.Exchanging"):
    """Waits for the token endpoint. Code and verifier are only in the request."""

    shown = ("issuer", "tries")

    issuer: str
    request: Request
    scopes: Scopes | None
    sent: Now
    tries: int = 0


class Resting(Value, frozen=True, tag="authorization_code.Resting"):
    """Waits before it sends the exchange again."""

    shown = ("then",)

    then: Exchanging


State = AwaitingRedirect | Exchanging | Resting


class Authorized(Value, frozen=True):
    """The tokens, and the scopes that were asked for and granted."""

    shown = ("requested", "granted")

    answer: TokenAnswer
    requested: Scopes | None
    granted: Scopes | None
    """None: unknown."""


Out = Step[State, Authorized]


def begin(
    plan: Plan,
    metadata: AuthorizationServerMetadata,
    client: Registration,
    *,
    redirect_uri: str,
    resource: str | None,
    scopes: Scopes | None,
    consent: bool,
    seed: Seed,
) -> Out:
    """Open the browser for one login. `consent`: ask the provider to ask the person, even if it knows them.

    `metadata` has passed `issuer`; `seed` is used for nothing else.
    """
    state, verifier = seed.text("state"), code_verifier(seed)
    params = _authorization_params(plan, client, redirect_uri, resource, scopes, state, verifier)
    if consent and "prompt" not in dict(params):
        params += (("prompt", "consent"),)
    asked = Authorization(
        metadata.issuer,
        metadata.authorization_response_iss_parameter_supported,
        metadata.token_endpoint or "",
        client,
        redirect_uri,
        uris.with_query(metadata.authorization_endpoint or "", params),
        state,
        verifier,
        resource,
        scopes,
        plan.token_params,
        min(plan.login_seconds, MOST_ROUNDS * PATIENCE),
    )
    return _wait(AwaitingRedirect(asked))


def _authorization_params(
    plan: Plan,
    client: Registration,
    redirect_uri: str,
    resource: str | None,
    scopes: Scopes | None,
    state: str,
    verifier: str,
) -> Params:
    """RFC 6749 section 4.1.1, RFC 7636 section 4.3, RFC 8707 section 2.1."""
    optional = (("scope", " ".join(scopes) if scopes else None), ("resource", resource))
    return (
        ("response_type", "code"),
        ("client_id", client.client_id),
        ("redirect_uri", redirect_uri),
        ("state", state),
        ("code_challenge", code_challenge(verifier)),
        ("code_challenge_method", "S256"),
        *((name, value) for name, value in optional if value is not None),
        *plan.authorization_params,
    )


def code_verifier(seed: Seed) -> str:
    """A fresh verifier of 128 characters, as long as may be (RFC 7636 section 4.1)."""
    return "".join(seed.text("verifier", n) for n in range(3))[:128]


def code_challenge(verifier: str) -> str:
    """The S256 code challenge (RFC 7636 section 4.2)."""
    return base64url(hashlib.sha256(verifier.encode("ascii")).digest())


def _wait(state: AwaitingRedirect) -> Out:
    asked = state.asked
    opened = state.round > 0 or state.strays > 0
    seconds = min(PATIENCE, asked.seconds - state.round * PATIENCE)
    return Await(state, OpenBrowser(asked.url, asked.redirect_uri, asked.state, seconds, opened))


def advance(state: State, event: Event, *, now: Now) -> Out:
    """Judge the redirect, then the token endpoint's answer."""
    match state, event:
        case AwaitingRedirect(), Redirected(url):
            return _redirected(state, url, now)
        case AwaitingRedirect(asked, strays, rounds), StillWaiting():
            if (rounds + 1) * PATIENCE < asked.seconds:
                return _wait(AwaitingRedirect(asked, strays, rounds + 1))
            message = f"no answer from the browser in {asked.seconds:g} seconds"
            return Failed(failure(Reason.LOGIN_TIMED_OUT, message))
        case AwaitingRedirect(), UserFailed(reason):
            return Failed(failure(Reason.USER_UNAVAILABLE, reason))
        case Exchanging(), Response():
            return _exchanged(state, event)
        case Exchanging(), SendFailed(reason, may_have_arrived):
            return _unsent(state, reason, may_have_arrived)
        case Resting(then), Woke():
            return Await(replace(then, sent=now, tries=then.tries + 1), Send(then.request))
        case _:
            raise Misuse(state, event)


def _redirected(state: AwaitingRedirect, url: str, now: Now) -> Out:
    """RULES 2.14: state, duplicates, iss, error, code, in this order: what lacks our state cannot end our login."""
    asked = state.asked
    pairs = uris.query_params(url)
    if asked.state not in [value for name, value in pairs if name == "state"]:
        if state.strays < MOST_STRAYS:
            return _wait(AwaitingRedirect(asked, state.strays + 1, state.round))
        return Failed(failure(Reason.CALLBACK_STATE, "only redirects of other logins came"))
    answer = dict(pairs)
    why = _duplicates(pairs) or _wrong_issuer(asked, answer.get("iss")) or _error(asked, answer)
    if why:
        return Failed(why)
    code = answer.get("code", "")
    if not _CODE.fullmatch(code):
        return Failed(failure(Reason.CALLBACK_WITHOUT_CODE, f"{asked.issuer} sent neither a usable code nor an error"))
    exchanging = _exchanging(asked, code, now)
    return Await(exchanging, Send(exchanging.request))


def _duplicates(pairs: list[tuple[str, str]]) -> Failure | None:
    """RFC 6749 section 3.1: no parameter more than once, of those that are read."""
    counts = Counter(name for name, _ in pairs)
    twice = [name for name in ("state", "iss", "error", "error_description", "code") if counts[name] > 1]
    message = f"the redirect has {', '.join(twice)} more than once"
    return failure(Reason.CALLBACK_DUPLICATE, message) if twice else None


def _wrong_issuer(asked: Authorization, iss: str | None) -> Failure | None:
    """RFC 9207 section 2.4, all four rows of the spec. Nothing of the answer goes into the message."""
    if iss is None and asked.iss_promised:
        return failure(Reason.CALLBACK_ISSUER, f"the redirect lacks the iss that {asked.issuer} promises")
    if iss is not None and iss != asked.issuer:
        return failure(Reason.CALLBACK_ISSUER, f"the redirect's iss is not {asked.issuer}")
    return None


def _error(asked: Authorization, answer: dict[str, str]) -> Failure | None:
    """RFC 6749 section 4.1.2.1."""
    error = answer.get("error")
    if not error:
        return None
    hide = (asked.state, asked.verifier, answer.get("code"))
    code = printable(conceal(error, hide), 80)
    told = conceal(answer.get("error_description", ""), hide)
    message = f"{asked.issuer} answered {code}" + (f": {printable(told)}" if told else "")
    return Failure(_ERRORS.get(error, Reason.CALLBACK_ERROR), message, oauth_error=code)


_ERRORS = {"access_denied": Reason.ACCESS_DENIED, "invalid_client": Reason.CLIENT_REFUSED}


def _exchanging(asked: Authorization, code: str, now: Now) -> Exchanging:
    request = token_endpoint.code_request(
        asked.token_endpoint,
        asked.client,
        code=code,
        verifier=asked.verifier,
        redirect_uri=asked.redirect_uri,
        resource=asked.resource,
        extra=asked.token_params,
    )
    return Exchanging(asked.issuer, request, asked.scopes, now)


def _unsent(state: Exchanging, reason: str, may_have_arrived: bool) -> Out:
    """A code is used once: only an exchange that certainly did not arrive is sent again."""
    if not may_have_arrived and state.tries < len(RETRIES):
        return Await(Resting(state), Sleep(RETRIES[state.tries]))
    message = f"the code could not be exchanged: {reason}"
    return Failed(failure(Reason.EXCHANGE_LOST, message, url=state.request.url))


def _exchanged(state: Exchanging, response: Response) -> Out:
    hide = token_endpoint.secrets_of(state.request)
    answer = token_endpoint.read(response, state.request.url, state.sent, Reason.EXCHANGE_REFUSED, hide=hide)
    if isinstance(answer, Failure):
        return Failed(answer)
    granted = answer.scopes if answer.scopes is not None else state.scopes
    missing = scoping.missing(state.scopes, granted)
    if answer.refresh_token is not None:
        # That is offline access, whatever the answer calls it: oidc-provider lists the resource's scopes only.
        missing = tuple(scope for scope in missing if scope != scoping.OFFLINE)
    notices = (Notice("scopes-reduced", f"not granted: {' '.join(missing)}"),) if missing else ()
    return Done(Authorized(answer, state.scopes, granted), notices)


TABLE: Table = {
    AwaitingRedirect: (
        (OpenBrowser,),
        {
            Redirected: (AwaitingRedirect, Exchanging, Failed),
            StillWaiting: (AwaitingRedirect, Failed),
            UserFailed: (Failed,),
        },
    ),
    Exchanging: ((Send,), {Response: (Done, Failed), SendFailed: (Resting, Failed)}),
    Resting: ((Sleep,), {Woke: (Exchanging,)}),
}
