"""A small but whole OAuth authorization server: the official SDK's endpoints over tables kept in memory.

The SDK (`mcp.server.auth`) brings the metadata, registration, token and revocation endpoints and checks PKCE; this file
brings what it leaves open: the consent page, and tokens that expire, rotate and can be revoked. One person lives here.
"""

from __future__ import annotations

import html
import secrets
import time
from dataclasses import dataclass, field

from mcp.server.auth.provider import (
    AccessToken,
    AuthorizationCode,
    AuthorizationParams,
    OAuthAuthorizationServerProvider,
    RefreshToken,
    construct_redirect_uri,
)
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

PERSON = "alice"
CODE_LIFETIME = 300
PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Allow access?</title></head>
<body style="font-family: sans-serif; max-width: 30em; margin: 4em auto">
<h1>Allow access?</h1>
<p><strong>{client}</strong> asks to use <code>{resource}</code> in the name of <strong>{person}</strong>.</p>
<p>Scopes: <code>{scopes}</code></p>
<form method="post">
<input type="hidden" name="ticket" value="{ticket}">
<button type="submit" name="answer" value="approve">Approve</button>
<button type="submit" name="answer" value="deny">Deny</button>
</form>
</body>
</html>
"""
PAGE_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True)
class Family:
    """One consent and what came of it: every token from the same login, so that they can be revoked together."""

    client_id: str
    scopes: list[str]
    resource: str | None
    access: dict[str, AccessToken] = field(default_factory=dict[str, AccessToken])
    refresh: dict[str, RefreshToken] = field(default_factory=dict[str, RefreshToken])
    spent: set[str] = field(default_factory=set[str])


class Authority(OAuthAuthorizationServerProvider[AuthorizationCode, RefreshToken, AccessToken]):
    """What the SDK asks an authorization server to do. `token_lifetime` is that of an access token, in seconds."""

    def __init__(self, issuer: str, token_lifetime: int) -> None:
        self._issuer = issuer
        self._token_lifetime = token_lifetime
        self._clients: dict[str, OAuthClientInformationFull] = {}
        self._asked: dict[str, tuple[OAuthClientInformationFull, AuthorizationParams]] = {}
        self._codes: dict[str, AuthorizationCode] = {}
        self._families: list[Family] = []

    async def get_client(self, client_id: str) -> OAuthClientInformationFull | None:
        return self._clients.get(client_id)

    async def register_client(self, client_info: OAuthClientInformationFull) -> None:
        assert client_info.client_id is not None
        self._clients[client_info.client_id] = client_info

    async def authorize(self, client: OAuthClientInformationFull, params: AuthorizationParams) -> str:
        ticket = secrets.token_urlsafe(32)
        self._asked[ticket] = (client, params)
        return f"{self._issuer}/consent?ticket={ticket}"

    async def consent_page(self, request: Request) -> Response:
        """`GET /consent`: ask the person."""
        ticket = request.query_params.get("ticket", "")
        if ticket not in self._asked:
            return HTMLResponse("This login is over. Start again.", status_code=404)
        client, params = self._asked[ticket]
        page = PAGE.format(
            client=html.escape(client.client_name or "An unnamed program"),
            resource=html.escape(params.resource or self._issuer),
            scopes=html.escape(" ".join(params.scopes or ["none"])),
            ticket=html.escape(ticket),
            person=PERSON,
        )
        return HTMLResponse(page, headers=PAGE_HEADERS)

    async def consent_answer(self, request: Request) -> Response:
        """`POST /consent`: send the person back to the program, with a code or with their refusal."""
        form = await request.form()
        asked = self._asked.pop(str(form.get("ticket")), None)
        if asked is None:
            return HTMLResponse("This login is over. Start again.", status_code=404)
        client, params = asked
        redirect_uri = str(params.redirect_uri)
        if form.get("answer") == "approve":
            back = construct_redirect_uri(redirect_uri, code=self._code(client, params), state=params.state)
        else:
            back = construct_redirect_uri(redirect_uri, error="access_denied", state=params.state)
        return RedirectResponse(back, status_code=303)

    def _code(self, client: OAuthClientInformationFull, params: AuthorizationParams) -> str:
        assert client.client_id is not None
        code = secrets.token_urlsafe(32)
        self._codes[code] = AuthorizationCode(
            code=code,
            client_id=client.client_id,
            scopes=params.scopes or [],
            expires_at=time.time() + CODE_LIFETIME,
            subject=PERSON,
            **params.model_dump(exclude={"state", "scopes"}),
        )
        return code

    async def load_authorization_code(
        self, client: OAuthClientInformationFull, authorization_code: str
    ) -> AuthorizationCode | None:
        return self._codes.get(authorization_code)

    async def exchange_authorization_code(
        self, client: OAuthClientInformationFull, authorization_code: AuthorizationCode
    ) -> OAuthToken:
        code = self._codes.pop(authorization_code.code)
        family = Family(code.client_id, code.scopes, code.resource)
        self._families.append(family)
        return self._issue(family, code.scopes)

    async def load_refresh_token(self, client: OAuthClientInformationFull, refresh_token: str) -> RefreshToken | None:
        for family in self._families:
            if refresh_token in family.spent:  # stolen or lost: nobody can tell, so nobody keeps it
                self._families.remove(family)
                return None
        return next((f.refresh[refresh_token] for f in self._families if refresh_token in f.refresh), None)

    async def exchange_refresh_token(
        self, client: OAuthClientInformationFull, refresh_token: RefreshToken, scopes: list[str]
    ) -> OAuthToken:
        family = next(f for f in self._families if refresh_token.token in f.refresh)
        del family.refresh[refresh_token.token]
        family.spent.add(refresh_token.token)
        return self._issue(family, scopes)

    def _issue(self, family: Family, scopes: list[str]) -> OAuthToken:
        access, refresh = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        family.access[access] = AccessToken(
            token=access,
            client_id=family.client_id,
            scopes=scopes,
            expires_at=int(time.time()) + self._token_lifetime,
            resource=family.resource,
            subject=PERSON,
        )
        family.refresh[refresh] = RefreshToken(token=refresh, client_id=family.client_id, scopes=family.scopes)
        return OAuthToken(
            access_token=access,
            refresh_token=refresh,
            expires_in=self._token_lifetime,
            scope=" ".join(scopes),
        )

    async def load_access_token(self, token: str) -> AccessToken | None:
        found = next((family.access[token] for family in self._families if token in family.access), None)
        fresh = found is not None and found.expires_at is not None and found.expires_at > time.time()
        return found if fresh else None

    async def revoke_token(self, token: AccessToken | RefreshToken) -> None:
        self._families = [f for f in self._families if token.token not in f.access and token.token not in f.refresh]
