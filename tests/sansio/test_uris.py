"""Which URLs are one thing only, where they lead, and who may be sent there."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_oauth.sansio import uris
from mcp_oauth.sansio.uris import Place, Url
from tests.sansio.urls import MCP, urls


class TestSplit:
    @pytest.mark.parametrize(
        ("url", "parts"),
        [
            pytest.param(
                "https://h.example", Url("https", "h.example", 443, ""), id="RFC3986-6.2.3-default-port-https"
            ),
            pytest.param("http://h.example/", Url("http", "h.example", 80, "/"), id="RFC3986-6.2.3-default-port-http"),
            pytest.param("HTTPS://H.Example:8443/Mcp", Url("https", "h.example", 8443, "/Mcp"), id="RFC3986-6.2.2.1"),
            pytest.param("https://h?q", Url("https", "h", 443, "", "q"), id="RFC3986-3.4-query-without-path"),
            pytest.param("https://h/?", Url("https", "h", 443, "/", ""), id="RFC3986-3.4-empty-query"),
            pytest.param("https://h/#", Url("https", "h", 443, "/", None, ""), id="RFC3986-3.5-empty-fragment"),
            pytest.param("https://h/a?b?c#d?e", Url("https", "h", 443, "/a", "b?c", "d?e"), id="RFC3986-3.5"),
            pytest.param("https://h/@x?@evil", Url("https", "h", 443, "/@x", "@evil"), id="RFC3986-3.2-authority-ends"),
            pytest.param("https://h/a%2fB%2F", Url("https", "h", 443, "/a%2fB%2F"), id="RULES-2.1-escapes-kept"),
            pytest.param("https://[2001:DB8::1]:1/", Url("https", "[2001:db8::1]", 1, "/"), id="RFC3986-3.2.2-ipv6"),
            pytest.param(
                "https://[::ffff:1.2.3.4]", Url("https", "[::ffff:1.2.3.4]", 443, ""), id="RFC3986-3.2.2-mixed"
            ),
            pytest.param("https://192.0.2.1/", Url("https", "192.0.2.1", 443, "/"), id="RFC3986-3.2.2-ipv4"),
            pytest.param("https://a_b.h-1.", Url("https", "a_b.h-1.", 443, ""), id="RFC3986-3.2.2-name-trailing-dot"),
            pytest.param("https://1.2.3.example", Url("https", "1.2.3.example", 443, ""), id="RFC3986-3.2.2-digits"),
            pytest.param("https://h:65535", Url("https", "h", 65535, ""), id="RFC3986-3.2.3-highest-port"),
            pytest.param(
                f"https://{'a.' * 126}a", Url("https", f"{'a.' * 126}a", 443, ""), id="RFC1034-3.1-longest-name"
            ),
        ],
    )
    def test_reads(self, url: str, parts: Url) -> None:
        assert uris.split(url) == parts

    @pytest.mark.parametrize(
        "url",
        [
            pytest.param("", id="RFC3986-4.3-empty"),
            pytest.param("/mcp", id="RFC3986-4.3-relative"),
            pytest.param("//h/mcp", id="RFC3986-4.3-no-scheme"),
            pytest.param("https:h", id="RFC3986-4.3-no-authority"),
            pytest.param("https:///mcp", id="RFC3986-3.2.2-empty-host"),
            pytest.param("https://:443/", id="RFC3986-3.2.2-only-port"),
            pytest.param("ftp://h/", id="RULES-1.3-ftp"),
            pytest.param("file:///etc/passwd", id="RULES-1.3-file"),
            pytest.param("javascript://h/%0aalert(1)", id="FN-29-javascript"),
            pytest.param("http+unix://h/", id="RULES-1.3-other-scheme"),
            pytest.param("-https://h/", id="RULES-6.3-leading-dash"),
            pytest.param(" https://h/", id="RFC3986-2-leading-space"),
            pytest.param("https://h/\n", id="RFC3986-2-trailing-newline"),
            pytest.param("https://h/a b", id="RFC3986-2-space"),
            pytest.param("https://h/a\tb", id="RFC3986-2-tab"),
            pytest.param("https://h/\x00", id="RFC3986-2-nul"),
            pytest.param("https://h/?\x7f", id="RFC3986-2-del"),
            pytest.param("https://good\\@evil/", id="RFC3986-2-backslash-host"),
            pytest.param("https://h\\evil", id="RFC3986-2-backslash"),
            pytest.param('https://h/"', id="RFC3986-2-quotation-mark"),
            pytest.param("https://h/<x>", id="RFC3986-2-angle-brackets"),
            pytest.param("https://h/?{x}", id="RFC3986-2-braces"),
            pytest.param("https://h/\u00e9", id="RFC3986-2-non-ascii-path"),
            pytest.param("https://ex\u00e4mple.com/", id="RFC3986-2-non-ascii-host"),
            pytest.param("https://127\u30020.0.1/", id="RFC3986-2-ideographic-full-stop"),
            pytest.param("https://\u0661/", id="RFC3986-2-foreign-digit"),
            pytest.param("https://h:\u0661/", id="RFC3986-2-foreign-digit-port"),
            pytest.param("https://h/#a#b", id="RFC3986-3.5-second-hash"),
            pytest.param("https://h/%", id="RFC3986-2.1-percent-alone"),
            pytest.param("https://h/%2", id="RFC3986-2.1-half-escape"),
            pytest.param("https://h/?%zz", id="RFC3986-2.1-no-hex"),
            pytest.param("https://user@h/", id="RFC3986-3.2.1-userinfo"),
            pytest.param("https://user:pass@h/", id="RFC3986-3.2.1-password"),
            pytest.param("https://@h/", id="RFC3986-3.2.1-empty-userinfo"),
            pytest.param("https://h:/", id="RFC3986-3.2.3-empty-port"),
            pytest.param("https://h:0/", id="RFC3986-3.2.3-port-0"),
            pytest.param("https://h:65536/", id="RFC3986-3.2.3-port-too-high"),
            pytest.param("https://h:443443/", id="RFC3986-3.2.3-port-too-long"),
            pytest.param("https://h:0443/", id="RFC3986-3.2.3-leading-zero"),
            pytest.param("https://h:+1/", id="RFC3986-3.2.3-signed"),
            pytest.param("https://%6c/", id="RFC3986-3.2.2-escaped-host"),
            pytest.param("https://a..b/", id="RFC1034-3.1-empty-label"),
            pytest.param("https://.a/", id="RFC1034-3.1-leading-dot"),
            pytest.param("https://a.b../", id="RFC1034-3.1-two-trailing-dots"),
            pytest.param(f"https://{'a' * 64}.example/", id="RFC1034-3.1-long-label"),
            pytest.param(f"https://{'a.' * 127}example/", id="RFC1034-3.1-long-name"),
            pytest.param("https://h!x/", id="RFC3986-3.2.2-sub-delim"),
            pytest.param("https://2130706433/", id="WHATWG-ends-in-a-number-decimal"),
            pytest.param("https://127.1/", id="WHATWG-ends-in-a-number-short"),
            pytest.param("https://0x7f000001/", id="WHATWG-ends-in-a-number-hex"),
            pytest.param("https://127.0.0.0x1/", id="WHATWG-ends-in-a-number-hex-label"),
            pytest.param("https://127.0.0.0X1/", id="WHATWG-ends-in-a-number-upper-hex"),
            pytest.param("https://a.0x/", id="WHATWG-ends-in-a-number-0x"),
            pytest.param("https://0177.0.0.1/", id="WHATWG-ends-in-a-number-octal"),
            pytest.param("https://127.0.0.1./", id="WHATWG-ends-in-a-number-trailing-dot"),
            pytest.param("https://1.2.3.4.5/", id="WHATWG-ends-in-a-number-five"),
            pytest.param("https://256.1.1.1/", id="WHATWG-ends-in-a-number-range"),
            pytest.param("https://example.1/", id="WHATWG-ends-in-a-number-name"),
            pytest.param("https://[::1/", id="RFC3986-3.2.2-open-bracket"),
            pytest.param("https://::1/", id="RFC3986-3.2.2-no-brackets"),
            pytest.param("https://[]/", id="RFC3986-3.2.2-empty-brackets"),
            pytest.param("https://[1.2.3.4]/", id="RFC3986-3.2.2-ipv4-in-brackets"),
            pytest.param("https://[fe80::1%25eth0]/", id="RFC6874-zone"),
            pytest.param("https://[fe80::1%eth0]/", id="RFC6874-bare-zone"),
            pytest.param("https://[v1.x]/", id="RFC3986-3.2.2-ip-future"),
            pytest.param("https://[::1]x/", id="RFC3986-3.2.2-after-bracket"),
            pytest.param("https://[12345::]/", id="RFC3986-3.2.2-bad-ipv6"),
        ],
    )
    def test_refuses(self, url: str) -> None:
        assert uris.split(url) is None

    @given(st.text() | st.text("htps:/[]@.%?#\\ 0x7f1", max_size=40).map("https://{}".format))
    def test_never_raises(self, text: str) -> None:
        parts = uris.split(text)

        assert parts is None or text.isascii()

    @given(urls)
    def test_agrees_with_the_standard_library(self, url: str) -> None:
        parts, other = uris.split(url), urlsplit(url)

        assert parts is not None
        assert parts.host.strip("[]") == other.hostname
        assert (parts.scheme, parts.path, parts.query or "") == (other.scheme, other.path, other.query)
        assert other.port in (None, parts.port)

    def test_repr_hides_the_query(self) -> None:
        assert repr(uris.split("https://h/a?code=x#y")) == "Url(scheme='https', host='h', port=443, path='/a', ...)"


class TestServerUrl:
    @pytest.mark.parametrize(
        ("url", "canonical"),
        [
            pytest.param("HTTPS://MCP.Example.COM/Mcp", "https://mcp.example.com/Mcp", id="RULES-2.1-case"),
            pytest.param("https://h:443/mcp", "https://h/mcp", id="RULES-2.1-default-port"),
            pytest.param("http://localhost:80", "http://localhost", id="RULES-2.1-default-port-http"),
            pytest.param("http://localhost:443/", "http://localhost:443/", id="RULES-2.1-other-port"),
            pytest.param("https://h/mcp#part", "https://h/mcp", id="RULES-2.1-fragment"),
            pytest.param("https://h/a//b/../%7e/?x=%2f&&y#", "https://h/a//b/../%7e/?x=%2f&&y", id="RULES-2.1-bytes"),
            pytest.param("https://h", "https://h", id="RULES-2.1-no-slash-added"),
            pytest.param("https://h?", "https://h?", id="RULES-2.1-empty-query"),
            pytest.param("https://[::A]:443/", "https://[::a]/", id="RULES-2.1-ipv6"),
            pytest.param("mcp.example.com/mcp", None, id="RULES-2.1-no-scheme"),
            pytest.param("stdio://server", None, id="RULES-2.1-other-scheme"),
        ],
    )
    def test_form(self, url: str, canonical: str | None) -> None:
        assert uris.server_url(url) == canonical

    @given(urls)
    def test_is_idempotent_and_the_same_place(self, url: str) -> None:
        canonical = uris.server_url(url)

        assert canonical is not None
        assert uris.server_url(canonical) == canonical
        assert uris.split(canonical) == uris.split(url)


class TestOrigin:
    @pytest.mark.parametrize(
        ("url", "origin"),
        [
            pytest.param("https://H.example:443/a?b#c", "https://h.example", id="RFC6454-6.2-default-port"),
            pytest.param("http://[::1]:8080/", "http://[::1]:8080", id="RFC6454-6.2-port"),
        ],
    )
    def test_of_a_url(self, url: str, origin: str) -> None:
        assert uris.origin(url) == origin

    def test_of_anything_else_is_a_value_error_without_secrets(self) -> None:
        with pytest.raises(ValueError, match=r"^not an http\(s\) URL: ftp://h/$"):
            uris.origin("ftp://user:word@h/?token=t")

    @pytest.mark.parametrize(
        ("a", "b", "same"),
        [
            pytest.param("https://h/a", "HTTPS://H:443/b?c", True, id="RFC6454-5-same"),
            pytest.param("https://h/", "http://h/", False, id="RFC6454-5-scheme"),
            pytest.param("https://h/", "https://h:8443/", False, id="RFC6454-5-port"),
            pytest.param("https://h/", "https://h.evil/", False, id="RFC6454-5-host"),
            pytest.param("https://h/", "https://a.h/", False, id="RFC6454-5-subdomain"),
            pytest.param("https://h/", "https://h./", False, id="RFC6454-5-trailing-dot"),
            pytest.param("nonsense", "nonsense", False, id="RFC6454-5-neither-a-url"),
            pytest.param("https://h/", "//h/", False, id="RFC6454-5-second-no-url"),
        ],
    )
    def test_same(self, a: str, b: str, same: bool) -> None:
        assert uris.same_origin(a, b) is same


LOOPBACK = """
    127.0.0.1 127.255.255.254 [::1] [0:0:0:0:0:0:0:1] [::ffff:127.0.0.1] [::ffff:7f00:1]
    localhost LocalHost. a.localhost a.b.localhost.
    0.0.0.0 [::] [::ffff:0.0.0.0]
"""
PRIVATE = """
    10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 100.64.0.1 169.254.169.254 0.0.0.1
    192.0.0.1 192.0.2.1 192.88.99.1 198.19.0.1 198.51.100.1 203.0.113.1 224.0.0.1 240.0.0.1 255.255.255.255
    [fe80::1] [fc00::1] [fd00:ec2::254] [fec0::1] [ff02::1] [100::1] [2001::1] [2001:db8::1] [3fff::1] [5f00::1]
    [::2] [::10.0.0.1] [::ffff:10.0.0.1] [::ffff:169.254.169.254]
    [64:ff9b::10.0.0.1] [64:ff9b::127.0.0.1] [64:ff9b:1::8.8.8.8] [2002:a9fe:a9fe::1] [2002:7f00:1::] [2002::]
    printer.local a.internal metadata.google.internal. nas.home.arpa h.localdomain intranet localhost1
"""
PUBLIC = """
    8.8.8.8 9.255.255.255 11.0.0.1 172.32.0.1 100.128.0.1 126.255.255.255 223.255.255.255
    [2606:4700::1] [2001:4860:4860::8888] [::ffff:8.8.8.8] [64:ff9b::8.8.8.8] [2002:808:808::1]
    example.com example.com. notlocalhost.example localhost.example.com mylocal.example a.xinternal
"""


def place_of(host: str) -> Place:
    parts = uris.split(f"https://{host}/")
    assert parts is not None
    return uris.place(parts)


class TestPlace:
    @pytest.mark.parametrize("host", LOOPBACK.split(), ids="RULES-1.3-loopback-{}".format)
    def test_loopback(self, host: str) -> None:
        assert place_of(host) is Place.LOOPBACK

    @pytest.mark.parametrize("host", PRIVATE.split(), ids="RULES-1.3-private-{}".format)
    def test_private(self, host: str) -> None:
        assert place_of(host) is Place.PRIVATE

    @pytest.mark.parametrize("host", PUBLIC.split(), ids="RULES-1.3-public-{}".format)
    def test_public(self, host: str) -> None:
        assert place_of(host) is Place.PUBLIC

    @given(st.ip_addresses(v=4))
    def test_no_disguise_makes_an_address_public(self, address: object) -> None:
        plain = place_of(str(address))

        assert place_of(f"[::ffff:{address}]") is plain
        assert (place_of(f"[64:ff9b::{address}]") is Place.PUBLIC) is (plain is Place.PUBLIC)


class TestRefusal:
    @pytest.mark.parametrize(
        ("url", "server"),
        [
            pytest.param("https://as.example.com/token", MCP, id="RULES-1.3-public"),
            pytest.param("http://127.0.0.1:9/token", "http://localhost:8000/mcp", id="RULES-1.3-loopback-to-loopback"),
            pytest.param("https://10.0.0.1/", "http://localhost/mcp", id="RULES-1.3-loopback-to-private"),
            pytest.param("https://as.example.com/", "http://localhost/mcp", id="RULES-1.3-loopback-to-public"),
            pytest.param("https://10.0.0.1/", "https://mcp.internal/", id="RULES-1.3-private-to-private"),
            pytest.param("https://as.example.com/", "https://mcp.internal/", id="RULES-1.3-private-to-public"),
        ],
    )
    def test_none(self, url: str, server: str) -> None:
        assert uris.refusal(url, server=server) is None

    @pytest.mark.parametrize(
        ("url", "server", "cause"),
        [
            pytest.param("ftp://h/x?y", MCP, "ftp://h/x is not a well-formed http(s) URL", id="RULES-1.3-no-url"),
            pytest.param("http://as.example/x?y", MCP, "http://as.example/x is http,", id="RULES-1.3-http-public"),
            pytest.param(
                "http://10.0.0.1/", "https://10.0.0.1/", "http://10.0.0.1/ is http,", id="RULES-1.3-http-private"
            ),
            pytest.param("http://127.0.0.1/", MCP, "is a loopback address", id="RULES-1.3-public-to-loopback"),
            pytest.param("https://localhost/", MCP, "is a loopback address", id="RULES-1.3-public-to-loopback-https"),
            pytest.param(
                "http://[::1]/", "https://mcp.local/", "is a loopback address", id="RULES-1.3-private-to-loopback"
            ),
            pytest.param("https://169.254.169.254/", MCP, "is a private address", id="RULES-1.3-public-to-private"),
            pytest.param("https://10.0.0.1/", "nonsense", "is a private address", id="RULES-1.3-unknown-is-public"),
        ],
    )
    def test_names_the_cause(self, url: str, server: str, cause: str) -> None:
        assert cause in (uris.refusal(url, server=server) or "")

    @pytest.mark.parametrize(
        ("url", "refused"),
        [
            pytest.param("http://127.0.0.1/token", False, id="RULES-1.3-opt-in-loopback"),
            pytest.param("https://10.0.0.1/token", False, id="RULES-1.3-opt-in-private"),
            pytest.param("http://10.0.0.1/token", True, id="RULES-1.3-opt-in-is-not-http"),
        ],
    )
    def test_opt_in(self, url: str, refused: bool) -> None:
        assert (uris.refusal(url, server=MCP, allow_private=True) is not None) is refused

    @given(url=urls, server=urls)
    def test_never_lets_http_leave_the_machine(self, url: str, server: str) -> None:
        parts = uris.split(url)

        assert parts is not None
        if parts.scheme == "http" and uris.place(parts) is not Place.LOOPBACK:
            assert uris.refusal(url, server=server, allow_private=True) is not None


class TestWithoutQuery:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            pytest.param("https://h/a?code=secret#x", "https://h/a", id="RULES-1.3-query"),
            pytest.param("https://h/a#token=secret?x", "https://h/a", id="RULES-1.3-fragment"),
            pytest.param("https://user:secret@h/a", "https://h/a", id="RULES-1.3-userinfo"),
            pytest.param("https://h/@scope/a", "https://h/@scope/a", id="RULES-1.3-at-sign-in-path"),
            pytest.param("a\x1b[31m\r\n", "a%1B[31m%0D%0A", id="FN-54-control-characters"),
            pytest.param("https://h/\u202e\ud800", "https://h/%E2%80%AE%ED%A0%80", id="FN-54-bidi-and-surrogate"),
            pytest.param("a" * 201, "a" * 200 + "...", id="FN-54-overlong"),
            pytest.param("a" * 200, "a" * 200, id="FN-54-just-fits"),
            pytest.param("", "", id="FN-54-empty"),
        ],
    )
    def test_shows(self, text: str, shown: str) -> None:
        assert uris.without_query(text) == shown

    @given(st.text(st.characters()))
    def test_any_text_becomes_printable_and_short(self, text: str) -> None:
        shown = uris.without_query(text)

        assert shown.isascii()
        assert shown == "" or shown.isprintable()
        assert len(shown) <= 203
        assert not {"?", "#"} & set(shown)
