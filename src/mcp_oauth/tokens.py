"""Tokens and other credentials as programs handle them. Their `repr` shows no secret."""

from __future__ import annotations

import base64
import dataclasses
import time
from dataclasses import dataclass, field
from typing import Any

from mcp_oauth.sansio.grant import Grant


@dataclass
class OAuthTokens:
    """What a token endpoint gave (RFC 6749 section 5.1)."""

    access_token: str = field(repr=False)
    token_type: str = "Bearer"
    expires_in: int | None = None
    """Seconds from `issued_at`; None: unknown."""
    refresh_token: str | None = field(default=None, repr=False)
    scope: str | None = None
    """Scopes with a space between; None: unknown."""
    issued_at: float = field(default_factory=time.time)
    """Wall seconds (as `time.time`) from which `expires_in` counts; by default now."""

    @property
    def expires_at(self) -> float | None:
        """Wall seconds; None: unknown."""
        return None if self.expires_in is None else self.issued_at + self.expires_in

    def is_expired(self) -> bool:
        """Whether the access token has expired. One whose lifetime is unknown has not."""
        return self.expires_at is not None and time.time() >= self.expires_at

    def get_authorization_header(self) -> str:
        """The value of the `Authorization` header: `Bearer <token>` (RFC 6750 section 2.1)."""
        scheme = "Bearer" if self.token_type.lower() == "bearer" else self.token_type
        return f"{scheme} {self.access_token}"

    def to_dict(self) -> dict[str, Any]:
        """All fields, secrets included: `OAuthTokens(**tokens.to_dict()) == tokens`."""
        return dataclasses.asdict(self)


def tokens_of(grant: Grant) -> OAuthTokens:
    """The tokens of a stored grant, `expires_in` counted from now."""
    now = time.time()
    left = None if grant.expires_at is None else max(0, int(grant.expires_at - now))
    scope = None if grant.granted is None else " ".join(grant.granted)
    return OAuthTokens(grant.access_token, "Bearer", left, grant.refresh_token, scope, now)


@dataclass(frozen=True)
class BearerToken:
    """A token that was handed out by hand."""

    token: str = field(repr=False)
    expires_at: float | None = None
    """Wall seconds; None: unknown."""

    def is_expired(self) -> bool:
        """Whether it has expired."""
        return self.expires_at is not None and time.time() >= self.expires_at

    def get_authorization_header(self) -> str:
        """The value of the `Authorization` header."""
        return f"Bearer {self.token}"


@dataclass(frozen=True)
class APIKeyToken:
    """An API key of a provider. Which header it goes into is the provider's affair."""

    provider: str
    key: str = field(repr=False)
    organization_id: str | None = None
    project_id: str | None = None


@dataclass(frozen=True)
class BasicAuthToken:
    """A user name and a password (RFC 7617)."""

    username: str
    password: str = field(repr=False)

    def get_authorization_header(self) -> str:
        """The value of the `Authorization` header."""
        pair = f"{self.username}:{self.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"


Credential = BearerToken | APIKeyToken | BasicAuthToken
"""What is kept as it is: nothing renews it."""
