"""The client id metadata document that an application publishes (CIMD)."""

from __future__ import annotations

from typing import Any

import pytest

from mcp_oauth.sansio import registration
from tests.sansio.walks import table

URL = "https://app.example/client.json"
GOOD = {"client_id": URL, "client_name": "App", "redirect_uris": ["http://127.0.0.1/callback"]}


class TestMetadataDocument:
    def test_default(self) -> None:
        """RFC 8252 section 7.3: IP literals without a port."""
        assert registration.metadata_document(URL, "App") == {
            "client_id": URL,
            "client_name": "App",
            "redirect_uris": ["http://127.0.0.1/callback", "http://[::1]/callback"],
            "grant_types": ["authorization_code", "refresh_token"],
            "response_types": ["code"],
            "token_endpoint_auth_method": "none",
            "application_type": "native",
        }

    def test_all(self) -> None:
        document = registration.metadata_document(
            URL,
            "App",
            redirect_uris=("https://app.example/cb", "http://localhost:3000/cb"),
            client_uri="https://app.example",
            scopes=("a", "b"),
        )
        assert document["redirect_uris"] == ["https://app.example/cb", "http://localhost:3000/cb"]
        assert (document["application_type"], document["client_uri"]) == ("web", "https://app.example")
        assert document["scope"] == "a b"
        assert registration.metadata_document_problems(document, URL) == ()

    def test_no_scopes_at_all(self) -> None:
        assert registration.metadata_document(URL, "App", scopes=())["scope"] == ""

    @table(
        "url, name, redirects, wrong",
        {
            "RULES-2.12-https": ("http://app.example/c", "App", ("http://127.0.0.1/",), "its URL must be https"),
            "SPEC-cimd-name": (URL, "", ("http://127.0.0.1/",), "client_name is missing"),
            "SPEC-cimd-redirects": (URL, "App", (), "redirect_uris is missing"),
            "SPEC-cimd-both": (URL, "", (), "client_name is missing; redirect_uris is missing"),
        },
    )
    def test_refused(self, url: str, name: str, redirects: tuple[str, ...], wrong: str) -> None:
        with pytest.raises(ValueError, match=wrong):
            registration.metadata_document(url, name, redirect_uris=redirects)

    @table(
        "change, problem",
        {
            "RULES-2.12-good": ({}, None),
            "RULES-2.12-localhost-with-port": ({"redirect_uris": ["http://localhost:3000/cb"]}, None),
            "RFC8252-7.3-ipv6": ({"redirect_uris": ["http://[::1]/cb"]}, None),
            "SPEC-cimd-example": ({"redirect_uris": ["http://127.0.0.1:3000/cb"]}, None),
            "RULES-2.12-https-has-its-port": ({"redirect_uris": ["https://localhost/cb"]}, None),
            "RULES-2.12-another-name": ({"redirect_uris": ["http://localhost.localhost/cb"]}, None),
            "SPEC-cimd-private-key": ({"token_endpoint_auth_method": "private_key_jwt"}, None),
            "RULES-2.12-localhost": ({"redirect_uris": ["http://localhost/cb"]}, "needs a fixed port"),
            "RULES-2.12-localhost-in-capitals": ({"redirect_uris": ["HTTP://LocalHost?x"]}, "needs a fixed port"),
            "RULES-2.12-localhost-alone": ({"redirect_uris": ["http://localhost"]}, "needs a fixed port"),
            "RULES-2.13-http": (
                {"redirect_uris": ["http://a.example/cb?x"]},
                "redirect URI http://a.example/cb: http is for",
            ),
            "RFC6749-3.1.2-fragment": ({"redirect_uris": ["https://a.example/cb#x"]}, "fragment"),
            "RULES-2.13-each": ({"redirect_uris": ["https://a.example/", "myapp://cb"]}, "not an absolute URL"),
            "SPEC-cimd-redirects-missing": ({"redirect_uris": None}, "redirect_uris is missing"),
            "SPEC-cimd-name-missing": ({"client_name": None}, "client_name is missing"),
            "SPEC-cimd-id": ({"client_id": "https://app.example/Client.json"}, "character for character"),
            "SPEC-cimd-id-missing": ({"client_id": None}, "character for character"),
            "RULES-2.12-secret": ({"client_secret": "x"}, "must not hold a client_secret"),
            "RULES-2.12-expiry": ({"client_secret_expires_at": 0}, "must not hold a client_secret"),
            "RULES-2.12-basic": ({"token_endpoint_auth_method": "client_secret_basic"}, "shared secret"),
            "RULES-2.12-secret-jwt": ({"token_endpoint_auth_method": "client_secret_jwt"}, "shared secret"),
        },
    )
    def test_problems(self, change: dict[str, Any], problem: str | None) -> None:
        problems = registration.metadata_document_problems({**GOOD, **change}, URL)
        assert len(problems) == (problem is not None)
        assert all((problem or "") in each for each in problems)

    @table(
        "url, problem",
        {
            "RULES-2.12-query": ("https://app.example/a?b", None),
            "RULES-2.12-path": ("https://app.example", "must have a path"),
            "RULES-2.12-root": ("https://app.example/", "must have a path"),
            "RULES-2.12-fragment": ("https://app.example/a#b", "fragment"),
            "RULES-2.12-userinfo": ("https://u:p@app.example/a", "userinfo"),
            "RULES-2.12-dots": ("https://app.example/a/../b", "dot segments"),
            "RULES-2.12-encoded-dots": ("https://app.example/a/%2E", "dot segments"),
        },
    )
    def test_url(self, url: str, problem: str | None) -> None:
        problems = registration.metadata_document_problems({**GOOD, "client_id": url}, url)
        assert len(problems) == (problem is not None)
        assert all((problem or "") in each for each in problems)
