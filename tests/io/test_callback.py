"""The loopback listener in a login, over real sockets, on asyncio and trio."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import httpx
import pytest

from mcp_oauth.io.callback import Limits, UserError
from mcp_oauth.io.pages import FAILURE, NOT_OURS, SUCCESS, TWO_BROWSERS, page, page_of_caller
from tests.io.listeners import AUTHORIZE, CODE, QUERY, SECOND, STATE, Login, Start, connect, named, raw, rest, status

# --- A login ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"], ids=named("RULES-6.1"))
def test_a_login_from_start_to_end(start: Start, host: str) -> None:
    login = start(host)

    sent_off = login.browser.get(login.callback.start_url)
    assert (sent_off.status_code, sent_off.headers["location"]) == (303, AUTHORIZE)

    came_back = login.browser.get(login.url())
    assert login.callback.redirected.result(0) == login.url()
    assert (came_back.status_code, came_back.content) == (303, b"")
    assert CODE not in came_back.headers["location"]
    assert STATE not in came_back.headers["location"]

    done = login.browser.get(login.origin + came_back.headers["location"])
    assert (done.status_code, done.content) == (200, SUCCESS.html)
    login.serving.result(SECOND)


@pytest.mark.parametrize(
    "query",
    [
        pytest.param(f"error=access_denied&state={STATE}", id="error"),
        pytest.param(f"code={CODE}&error=server_error&state={STATE}", id="code-and-error"),
        pytest.param(f"state={STATE}", id="neither"),
        pytest.param(f"code=a&code=b&state={STATE}", id="RULES-2.14-duplicate-code"),
        pytest.param(f"code=a&state={STATE}&state=other", id="RULES-2.14-duplicate-state"),
        pytest.param(f"code=a&state={STATE}&iss=https%3a%2F%2fevil.example", id="RULES-2.14-any-iss"),
        pytest.param(f"&&code=%7E+%2b&state={STATE}&%F0=%ff&", id="byte-for-byte"),
    ],
)
def test_the_redirect_is_handed_on_as_it_came_for_the_core_to_judge(start: Start, query: str) -> None:
    login = start().begin()
    cookie = next(iter(login.browser.cookies.jar))
    head = f"GET /callback/abc?{query} HTTP/1.1\r\nHost: 127.0.0.1:{login.port}\r\nCookie: {cookie.name}={cookie.value}"
    assert status(raw(login, f"{head}\r\n\r\n".encode())) == 303
    assert login.callback.redirected.result(0) == login.url(query)


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        (f"code={CODE}&state={STATE}", SUCCESS),
        (f"error=access_denied&state={STATE}", FAILURE),
        (f"code={CODE}&error=server_error&state={STATE}", FAILURE),
        (f"state={STATE}", FAILURE),
    ],
    ids=["code", "error", "both", "neither"],
)
def test_the_last_page_tells_success_from_failure(start: Start, query: str, shown: object) -> None:
    login = start().begin()
    done = login.browser.get(login.url(query), follow_redirects=True)
    assert (done.content, done.headers["content-security-policy"]) == shown


def test_the_listener_closes_although_nobody_fetches_the_last_page(start: Start) -> None:
    login = start(limits=Limits(farewell=0.05, closing=0.01)).begin()
    assert login.browser.get(login.url()).status_code == 303
    login.serving.result(SECOND)


def test_the_listener_closes_as_soon_as_the_last_page_was_served(start: Start) -> None:
    login = start(limits=Limits(farewell=3600.0)).begin()
    assert login.browser.get(login.url(), follow_redirects=True).status_code == 200
    login.serving.result(SECOND)


def test_cancelling_closes_at_once_with_connections_open(start: Start) -> None:
    login = start()
    with connect(login) as idle:
        idle.sendall(b"GET /")
        login.begin()  # whoever connected before is accepted by now
        login.serving.cancel()
        assert rest(idle) == b""


# --- Whose request it is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        pytest.param("", id="RULES-2.14-no-query"),
        pytest.param(f"code={CODE}", id="RULES-2.14-state-absent"),
        pytest.param(f"code={CODE}&state=", id="RULES-2.14-state-empty"),
        pytest.param(f"code={CODE}&state={STATE}x", id="RULES-2.14-state-wrong"),
        pytest.param(f"code={CODE}&state={STATE.upper()}", id="RULES-2.14-state-in-another-case"),
        pytest.param(f"code={CODE}&state=%ED%A0%80", id="RULES-2.14-state-not-unicode"),
        pytest.param(f"code={CODE}&State={STATE}", id="RULES-2.14-state-by-another-name"),
    ],
)
def test_a_redirect_with_another_state_is_ignored(start: Start, query: str) -> None:
    login = start().begin()
    answer = login.browser.get(login.url(query))
    assert (answer.status_code, answer.content) == (400, NOT_OURS.html)
    assert login.is_waiting()
    assert login.browser.get(login.url()).status_code == 303


@pytest.mark.parametrize(
    "cookie",
    [
        pytest.param("", id="RULES-6.2-no-cookie"),
        pytest.param("{name}=", id="RULES-6.2-empty"),
        pytest.param("{name}={value}x", id="RULES-6.2-wrong"),
        pytest.param("other={value}", id="RULES-6.2-another-name"),
        pytest.param("mcp-oauth-1={value}", id="RULES-6.2-another-port"),
        pytest.param("x{name}={value}", id="RULES-6.2-a-longer-name"),
        pytest.param("{name}=é", id="RULES-6.2-not-ascii"),
    ],
)
def test_a_redirect_in_another_browser_is_ignored(start: Start, cookie: str) -> None:
    login = start().begin()
    ours = next(iter(login.browser.cookies.jar))
    headers = [(b"Cookie", cookie.format(name=ours.name, value=ours.value).encode())]
    answer = httpx.get(login.url(), headers=headers, trust_env=False)
    assert (answer.status_code, answer.content) == (400, NOT_OURS.html)
    assert login.is_waiting()


def test_the_cookie_is_found_among_those_of_other_ports(start: Start) -> None:
    login = start().begin()
    ours = next(iter(login.browser.cookies.jar))
    crowd = f"mcp-oauth-1=a; {ours.name}=tossed; {ours.name}={ours.value};theme=dark"
    assert httpx.get(login.url(), headers={"Cookie": crowd}, trust_env=False).status_code == 303


def test_rules_6_2_the_cookie_is_out_of_reach_for_scripts_and_named_for_its_port(start: Start) -> None:
    login = start()
    cookie = login.browser.get(login.callback.start_url).headers["set-cookie"]
    pattern = rf"mcp-oauth-{login.port}=[A-Za-z0-9_-]{{43}}; Path=/; HttpOnly; SameSite=Lax"
    assert re.fullmatch(pattern, cookie)
    assert login.browser.cookies


def test_the_cookie_is_gone_with_the_login(start: Start) -> None:
    login = start().begin()
    login.browser.get(login.url(), follow_redirects=True)
    assert not login.browser.cookies


@pytest.mark.parametrize("path", ["/callback/abc?" + QUERY, "start"], ids=named("FN-40"))
def test_whatever_comes_before_the_url_is_shown_is_ignored(start: Start, path: str) -> None:
    login = start(shown=False)
    url = login.callback.start_url if path == "start" else login.origin + path
    assert login.browser.get(url).status_code == 404
    assert login.is_waiting()
    login.callback.expect(AUTHORIZE, STATE)
    login.begin()


def test_a_repeated_redirect_is_not_handed_on_again(start: Start) -> None:
    login = start(limits=Limits(farewell=3600.0)).begin()
    first = login.browser.get(login.url())
    again = login.browser.get(login.url(f"error=access_denied&state={STATE}"))
    assert (again.status_code, again.headers["location"]) == (303, first.headers["location"])
    assert login.callback.redirected.result(0) == login.url()
    assert login.browser.get(login.origin + first.headers["location"]).content == SUCCESS.html


# --- The start link ---------------------------------------------------------------------------------------------------


def test_rules_6_2_the_start_link_is_unguessable_and_on_the_host_of_the_cookie(start: Start) -> None:
    links = {start("localhost").callback.start_url, start("localhost").callback.start_url}
    assert len(links) == 2
    for link in links:
        assert re.fullmatch(r"http://localhost:\d+/start/[A-Za-z0-9_-]{43}", link)  # 256 bits


def test_rules_6_2_the_start_link_may_be_opened_again_by_its_browser(start: Start) -> None:
    login = start().begin().begin()
    assert login.browser.get(login.url()).status_code == 303


def test_rules_6_2_two_browsers_end_the_login(start: Start) -> None:
    """RULES 6.2: another local user who reads the link in the process list could log us in as himself."""
    login = start().begin()
    answer = httpx.get(login.callback.start_url, trust_env=False)
    assert (answer.status_code, answer.content) == (410, TWO_BROWSERS.html)
    with pytest.raises(UserError, match="two browsers"):
        login.callback.redirected.result(0)
    assert login.browser.get(login.url(), follow_redirects=True).content == FAILURE.html
    login.serving.result(SECOND)


def test_a_second_browser_after_the_redirect_changes_nothing(start: Start) -> None:
    login = start().begin()
    login.browser.get(login.url())
    assert httpx.get(login.callback.start_url, trust_env=False).status_code == 410
    assert login.callback.redirected.result(0) == login.url()


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Sec-Purpose", "prefetch"),
        ("Sec-Purpose", "prefetch;prerender"),
        ("Purpose", "prefetch"),
        ("X-Purpose", "preview"),
        ("X-Moz", "prefetch"),
    ],
    ids=named("FN-40"),
)
def test_a_prefetch_neither_uses_the_link_nor_ends_the_wait(start: Start, header: str, value: str) -> None:
    login = start()
    assert login.browser.get(login.callback.start_url, headers={header: value}).status_code == 503
    assert not login.browser.cookies
    login.begin()
    assert login.browser.get(login.url(), headers={header: value}).status_code == 503
    assert login.is_waiting()
    assert login.browser.get(login.url()).status_code == 303


# --- Answers ----------------------------------------------------------------------------------------------------------


def every_answer(login: Login) -> Iterator[httpx.Response]:
    yield login.browser.get(login.origin + "/<script>alert(1)</script>?x=<b>")
    yield login.browser.post(login.url())
    yield login.browser.get(login.url(), headers={"Host": "evil.example"})
    yield login.browser.get(login.url(), headers={"Sec-Fetch-Mode": "cors"})
    yield login.browser.get(login.url(), headers={"Sec-Purpose": "prefetch"})
    yield login.browser.get(login.callback.start_url)
    yield login.browser.get(login.url("error=<script>&error_description=<b>&state=x"))
    yield (taken := login.browser.get(login.url(f"code={CODE}&error=<script>&error_description=<b>&state={STATE}")))
    yield httpx.get(login.callback.start_url, trust_env=False)
    yield login.browser.get(login.origin + taken.headers["location"])


def test_rules_6_1_every_answer_is_uncached_unreferred_and_inert(start: Start) -> None:
    answers = list(every_answer(start()))
    assert [answer.status_code for answer in answers] == [404, 405, 421, 403, 503, 303, 400, 303, 410, 200]
    for answer in answers:
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["connection"] == "close"
        assert "server" not in answer.headers
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ")
        assert policy.endswith("base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
        assert "unsafe" not in policy


def test_fn_40_nothing_of_a_request_is_shown_or_logged(
    start: Start, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    login = start()
    with caplog.at_level(logging.DEBUG):
        for logger in ("httpx", "httpcore"):  # the test's own browser
            caplog.set_level(logging.CRITICAL, logger=logger)
        answers = list(every_answer(login))
        login.serving.result(SECOND)
    shown = "".join(answer.text for answer in answers)
    kept = [
        value for answer in answers for name, value in answer.headers.items() if answer.url != login.callback.start_url
    ]
    output = capfd.readouterr()
    told = [shown, *kept, caplog.text, output.out, output.err, repr(login.callback), repr(login.serving)]
    for text in told:
        for canary in (CODE, STATE, "script", "<b>", "%3Cb%3E", "evil.example"):
            assert canary not in text


def test_the_pages_are_self_contained_and_fit_their_policy() -> None:
    for html, policy in (SUCCESS, FAILURE, NOT_OURS, TWO_BROWSERS):
        text = html.decode()
        assert text.startswith("<!doctype html>\n<html lang=")
        assert not re.search(r"https?:|//|url\(|src=|href=|<script|\son\w+=|\sstyle=", text)
        assert not re.search(r"\b(left|right)\b", text)  # logical properties: right to left works
        assert "prefers-color-scheme: dark" in text
        assert all(f"<{tag}" in text for tag in ("title", "main", "h1", 'meta name="viewport"'))
        assert re.fullmatch(r"default-src 'none'; style-src 'sha256-[A-Za-z0-9+/]{43}='; .*", policy)


def test_fn_40_a_page_escapes_what_it_is_given() -> None:
    html = page('"><x', "<script>", "&<b>").html
    assert b"<script>" not in html
    assert b"<b>" not in html
    assert b'class="&quot;&gt;&lt;x"' in html


def test_the_callers_own_page_is_sent_as_it_is_and_can_fetch_and_run_nothing(start: Start) -> None:
    own = page_of_caller("<h1>Gut gemacht ✓</h1>")
    assert own.html.decode() == "<h1>Gut gemacht ✓</h1>"
    assert own.policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:; ")
