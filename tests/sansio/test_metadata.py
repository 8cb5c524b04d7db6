"""Documents, read tolerantly."""

from __future__ import annotations

from typing import Any

import pytest

from mcp_oauth.sansio import metadata
from mcp_oauth.sansio.metadata import AuthorizationServerMetadata, ProtectedResourceMetadata


def test_protected_resource() -> None:
    """RFC 9728 section 2; URLs byte for byte (RULES 2.1)."""
    document = {
        "resource": "https://H.example/%7Emcp",
        "authorization_servers": ["https://a.example", "https://a.example/"],
        "scopes_supported": ["x", "y"],
        "bearer_methods_supported": ["header"],
        "resource_name": "ignored",
    }
    assert metadata.protected_resource(document) == ProtectedResourceMetadata(
        "https://H.example/%7Emcp", ("https://a.example", "https://a.example/"), ("x", "y"), ("header",)
    )


def test_protected_resource_with_nothing_else() -> None:
    assert metadata.protected_resource({"resource": "r"}) == ProtectedResourceMetadata("r", (), None, None)


@pytest.mark.parametrize("resource", [None, "", 1, ["r"]])
def test_no_protected_resource(resource: Any) -> None:
    assert metadata.protected_resource({"resource": resource, "authorization_servers": ["https://a.example"]}) is None


def test_wrong_types_are_absent() -> None:
    document = {"resource": "r", "authorization_servers": "https://a.example", "scopes_supported": "x y", "a": 1}
    assert metadata.protected_resource(document) == ProtectedResourceMetadata("r")


TEXTS = ("authorization_endpoint", "token_endpoint", "registration_endpoint", "revocation_endpoint")
LISTS = (
    "scopes_supported",
    "code_challenge_methods_supported",
    "token_endpoint_auth_methods_supported",
    "revocation_endpoint_auth_methods_supported",
)
FLAGS = ("authorization_response_iss_parameter_supported", "client_id_metadata_document_supported")


def test_endpoints_are_those_of_the_metadata() -> None:
    assert metadata.ENDPOINTS == TEXTS


def test_authorization_server() -> None:
    """RFC 8414 section 2, RFC 9207 section 3, CIMD section 5."""
    document = {"issuer": "i", "jwks_uri": "ignored"}
    document |= {name: f"{name}!" for name in TEXTS}
    members = document | {name: [name, "b"] for name in LISTS} | dict.fromkeys(FLAGS, True)
    found = metadata.authorization_server(members)
    assert found is not None
    assert found.issuer == "i"
    assert [getattr(found, name) for name in TEXTS] == [f"{name}!" for name in TEXTS]
    assert [getattr(found, name) for name in LISTS] == [(name, "b") for name in LISTS]
    assert [getattr(found, name) for name in FLAGS] == [True, True]


@pytest.mark.parametrize("wrong", [None, 1, "true", [], {}])
def test_authorization_server_with_wrong_types(wrong: Any) -> None:
    names = [*FLAGS, *(TEXTS if not isinstance(wrong, str) else ()), *(LISTS if not isinstance(wrong, list) else ())]
    assert metadata.authorization_server({"issuer": "i", **dict.fromkeys(names, wrong)}) == AuthorizationServerMetadata(
        "i"
    )


@pytest.mark.parametrize("issuer", [None, "", 1, ["i"]])
def test_no_authorization_server(issuer: Any) -> None:
    assert metadata.authorization_server({"issuer": issuer, "token_endpoint": "t"}) is None


@pytest.mark.parametrize(
    ("scopes", "openid"), [(None, False), ((), False), (("profile",), False), (("profile", "openid"), True)]
)
def test_openid(scopes: tuple[str, ...] | None, openid: bool) -> None:
    """OpenID Connect Discovery 1.0 section 3: a provider must support `openid`."""
    assert AuthorizationServerMetadata("i", scopes_supported=scopes).openid is openid
