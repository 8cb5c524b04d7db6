"""What the tests of a login share: its lines from the claim to the save, and what is read off a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

from mcp_oauth.sansio import login
from mcp_oauth.sansio.errors import Reason
from mcp_oauth.sansio.grant import GrantRecord, LoginClaim
from mcp_oauth.sansio.messages import Response
from mcp_oauth.sansio.plan import Plan, PreRegistered
from mcp_oauth.sansio.resource import Found
from mcp_oauth.sansio.steps import Await, Failed, Listening, Need, OpenBrowser, Redirected, Save, Saved, StoreFailed
from tests.sansio.scripts import ISSUER, KEY, SEED, SERVER, Line, play, tokens
from tests.sansio.walks import CANARY, NOW, answer
from tests.sansio.worlds import Run

CLAIM = SEED.text("claim")
STATE = SEED.child("authorization", 0).text("state")
CALLBACK = "http://127.0.0.1:5000/callback"
PLAN = Plan(SERVER, preregistered=PreRegistered("client", f"{CANARY}-secret"), holder="pid 1 on host")
ASKED = Need("asked")
STEP_UP = Need("scope", scopes=("b",))
FULL = StoreFailed("disk full")
BACK = Redirected(f"{CALLBACK}?code={CANARY}-code&state={STATE}")
METADATA: dict[str, Any] = {
    "issuer": ISSUER,
    "authorization_endpoint": f"{ISSUER}/authorize",
    "token_endpoint": f"{ISSUER}/token",
    "revocation_endpoint": f"{ISSUER}/revoke",
    "code_challenge_methods_supported": ["S256"],
}
OPENID = {"scopes_supported": ["openid", "offline_access"], "client_id_metadata_document_supported": True}


def resource_metadata(*issuers: str, **more: Any) -> Response:
    return answer(200, resource=SERVER, authorization_servers=list(issuers or (ISSUER,)), **more)


def refuse(error: str) -> Redirected:
    return Redirected(f"{CALLBACK}?error={error}&state={STATE}")


CLAIMED: Line = ("Save *: *claim " + CLAIM, Saved())
RESOURCE: Line = ("GET mcp.example/.well-known/oauth-protected-resource/mcp", resource_metadata())
DISCOVERED: tuple[Line, ...] = (RESOURCE, ("GET as.example/.well-known/*", answer(200, **METADATA)))
LISTENING: Line = ("Listen", Listening(CALLBACK))
OPENED: tuple[Line, ...] = (CLAIMED, *DISCOVERED, LISTENING)
"""As far as the browser."""
EXCHANGED: tuple[Line, ...] = (("OpenBrowser", BACK), ("POST as.example/token", tokens(7)))
WITHDRAWN: Line = ("Save *: *", Saved())


def begin(
    plan: Plan = PLAN, need: Need = ASKED, stored: GrantRecord | None = None, known: Found | None = None
) -> login.Out:
    return login.begin(plan, KEY, need, record=stored, known=known, seed=SEED, now=NOW)


def run(script: Sequence[Line], end: str, **how: Any) -> Run:
    return play(login, begin(**how), script, end)


def records(played: Run) -> list[GrantRecord]:
    """What was to be saved, in order."""
    effects = [step.effect for step in played.steps if isinstance(step, Await)]
    return [effect.record for effect in effects if isinstance(effect, Save) and isinstance(effect.record, GrantRecord)]


def browser_params(played: Run) -> dict[str, list[str]]:
    """What the browser was sent with."""
    (url,) = {step.effect.url for step in played.steps if isinstance(getattr(step, "effect", None), OpenBrowser)}
    return parse_qs(urlsplit(url).query)


def theirs(until: float = 60.0) -> LoginClaim:
    return LoginClaim("theirs", "pid 2 on host", NOW.wall + until)


def reason(played: Run) -> Reason:
    assert isinstance(played.end, Failed)
    return played.end.error.reason
