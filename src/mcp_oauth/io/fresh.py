"""`keep_fresh()`: tokens that are renewed in the background, before a request needs them."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING
from weakref import ref

from mcp_oauth.io.later import LATER, Over
from mcp_oauth.io.ports import now
from mcp_oauth.sansio.grant import Token, fresh, leeway
from mcp_oauth.sansio.steps import Ensured, Need, NotEnsured, Notice

if TYPE_CHECKING:
    from mcp_oauth.io.oauth import BaseOAuth

LOOK = 60.0
"""Seconds after which a token is looked at again at the latest: clocks jump, and machines sleep."""
TRY_AGAIN = (5.0, 10.0, 20.0, 40.0, 60.0)
"""Seconds between tries to renew that brought nothing, the last ones for ever; the first one also after a success.

Each asks the record first: no server is asked before its `next_attempt_at`.
"""


class KeepFresh:
    """A context, for `with` or `async with`, in which an `OAuth` has its token renewed in the background.

    It may be entered again, also while it is entered.
    """

    def __init__(self, oauth: BaseOAuth) -> None:
        self._oauth = oauth
        self._keepers: list[_Keeper] = []

    def __enter__(self) -> None:
        keeper = _Keeper(self._oauth)
        self._keepers.append(keeper)
        LATER.add(keeper, keeper, 0.0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        LATER.drop(self._keepers.pop())

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.__exit__(kind, error, trace)


class _Keeper:
    """The task of `LATER`. It does not keep an object that everybody else has forgotten."""

    def __init__(self, oauth: BaseOAuth) -> None:
        self._oauth = ref(oauth)
        self._jitter = oauth.plan.jitter
        self._asked = False
        """The store was asked: a program without a token gets its first one itself."""
        self._fruitless = 0
        """Tries since a token was fresh."""

    def __call__(self, _last: bool, over: Over) -> None:
        oauth = self._oauth()
        if oauth is None:
            over(None)
        elif self._suffices(oauth.token):
            over(self._until_leeway(oauth.token))
        else:
            need = Need("missing" if oauth.token is None else "expiring")
            oauth.start_ensuring(need, lambda result: over(self._tried(oauth, result)))

    def _suffices(self, token: Token | None) -> bool:
        return self._asked if token is None else fresh(token, now(), self._jitter)

    def _until_leeway(self, token: Token | None) -> float:
        if token is None or token.expires_at is None:
            return LOOK
        return min(LOOK, token.expires_at - leeway(token.obtained_at, token.expires_at, self._jitter) - now().wall)

    def _tried(self, oauth: BaseOAuth, result: Ensured | NotEnsured) -> float:
        self._asked = self._asked or isinstance(result, Ensured)
        if self._suffices(oauth.token):
            self._fruitless = 0
            return max(TRY_AGAIN[0], self._until_leeway(oauth.token))
        if not self._fruitless:
            why = result.failure.message if isinstance(result, NotEnsured) else "there is no newer one yet"
            message = f"the token for {oauth.server_url} was not renewed in the background: {why}"
            oauth._tell(Notice("not-fresh", message))
        self._fruitless += 1
        return TRY_AGAIN[min(self._fruitless, len(TRY_AGAIN)) - 1]
