"""Tokens for MCP servers, by names of your own: log in once, then ask for headers or send requests.

    handler = OAuthHandler()
    tokens = await handler.ensure_authenticated_mcp("notion", "https://mcp.notion.com/mcp")
    headers = await handler.prepare_headers_for_mcp_server("notion", "https://mcp.notion.com/mcp")

A token at hand is used; else the store is asked; an expired one is renewed; and only then a browser opens. All that is
the core's: what is here is which server a name stands for (`token_manager`), and what this process has at hand.

A name is a label in the store, and whoever uses it last says what it stands for. Calls that are given a server URL get
that server's token whatever the label says, and make the label say so; while the token that they have at hand is fresh
they read nothing. Calls that are given only the name read the store each time, and do nothing for a server that is not
the one that this handler last used the name with.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar, cast

from mcp_oauth.exceptions import TokenStorageError, from_failure
from mcp_oauth.io.flights import FLIGHTS
from mcp_oauth.io.httpx_like import DIRECT, HttpxOptions, HttpxPlug
from mcp_oauth.io.options import JITTER, Client, make_plan
from mcp_oauth.io.ports import now
from mcp_oauth.io.stacks import installed
from mcp_oauth.sansio import uris
from mcp_oauth.sansio.errors import Reason, failure
from mcp_oauth.sansio.grant import Grant, Scopes, Token, fresh
from mcp_oauth.sansio.logout import LoggedOut
from mcp_oauth.sansio.plan import Dynamic, Plan, PreRegistered
from mcp_oauth.sansio.scopes import union
from mcp_oauth.token_manager import TokenManager
from mcp_oauth.tokens import OAuthTokens, tokens_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

log = logging.getLogger("mcp_oauth")

MOST_LOGINS = 3
"""Times that one call asks for a token, where other calls' logins keep bringing other scopes."""

MOST_KEPT = 1000
"""Servers and names that a handler has at hand; of more, those that came first are asked of the store again."""

P = ParamSpec("P")
T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


class OAuthHandler:
    """Tokens for any number of MCP servers, from one store, as one account.

    It serves all tasks and threads of a program, on asyncio and trio, whose calls share one renewal and one login; a
    cancelled call takes nothing with it. Every method raises `OAuthError`: `AuthorizationRequired` where a person
    would have to log in and `interactive=False`, `TokenStorageError` where the store fails.
    """

    def __init__(self, token_manager: TokenManager | None = None, **options: Unpack[HttpxOptions]) -> None:
        """Without a token manager one is made: of `store` and `account`, or of the best store of this system.

        The options are those of `OAuth` (`io.options.Options`, `io.httpx_like.HttpxOptions`): `client`, `interactive`,
        `user`, …; `scopes` are those of calls that name none. Raises `TypeError` for an option that there is not, and
        `ConfigurationError` for a `client` whose secret every server's authorization server would get (RULES 2.9): a
        `PreRegistered` with a secret needs its `issuer`, and a `Dynamic` takes no `initial_access_token`.
        """
        if unknown := options.keys() - HttpxOptions.__optional_keys__:
            raise TypeError(f"OAuthHandler has no option {min(unknown)!r}")
        if token_manager is not None and ("store" in options or "account" in options):
            raise from_failure(failure(Reason.CONFIGURATION, "token_manager: it has its own store and account"))
        store, account = options.pop("store", None), options.pop("account", "")
        self.token_manager = token_manager or TokenManager(store=store, account=account)
        # Each is read for every server: an iterator would be empty the second time.
        self._options = cast("HttpxOptions", {name: _lasting(value) for name, value in options.items()})
        _check_client(self._options.get("client"))
        self._oauths: dict[tuple[str, Scopes | None], HttpxPlug] = {}
        """By server URL and scopes."""
        self._at_hand: dict[str, _AtHand] = {}
        """The latest token of each server URL."""
        self._uses: dict[str, _Use] = {}
        """What each name was last used with."""

    # --- Tokens ---------------------------------------------------------------------------------------------------

    async def ensure_authenticated_mcp(
        self, server_name: str, server_url: str, scopes: Iterable[str] | None = None
    ) -> OAuthTokens:
        """Tokens that will do, got in this order: from memory, from the store, by a renewal, by a login in a browser.

        `scopes` must have been asked for, else there is a login that asks for them and for what was asked before;
        None: whatever there is. From now on `server_name` stands for `server_url`. Tokens that were saved under the
        name by hand, for this server, come before all others: those that another process saves, or another token
        manager, once the token at hand is due for renewal.
        """
        tokens, _ = await self._ensured(server_name, self._plan(server_url, scopes))
        return tokens

    async def prepare_headers_for_mcp_server(
        self,
        server_name: str,
        server_url: str,
        scopes: Iterable[str] | None = None,
        extra_headers: Mapping[str, str] | None = None,
    ) -> dict[str, str]:
        """`extra_headers` and the `Authorization` for this server, as `ensure_authenticated_mcp` gets it.

        An `Authorization` among the extras, in whatever case, is left out with a warning: it is not this server's.
        """
        tokens, _ = await self._ensured(server_name, self._plan(server_url, scopes))
        return {
            **_without_authorization(server_name, extra_headers),
            "Authorization": tokens.get_authorization_header(),
        }

    def get_authorization_header(self, server_name: str) -> str | None:
        """The value of the `Authorization` header, as the store has it now, which it reads; it asks no server.

        None where there is no token, or only an expired one, and where another program made the name stand for another
        server since it was used here: `ensure_authenticated_mcp` gets one, and makes it stand for the right server.
        """
        tokens = self.token_manager.load_tokens(server_name, self._used(server_name))
        if tokens is not None and not tokens.is_expired():
            return tokens.get_authorization_header()
        if (use := self._uses.get(server_name)) is not None:
            self._at_hand.pop(use.url, None)  # the next call shall look into the store too
        return None

    # --- Logging out ----------------------------------------------------------------------------------------------

    def clear_tokens(self, server_name: str) -> bool:
        """Forget a name, what was saved under it and the grant of its server: here only. False: there was nothing.

        Its server is the one that this handler last used the name with, also where another program made the name stand
        for another since: that one's grant stays.
        """
        used = self._used(server_name)
        url = used or self.token_manager.server_url(server_name)
        try:
            return self.token_manager.delete_tokens(server_name, used)
        finally:
            self._forget(server_name, url)

    async def logout(self, server_name: str, server_url: str | None = None) -> LoggedOut:
        """Revoke the refresh token, then the access token (RFC 7009), forget everything here, and say what came of it.

        The client registration is deleted too (RFC 7592), unless another grant uses it. Whatever the server says, the
        grant is gone here. Without `server_url` that is all: no server is told.
        """
        if server_url is None:
            await _off_loop(self.clear_tokens, server_name)
            return LoggedOut()
        url = self._plan(server_url, None).server_url
        try:
            return await self._oauth(url, None).alogout()
        finally:
            self._forget(server_name, url)
            await _off_loop(self.token_manager.release, server_name, url)

    # --- Requests -------------------------------------------------------------------------------------------------

    async def authenticated_request(
        self,
        server_name: str,
        server_url: str,
        url: str,
        method: str = "GET",
        scopes: Iterable[str] | None = None,
        retry_on_401: bool = True,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = 30.0,
        **request: Any,
    ) -> Any:
        """Send a request with the server's token, and return the answer as it is: of httpx2, or httpx if that is here.

        `url` must be at the origin of `server_url`: raises `ConfigurationError` before anything is sent; and where a
        redirect leads elsewhere the token stays behind. A 401 is met with a newer token, a renewal or a login, each
        once, unless `retry_on_401=False`. `timeout` is in seconds, None: none. `request` is for the library: `json`,
        `content`, `params`, `follow_redirects`, …
        """
        plan = self._plan(server_url, scopes)
        _check_origin(str(url), plan.server_url)
        tokens, oauth = await self._ensured(server_name, plan)
        auth = oauth if oauth is not None and retry_on_401 else _Once(plan.server_url, tokens)
        async with installed().library.AsyncClient(timeout=timeout, **self._beneath()) as client:
            own = _without_authorization(server_name, headers)
            return await client.request(method, url, headers=own, auth=auth, **request)

    # --- Inside ---------------------------------------------------------------------------------------------------

    def _plan(self, server_url: str, scopes: Iterable[str] | None) -> Plan:
        return make_plan(server_url, {"scopes": self._options.get("scopes") if scopes is None else scopes})

    async def _ensured(self, name: str, plan: Plan) -> tuple[OAuthTokens, HttpxPlug | None]:
        """Tokens, and what renews them; None: they were saved by hand."""
        here = self._here(name, plan)
        if here is not None:
            return tokens_of(here.grant), here.oauth
        saved = await _off_loop(self._by_hand, name, plan.server_url)
        if saved is None:
            here = await self._authorized(plan)
            saved = await _off_loop(self._bound, name, plan.server_url)
            if saved is None:
                return tokens_of(here.grant), here.oauth
        log.debug("the tokens saved under %r by hand are used", name)
        return saved, None

    def _here(self, name: str, plan: Plan) -> _AtHand | None:
        """The token at hand, if it is fresh, the latest, asked for with these scopes, and what the name stands for."""
        here, use = self._at_hand.get(plan.server_url), self._uses.get(name)
        if here is None or use is None or use.by_hand or self._used(name) != plan.server_url:
            return None
        token = here.oauth.token
        latest = token is not None and token.access_token == here.grant.access_token
        return here if latest and covers(here.grant, plan.scopes) and fresh(here.grant, now(), JITTER) else None

    def _used(self, name: str) -> str | None:
        """What the name was last used with here, unless the token manager did something to the two since."""
        use = self._uses.get(name)
        return use.url if use is not None and use.stamp == self.token_manager.stamp(name, use.url) else None

    def _by_hand(self, name: str, url: str) -> OAuthTokens | None:
        saved = self.token_manager.usable_tokens(name, url)
        if saved is not None:
            _keep(self._uses, name, _Use(url, self.token_manager.stamp(name, url), by_hand=True))
        return saved

    def _bound(self, name: str, url: str) -> OAuthTokens | None:
        """Bind the name, and look once more for tokens saved by hand: those saved from now on change the stamp.

        A token is there: a store that fails now keeps it from nobody (RULES 4.11).
        """
        try:
            self.token_manager.bind(name, url)
            stamp = self.token_manager.stamp(name, url)
            saved = self._by_hand(name, url)
        except TokenStorageError as error:
            log.warning("the name %r was not saved: %s", name, error)
            return None
        if saved is None:
            _keep(self._uses, name, _Use(url, stamp, by_hand=False))
        return saved

    async def _authorized(self, plan: Plan) -> _AtHand:
        """Ask the upkeep of the grant. Another call's login may be what it brings, and ask for other scopes."""
        for _ in range(MOST_LOGINS):
            scopes = plan.scopes and await _off_loop(self._with_earlier, plan)
            oauth = self._oauth(plan.server_url, scopes)
            token = await oauth.aauthorize()
            if covers(token, plan.scopes):
                here = _AtHand(oauth, await _off_loop(self._granted, plan.server_url, token))
                if self._oauths.get((plan.server_url, scopes)) is oauth:  # else a logout came between
                    _keep(self._at_hand, plan.server_url, here)
                return here
        message = f"other logins at {uris.without_query(plan.server_url)} kept asking for other scopes"
        raise from_failure(failure(Reason.STORE_CONTENDED, message))

    def _with_earlier(self, plan: Plan) -> Scopes:
        """What was asked for before is asked for again, or two callers would take turns to log in (RULES 3.5)."""
        grant = self.token_manager.grant(plan.server_url)
        earlier = None if grant is None else grant.requested or grant.granted
        return union(earlier or (), plan.scopes or ())

    def _granted(self, url: str, token: Token) -> Grant | Token:
        """The grant that the token is of. The token is there: a store that fails now keeps it from nobody."""
        try:
            grant = self.token_manager.grant(url)
        except TokenStorageError:
            return token
        return grant if grant is not None and grant.access_token == token.access_token else token

    def _oauth(self, url: str, scopes: Scopes | None) -> HttpxPlug:
        key = (url, scopes)
        oauth = self._oauths.get(key)
        if oauth is None:
            options = self._options.copy()
            options["store"], options["account"] = self.token_manager.token_store, self.token_manager.account
            options["scopes"], options["verify"] = scopes, self._verify
            oauth = self._oauths.setdefault(key, installed().oauth(url, **options))
            _trim(self._oauths)
        return oauth

    def _forget(self, name: str, *urls: str | None) -> None:
        self._uses.pop(name, None)
        for url in urls:
            self._at_hand.pop(url or "", None)
        for key in list(self._oauths):
            if key[0] in urls:
                self._oauths.pop(key, None)

    @cached_property
    def _verify(self) -> Any:
        """The `SSLContext` of all servers' traffic: each takes some 20 ms and a megabyte for its certificates."""
        given = self._options.get("verify")
        needed = given is None and self._options.get("transport") is None
        return installed().library.create_ssl_context() if needed else given

    def _beneath(self) -> dict[str, Any]:
        """What lies beneath the client of a request: the same as for OAuth traffic."""
        transport, proxy = self._options.get("transport"), self._options.get("proxy")
        made = {} if transport is None else {"transport": transport()}
        direct = {"mounts": DIRECT} if proxy is None else {}
        return {"verify": self._verify, "proxy": proxy, **direct, **made}


class _AtHand(NamedTuple):
    """A token of this process, and the grant that it came from as that was then (a token alone: it was not saved)."""

    oauth: HttpxPlug
    grant: Grant | Token


class _Use(NamedTuple):
    """The server that a name was used with, and how things stood then."""

    url: str
    stamp: object
    """`TokenManager.stamp`."""
    by_hand: bool
    """It was used with tokens saved by hand, which are always read anew."""


class _Once:
    """The `auth` of a request whose token nothing replaces: for its first hop alone."""

    def __init__(self, server_url: str, tokens: OAuthTokens) -> None:
        self._server_url = server_url
        self._header = tokens.get_authorization_header()

    def __call__(self, request: Any) -> Any:
        """The request with its credential, if it is for the server; no copy that a redirect makes has it."""
        if not uris.belongs(str(request.url), server=self._server_url):
            return request
        return installed().oauth.one_hop(request, (("authorization", self._header),))


def _lasting(option: Any) -> Any:
    return tuple(cast("Iterator[object]", option)) if isinstance(option, Iterator) else option


def _keep(kept: dict[K, T], key: K, value: T) -> None:
    kept[key] = value
    _trim(kept)


def _trim(kept: dict[K, T]) -> None:
    for key in list(kept)[:-MOST_KEPT]:
        kept.pop(key, None)


def _check_client(given: Client | Iterable[Client] | None) -> None:
    """RULES 2.9: a secret goes to one authorization server, and here each server names its own."""
    for client in given if isinstance(given, Iterable) else (given,):
        match client:
            case PreRegistered(client_secret=str(), issuer=None):
                message = "client_secret: give issuer= with it, or use OAuth(url, client=...) for the one server"
            case Dynamic(initial_access_token=str()):
                message = "initial_access_token: use OAuth(url, client=...) for the one server"
            case _:
                continue
        why = "a handler serves many servers, and would give it to whatever authorization server each of them names"
        raise from_failure(failure(Reason.CONFIGURATION, f"{message}; {why}"))


def covers(token: Grant | Token, scopes: Scopes | None) -> bool:
    """It was asked for with these scopes; what of them was granted is for the server to judge."""
    return set(scopes or ()) <= set(token.requested or ())


def _check_origin(url: str, server_url: str) -> None:
    """RULES 1.1."""
    if not uris.belongs(url, server=server_url):
        what = (
            f"url: {uris.without_query(url)} is not a well-formed URL at the origin of {uris.without_query(server_url)}"
        )
        raise from_failure(failure(Reason.CONFIGURATION, f"{what}, whose token goes nowhere else"))


def _without_authorization(name: str, headers: Mapping[str, str] | None) -> dict[str, str]:
    kept = {field: value for field, value in (headers or {}).items() if field.lower() != "authorization"}
    if len(kept) < len(headers or {}):
        log.warning("an Authorization header of the caller's is left out: it is not that of %r", name)
    return kept


async def _off_loop(work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """Do what blocks on a thread of its own; who is cancelled only stops waiting."""
    value, _ = await FLIGHTS.wait_async(object(), lambda _: work(*args, **options))
    return value
