"""The documents of discovery, read tolerantly: what has the wrong type is absent, and what is extra is ignored.

What a document must have for a login is checked where it is used (`discovery`, `registration`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcp_oauth.sansio.grant import Scopes
from mcp_oauth.sansio.messages import text_member, texts_member
from mcp_oauth.sansio.values import Value


class ProtectedResourceMetadata(Value, frozen=True):
    """RFC 9728 section 2."""

    shown = ("resource", "authorization_servers", "scopes_supported")

    resource: str
    authorization_servers: tuple[str, ...] = ()
    scopes_supported: Scopes | None = None
    bearer_methods_supported: tuple[str, ...] | None = None


class AuthorizationServerMetadata(Value, frozen=True):
    """RFC 8414 section 2, and OpenID Connect Discovery 1.0 section 3."""

    shown = ("issuer", "authorization_endpoint", "token_endpoint", "registration_endpoint", "scopes_supported")

    issuer: str
    authorization_endpoint: str | None = None
    token_endpoint: str | None = None
    registration_endpoint: str | None = None
    revocation_endpoint: str | None = None
    scopes_supported: Scopes | None = None
    code_challenge_methods_supported: tuple[str, ...] | None = None
    token_endpoint_auth_methods_supported: tuple[str, ...] | None = None
    revocation_endpoint_auth_methods_supported: tuple[str, ...] | None = None
    authorization_response_iss_parameter_supported: bool = False
    client_id_metadata_document_supported: bool = False

    @property
    def openid(self) -> bool:
        """It is an OpenID provider."""
        return "openid" in (self.scopes_supported or ())


def protected_resource(document: Mapping[str, Any]) -> ProtectedResourceMetadata | None:
    """Protected resource metadata, or None if this is another kind of document."""
    resource = text_member(document, "resource")
    if resource is None:
        return None
    return ProtectedResourceMetadata(
        resource,
        texts_member(document, "authorization_servers") or (),
        texts_member(document, "scopes_supported"),
        texts_member(document, "bearer_methods_supported"),
    )


def authorization_server(document: Mapping[str, Any]) -> AuthorizationServerMetadata | None:
    """Authorization server metadata, or None if this is another kind of document."""
    issuer = text_member(document, "issuer")
    if issuer is None:
        return None
    return AuthorizationServerMetadata(
        issuer=issuer,
        authorization_endpoint=text_member(document, "authorization_endpoint"),
        token_endpoint=text_member(document, "token_endpoint"),
        registration_endpoint=text_member(document, "registration_endpoint"),
        revocation_endpoint=text_member(document, "revocation_endpoint"),
        scopes_supported=texts_member(document, "scopes_supported"),
        code_challenge_methods_supported=texts_member(document, "code_challenge_methods_supported"),
        token_endpoint_auth_methods_supported=texts_member(document, "token_endpoint_auth_methods_supported"),
        revocation_endpoint_auth_methods_supported=texts_member(document, "revocation_endpoint_auth_methods_supported"),
        authorization_response_iss_parameter_supported=document.get("authorization_response_iss_parameter_supported")
        is True,
        client_id_metadata_document_supported=document.get("client_id_metadata_document_supported") is True,
    )


ENDPOINTS = ("authorization_endpoint", "token_endpoint", "registration_endpoint", "revocation_endpoint")
