"""Tokens and other credentials as programs handle them. Their `repr` shows no secret."""

from __future__ import annotations

import base64
import dataclasses
import re
import time
from dataclasses import dataclass, field
from typing import Any

from mcp_oauth.exceptions import from_failure
from mcp_oauth.sansio.errors import Reason, failure
from mcp_oauth.sansio.grant import Grant, Token
from mcp_oauth.sansio.token_endpoint import header_safe
from mcp_oauth.sansio.values import Secret, Value


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


def tokens_of(source: Grant | Token) -> OAuthTokens:
    """The tokens of a stored grant, or a token alone, `expires_in` counted from now."""
    now = time.time()
    left = None if source.expires_at is None else max(0, int(source.expires_at - now))
    scope = None if source.granted is None else " ".join(source.granted)
    refresh_token = source.refresh_token if isinstance(source, Grant) else None
    return OAuthTokens(source.access_token, "Bearer", left, refresh_token, scope, now)


class BearerToken(Value, frozen=True, tag="bearer"):
    """A token that was handed out by hand."""

    shown = ("expires_at",)

    token: Secret
    expires_at: float | None = None
    """Wall seconds; None: unknown."""

    def is_expired(self) -> bool:
        """Whether it has expired."""
        return self.expires_at is not None and time.time() >= self.expires_at

    def get_authorization_header(self) -> str:
        """The value of the `Authorization` header. Raises `ConfigurationError` for a token that none can carry."""
        check(self)
        return f"Bearer {self.token}"


class APIKeyToken(Value, frozen=True, tag="api-key"):
    """An API key of a provider. Which header it goes into is the provider's affair."""

    shown = ("provider",)

    provider: str
    key: Secret
    organization_id: str | None = None
    project_id: str | None = None


class BasicAuthToken(Value, frozen=True, tag="basic"):
    """A user name without a colon, and a password (RFC 7617 section 2)."""

    shown = ("username",)

    username: str
    password: Secret

    def get_authorization_header(self) -> str:
        """The value of the `Authorization` header. Raises `ConfigurationError` for a pair that none can carry."""
        check(self)
        pair = f"{self.username}:{self.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"


Credential = BearerToken | APIKeyToken | BasicAuthToken
"""What is kept as it is: nothing renews it."""


def check(credential: Credential) -> None:
    """Raises `ConfigurationError` for what a header cannot carry, or not unambiguously."""
    match credential:
        case BearerToken(token=secret) | APIKeyToken(key=secret) if not header_safe(secret):
            message = "it is empty, or has a space, a control character or one beyond ASCII"
        case BasicAuthToken(username=name) if ":" in name:
            message = "a colon in a user name would move what follows into the password"
        case BasicAuthToken(username=name, password=password) if _CONTROL.search(name + password):
            message = "a user name and a password have no control characters"
        case _:
            return
    raise from_failure(failure(Reason.CONFIGURATION, f"credential: {message}"))


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
