"""The OAuth 2.1 client for MCP servers: a pure protocol core and thin drivers.

    from mcp_oauth.io.httpx2 import OAuth          # or mcp_oauth.io.httpx

    httpx2.AsyncClient(auth=OAuth("https://mcp.example.com/mcp"))

What programs name beside it stands here, and is loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from mcp_oauth.io.two_leg import TwoLeg
    from mcp_oauth.io.user import Browser, PasteBack
    from mcp_oauth.sansio.plan import ClientMetadataDocument, Dynamic, PreRegistered
    from mcp_oauth.sansio.registration import metadata_document
    from mcp_oauth.store.encrypted_file import EncryptedFileStore
    from mcp_oauth.store.memory import MemoryStore

_HOMES = {
    "AccessError": "exceptions",
    "AuthorizationError": "exceptions",
    "AuthorizationRequired": "exceptions",
    "Browser": "io.user",
    "ClientMetadataDocument": "sansio.plan",
    "ConfigurationError": "exceptions",
    "DiscoveryError": "exceptions",
    "Dynamic": "sansio.plan",
    "EncryptedFileStore": "store.encrypted_file",
    "MemoryStore": "store.memory",
    "OAuthError": "exceptions",
    "PasteBack": "io.user",
    "PreRegistered": "sansio.plan",
    "RegistrationError": "exceptions",
    "TokenExchangeError": "exceptions",
    "TokenRefreshError": "exceptions",
    "TokenStorageError": "exceptions",
    "TwoLeg": "io.two_leg",
    "metadata_document": "sansio.registration",
}

__all__ = [
    "AccessError",
    "AuthorizationError",
    "AuthorizationRequired",
    "Browser",
    "ClientMetadataDocument",
    "ConfigurationError",
    "DiscoveryError",
    "Dynamic",
    "EncryptedFileStore",
    "MemoryStore",
    "OAuthError",
    "PasteBack",
    "PreRegistered",
    "RegistrationError",
    "TokenExchangeError",
    "TokenRefreshError",
    "TokenStorageError",
    "TwoLeg",
    "metadata_document",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
