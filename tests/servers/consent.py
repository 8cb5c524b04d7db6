"""A person at a browser, played over HTTP: opens the login, fills in what the pages ask, approves or refuses."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx

PERSON = "alice"
MAX_PAGES = 20
REFUSALS = ("deny", "cancel")


@dataclass(frozen=True)
class Page:
    """The last page that the person saw. `url` is where it came from."""

    url: str
    status: int
    text: str


def follow(authorization_url: str, *, deny: bool = False) -> str:
    """Go from the authorization URL to the redirect whose target is the redirect URI; that is returned, not fetched."""
    redirect_uri = parse_qs(urlsplit(authorization_url).query)["redirect_uri"][0]
    with _browser() as browser:
        request = browser.build_request("GET", authorization_url)
        for _ in range(MAX_PAGES):
            if str(request.url).split("?")[0] == redirect_uri.split("?")[0]:
                return str(request.url)
            response = browser.send(request)
            onward = _onward(response, deny=deny)
            assert onward is not None, f"a page without a way on: {response.status_code} at {request.url.path}"
            request = browser.build_request(onward.method, onward.url, data=onward.fields)
    raise AssertionError(f"no redirect to {redirect_uri} within {MAX_PAGES} pages")


def visit(url: str, *, deny: bool = False) -> Page:
    """Go all the way, as a browser does: the last redirect is fetched too, with the cookies collected on the way."""
    with _browser() as browser:
        request = browser.build_request("GET", url)
        for _ in range(MAX_PAGES):
            response = browser.send(request)
            onward = _onward(response, deny=deny)
            if onward is None:
                return Page(str(response.url), response.status_code, response.text)
            request = browser.build_request(onward.method, onward.url, data=onward.fields)
    raise AssertionError(f"no last page within {MAX_PAGES}")


def _browser() -> httpx.Client:
    headers = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Accept": "text/html"}
    return httpx.Client(headers=headers, follow_redirects=False, trust_env=False, timeout=30)


@dataclass(frozen=True)
class _Onward:
    method: str
    url: str
    fields: dict[str, str] | None = None


@dataclass
class _Form:
    action: str
    fields: dict[str, str] = field(default_factory=dict[str, str])
    buttons: dict[str, str] = field(default_factory=dict[str, str])


def _onward(response: httpx.Response, *, deny: bool) -> _Onward | None:
    """What this page leads to: its redirect, else its refusal if that is wanted and offered, else its form."""
    here = str(response.url)
    if response.is_redirect:
        return _Onward("GET", urljoin(here, response.headers["location"]))
    page = _Reader()
    page.feed(response.text)
    if deny and page.cancel is not None:
        return _Onward("GET", urljoin(here, page.cancel))
    if page.form is None:
        return None
    refusing = [value for value in page.form.buttons if value in REFUSALS]
    agreeing = [value for value in page.form.buttons if value not in REFUSALS]
    chosen = {page.form.buttons[value]: value for value in (refusing if deny else agreeing)[:1]}
    return _Onward("POST", urljoin(here, page.form.action), {**page.form.fields, **chosen})


class _Reader(HTMLParser):
    """The first form of a page with its fields filled in, and the link that cancels."""

    def __init__(self) -> None:
        super().__init__()
        self.form: _Form | None = None
        self.cancel: str | None = None
        self._link: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "a":
            self._link = given.get("href")
        elif tag == "form" and self.form is None:
            self.form = _Form(given.get("action", ""))
        elif tag == "input" and self.form is not None and "name" in given:
            self.form.fields[given["name"]] = given.get("value") or PERSON
        elif tag == "button" and self.form is not None and "name" in given:
            self.form.buttons[given["value"]] = given["name"]

    def handle_data(self, data: str) -> None:
        if self._link is not None and any(word in data.lower() for word in REFUSALS):
            self.cancel = self._link

    def handle_endtag(self, tag: str) -> None:
        if tag == "a":
            self._link = None


if __name__ == "__main__":  # BROWSER="python -m tests.servers.consent %s" makes it the machine's browser
    visit(sys.argv[1], deny="--deny" in sys.argv)
