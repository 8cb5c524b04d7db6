"""`MCPOAuthClient`: a login one step at a time, and nothing kept for you.

    client = MCPOAuthClient("https://mcp.example.com/mcp")
    tokens = await client.authorize(["read"])                      # discovers and registers, where that was not done
    tokens = await client.refresh_token(tokens.refresh_token)

It runs the core's machines one by one (`sansio.by_step`), each on a memory store that ends with the call. What tokens
were issued to is remembered, by their fingerprints, so that none is presented as another client or at another server.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, cast

from msgspec.structs import replace

from mcp_oauth.exceptions import ConfigurationError, OAuthError, TokenRefreshError, from_failure
from mcp_oauth.io.drive import Advance
from mcp_oauth.io.flights import FLIGHTS, Flight
from mcp_oauth.io.httpx_like import HttpxOptions, HttpxPlug
from mcp_oauth.io.ports import now
from mcp_oauth.io.stacks import installed
from mcp_oauth.io.user import Agent, Browser, PasteBack, User
from mcp_oauth.sansio import by_step, client, discovery, login, renewal, revocation, uris
from mcp_oauth.sansio.discovery import Discovered
from mcp_oauth.sansio.errors import Failure, Reason, failure
from mcp_oauth.sansio.grant import AuthMethod, Grant, Record, Registration, encode
from mcp_oauth.sansio.metadata import AuthorizationServerMetadata
from mcp_oauth.sansio.plan import Dynamic, PreRegistered
from mcp_oauth.sansio.steps import Await, Done, Event, Failed, Notice, Step
from mcp_oauth.sansio.values import Now, Seed, fingerprint
from mcp_oauth.store.memory import MemoryStore
from mcp_oauth.tokens import OAuthTokens, tokens_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

log = logging.getLogger("mcp_oauth")

MOST_REMEMBERED = 1000
"""Tokens of which it is remembered what they were issued to, and logins of which the last renewal is."""

S = TypeVar("S")
R = TypeVar("R")
V = TypeVar("V")


class ClientOptions(TypedDict, total=False):
    """The rarer options, which are those of every `OAuth`: `io.options.Options`, `io.httpx_like.HttpxOptions`."""

    user: User | Agent | None
    on_notice: Callable[[Notice], None] | None
    resource: str
    trusted_issuer: Mapping[str, str]
    strict_resource: bool
    assume_s256: bool
    allow_private: bool
    legacy_2025_03_26: bool
    authorization_params: Mapping[str, str]
    token_params: Mapping[str, str]
    login_seconds: float
    transport: Callable[[], Any] | None
    verify: Any
    proxy: Any


class MCPOAuthClient:
    """The authorization code grant for one MCP server, by hand, on asyncio or trio.

    Every method raises `OAuthError`: `DiscoveryError`, `RegistrationError`, `AuthorizationError`, `TokenExchangeError`
    or `TokenRefreshError`, with stage, url, status, oauth_error and cure.
    """

    def __init__(
        self,
        server_url: str,
        redirect_uri: str = by_step.LOOPBACK,
        *,
        authorization_url: str | None = None,
        token_url: str | None = None,
        registration_url: str | None = None,
        revocation_url: str | None = None,
        issuer: str | None = None,
        client_id: str | None = None,
        client_secret: str | None = None,
        auth_method: AuthMethod | None = None,
        **options: Unpack[ClientOptions],
    ) -> None:
        """Describe the server and yourself; nothing is sent. Raises `ConfigurationError`, with the option and the cure.

        `redirect_uri`: on loopback without a port, any free one; with a port, exactly that; https or a scheme of your
        own (`myapp://oauth/callback`) needs a `user` who receives it. The default leaves its path to us, too.
        `authorization_url` and `token_url`, always together, and the other two with them, are taken at your word:
        nothing is discovered. `issuer` is then what the redirect's `iss` is compared with (RFC 9207), and without it
        nothing is; else it is the authorization server that is preferred. `client_id` is registered there, and
        `auth_method` is how that client authenticates; None: as the metadata allows.
        """
        if unknown := options.keys() - ClientOptions.__optional_keys__:
            raise TypeError(f"MCPOAuthClient has no option {min(unknown)!r}")
        self._driver = installed().oauth
        self._options = cast("HttpxOptions", {**options, "allow_any_redirect": True, "prefer_issuer": issuer})
        self._client: PreRegistered | Dynamic = by_step.dynamic("MCP client", redirect_uri)
        if client_id is not None:
            self._client = PreRegistered(client_id, client_secret, issuer, redirect_uri, auth_method)
        self.redirect_uri = redirect_uri
        self.server_url = self._oauth(server_url).server_url
        self._registration: Registration | None = None
        self.client_id = client_id
        self.client_info: dict[str, Any] | None = None
        """The client as it is registered, its secret included (RFC 7591 section 3.2.1); None: not known yet."""
        self._issued: dict[str, Grant] = {}
        """By the fingerprints of tokens; newest last."""
        self._exchanged: dict[str, tuple[str, OAuthTokens]] = {}
        """By lineage: the fingerprint of the last refresh token that was exchanged, and what it brought."""
        endpoints = (authorization_url, token_url, registration_url, revocation_url)
        told = by_step.told(self.server_url, issuer, *endpoints)
        if isinstance(told, Failure):
            raise from_failure(told)
        self._manual = told is not None
        self._know(told, issuer)

    def _know(self, found: Discovered | None, issuer: str | None) -> None:
        """Show what is known of the authorization server; None: not discovered yet, or there is none."""
        metadata = AuthorizationServerMetadata("") if found is None else found.metadata
        listed = None if found is None else found.scopes_supported
        self._found = found
        self.issuer = issuer
        self.authorization_url = metadata.authorization_endpoint
        self.token_url = metadata.token_endpoint
        self.registration_endpoint = metadata.registration_endpoint
        self.revocation_endpoint = metadata.revocation_endpoint
        self.code_challenge_methods_supported = metadata.code_challenge_methods_supported
        self.scopes_supported = metadata.scopes_supported if listed is None else listed

    # --- The steps ------------------------------------------------------------------------------------------------

    async def discover_authorization_server(self) -> None:
        """Find the authorization server and read its metadata; anew, if that was done before.

        Asked are, in the MCP specification's order: the server's protected resource metadata (RFC 9728), at
        `/.well-known/oauth-protected-resource` with its path and without; the metadata of the authorization server
        that it lists (RFC 8414, OpenID Discovery); of a server without the former, that at its own origin
        (2025-03-26). Nothing is asked where the endpoints were given. Raises `DiscoveryError`.
        """
        if self._manual:
            return
        oauth, before = self._oauth(), self._found
        stored = before.metadata.issuer if before is not None else None
        query = discovery.Query(oauth.plan, stored_issuer=stored, resource_metadata_seen=bool(before and before.listed))
        found = await _ran(oauth, discovery.begin(query), _timeless(discovery.advance))
        self._know(found, found.metadata.issuer)
        if isinstance(self._client, PreRegistered) and self._client.issuer is None:  # bound to it (RULES 2.9)
            self._client = replace(self._client, issuer=found.metadata.issuer)

    async def register_client(
        self,
        client_name: str = "MCP client",
        redirect_uris: Iterable[str] | None = None,
        scopes: Iterable[str] | None = None,
    ) -> dict[str, Any]:
        """Register a new client (RFC 7591), which is used from here on; returns `client_info`.

        Of several `redirect_uris` the constructor's is used if it is among them, else the first. `scopes`: those that
        will be asked for; None: those that the server suggests. Raises `RegistrationError`.
        """
        named = tuple(redirect_uris or ()) or (self.redirect_uri,)
        used = self.redirect_uri if self.redirect_uri in named else named[0]
        dynamic = by_step.dynamic(client_name, used, tuple(uri for uri in named if uri != used))
        # Nobody listens yet: this user only chooses the port.
        oauth = self._oauth(client=dynamic, scopes=scopes, user=PasteBack())
        step = by_step.begin_registration(oauth.plan, await self._discovered(to_register=True), _seed(), now())
        ready = await _ran(oauth, step, client.advance)
        self._client, self.redirect_uri = dynamic, used
        return self._use(ready.client)

    async def authorize(self, scopes: Iterable[str] | None = None) -> OAuthTokens:
        """Have a person log in and grant `scopes` (None: those that the server suggests), with PKCE.

        Discovers where that was not done; registers where there is no client yet, or where its registration does not
        cover these scopes or its port is taken. Raises `AuthorizationError`, also when the person denied or did not
        answer within `login_seconds`, and `TokenExchangeError`.
        """
        self._check_receiver()
        store, known = MemoryStore(), self._registration
        oauth = self._oauth(store=store, scopes=scopes)
        if known is not None and known.kind == "dcr":
            _put(store, *by_step.registrations(oauth.plan, known))
        found = await self._discovered(to_register=isinstance(self._client, Dynamic))
        step = by_step.begin_login(oauth.plan, found, _seed(), now())
        await _ran(oauth, step, login.advance if self.issuer is not None else by_step.logging_in)
        grant = _grant_in(store)
        if grant.registration != known:
            self._use(grant.registration)
        self._remember(grant)
        return tokens_of(grant)

    async def refresh_token(self, refresh_token: str | None) -> OAuthTokens:
        """Exchange a refresh token for new tokens (RFC 6749 section 6), as the client that it was issued to.

        What the answer leaves out, a new refresh token among it, stays as it was. A request that was certainly not
        processed is repeated after 1, 2 and 4 seconds; one whose answer was lost, once and at once (RULES 3.3). A
        token from elsewhere needs the `client_id` that it was issued to. Raises `TokenRefreshError`.

        A token that was exchanged here for another one is not sent again, which servers take for theft: the tokens that
        it brought are returned, until they are exchanged or revoked in turn. So a call may be cancelled, or come twice.
        """
        if not refresh_token:
            message = "there is no refresh token: the server issued none, so call authorize()"
            raise TokenRefreshError(failure(Reason.RENEWAL_REFUSED, message))
        grant = replace(await self._issued_to(refresh_token, TokenRefreshError), refresh_token=refresh_token)
        mark = fingerprint(refresh_token)
        spent, brought = self._exchanged.get(grant.lineage, ("", None))
        if brought is not None and spent == mark and brought.refresh_token != refresh_token:
            return dataclasses.replace(brought)
        tokens, _ = await FLIGHTS.wait_async((self, mark), lambda flight: self._renew(flight, mark, grant))
        return tokens

    async def revoke_token(self, token: str, token_type_hint: revocation.Kind | None = None) -> bool:
        """Revoke a token (RFC 7009), as the client that it was issued to.

        True: the server revoked it, or does not know it any more. False: it has no revocation endpoint, or did not,
        and the log says why. Without a hint the token is called an access token; servers must look further.
        """
        grant = await self._issued_to(token, ConfigurationError)
        self._exchanged.pop(grant.lineage, None)
        if grant.revocation_endpoint is None:
            log.warning("revocation-failed: %s has no revocation endpoint", grant.issuer)
            return False
        kind = token_type_hint or "access_token"
        step = revocation.begin(grant, ((kind, token),))
        (revoked,) = await _ran(self._oauth(), step, _timeless(revocation.advance))
        if revoked.failure is not None:
            log.warning("revocation-failed: %s", revoked.failure.message)
        return revoked.failure is None

    # --- What they share ------------------------------------------------------------------------------------------

    def _oauth(self, server_url: str | None = None, **options: Unpack[HttpxOptions]) -> HttpxPlug:
        """The driver for one step, whose store ends with it. Raises `ConfigurationError`."""
        made: HttpxOptions = {"store": MemoryStore(), "client": self._client, **self._options, **options}
        return self._driver(server_url or self.server_url, **made)

    async def _discovered(self, *, to_register: bool = False) -> Discovered:
        if self._found is None:
            await self.discover_authorization_server()
        assert self._found is not None  # noqa: S101 - or it would have raised
        if to_register and self.registration_endpoint is None:
            message = f"{self._found.metadata.issuer} has no registration endpoint: pass client_id"
            raise from_failure(failure(Reason.CLIENT_INFORMATION_NEEDED, message))
        return self._found

    def _check_receiver(self) -> None:
        """A browser comes back to a loopback listener, and nowhere else."""
        browser = isinstance(self._options.get("user") or Browser(), Browser)
        if browser and not self.redirect_uri.lower().startswith("http:"):
            where = uris.without_query(self.redirect_uri)
            message = f"redirect_uri: no browser finds back from {where} to this program; pass user=, as PasteBack()"
            raise from_failure(failure(Reason.CONFIGURATION, message))

    def _use(self, registered: Registration) -> dict[str, Any]:
        """Be this client from here on."""
        self._registration, self.client_id = registered, registered.client_id
        self.client_info = by_step.members(registered, self._client if isinstance(self._client, Dynamic) else None)
        return self.client_info

    def _remember(self, grant: Grant, *spent: str) -> None:
        issued = by_step.without_tokens(grant)
        for mark in (*spent, *(fingerprint(token) for token in (grant.access_token, grant.refresh_token) if token)):
            _put_last(self._issued, mark, issued)

    async def _issued_to(self, token: str, error: type[OAuthError]) -> Grant:
        """What a token was issued to: never another client (RULES 2.11). One from elsewhere, to the configured one."""
        known = self._issued.get(fingerprint(token))
        if known is not None:
            return known
        if not isinstance(self._client, PreRegistered):
            message = "client_id: this token does not come from this object; pass the client that it was issued to"
            raise error(failure(Reason.CONFIGURATION, message))
        found, oauth = await self._discovered(), self._oauth()
        grant = by_step.issued_elsewhere(oauth.plan, found, _seed(), now())
        if isinstance(grant, Failure):
            raise from_failure(grant)
        return grant

    def _renew(self, flight: Flight, mark: str, grant: Grant) -> OAuthTokens:
        """On the flight's thread, which runs to its end whoever waits for it."""
        store = MemoryStore()
        oauth = self._oauth(store=store)
        _put(store, *by_step.renewable(oauth.plan, grant))
        end = _end(oauth.run(flight, by_step.begin_renewal(oauth.plan, grant, _seed()), renewal.advance))
        error = end.error if isinstance(end, Failed) else end.value.failure
        if error is not None:
            raise TokenRefreshError(error)
        renewed = _grant_in(store)
        tokens = tokens_of(renewed)
        self._remember(renewed, mark)
        _put_last(self._exchanged, grant.lineage, (mark, dataclasses.replace(tokens)))
        return tokens


def _put_last(remembered: dict[str, V], name: str, value: V) -> None:
    """Remember it, and the newest others."""
    remembered.pop(name, None)
    remembered[name] = value
    while len(remembered) > MOST_REMEMBERED:
        remembered.pop(next(iter(remembered)), None)


def _seed() -> Seed:
    return Seed(os.urandom(32))


async def _ran(oauth: HttpxPlug, step: Step[S, R], advance: Advance[S, R]) -> R:
    """The result of a machine, run on a flight. Raises `OAuthError`."""
    landed, _ = await FLIGHTS.wait_async(object(), lambda flight: oauth.run(flight, step, advance))
    end = _end(landed)
    if isinstance(end, Failed):
        raise from_failure(end.error)
    return end.value


def _end(step: Step[S, R]) -> Done[R] | Failed:
    assert not isinstance(step, Await)  # noqa: S101 - nothing stops it before its end
    return step


def _timeless(advance: Callable[[S, Event], Step[S, R]]) -> Advance[S, R]:
    def timed(state: S, event: Event, *, now: Now) -> Step[S, R]:  # noqa: ARG001
        return advance(state, event)

    return timed


def _put(store: MemoryStore, key: str, record: Record) -> None:
    store.save(key, encode(record), revision=record.revision, expected=None)


def _grant_in(store: MemoryStore) -> Grant:
    stored = store.load(by_step.KEY)
    assert stored is not None  # noqa: S101 - the machine has just saved it
    return by_step.grant_of(stored.value)
