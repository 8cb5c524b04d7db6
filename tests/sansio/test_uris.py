"""Which URLs are one thing only, where they lead, and who may be sent there."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mcp_oauth.sansio import uris
from mcp_oauth.sansio.uris import Place, Url

MCP = "https://mcp.example.com/mcp"

labels = st.from_regex(r"[a-z](?:[a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
names = st.lists(labels, min_size=1, max_size=3).map(".".join)
hosts = st.one_of(names, st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map("[{}]".format))
ports = st.one_of(st.just(""), st.integers(1, 65535).map(":{}".format))
segments = st.text("abcXYZ019._~!$&'()*+,;=:@-", max_size=6) | st.sampled_from(["%2F", "%20", "..", ".", ""])
paths = st.lists(segments, max_size=4).map(lambda parts: "".join(f"/{part}" for part in parts))
queries = st.one_of(st.just(""), st.text("ab=&/?%+".replace("%", ""), max_size=8).map("?{}".format))
urls = st.builds("{}://{}{}{}{}".format, st.sampled_from(["http", "https", "HTTPS"]), hosts, ports, paths, queries)


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
