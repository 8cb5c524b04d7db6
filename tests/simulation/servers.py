"""The servers of the simulated world: an MCP server, and authorization servers that treat spent refresh tokens as the
real ones do (RULES 4.15). They know the truth: which tokens live, who presented them, and who received them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from urllib.parse import parse_qsl, urlencode, urlsplit

from mcp_oauth.sansio.messages import Request, Response

MCP = "https://mcp.example.com/mcp"
ORIGIN = "https://mcp.example.com"
ISSUERS = ("https://as.example.com", "https://other.example.net")

Policy = Literal["strict", "refuse", "grace-5", "grace-10", "grace-30", "until-used", "replay", "static"]
POLICIES: tuple[Policy, ...] = ("strict", "refuse", "grace-5", "grace-10", "grace-30", "until-used", "replay", "static")
"""What happens to a spent refresh token that comes again: its family is revoked; it is refused; it is good for so many
seconds after it was spent; until its successor is used; it gets the same answer; it is never spent at all.
"""
CLIENT_REVOKED = "its client revoked it"


class Presenter(Protocol):
    """Who sends a request: a process of the world."""

    name: str


def replay_seconds(lifetime: float) -> float:
    """How long the same answer is given again: while its access token is good for something."""
    return min(60.0, lifetime / 2)


@dataclass(eq=False)
class Family:
    """All that came of one login."""

    number: int
    client_id: str
    scope: str
    resource: str | None
    revoked: str = ""
    """Why it is dead."""
    current: str = ""
    """The refresh token issued last."""
    renewed_at: list[float] = field(default_factory=list[float])


@dataclass(eq=False)
class Refresh:
    """A refresh token."""

    token: str
    family: Family
    parent: Refresh | None
    spent_at: float | None = None
    answer: dict[str, Any] | None = None
    """That of its first exchange."""
    used_successor: bool = False
    troubles: list[str] = field(default_factory=list[str])
    """What happened to its holders, while it was being exchanged, that no client may be able to mend (RULES 4.15)."""
    presenters: list[Presenter] = field(default_factory=list[Presenter])
    missed_at: float = math.inf
    """When its last holder knew that no answer would come."""
    refused_at: float | None = None
    """When it was refused though it is alive."""

    def __repr__(self) -> str:
        return self.token


@dataclass(eq=False)
class Access:
    """An access token."""

    token: str
    family: Family
    expires_at: float


@dataclass
class Moods:
    """What a server does for a while."""

    unavailable: int = 0
    """The status of all answers, 0: it is available."""
    retry_after: str = ""
    processes_first: bool = False
    """It does what it was asked, and then answers with an error."""


class AuthorizationServer:
    """One authorization server (RFC 6749, 7009, 7591, 8414), with rotating refresh tokens."""

    def __init__(self, issuer: str, policy: Policy, lifetime: float, say: Callable[[str], None]) -> None:
        self.issuer = issuer
        self.policy: Policy = policy
        self.lifetime = lifetime
        self.moods = Moods()
        self.refuses_early = False
        """It refuses to renew what has not expired (FN 11)."""
        self.refresh_tokens: dict[str, Refresh] = {}
        self.access_tokens: dict[str, Access] = {}
        self.families: list[Family] = []
        self.clients: dict[str, str] = {}
        self.refreshes = 0
        self.reused: Callable[[Refresh, bool], None] = lambda _refresh, _taken: None
        """Told of each spent token that comes again, and whether that was all right."""
        self.hurried: Callable[[Refresh, float], None] = lambda _refresh, _seconds: None
        """Told of each token that comes again so many seconds after it was refused."""
        self._codes: dict[str, tuple[Mapping[str, str], Family]] = {}
        self._say = say
        self._issued = 0

    # --- HTTP -----------------------------------------------------------------------------------------------------

    def answer(self, request: Request, presenter: Presenter, at: float) -> Response:
        """What it answers to a request that arrives at this time."""
        path = urlsplit(request.url).path
        moods = self.moods
        if moods.unavailable and not (moods.processes_first and path == "/token"):
            return self._trouble()
        response = self._routed(path, request, presenter, at)
        return self._trouble() if moods.unavailable else response

    def _trouble(self) -> Response:
        headers = (("retry-after", self.moods.retry_after),) if self.moods.retry_after else ()
        return Response(self.moods.unavailable, headers)

    def _routed(self, path: str, request: Request, presenter: Presenter, at: float) -> Response:
        if path == "/.well-known/oauth-authorization-server":
            return document(200, self._metadata())
        if path == "/register":
            return self._register(json.loads(request.body))
        form = dict(parse_qsl(request.body.decode()))
        if path == "/token":
            return self._token(form, presenter, at)
        if path == "/revoke":
            return self._revoke(form)
        return Response(404)

    def _metadata(self) -> dict[str, Any]:
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "registration_endpoint": f"{self.issuer}/register",
            "revocation_endpoint": f"{self.issuer}/revoke",
            "code_challenge_methods_supported": ["S256"],
            "response_types_supported": ["code"],
            "grant_types_supported": ["authorization_code", "refresh_token"],
            "token_endpoint_auth_methods_supported": ["none"],
            "authorization_response_iss_parameter_supported": True,
        }

    def _register(self, wanted: Mapping[str, Any]) -> Response:
        client_id = self._new("client")
        self.clients[client_id] = wanted["redirect_uris"][0]
        return document(201, {**wanted, "client_id": client_id, "token_endpoint_auth_method": "none"})

    # --- The authorization endpoint -------------------------------------------------------------------------------

    def authorize(self, url: str, allow: bool) -> str | None:
        """Where the browser is sent from an authorization URL; None: an error page, and nothing comes back."""
        query = dict(parse_qsl(urlsplit(url).query))
        if query["client_id"] not in self.clients:
            return None
        back = {"state": query["state"], "iss": self.issuer}
        if allow:
            family = Family(len(self.families) + 1, query["client_id"], query.get("scope", ""), query.get("resource"))
            self.families.append(family)
            code = self._new("code")
            self._codes[code] = query, family
            back["code"] = code
        else:
            back["error"] = "access_denied"
        return f"{query['redirect_uri']}?{urlencode(back)}"

    # --- The token endpoint ---------------------------------------------------------------------------------------

    def _token(self, form: Mapping[str, str], presenter: Presenter, at: float) -> Response:
        if form.get("client_id") not in self.clients:
            return document(401, {"error": "invalid_client"})
        if form["grant_type"] == "authorization_code":
            return self._exchange(form, at)
        return self._refresh(form["refresh_token"], presenter, at)

    def _exchange(self, form: Mapping[str, str], at: float) -> Response:
        query, family = self._codes.pop(form["code"], ({}, None))
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if family is None or query["code_challenge"] != challenge or query["redirect_uri"] != form["redirect_uri"]:
            return document(400, {"error": "invalid_grant"})
        return document(200, self.issue(family, None, at))

    def _refresh(self, token: str, presenter: Presenter, at: float) -> Response:
        self.refreshes += 1
        found = self.refresh_tokens.get(token)
        if found is None or found.family.revoked:
            self._say(f"{self.issuer} refuses {token}, which is dead")
            return INVALID_GRANT
        found.presenters.append(presenter)
        if self.refuses_early and self._early(found.family, at):
            self._say(f"{self.issuer} refuses to renew {token} early")
            if found.refused_at is not None:
                self.hurried(found, at - found.refused_at)
            found.refused_at = at
            return document(400, {"error": "invalid_request", "error_description": "too early"})
        if found.spent_at is None or self.policy == "static":
            return self._rotate(found, at)
        return self._again(found, at)

    def _early(self, family: Family, at: float) -> bool:
        return any(access.family is family and access.expires_at > at for access in self.access_tokens.values())

    def _rotate(self, found: Refresh, at: float) -> Response:
        found.spent_at = at if found.spent_at is None else found.spent_at
        if found.parent is not None:
            found.parent.used_successor = True
        answer = self.issue(found.family, found, at)
        found.answer = found.answer or answer
        found.family.renewed_at.append(at)
        self._say(f"{self.issuer} takes {found.token} and gives {answer.get('refresh_token', 'no other')}")
        return document(200, answer)

    def _again(self, found: Refresh, at: float) -> Response:
        """A spent token has come again."""
        since = at - (found.spent_at or 0.0)
        kind, _, seconds = self.policy.partition("-")
        taken = {
            "replay": since <= replay_seconds(self.lifetime),
            "grace": kind == "grace" and since <= float(seconds),
            "until": not found.used_successor,
        }.get(kind, False)
        self.reused(found, taken)
        if taken and kind == "replay" and found.answer is not None:
            left = self.access_tokens[found.answer["access_token"]].expires_at - at
            return document(200, {**found.answer, "expires_in": left})
        if taken:
            return self._rotate(found, at)
        if kind != "refuse":
            found.family.revoked = f"{found.token} was used twice"
        self._say(f"{self.issuer} refuses {found.token}, which was spent {since:.1f} s ago")
        return INVALID_GRANT

    def issue(self, family: Family, parent: Refresh | None, at: float) -> dict[str, Any]:
        """New tokens of a family."""
        access = Access(self._new("at"), family, at + self.lifetime)
        self.access_tokens[access.token] = access
        answer = {"access_token": access.token, "token_type": "Bearer", "expires_in": self.lifetime}
        if family.scope:
            answer["scope"] = family.scope
        if self.policy == "static" and parent is not None:
            return answer  # without a refresh token: the one at hand stays good
        refresh = Refresh(self._new("rt"), family, parent)
        self.refresh_tokens[refresh.token] = refresh
        family.current = refresh.token
        return answer | {"refresh_token": refresh.token}

    def _new(self, kind: str) -> str:
        self._issued += 1
        return f"{kind}-{self._issued}-{urlsplit(self.issuer).netloc.partition('.')[0]}"

    # --- The revocation endpoint, and the truth -------------------------------------------------------------------

    def _revoke(self, form: Mapping[str, str]) -> Response:
        found = self.refresh_tokens.get(form["token"])
        if found is not None and not found.family.revoked and self.lives(found.token):
            found.family.revoked = CLIENT_REVOKED
            self._say(f"{self.issuer} revokes the family of {found.token}")
        self.access_tokens.pop(form["token"], None)
        return Response(200)

    def lives(self, token: str | None) -> bool:
        """A refresh token that it would take, now and whenever nobody else uses it."""
        found = self.refresh_tokens.get(token or "")
        return found is not None and not found.family.revoked and (found.spent_at is None or self.policy == "static")


class McpServer:
    """The protected resource (RFC 9728)."""

    def __init__(self, issuers: Mapping[str, AuthorizationServer]) -> None:
        self.issuers = issuers
        self.issuer = ISSUERS[0]
        """The one that its metadata names."""
        self.demands = ""
        """Scopes that every request needs, space-separated."""
        self.hiccups = 0
        """Requests that it refuses without a reason."""

    def answer(self, request: Request, at: float) -> Response:
        """What it answers to a request that arrives at this time."""
        if urlsplit(request.url).path.startswith("/.well-known/oauth-protected-resource"):
            listed = {"resource": MCP, "authorization_servers": [self.issuer]}
            return document(200, listed)
        authorization = dict(request.headers).get("authorization", "")
        if authorization and self.hiccups:
            self.hiccups -= 1
            return _challenge(401, 'error="invalid_token"')
        access = self.issuers[self.issuer].access_tokens.get(authorization.removeprefix("Bearer "))
        if access is None or access.family.revoked or access.expires_at <= at:
            return _challenge(401, 'error="invalid_token"' if authorization else "")
        if not set(self.demands.split()) <= set(access.family.scope.split()):
            return _challenge(403, f'error="insufficient_scope", scope="{self.demands}"')
        return Response(200)


INVALID_GRANT = Response(400, (("content-type", "application/json"),), b'{"error": "invalid_grant"}')


def _challenge(status: int, more: str) -> Response:
    metadata = f'resource_metadata="{ORIGIN}/.well-known/oauth-protected-resource/mcp"'
    value = f"Bearer {metadata}, {more}" if more else f"Bearer {metadata}"
    return Response(status, (("www-authenticate", value),))


def document(status: int, content: Mapping[str, Any]) -> Response:
    """A JSON answer."""
    return Response(status, (("content-type", "application/json"),), json.dumps(content).encode())
