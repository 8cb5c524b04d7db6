"""The OAuth 2.1 client for MCP servers: a pure protocol core and thin drivers.

    from mcp_oauth.io.httpx2 import OAuth          # or httpx, aiohttp, requests, anyio

    httpx2.AsyncClient(auth=OAuth("https://mcp.example.com/mcp"))

What programs name beside it stands here, and is loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcp_oauth.client import MCPOAuthClient
    from mcp_oauth.exceptions import (
        AccessError,
        AuthorizationError,
        AuthorizationRequired,
        ConfigurationError,
        DiscoveryError,
        OAuthError,
        RegistrationError,
        TokenExchangeError,
        TokenRefreshError,
        TokenStorageError,
    )
    from mcp_oauth.handler import OAuthHandler
    from mcp_oauth.io.two_leg import TwoLeg
    from mcp_oauth.io.user import Browser, PasteBack
    from mcp_oauth.sansio.plan import ClientMetadataDocument, Dynamic, PreRegistered
    from mcp_oauth.sansio.registration import metadata_document
    from mcp_oauth.store.choose import TokenStoreBackend, TokenStoreFactory
    from mcp_oauth.store.encrypted_file import EncryptedFileStore
    from mcp_oauth.store.keyring import KeyringStore
    from mcp_oauth.store.memory import MemoryStore
    from mcp_oauth.store.redis import RedisStore
    from mcp_oauth.store.vault import VaultStore
    from mcp_oauth.token_manager import CredentialEntry, ServerEntry, TokenManager
    from mcp_oauth.tokens import APIKeyToken, BasicAuthToken, BearerToken, OAuthTokens

_HOMES = {
    "APIKeyToken": "tokens",
    "AccessError": "exceptions",
    "AuthorizationError": "exceptions",
    "AuthorizationRequired": "exceptions",
    "BasicAuthToken": "tokens",
    "BearerToken": "tokens",
    "Browser": "io.user",
    "ClientMetadataDocument": "sansio.plan",
    "ConfigurationError": "exceptions",
    "CredentialEntry": "token_manager",
    "DiscoveryError": "exceptions",
    "Dynamic": "sansio.plan",
    "EncryptedFileStore": "store.encrypted_file",
    "KeyringStore": "store.keyring",
    "MCPOAuthClient": "client",
    "MemoryStore": "store.memory",
    "OAuthError": "exceptions",
    "OAuthHandler": "handler",
    "OAuthTokens": "tokens",
    "PasteBack": "io.user",
    "PreRegistered": "sansio.plan",
    "RedisStore": "store.redis",
    "RegistrationError": "exceptions",
    "ServerEntry": "token_manager",
    "TokenExchangeError": "exceptions",
    "TokenManager": "token_manager",
    "TokenRefreshError": "exceptions",
    "TokenStorageError": "exceptions",
    "TokenStoreBackend": "store.choose",
    "TokenStoreFactory": "store.choose",
    "TwoLeg": "io.two_leg",
    "VaultStore": "store.vault",
    "metadata_document": "sansio.registration",
}

__all__ = [
    "APIKeyToken",
    "AccessError",
    "AuthorizationError",
    "AuthorizationRequired",
    "BasicAuthToken",
    "BearerToken",
    "Browser",
    "ClientMetadataDocument",
    "ConfigurationError",
    "CredentialEntry",
    "DiscoveryError",
    "Dynamic",
    "EncryptedFileStore",
    "KeyringStore",
    "MCPOAuthClient",
    "MemoryStore",
    "OAuthError",
    "OAuthHandler",
    "OAuthTokens",
    "PasteBack",
    "PreRegistered",
    "RedisStore",
    "RegistrationError",
    "ServerEntry",
    "TokenExchangeError",
    "TokenManager",
    "TokenRefreshError",
    "TokenStorageError",
    "TokenStoreBackend",
    "TokenStoreFactory",
    "TwoLeg",
    "VaultStore",
    "metadata_document",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("mcp-oauth-sansio")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
