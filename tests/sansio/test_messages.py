"""Messages: headers, requests, and a peer's bytes made into members."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_oauth.sansio import messages
from mcp_oauth.sansio.messages import Request, Response

HEADERS = (("Retry-After", "1"), ("X-A", "2"), ("retry-after", "3"))
SECRET = "s3cret"


def test_no_message_shows_what_it_carries() -> None:
    """FN 54."""
    request = Request("POST", f"https://h.example/a?code={SECRET}", (("authorization", SECRET),), SECRET.encode())
    response = Response(200, (("set-cookie", SECRET),), SECRET.encode())
    assert repr(request) == "Request(method='POST', url='https://h.example/a', ...)"
    assert repr(response) == "Response(status=200, ...)"


@pytest.mark.parametrize(
    "message", [Request("GET", "https://h/", (("a", "b"),), b"\xff\0"), Response(200, HEADERS, b"\xff\0")]
)
def test_round_trip(message: Request | Response) -> None:
    assert msgspec.json.decode(msgspec.json.encode(message), type=type(message)) == message


def test_headers() -> None:
    """RFC 9110 sections 5.1 and 5.3: names have no case, fields have an order."""
    assert messages.header_values(HEADERS, "retry-after") == ("1", "3")
    assert messages.header(HEADERS, "retry-after") == "1"
    assert messages.header_values(HEADERS, "x-b") == ()
    assert messages.header(HEADERS, "x-b") is None


# --- Requests ---------------------------------------------------------------------------------------------------------


def test_every_request_has_accept_and_user_agent() -> None:
    """FN 24."""
    common = {("accept", "application/json"), ("user-agent", "mcp-oauth")}
    for request in (
        messages.get("https://h/"),
        messages.post_form("https://h/", ()),
        messages.post_json("https://h/", {}),
    ):
        assert common <= set(request.headers)


def test_get() -> None:
    request = messages.get("https://h/a?b")
    assert (request.method, request.url, request.body, len(request.headers)) == ("GET", "https://h/a?b", b"", 2)


def test_post_form() -> None:
    """RFC 6749 appendix B."""
    request = messages.post_form(
        "https://h/", (("a", "x y"), ("b", "é&=+"), ("a", "")), (("authorization", "Basic x"),)
    )
    assert (request.method, request.url) == ("POST", "https://h/")
    assert request.body == b"a=x+y&b=%C3%A9%26%3D%2B&a="
    assert messages.header(request.headers, "content-type") == "application/x-www-form-urlencoded"
    assert request.headers[-1] == ("authorization", "Basic x")


def test_post_json() -> None:
    request = messages.post_json("https://h/", {"a": ["é"], "b": None}, (("authorization", "Bearer x"),))
    assert (request.method, json.loads(request.body)) == ("POST", {"a": ["é"], "b": None})
    assert messages.header(request.headers, "content-type") == "application/json"
    assert request.headers[-1] == ("authorization", "Bearer x")


# --- Documents --------------------------------------------------------------------------------------------------------

DEEP = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    ("body", "document"),
    [
        pytest.param(b'{"a": 1}', {"a": 1}, id="RFC8259-object"),
        pytest.param(b'\xef\xbb\xbf{"a": 1}', {"a": 1}, id="RFC8259-8.1-BOM"),
        pytest.param(b'{"a": 1, "a": 2}', {"a": 2}, id="RFC8259-4-last-of-duplicates"),
        pytest.param(b'{"a": 1' + b"0" * 40 + b"}", {"a": 10**40}, id="RFC8259-6-large-integer"),
        pytest.param(b"{}", {}, id="RFC8259-empty-object"),
        pytest.param(b"", None, id="empty"),
        pytest.param(b"[1]", None, id="array"),
        pytest.param(b'"a"', None, id="text"),
        pytest.param(b"null", None, id="null"),
        pytest.param(b"{'a': 1}", None, id="not-JSON"),
        pytest.param(b'{"a": 1} x', None, id="trailing"),
        pytest.param(b'{"a": NaN}', None, id="RFC8259-6-NaN"),
        pytest.param(b'{"a": 1e999}', None, id="RFC8259-6-infinite"),
        pytest.param(b'{"a": 1' + b"0" * 5000 + b"}", None, id="RFC8259-6-endless-integer"),
        pytest.param(b"\xff\xfe{\0}\0", None, id="RFC8259-8.1-UTF-16"),
        pytest.param(b'{"a": "\xff"}', None, id="DESIGN-1-bad-UTF-8-in-a-text"),
        pytest.param(b'{"\xed\xa0\x80": 1}', None, id="DESIGN-1-bad-UTF-8-in-a-name"),
        pytest.param(b'{"a": "\\ud800"}', None, id="DESIGN-1-lone-surrogate"),
        pytest.param(DEEP, None, id="DESIGN-1-deep-nesting"),
        pytest.param(DEEP[:100_000], None, id="DESIGN-1-deep-and-cut"),
    ],
)
def test_read_json(body: bytes, document: Any) -> None:
    assert messages.read_json(body) == document


@given(st.one_of(st.binary(), st.binary().map(lambda body: b'{"a":"' + body + b'"}')))
def test_reading_never_raises(body: bytes) -> None:
    for read in (messages.read_json, messages.read_form):
        document = read(body)
        assert document is None or msgspec.json.encode(document)


FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    ("body", "document"),
    [
        pytest.param(b"access_token=a&scope=x+y&e=%C3%A9", {"access_token": "a", "scope": "x y", "e": "é"}, id="FN-42"),
        pytest.param(b"a=1&a=2", {"a": "2"}, id="last-of-duplicates"),
        pytest.param(b"", None, id="empty"),
        pytest.param(b"a", None, id="no-value"),
        pytest.param(b"a=1&b", None, id="one-without-value"),
        pytest.param(b"a=%FF", None, id="escaped-bad-UTF-8"),
        pytest.param(b"a=\xff", None, id="bad-UTF-8"),
        pytest.param(b"a=%ED%A0%80", None, id="lone-surrogate"),
        pytest.param(b"&".join([b"a=1"] * 64), {"a": "1"}, id="64-fields"),
        pytest.param(b"&".join([b"a=1"] * 65), None, id="too-many-fields"),
    ],
)
def test_read_form(body: bytes, document: Any) -> None:
    assert messages.read_form(body) == document


@given(st.dictionaries(st.text(min_size=1), st.text(min_size=1), min_size=1, max_size=5))
def test_forms_come_back(params: dict[str, str]) -> None:
    body = messages.post_form("https://h/", params.items()).body
    assert messages.read_form(body) == dict(parse_qsl(body.decode())) == params


@pytest.mark.parametrize(
    ("content_type", "body", "document"),
    [
        pytest.param("application/json", b'{"a":"b"}', {"a": "b"}, id="RULES-2.17-json"),
        pytest.param("application/json", b"a=b", None, id="RULES-2.17-json-that-is-a-form"),
        pytest.param("Application/JSON ; charset=utf-8", b'{"a":"b"}', {"a": "b"}, id="RFC9110-8.3.1-any-case"),
        pytest.param(FORM, b"a=b", {"a": "b"}, id="RULES-2.17-form"),
        pytest.param(f"{FORM.upper()}; charset=utf-8", b"a=b", {"a": "b"}, id="FN-42-github"),
        pytest.param(FORM, b'{"a":"b"}', None, id="RULES-2.17-form-that-is-json"),
        pytest.param("text/html", b'{"a":"b"}', {"a": "b"}, id="RULES-2.17-json-mislabelled"),
        pytest.param("text/html", b"a=b", None, id="RULES-2.17-html-is-no-form"),
        pytest.param(None, b'{"a":"b"}', {"a": "b"}, id="RULES-2.17-unlabelled-json"),
        pytest.param(None, b"a=b", {"a": "b"}, id="RULES-2.17-unlabelled-form"),
        pytest.param("", b"a=b", {"a": "b"}, id="RULES-2.17-labelled-with-nothing"),
        pytest.param(None, b"{}", {}, id="RULES-2.17-empty-object"),
        pytest.param(None, b"?", None, id="RULES-2.17-neither"),
    ],
)
def test_read_document(content_type: str | None, body: bytes, document: Any) -> None:
    headers = () if content_type is None else (("Content-Type", content_type),)
    assert messages.read_document(Response(200, headers, body)) == document


# --- Members ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [("a", "a"), ("", None), (None, None), (1, None), (True, None), (["a"], None), ({"a": "b"}, None)],
)
def test_text_member(value: Any, text: str | None) -> None:
    """FN 33."""
    assert messages.text_member({"m": value}, "m") == text
    assert messages.text_member({"m": value}, "n") is None


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        (["a", "b", "a"], ("a", "b", "a")),
        ([], ()),
        (["a", 1, None, "", ["b"]], ("a",)),
        ("a b", None),
        (None, None),
        ({}, None),
    ],
)
def test_texts_member(value: Any, texts: tuple[str, ...] | None) -> None:
    assert messages.texts_member({"m": value}, "m") == texts
    assert messages.texts_member({"m": value}, "n") is None


@pytest.mark.parametrize(
    ("value", "number"),
    [
        pytest.param(3600, 3600.0, id="number"),
        pytest.param(0, 0.0, id="RULES-2.17-zero-is-not-absent"),
        pytest.param(1.5, 1.5, id="fraction"),
        pytest.param(-5, -5.0, id="negative"),
        pytest.param("3600", 3600.0, id="FN-42-entra"),
        pytest.param(" 3600\n", 3600.0, id="text-with-blanks"),
        pytest.param("0", 0.0, id="text-zero"),
        pytest.param(2**63 - 1, 1e15, id="RULES-2.17-clamped"),
        pytest.param(str(2**63 - 1), 1e15, id="RULES-2.17-clamped-text"),
        pytest.param(10**400, 1e15, id="beyond-floats"),
        pytest.param(-(10**400), -1e15, id="beyond-negative-floats"),
        pytest.param(1.7e308, 1e15, id="large-float"),
        pytest.param("9" * 30, 1e15, id="long-text"),
        pytest.param("9" * 31, None, id="endless-text"),
        pytest.param("1e3", None, id="text-with-exponent"),
        pytest.param("-1", None, id="text-with-sign"),
        pytest.param("٣", None, id="other-digits"),
        pytest.param("", None, id="empty"),
        pytest.param(True, None, id="true-is-no-number"),
        pytest.param(False, None, id="false-is-no-number"),
        pytest.param(None, None, id="null"),
        pytest.param([1], None, id="array"),
    ],
)
def test_number_member(value: Any, number: float | None) -> None:
    found = messages.number_member({"m": value}, "m")
    assert (found, type(found)) == (number, type(number))
    assert messages.number_member({"m": value}, "n") is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Access denied.", "Access denied."),
        (" a\r\nb\tc ", "a  b c"),
        ("\x1b[31mred\x07", "[31mred"),
        ("a\u202eb\u2028c\ud800", "a b c"),
        ("é 漢", "é 漢"),
        ("x" * 501, "x" * 500),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert messages.printable(text) == shown


def test_printable_up_to() -> None:
    assert messages.printable("abc", 2) == "ab"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        pytest.param("120", 120.0, id="RFC9110-10.2.3-seconds"),
        pytest.param(" 7 ", 7.0, id="RFC9110-5.5-blanks"),
        pytest.param("0", 0.0, id="RFC9110-10.2.3-zero"),
        pytest.param("9" * 9, 999999999.0, id="long"),
        pytest.param("9" * 10, None, id="endless"),
        pytest.param("Wed, 21 Oct 2026 07:28:00 GMT", None, id="RFC9110-10.2.3-date"),
        pytest.param("-1", None, id="negative"),
        pytest.param("1.5", None, id="fraction"),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    assert messages.retry_after(Response(503, (("Retry-After", value),))) == seconds


def test_no_retry_after() -> None:
    assert messages.retry_after(Response(503)) is None
