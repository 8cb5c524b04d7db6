"""One document: which answers are the document, which a miss, which a failure, and which redirects are followed."""

from __future__ import annotations

import pytest

from mcp_oauth.sansio import fetching
from mcp_oauth.sansio.errors import Attempt
from mcp_oauth.sansio.fetching import Fetched, Fetching
from mcp_oauth.sansio.messages import Response
from mcp_oauth.sansio.steps import Await, Misuse, Send, SendFailed, Woke
from tests.sansio.worlds import DOWN, HTML, World, document, play, redirect, rows, transitions

URL = "https://h.example/a"
DOC = document(issuer="x")


def fetch(answer: Response | SendFailed, more: World | None = None) -> Fetched:
    found: Fetched = play(fetching, fetching.begin(URL), {URL: answer, **(more or {})}).end.value
    return found


def test_asks_as_a_person_would_want_it() -> None:
    step = fetching.begin(URL)
    assert isinstance(step, Await)
    assert isinstance(step.effect, Send)
    assert step.effect.request.method == "GET"
    assert step.effect.request.headers == (("accept", "application/json"), ("user-agent", "mcp-oauth"))


ANSWERS = [
    pytest.param(DOC, False, {"issuer": "x"}, "", id="RULES-2.3-the-document"),
    pytest.param(Response(200, (), b"\xef\xbb\xbf" + DOC.body), False, {"issuer": "x"}, "", id="RFC8259-8.1-BOM"),
    pytest.param(HTML, False, None, "another document", id="FN-23-html-with-200"),
    pytest.param(Response(200), False, None, "another document", id="RULES-2.3-empty-200"),
    pytest.param(Response(200, (), b"[]"), False, None, "another document", id="RULES-2.3-no-object"),
    pytest.param(Response(200, (), b"\xff"), False, None, "another document", id="RULES-2.3-not-UTF-8"),
    pytest.param(Response(204), False, None, "", id="RULES-2.3-204-is-a-miss"),
    pytest.param(Response(304), False, None, "", id="RULES-2.3-304-is-a-miss"),
    pytest.param(Response(401, (), DOC.body), False, None, "", id="FN-22-401-is-a-miss"),
    pytest.param(Response(403, (), DOC.body), False, None, "", id="RULES-2.3-403-is-a-miss"),
    pytest.param(Response(404, (), DOC.body), False, None, "", id="RULES-2.3-404-is-a-miss"),
    pytest.param(Response(499), False, None, "", id="RULES-2.3-499-is-a-miss"),
    pytest.param(Response(429), True, None, "", id="RULES-2.3-429-is-a-failure"),
    pytest.param(Response(500, (), DOC.body), True, None, "", id="RULES-2.3-500-is-a-failure"),
    pytest.param(Response(503), True, None, "", id="RULES-2.3-503-is-a-failure"),
    pytest.param(DOWN, True, None, "no route to host", id="RULES-2.3-no-answer-is-a-failure"),
    pytest.param(Response(302), False, None, "", id="RFC9110-10.2.2-redirect-to-nowhere"),
    pytest.param(redirect(""), False, None, "", id="RFC9110-10.2.2-redirect-to-nothing"),
]


@pytest.mark.parametrize(("answer", "unavailable", "found", "why"), ANSWERS)
def test_answer(answer: Response | SendFailed, unavailable: bool, found: dict[str, object] | None, why: str) -> None:
    fetched = fetch(answer)
    assert (fetched.unavailable, fetched.document) == (unavailable, found)
    assert fetched.attempt.url == URL
    assert fetched.attempt.status == getattr(answer, "status", None)
    assert found is not None or fetched.miss.reason == why


B = "https://h.example/b"
REDIRECTS = [
    *(
        pytest.param(redirect("/b", code), Attempt(B, 200), id=f"FN-27-{code}-followed")
        for code in (301, 302, 303, 307, 308)
    ),
    pytest.param(redirect(f"{B}#c"), Attempt(B, 200), id="RULES-1.4-absolute-less-its-fragment"),
    pytest.param(
        redirect("https://h.example:443/b"), Attempt("https://h.example:443/b", 200), id="RULES-1.4-default-port"
    ),
    pytest.param(redirect("/b", 300), Attempt(URL, 300), id="RULES-1.4-300-not-followed"),
    pytest.param(
        redirect("https://evil.example/b?code=secret"),
        Attempt(URL, 302, "redirect to https://evil.example/b refused: another origin"),
        id="FN-27-other-origin-named-without-query",
    ),
    pytest.param(
        redirect("http://h.example/b"),
        Attempt(URL, 302, "redirect to http://h.example/b refused: another origin"),
        id="RULES-1.4-http-is-another-origin",
    ),
    pytest.param(
        redirect("https://h.example:444/b"),
        Attempt(URL, 302, "redirect to https://h.example:444/b refused: another origin"),
        id="RULES-1.4-other-port-is-another-origin",
    ),
]


@pytest.mark.parametrize(("answer", "attempt"), REDIRECTS)
def test_redirect(answer: Response, attempt: Attempt) -> None:
    fetched = fetch(answer, {B: DOC, "https://h.example:443/b": DOC})
    assert fetched.attempt == attempt
    assert fetched.document == ({"issuer": "x"} if attempt.status == 200 else None)
    assert not fetched.unavailable


@pytest.mark.parametrize(
    ("hops", "reason"),
    [
        pytest.param(3, "", id="RULES-1.4-three-redirects"),
        pytest.param(4, "redirect to /4 refused: too many", id="RULES-1.4-not-four"),
    ],
)
def test_redirects_are_counted(hops: int, reason: str) -> None:
    world: World = {f"https://h.example/{n}": redirect(f"/{n + 1}") for n in range(hops)}
    played = play(fetching, fetching.begin("https://h.example/0"), {**world, f"https://h.example/{hops}": DOC})
    assert len(played.asked) == 4 == fetching.MOST_EFFECTS
    assert played.end.value.attempt.reason == reason
    assert (played.end.value.document is None) == (hops == 4)


def test_a_failed_redirect_names_the_url_that_failed() -> None:
    fetched = fetch(redirect("/b?key=1"), {"https://h.example/b?key=1": DOWN})
    assert fetched.attempt == Attempt(B, reason="no route to host")


def test_a_reason_is_made_printable() -> None:
    assert fetch(SendFailed("no\nroute\x1b[2J", may_have_arrived=False)).attempt.reason == "no route [2J"


def test_the_table_is_what_happens() -> None:
    worlds: list[World] = [{URL: DOWN}, {URL: redirect("/b")}]
    taken = [transitions(play(fetching, fetching.begin(URL), world)) for world in worlds]
    assert set().union(*taken) == rows(fetching)


def test_misuse() -> None:
    with pytest.raises(Misuse, match="Woke does not answer what Fetching waits for"):
        fetching.advance(Fetching(URL), Woke())
