"""What one URL says about another: whose it is, where its metadata is, whither it may send."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mcp_oauth.sansio import uris
from tests.sansio.urls import MCP, urls


class TestCovers:
    @pytest.mark.parametrize(
        ("resource", "server"),
        [
            pytest.param(MCP, MCP, id="RULES-2.2-equal"),
            pytest.param("HTTPS://MCP.example.com:443/mcp", MCP, id="RULES-2.2-equal-origin-spelled-otherwise"),
            pytest.param("https://mcp.example.com", MCP, id="RULES-2.2-bare-origin"),
            pytest.param("https://mcp.example.com/", MCP, id="RULES-2.2-root"),
            pytest.param("https://mcp.example.com/", "https://mcp.example.com", id="FN-20-slash-added-to-root"),
            pytest.param("https://mcp.example.com", "https://mcp.example.com/", id="FN-20-slash-lost-from-root"),
            pytest.param(f"{MCP}/", MCP, id="FN-20-slash-added"),
            pytest.param(MCP, f"{MCP}/", id="FN-20-slash-lost"),
            pytest.param(MCP, f"{MCP}/v1/sse", id="RULES-2.2-parent"),
            pytest.param(f"{MCP}/", f"{MCP}/v1", id="RULES-2.2-parent-with-slash"),
            pytest.param(MCP, f"{MCP}?tenant=a", id="RULES-2.2-server-query"),
            pytest.param(f"{MCP}?tenant=a", f"{MCP}?tenant=a", id="RULES-2.2-same-query"),
            pytest.param(f"{MCP}/a%2Fb", f"{MCP}/a%2Fb", id="RULES-2.2-encoded-slash-equal"),
            pytest.param(f"{MCP}/...", f"{MCP}/.../.well", id="RULES-2.2-dots-that-are-names"),
        ],
    )
    def test_true(self, resource: str, server: str) -> None:
        assert uris.covers(resource, server)

    @pytest.mark.parametrize(
        ("resource", "server"),
        [
            pytest.param("https://evil.example/mcp", MCP, id="RULES-2.2-other-host"),
            pytest.param("http://mcp.example.com/mcp", MCP, id="RULES-2.2-other-scheme"),
            pytest.param("https://mcp.example.com:8443/mcp", MCP, id="RULES-2.2-other-port"),
            pytest.param("https://mcp.example.com/mc", MCP, id="RULES-2.2-half-a-segment"),
            pytest.param("https://mcp.example.com/MCP", MCP, id="RULES-2.2-path-case"),
            pytest.param(f"{MCP}/v1", MCP, id="RULES-2.2-child"),
            pytest.param(f"{MCP}//", MCP, id="RULES-2.2-two-slashes"),
            pytest.param(MCP, f"{MCP}%2Fv1", id="RULES-2.2-encoded-slash"),
            pytest.param(f"{MCP}/a%2fb", f"{MCP}/a%2Fb", id="RULES-2.2-escapes-byte-for-byte"),
            pytest.param(f"{MCP}?tenant=b", f"{MCP}?tenant=a", id="RULES-2.2-other-query"),
            pytest.param(f"{MCP}?tenant=a", MCP, id="RULES-2.2-query-of-its-own"),
            pytest.param(f"{MCP}?", MCP, id="RULES-2.2-empty-query"),
            pytest.param(f"{MCP}#x", MCP, id="RFC9728-1.2-fragment"),
            pytest.param(f"{MCP}/..", f"{MCP}/../x", id="RULES-2.2-dots-in-both"),
            pytest.param(f"{MCP}/../", f"{MCP}/..", id="RULES-2.2-dots-and-a-slash"),
            pytest.param(f"{MCP}/../mcp", MCP, id="RULES-2.2-dots-in-resource"),
            pytest.param("https://mcp.example.com/", f"{MCP}/../x", id="RULES-2.2-dots-in-server"),
            pytest.param(MCP, f"{MCP}/%2e%2E/x", id="RULES-2.2-encoded-dots"),
            pytest.param(MCP, f"{MCP}/.%2e", id="RULES-2.2-half-encoded-dots"),
            pytest.param(MCP, f"{MCP}/./x", id="RULES-2.2-one-dot"),
            pytest.param(MCP, f"{MCP}/..;a/x", id="RULES-2.2-dots-with-path-parameter"),
            pytest.param("mcp", MCP, id="RULES-2.2-resource-no-url"),
            pytest.param(MCP, "mcp", id="RULES-2.2-server-no-url"),
        ],
    )
    def test_false(self, resource: str, server: str) -> None:
        assert not uris.covers(resource, server)

    @given(urls)
    def test_reflexive_but_for_dot_segments(self, url: str) -> None:
        dots = {".", ".."} & {segment.partition(";")[0] for segment in url.partition("?")[0].split("/")}

        assert uris.covers(url, url) is not bool(dots)


class TestBelongs:
    @pytest.mark.parametrize(
        ("url", "server", "belongs"),
        [
            pytest.param(MCP, MCP, True, id="RULES-1.1-same"),
            pytest.param("https://mcp.example.com/elsewhere?x", MCP, True, id="RULES-1.1-same-origin"),
            pytest.param(f"{MCP}?filter[]={{x|y}}", MCP, True, id="RULES-1.1-query-of-the-caller"),
            pytest.param("http://localhost:1/a", "http://localhost:1/mcp", True, id="RULES-1.1-http-loopback"),
            pytest.param("http://mcp.example.com/mcp", MCP, False, id="RULES-1.1-downgrade"),
            pytest.param("http://h/mcp", "http://h/mcp", False, id="RULES-1.1-http"),
            pytest.param("https://mcp.example.com.evil.example/mcp", MCP, False, id="RULES-1.1-other-host"),
            pytest.param("https://mcp.example.com:444/mcp", MCP, False, id="RULES-1.1-other-port"),
            pytest.param("https://mcp.example.com@evil.example/mcp", MCP, False, id="RULES-1.1-userinfo"),
            pytest.param("https://evil.example\\@mcp.example.com/mcp", MCP, False, id="RULES-1.1-backslash"),
            pytest.param("https://evil.example#@mcp.example.com/mcp", MCP, False, id="RULES-1.1-hash"),
            pytest.param("https://evil.example?@mcp.example.com/mcp", MCP, False, id="RULES-1.1-question-mark"),
            pytest.param("/mcp", MCP, False, id="RULES-1.1-relative"),
            pytest.param(MCP, "mcp", False, id="RULES-1.1-no-server"),
        ],
    )
    def test_own_request(self, url: str, server: str, belongs: bool) -> None:
        assert uris.belongs(url, server=server) is belongs

    @pytest.mark.parametrize(
        ("path", "below"),
        [
            pytest.param("/mcp", True, id="RULES-1.1-at"),
            pytest.param("/mcp?x=../..", True, id="RULES-1.1-query"),
            pytest.param("/mcp/", True, id="RULES-1.1-slash-added"),
            pytest.param("/mcp/v1/sse", True, id="RULES-1.1-below"),
            pytest.param("/mcp/a%20b", True, id="RULES-1.1-harmless-escape"),
            pytest.param("/", False, id="RULES-1.1-above"),
            pytest.param("/mcp2", False, id="RULES-1.1-half-a-segment"),
            pytest.param("/other", False, id="RULES-1.1-beside"),
            pytest.param("/mcp%2Fv1", False, id="RULES-1.1-encoded-boundary"),
            pytest.param("/mcp/../other", False, id="RULES-1.1-dots"),
            pytest.param("/mcp/..", False, id="RULES-1.1-dots-at-end"),
            pytest.param("/mcp/./x", False, id="RULES-1.1-one-dot"),
            pytest.param("/mcp/%2e%2e/other", False, id="RULES-1.1-encoded-dots"),
            pytest.param("/mcp/..%2Fother", False, id="RULES-1.1-encoded-slash"),
            pytest.param("/mcp/..%5cother", False, id="RULES-1.1-encoded-backslash"),
            pytest.param("/mcp/%252e%252E/other", False, id="RULES-1.1-encoded-twice"),
            pytest.param("/mcp/%25252fother", False, id="RULES-1.1-encoded-thrice"),
            pytest.param("/mcp/..;/other", False, id="RULES-1.1-path-parameter"),
        ],
    )
    def test_redirected_request(self, path: str, below: bool) -> None:
        assert uris.below(f"https://mcp.example.com{path}", server=MCP) is below

    @pytest.mark.parametrize(
        ("url", "server", "below"),
        [
            pytest.param("https://evil.example/mcp", MCP, False, id="RULES-1.1-other-origin"),
            pytest.param("http://mcp.example.com/mcp", MCP, False, id="RULES-1.1-downgrade"),
            pytest.param(MCP, "mcp", False, id="RULES-1.1-no-server"),
            pytest.param("https://h", "https://h/", True, id="RULES-1.1-bare-origin"),
            pytest.param("https://h/mcp", "https://h/mcp/", True, id="RULES-1.1-slash-lost"),
            pytest.param("https://h/a%2Fb/c", "https://h/a%2Fb", True, id="RULES-1.1-escape-of-the-server-itself"),
        ],
    )
    def test_redirected_elsewhere(self, url: str, server: str, below: bool) -> None:
        assert uris.below(url, server=server) is below

    @given(url=urls, server=urls)
    @example(url="https://h/mcp", server="https://h/mcp")
    def test_below_belongs_and_shares_the_origin(self, url: str, server: str) -> None:
        if uris.below(url, server=server):
            assert uris.belongs(url, server=server)
            assert uris.same_origin(url, server)


class TestWellKnown:
    WITHOUT_PATH = ("/.well-known/oauth-authorization-server", "/.well-known/openid-configuration")

    @pytest.mark.parametrize(
        ("server", "paths"),
        [
            pytest.param("https://h", [""], id="RFC9728-3.1-no-path"),
            pytest.param("https://h/", [""], id="RFC9728-3.1-root"),
            pytest.param("https://h/mcp", ["/mcp", ""], id="RFC9728-3.1-path-then-root"),
            pytest.param("https://h/a/mcp/", ["/a/mcp/", ""], id="RFC9728-3.1-trailing-slash-kept"),
            pytest.param("https://h/mcp?t=%2f#x", ["/mcp?t=%2f", ""], id="RULES-2.2-query-kept"),
            pytest.param("https://h/?t=1", ["?t=1", ""], id="RFC9728-3.1-query-only"),
        ],
    )
    def test_protected_resource(self, server: str, paths: list[str]) -> None:
        root = "https://h/.well-known/oauth-protected-resource"

        assert uris.protected_resource_metadata_urls(server) == tuple(root + path for path in paths)

    @pytest.mark.parametrize(
        ("issuer", "expected"),
        [
            pytest.param("https://h", WITHOUT_PATH, id="SPEC-no-path"),
            pytest.param("https://h/", WITHOUT_PATH, id="RFC8414-3.1-root-slash"),
            pytest.param(
                "https://h/tenant1",
                (
                    "/.well-known/oauth-authorization-server/tenant1",
                    "/.well-known/openid-configuration/tenant1",
                    "/tenant1/.well-known/openid-configuration",
                ),
                id="SPEC-path",
            ),
            pytest.param(
                "https://h/a/b/",
                (
                    "/.well-known/oauth-authorization-server/a/b",
                    "/.well-known/openid-configuration/a/b",
                    "/a/b/.well-known/openid-configuration",
                ),
                id="RFC8414-3.1-path-with-slash",
            ),
        ],
    )
    def test_authorization_server(self, issuer: str, expected: tuple[str, ...]) -> None:
        assert uris.authorization_server_metadata_urls(issuer) == tuple(f"https://h{path}" for path in expected)

    @pytest.mark.parametrize(
        "issuer",
        [
            pytest.param("https://h?x", id="RULES-2.5-query"),
            pytest.param("https://h/a?", id="RULES-2.5-empty-query"),
            pytest.param("https://h/a#x", id="RULES-2.5-fragment"),
            pytest.param("h", id="RULES-2.5-no-url"),
        ],
    )
    def test_no_issuer(self, issuer: str) -> None:
        assert uris.authorization_server_metadata_urls(issuer) == ()

    def test_no_server(self) -> None:
        assert uris.protected_resource_metadata_urls("mcp") == ()

    @given(urls)
    def test_all_are_urls_of_the_same_origin(self, url: str) -> None:
        found = (*uris.protected_resource_metadata_urls(url), *uris.authorization_server_metadata_urls(url))

        assert found
        assert all(uris.same_origin(url, one) for one in found)


class TestRedirectTarget:
    ASKED = "https://h/a/b?q=1"

    @pytest.mark.parametrize(
        ("location", "target"),
        [
            pytest.param("https://h/c?x#y", "https://h/c?x", id="RULES-1.4-absolute"),
            pytest.param("https://h:443/c", "https://h:443/c", id="RULES-1.4-default-port"),
            pytest.param("//h/c", "https://h/c", id="RFC3986-5.2-network-path"),
            pytest.param("/c", "https://h/c", id="RFC3986-5.2-absolute-path"),
            pytest.param("c", "https://h/a/c", id="RFC3986-5.2-relative"),
            pytest.param("../c", "https://h/c", id="RFC3986-5.2-dots"),
            pytest.param("?x", "https://h/a/b?x", id="RFC3986-5.2-query"),
            pytest.param("#x", "https://h/a/b?q=1", id="RFC3986-5.2-fragment"),
            pytest.param("http://h/c", None, id="RULES-1.4-downgrade"),
            pytest.param("https://evil.example/", None, id="RULES-1.4-other-host"),
            pytest.param("//evil.example/", None, id="RULES-1.4-network-path-elsewhere"),
            pytest.param("https://h@evil.example/", None, id="RULES-1.4-userinfo"),
            pytest.param("https://u:p@h/", None, id="RULES-1.4-own-userinfo"),
            pytest.param("/\\evil.example", None, id="RULES-1.4-backslash"),
            pytest.param("/c\r\nX: y", None, id="RULES-1.4-control"),
            pytest.param("/c\r\nd", None, id="RULES-1.4-line-break"),
            pytest.param("\t//evil.example", None, id="RULES-1.4-leading-tab"),
            pytest.param("javascript:alert(1)", None, id="RULES-1.4-other-scheme"),
            pytest.param("https://[::1", None, id="RULES-1.4-open-bracket"),
            pytest.param("/\u00e9", None, id="RULES-1.4-non-ascii"),
            pytest.param("/%zz", None, id="RULES-1.4-bad-escape"),
        ],
    )
    def test_leads(self, location: str, target: str | None) -> None:
        assert uris.redirect_target(self.ASKED, location) == target

    def test_from_nowhere_leads_nowhere(self) -> None:
        assert uris.redirect_target("mcp", "/c") is None

    @given(asked=urls, location=urls | st.text() | st.text("htps:/[]@.%?#\\"))
    def test_never_leaves_the_origin(self, asked: str, location: str) -> None:
        target = uris.redirect_target(asked, location)

        assert target is None or uris.same_origin(asked, target)


class TestForBrowser:
    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            pytest.param("HTTPS://AS.example:443", "https://as.example/", id="RULES-6.3-serialised-anew"),
            pytest.param("https://h/a?b=%20&c=%41ction#d", "https://h/a?b=%20&c=%41ction#d", id="RULES-6.3-kept"),
            pytest.param("http://127.0.0.1:9/start/x", "http://127.0.0.1:9/start/x", id="RULES-6.3-http"),
            pytest.param("https://h/?x=%action", None, id="CVE-2026-4786-action"),
            pytest.param("https://h/?x=%ACTION", None, id="CVE-2026-4786-action-any-case"),
            pytest.param("-https://h/", None, id="CVE-2026-4519-leading-dash"),
            pytest.param("--new-window", None, id="CVE-2026-4519-option"),
            pytest.param("https://h/'", None, id="RULES-6.3-apostrophe"),
            pytest.param('https://h/"', None, id="RULES-6.3-quotation-mark"),
            pytest.param("https://h/ x", None, id="RULES-6.3-space"),
            pytest.param("https://h/\\", None, id="RULES-6.3-backslash"),
            pytest.param("https://h/\x1b", None, id="RULES-6.3-control"),
            pytest.param("https://h/%s", None, id="RULES-6.3-percent-s"),
            pytest.param("file:///c:/windows/system32/calc.exe", None, id="CVE-2025-6514-file"),
            pytest.param("javascript:alert(1)", None, id="CVE-2025-6514-javascript"),
            pytest.param("http://$(calc)/", None, id="CVE-2025-6514-substitution"),
        ],
    )
    def test_shows(self, url: str, shown: str | None) -> None:
        assert uris.for_browser(url) == shown

    @given(urls | st.text())
    def test_what_is_shown_is_plain(self, url: str) -> None:
        shown = uris.for_browser(url)

        assert shown is None or (shown.startswith(("http://", "https://")) and not set(shown) & set("'\"\\ <>\n\t"))


class TestQuery:
    @pytest.mark.parametrize(
        ("url", "params", "expected"),
        [
            pytest.param("https://h/a", [("x", "1")], "https://h/a?x=1", id="RFC6749-3.1-none"),
            pytest.param("https://h/a??", [("x", "1")], "https://h/a??&x=1", id="RFC6749-3.1-query-of-a-question-mark"),
            pytest.param("https://h/a?k=%2f&&", [("x", "1")], "https://h/a?k=%2f&&x=1", id="RFC6749-3.1-open-end"),
            pytest.param("https://h/a?k=%2f", [("x", "1")], "https://h/a?k=%2f&x=1", id="RFC6749-3.1-query-kept"),
            pytest.param("https://h/a?", [("x", "1")], "https://h/a?x=1", id="RFC6749-3.1-empty-query"),
            pytest.param("https://h/a#f?", [("x", "1")], "https://h/a?x=1#f?", id="RFC6749-3.1-before-fragment"),
            pytest.param(
                "https://h/a", [("x", "a b&\u00e9")], "https://h/a?x=a+b%26%C3%A9", id="RFC6749-B-form-encoded"
            ),
            pytest.param("https://h/a", [("x", "1"), ("x", "2")], "https://h/a?x=1&x=2", id="RFC6749-3.1-recurring"),
            pytest.param("https://h/a?k", [], "https://h/a?k", id="RFC6749-3.1-nothing-to-add"),
        ],
    )
    def test_added(self, url: str, params: list[tuple[str, str]], expected: str) -> None:
        assert uris.with_query(url, iter(params)) == expected

    @pytest.mark.parametrize(
        ("text", "params"),
        [
            pytest.param("http://127.0.0.1:1/callback?code=a&state=b", [("code", "a"), ("state", "b")], id="FN-45-url"),
            pytest.param("?code=a&state=b", [("code", "a"), ("state", "b")], id="FN-45-question-mark"),
            pytest.param("code=a&state=b", [("code", "a"), ("state", "b")], id="FN-45-bare"),
            pytest.param("  ?code=a\r\n", [("code", "a")], id="FN-45-pasted-blanks"),
            pytest.param("localhost:1/callback?code=a", [("code", "a")], id="FN-45-scheme-lost"),
            pytest.param("/callback?code=a", [("code", "a")], id="FN-45-path"),
            pytest.param("https://h/x=y?code=a", [("code", "a")], id="FN-45-equals-in-path"),
            pytest.param("code=a&iss=https://h/?x", [("code", "a"), ("iss", "https://h/?x")], id="FN-45-bare-with-url"),
            pytest.param("https://h/?code=a#_=_", [("code", "a")], id="FN-45-fragment"),
            pytest.param("myapp://callback?code=a", [("code", "a")], id="RULES-2.13-own-scheme"),
            pytest.param("https://h/callback", [], id="FN-45-url-without-query"),
            pytest.param("", [], id="FN-45-empty"),
            pytest.param("?a=&b&&c=1", [("a", ""), ("b", ""), ("c", "1")], id="RULES-2.14-blank-values"),
            pytest.param("?state=a&state=b", [("state", "a"), ("state", "b")], id="RULES-2.14-duplicates"),
            pytest.param("?a=x+y%2B%26;z", [("a", "x y+&;z")], id="RFC6749-B-form-decoded"),
            pytest.param("?a=%ff%", [("a", "\ufffd%")], id="RULES-2.14-bad-escapes"),
        ],
    )
    def test_read(self, text: str, params: list[tuple[str, str]]) -> None:
        assert uris.query_params(text) == params

    @given(st.text(st.characters()))
    def test_reading_never_raises(self, text: str) -> None:
        uris.query_params(text)

    @given(url=urls, params=st.lists(st.tuples(st.text(min_size=1), st.text())))
    def test_what_was_added_is_read_after_what_was_there(self, url: str, params: list[tuple[str, str]]) -> None:
        there = parse_qsl(urlsplit(url).query, keep_blank_values=True)
        full = uris.with_query(url, params)

        assert full.startswith(url)
        assert uris.query_params(full) == there + params
