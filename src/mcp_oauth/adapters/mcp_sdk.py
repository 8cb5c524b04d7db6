"""A store as the `TokenStorage` of the official SDK's own OAuth provider, of `mcp` 1.x and 2.x.

from mcp.client.auth import OAuthClientProvider

url = "https://mcp.example.com/mcp"
storage = TokenStorage(EncryptedFileStore("~/logins", password=...), url)
provider = OAuthClientProvider(url, client_metadata, storage, redirect_handler, callback_handler)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from mcp_oauth.adapters.key_value import KeyValue
from mcp_oauth.io.ports import now
from mcp_oauth.sansio import uris
from mcp_oauth.sansio.grant import digest
from mcp_oauth.store.base import DamagedError, Store

if TYPE_CHECKING:
    from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
    from pydantic import BaseModel

M = TypeVar("M", bound="BaseModel")

TOKENS = "mcp-sdk-tokens"
CLIENT = "mcp-sdk-client"


class TokenStorage:
    """What the SDK keeps for one server, as one account, in any store of ours.

    All methods raise `StoreError`. A call that is cancelled ends what it began.
    """

    def __init__(self, store: Store, server_url: str, account: str = "") -> None:
        """`account` is your own label: two accounts of one server have nothing to do with each other."""
        self._kept = KeyValue(store)
        self._server_url = uris.server_url(server_url) or server_url
        self._key = digest(self._server_url, account)

    def __repr__(self) -> str:
        return f"TokenStorage({self._kept!r})"

    async def get_tokens(self) -> OAuthToken | None:
        """The tokens, with the seconds that the access token has left.

        The SDK does not learn from its storage when a token expires: it sends an expired one, and answers the 401 with
        a new login. One that has expired is therefore "" here, which makes it renew first. But only where the
        authorization server is at the MCP server's own origin: after a restart the SDK sends the refresh token there,
        whoever issued it.
        """
        from mcp.shared.auth import OAuthToken

        kept = await self._kept.get(self._key, collection=TOKENS)
        if kept is None:
            return None
        tokens = self._read(OAuthToken, kept.get("tokens"))
        if tokens.expires_in is None:
            return tokens
        left = int(kept.get("expires_at", 0) - now().wall)
        spent = left <= 0 and await self._issuer_is_at_home()
        return tokens.model_copy(update={"expires_in": max(0, left)} | ({"access_token": ""} if spent else {}))

    async def set_tokens(self, tokens: OAuthToken) -> None:
        """Keep the tokens, and when the access token expires."""
        expires_at = None if tokens.expires_in is None else now().wall + tokens.expires_in
        value = {"tokens": _written(tokens), "expires_at": expires_at}
        await self._kept.put(self._key, value, collection=TOKENS)

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        """The registration of the client; None too once its secret has expired, so that the SDK registers anew."""
        from mcp.shared.auth import OAuthClientInformationFull

        kept = await self._kept.get(self._key, collection=CLIENT)
        if kept is None:
            return None
        client = self._read(OAuthClientInformationFull, kept)
        expires_at = client.client_secret_expires_at if client.client_secret else None
        return None if expires_at and expires_at <= now().wall else client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        """Keep the registration of the client."""
        await self._kept.put(self._key, _written(client_info), collection=CLIENT)

    async def clear(self) -> bool:
        """Forget the tokens and the registration here; no server is told. False: there was nothing."""
        tokens = await self._kept.delete(self._key, collection=TOKENS)
        return await self._kept.delete(self._key, collection=CLIENT) or tokens

    async def _issuer_is_at_home(self) -> bool:
        client = await self._kept.get(self._key, collection=CLIENT) or {}
        return uris.same_origin(str(client.get("issuer")), self._server_url)

    def _read(self, model: type[M], value: object) -> M:
        from pydantic import ValidationError

        try:
            return model.model_validate(value)
        except ValidationError:  # its text quotes the value
            message = f"what is kept for {uris.without_query(self._server_url)} is no {model.__name__} of this `mcp`"
            raise DamagedError(f"{message}: await clear(), and log in again") from None


def _written(value: BaseModel) -> dict[str, Any]:
    return value.model_dump(mode="json", exclude_none=True)
