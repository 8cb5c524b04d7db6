"""What the drivers raise: one class for each stage of the error taxonomy (`sansio.errors`)."""

from __future__ import annotations

from mcp_oauth.sansio.errors import Attempt, Failure, Reason


class OAuthError(Exception):
    """Base of all. The text says what happened and what to do; it never holds a secret."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure))
        self.failure = failure

    @property
    def reason(self) -> Reason:
        """The stable name of what happened."""
        return self.failure.reason

    @property
    def stage(self) -> str:
        """Where: discovery, registration, authorization, token, renewal, storage, access, configuration."""
        return self.failure.reason.stage

    @property
    def cure(self) -> str:
        """What to do about it."""
        return self.failure.reason.cure

    @property
    def url(self) -> str | None:
        """The URL concerned, without its query."""
        return self.failure.url

    @property
    def status(self) -> int | None:
        """The HTTP status that decided."""
        return self.failure.status

    @property
    def oauth_error(self) -> str | None:
        """The `error` code of the authorization server (RFC 6749 section 5.2)."""
        return self.failure.oauth_error

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """All requests on the way to the failure."""
        return self.failure.attempts

    def __reduce__(self) -> tuple[type[OAuthError], tuple[Failure]]:
        return type(self), (self.failure,)


class ConfigurationError(OAuthError, ValueError):
    """An option cannot be."""


class DiscoveryError(OAuthError):
    """The server's metadata could not be found, read or trusted."""


class RegistrationError(OAuthError):
    """No client could be registered."""


class AuthorizationError(OAuthError):
    """The person's part failed: denied, timed out, answered wrongly."""


class AuthorizationRequired(AuthorizationError):
    """A person must log in, and `interactive=False` forbids to ask one."""


class TokenExchangeError(OAuthError):
    """The authorization code could not be exchanged."""


class TokenRefreshError(OAuthError):
    """The grant could not be renewed; it is kept unless the server said that it is dead."""


class TokenStorageError(OAuthError):
    """The store failed."""


class AccessError(OAuthError):
    """The request could not be sent with a token."""


_BY_STAGE: dict[str, type[OAuthError]] = {
    "configuration": ConfigurationError,
    "discovery": DiscoveryError,
    "registration": RegistrationError,
    "authorization": AuthorizationError,
    "token": TokenExchangeError,
    "renewal": TokenRefreshError,
    "storage": TokenStorageError,
    "access": AccessError,
}


def from_failure(failure: Failure) -> OAuthError:
    """The exception for a failure."""
    if failure.reason is Reason.AUTHORIZATION_REQUIRED:
        return AuthorizationRequired(failure)
    return _BY_STAGE[failure.reason.stage](failure)
