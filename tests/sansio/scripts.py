"""Transcripts: a machine is played by a script, which reads like a log of what it asked for and was answered.

    play(renewal, step, [
        ("Acquire", Acquired(record(grant(1)))),
        ("POST as.example/token rt1", tokens(2)),
        ("Save r0: *as(at2 rt2)", Saved()),
        ("Release", Released()),
    ], "Done renewed at2")

A line is the effect (`*` stands for anything), its answer, and, from where time goes on, the seconds after `NOW`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import ndiff
from fnmatch import fnmatchcase
from types import ModuleType
from typing import Any
from urllib.parse import parse_qsl

import pytest
from msgspec.structs import replace

from mcp_oauth.sansio.access import Finished
from mcp_oauth.sansio.grant import Grant, GrantRecord, Registration, Token, grant_key, token_of
from mcp_oauth.sansio.keeping import Kept, Outcome
from mcp_oauth.sansio.messages import Request, Response
from mcp_oauth.sansio.plan import Plan, PreRegistered
from mcp_oauth.sansio.steps import (
    Await,
    Done,
    Ensure,
    Event,
    Failed,
    Listening,
    Load,
    Need,
    OpenBrowser,
    Proceed,
    Redirected,
    Save,
    Send,
    Sleep,
    Step,
)
from mcp_oauth.sansio.values import Seed, fingerprint
from tests.sansio.walks import CANARY, NOW, advance, answer, keeps_promises, later
from tests.sansio.worlds import Run

Answer = Event | Callable[[Any], Event]
"""An event, or what makes one of the effect."""
Line = tuple[str, Answer] | tuple[str, Answer, float]

SERVER = "https://mcp.example/mcp"
ISSUER = "https://as.example"
ELSEWHERE = "https://other.example"
KEY = grant_key(SERVER, "")
SEED = Seed(b"s" * 32)
METADATA = "GET mcp.example/.well-known/oauth-protected-resource/mcp"
CLIENT = Registration(ISSUER, "client", "dcr", "client_secret_post", client_secret=f"{CANARY}-secret")


def secret(name: str | int, kind: str) -> str:
    """`at1` is the access token of the first grant, `rt1` its refresh token."""
    return f"{CANARY}-{kind}{name}"


PLAN = Plan(SERVER, preregistered=PreRegistered("client", secret("", "secret"), auth_method="client_secret_post"))


def grant(n: int = 1, *, life: float = 3600.0, left: float = -1.0, **more: Any) -> Grant:
    """The n-th grant of a lineage, by default just expired: with `at<n>` and `rt<n>`, renewed from `rt<n-1>`."""
    members: dict[str, Any] = {
        "lineage": "lineage",
        "generation": n - 1,
        "expires_at": NOW.wall + left,
        "refresh_token": secret(n, "rt"),
        "parent": parent(n - 1) if n > 1 else None,
        "resource": SERVER,
        "requested": ("a",),
        "granted": ("a",),
        "revocation_endpoint": f"{ISSUER}/revoke",
    }
    obtained_at = more.pop("obtained_at", NOW.wall + left - life)
    issuer = more.pop("issuer", ISSUER)
    return Grant(issuer, CLIENT, f"{issuer}/token", secret(n, "at"), obtained_at, **{**members, **more})


def parent(n: int) -> str:
    """The fingerprint of `rt<n>`."""
    return fingerprint(secret(n, "rt"))


def unlike(n: int) -> str:
    """The fingerprint of `at<n>`."""
    return fingerprint(secret(n, "at"))


def token(n: int = 1, **more: Any) -> Token:
    return token_of(grant(n, **more))


def record(*grants: Grant, revision: str = "r0", **more: Any) -> GrantRecord:
    """A record whose last grant is in use."""
    current = more.pop("current", grants[-1].issuer if grants else None)
    return GrantRecord(revision, SERVER, "", grants, current, **more)


def tokens(n: int, **members: Any) -> Response:
    """A token answer with `at<n>` and `rt<n>`; a member that is None is left out."""
    standard = {"access_token": secret(n, "at"), "refresh_token": secret(n, "rt"), "token_type": "Bearer"}
    merged = {**standard, "expires_in": 3600, **members}
    return answer(200, **{name: value for name, value in merged.items() if value is not None})


def each(name: str, cases: Mapping[str, Any]) -> pytest.MarkDecorator:
    """A table of one column, by the rule that each case proves."""
    return pytest.mark.parametrize(name, list(cases.values()), ids=list(cases))


# --- A first login ----------------------------------------------------------------------------------------------------


def metadata(*issuers: str) -> Response:
    return answer(200, resource=SERVER, authorization_servers=issuers)


def logging_in(n: int, issuer: str = ISSUER) -> list[Line]:
    """From the metadata to the tokens."""
    name = issuer.removeprefix("https://")
    published = answer(
        200,
        issuer=issuer,
        authorization_endpoint=f"{issuer}/authorize",
        token_endpoint=f"{issuer}/token",
        code_challenge_methods_supported=["S256"],
    )
    return [
        (METADATA, metadata(issuer)),
        (f"GET {name}/.well-known/oauth-authorization-server", published),
        ("Listen", Listening("http://127.0.0.1:1/callback")),
        ("OpenBrowser", redirected),
        (f"POST {name}/token", tokens(n)),
    ]


def redirected(effect: OpenBrowser) -> Redirected:
    return Redirected(f"{effect.redirect_uri}?code={secret('code', '')}&state={effect.state}")


# --- Playing ----------------------------------------------------------------------------------------------------------


def play(machine: ModuleType, step: Step[Any, Any], script: Sequence[Line], end: str) -> Run:
    """Play by the script, compare the transcript, and hold the machine to what every one promises."""
    steps, events, expected, told, now = [step], list[Event](), list[str](), list[str](), NOW
    for pattern, given, *at in script:
        now = later(*at) if at else now
        expected.append(pattern)
        told.append(_heard(steps[-1], pattern))
        if not isinstance(steps[-1], Await) or told != expected:
            break
        event = given(steps[-1].effect) if callable(given) else given
        events.append(event)
        steps.append(advance(machine, steps[-1], event, now))
        assert steps[-1] == advance(machine, steps[-2], event, now), "same state and event, another step"
    else:
        expected.append(end)
        told.append(_heard(steps[-1], end))
    assert told == expected, "\n".join(("the script, and what happened:", *ndiff(expected, told)))
    run = Run(tuple(steps), tuple(events))
    keeps_promises(machine, run)
    return run


def saved(run: Run) -> list[GrantRecord]:
    """The records that were to be saved, in order; no revision recurs."""
    effects = [step.effect for step in run.steps if isinstance(step, Await)]
    records = [effect.record for effect in effects if isinstance(effect, Save)]
    assert len({one.revision for one in records} | {"r0"}) == len(records) + 1
    return [one for one in records if isinstance(one, GrantRecord)]


def _heard(step: Step[Any, Any], pattern: str) -> str:
    heard = say(step)
    literal = pattern.replace("[", "[[]")
    return pattern if fnmatchcase(heard, literal) else heard


# --- Saying -----------------------------------------------------------------------------------------------------------


def say(step: Step[Any, Any]) -> str:
    """A step in a few words."""
    if isinstance(step, Failed):
        return f"Failed {step.error.reason.value}"
    if isinstance(step, Done):
        return _result(step.value)
    return _effect(step.effect)


def _result(value: Any) -> str:
    if isinstance(value, Outcome):
        return f"Done {_outcome(value)}"
    if isinstance(value, Finished):
        return f"Finished, accepted {name_of(value.accepted.access_token)}" if value.accepted else "Finished"
    assert isinstance(value, Kept)
    then = _outcome(value.then) if isinstance(value.then, Outcome) else value.then.reason.value
    return f"Kept {then}" + (f", revoke {name_of(value.revoke.access_token)}" if value.revoke else "")


def _outcome(outcome: Outcome) -> str:
    if outcome.token is None:
        return "dead" if outcome.failure else outcome.how
    return f"{outcome.how} {name_of(outcome.token.access_token)}" + (", unsaved" if outcome.unsaved else "")


def _effect(effect: Any) -> str:
    match effect:
        case Send(request):
            return _request(request)
        case Save(key, saving, expected):
            assert key == KEY
            return f"Save {expected}: {_record(saving)}"
        case Sleep(seconds):
            return f"Sleep {seconds:g}"
        case Proceed(headers):
            return " ".join(("Proceed", *(name_of(value.removeprefix("Bearer ")) for _, value in headers)))
        case Ensure(need):
            return f"Ensure {_need(need)}"
        case Load(key):
            assert key == KEY
            return "Load"
        case _:
            return type(effect).__name__


def _request(request: Request) -> str:
    sent = dict(parse_qsl(request.body.decode("ascii")))
    presented = sent.get("refresh_token") or sent.get("token")
    where = request.url.partition("://")[2]
    return f"{request.method} {where}" + (f" {name_of(presented)}" if presented else "")


def _record(value: Any) -> str:
    """`*as(at1 rt1 dead)`: the grants, `*` before the one in use; `+5s` when the next attempt may be made."""
    parts = [("*" if value.current == one.issuer else "") + _grant(one) for one in value.grants]
    parts += [f"claim {value.login.id}"] if value.login else []
    parts += [f"intent {name_of_presented(value.intent.presented)} of {value.intent.holder}"] if value.intent else []
    return " ".join(parts)


def _grant(one: Grant) -> str:
    marks = [name_of(one.access_token), name_of(one.refresh_token or "-")]
    marks += ["dead"] if one.refused else []
    marks += ["client refused"] if one.client_refused else []
    marks += [f"{one.refusals} refusals"] if one.refusals else []
    marks += [f"+{one.next_attempt_at - NOW.wall:g}s"] if one.next_attempt_at is not None else []
    name = one.issuer.removeprefix("https://").partition(".")[0]
    return f"{name}({' '.join(marks)})"


def _need(need: Need) -> str:
    known = {unlike(n): f"at{n}" for n in range(30)}
    parts: list[str] = [need.because]
    parts += [f"unlike {known[need.unlike]}"] if need.unlike else []
    parts += ["never accepted"] if need.never_accepted else []
    parts += [f"scopes {' '.join(need.scopes)}"] if need.scopes else []
    parts += [] if need.may_renew else ["no renewal"]
    parts += [] if need.may_login else ["no login"]
    return ", ".join(parts)


def name_of_presented(presented: str) -> str:
    return next(f"rt{n}" for n in range(30) if parent(n) == presented)


def name_of(value: str) -> str:
    return value.removeprefix(f"{CANARY}-")


def with_scopes(one: Grant, *scopes: str) -> Grant:
    return replace(one, requested=scopes, granted=scopes)
