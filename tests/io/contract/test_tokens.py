"""Where every driver lets a token go, and where not (RULES 1.1): real servers on several ports.

Most servers here accept any token anywhere, and write down what they get.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import pytest

from mcp_oauth.exceptions import OAuthError
from mcp_oauth.store.memory import MemoryStore
from tests.io.contract.conftest import Private
from tests.io.contract.ways import REDIRECTS, Answer, Call, Caller, Script, Way
from tests.io.servers import Reply, Seen, World, answering, document, put_grant, serving

pytestmark = pytest.mark.usefixtures("nothing_is_left_of_threads")


class Site(World):
    """Redirects from the paths in `hops`, and accepts any token elsewhere; `hostile`: demands one everywhere."""

    def __init__(self, origin: str) -> None:
        super().__init__(origin)
        self.hops: dict[str, str] = {}
        self.status = 307
        self.hostile = False

    def mcp(self, seen: Seen) -> Reply:
        return self.anywhere(seen)

    def __call__(self, seen: Seen) -> Reply:
        if seen.path in ("/register", "/token", "/.well-known/oauth-authorization-server") or "resource" in seen.path:
            return super().__call__(seen)
        self.seen.append(seen)
        return self.anywhere(seen)

    def anywhere(self, seen: Seen) -> Reply:
        if seen.path in self.hops:
            return Reply(self.status, (("location", self.hops[seen.path]),), b"go there")
        if seen.path == "/mcp/quiet":
            return Reply(200)
        if self.hostile and not str(seen.token).startswith("Bearer"):
            metadata = f"{self.origin}/hostile-metadata"
            return Reply(401, (("www-authenticate", f'Bearer resource_metadata="{metadata}"'),), b"who?")
        return document({"token": seen.token, "body": seen.body.decode(errors="replace")})


class Sites:
    """A server and its token, and another one."""

    def __init__(self, mcp: Site, evil: Site) -> None:
        self.mcp, self.evil = mcp, evil
        self.store = MemoryStore()
        put_grant(self.store, mcp, expires_in=1000)

    @property
    def seen(self) -> list[Seen]:
        return self.mcp.seen + self.evil.seen

    def forget(self) -> None:
        self.mcp.seen.clear()
        self.evil.seen.clear()

    def with_token(self) -> list[str]:
        """The paths at the right origin that got a token. No other place got one, in whatever form."""
        for seen in self.evil.seen:
            assert "CANARY" not in f"{seen}", seen
        at_home = urlsplit(self.mcp.origin).netloc
        found = [seen for seen in self.mcp.seen if "CANARY" in f"{seen}"]
        assert all(seen.headers["host"] == at_home for seen in found)
        return [urlsplit(seen.url).path for seen in found]

    def nothing_happened(self) -> bool:
        """No challenge was believed."""
        return not (self.mcp.logins or self.mcp.refreshes or any("metadata" in seen.path for seen in self.seen))


@pytest.fixture
def sites() -> Iterator[Sites]:
    with serving() as one, serving() as other:
        one.handler, other.handler = Site(one.origin), Site(other.origin)
        yield Sites(one.handler, other.handler)


PLACES = {
    "other-port": "{evil}/mcp/x",
    "other-host": "{localhost}/mcp/x",
    "other-user": "http://{mcp_host}@{evil_host}/mcp/x",
    "sibling": "{mcp}/mcpx",
    "parent": "{mcp}/",
    "relative": "other",
    "relative-sibling": "/mcpx",
    "no-scheme": "//{evil_host}/mcp/x",
    "dot-segments": "{mcp}/mcp/../other",
    "encoded-dots": "{mcp}/mcp/%2e%2e/other",
    "encoded-slash": "{mcp}/mcp%2Fx",
}


def place(target: str, sites: Sites) -> str:
    mcp, evil = sites.mcp.origin, sites.evil.origin
    hosts = {"mcp_host": urlsplit(mcp).netloc, "evil_host": urlsplit(evil).netloc}
    return target.format(mcp=mcp, evil=evil, localhost=mcp.replace("127.0.0.1", "localhost"), **hosts)


@pytest.mark.parametrize("target", PLACES.values(), ids=[f"RULES-1.1-{name}" for name in PLACES])
def test_no_token_follows_a_redirect_out_and_no_challenge_from_there_is_believed(
    follower: Way, sites: Sites, target: str
) -> None:
    start = "/mcp" if target == "other" else "/mcp/from"
    call = Call("POST", f"{sites.mcp.origin}{start}", "bytes", follow=True)
    sites.mcp.hops = {start: place(target, sites)}
    oauth = follower.oauth(sites.mcp.url, store=sites.store, user=sites.mcp.login)
    for level in follower.levels:
        for hostile in (True, False):
            for sites.mcp.status in (302, 307):
                sites.forget()
                sites.mcp.hostile = sites.evil.hostile = hostile
                answer = follower.at_level(level, call, oauth)
                assert answer.status == (401 if hostile else 200)
                assert sites.with_token() == [start]
                assert len(sites.seen) == 2
    assert sites.nothing_happened()


def test_these_places_catch_what_is_written_naively(follower: Way, sites: Sites) -> None:
    """Each stack has its own: aiohttp runs a middleware at each hop, the others keep a header at the same host."""
    caught = set[str]()
    for name, target in PLACES.items():
        sites.forget()
        sites.mcp.hops = {"/mcp": place(target, sites)}
        follower.call(Call("GET", sites.mcp.url, follow=True), Caller(follower.naive("Bearer CANARY")))
        try:
            if sites.with_token() != ["/mcp"]:
                caught.add(name)
        except AssertionError:
            caught.add(name)
    assert {"sibling", "parent", "relative", "relative-sibling", "dot-segments"} <= caught


@pytest.mark.parametrize("status", REDIRECTS)
def test_RULES_1_1_the_token_arrives_below_the_server_url(follower: Way, sites: Sites, status: int) -> None:
    sites.mcp.hops, sites.mcp.status, sites.mcp.hostile = {"/mcp/from": "/mcp/below?x=1"}, status, True
    oauth = follower.oauth(sites.mcp.url, store=sites.store)
    for level in follower.levels:
        sites.forget()
        call = Call("POST", f"{sites.mcp.url}/from", "bytes", follow=True)
        answer = follower.at_level(level, call, oauth)
        assert (answer.status, answer.url) == (200, f"{sites.mcp.url}/below?x=1")
        first, *_, last = sites.mcp.seen
        assert sites.with_token() == ["/mcp/from", "/mcp/below"]
        if status in (307, 308):
            assert (last.method, last.body) == ("POST", first.body)
        else:
            assert (last.method, last.body) == ("GET", b"")


CHAINS = {
    "leaves-and-comes-back": ["{evil}/a", "{mcp}/mcp/below"],
    "leaves-the-path-and-comes-back": ["{mcp}/mcpx", "{mcp}/mcp/below"],
    "goes-on-and-leaves": ["{mcp}/mcp/below", "{evil}/mcp"],
    "there-and-back-and-there": ["{evil}/a", "{mcp}/mcp/below", "{evil}/b"],
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=[f"RULES-1.1-{name}" for name in CHAINS])
def test_a_token_is_given_at_each_hop_anew(follower: Way, sites: Sites, chain: list[str]) -> None:
    oauth = follower.oauth(sites.mcp.url, store=sites.store)
    stops = [f"{sites.mcp.url}/from", *(place(stop, sites) for stop in chain)]
    for here, there in pairwise(stops):
        at = sites.evil if here.startswith(sites.evil.origin) else sites.mcp
        at.hops[urlsplit(here).path] = there
    for level in follower.levels:
        sites.forget()
        answer = follower.at_level(level, Call("GET", f"{sites.mcp.url}/from", follow=True), oauth)
        assert answer.status == 200
        assert set(sites.with_token()) <= {"/mcp/from", "/mcp/below"}
        assert answer.url == stops[-1]


def test_a_challenge_below_the_server_url_is_answered_with_a_login(follower: Way, sites: Sites) -> None:
    sites.mcp.hops, sites.mcp.hostile = {"/mcp/from": "/mcp/below"}, True
    oauth = follower.oauth(sites.mcp.url, user=sites.mcp.login)
    assert follower.call(Call("GET", f"{sites.mcp.url}/from", follow=True), Caller(oauth)).status == 200
    assert sites.mcp.logins == 1


@pytest.mark.parametrize("secure", [True, False], ids=["RULES-1.1-downgrade", "RULES-1.1-upgrade"])
def test_no_token_changes_the_scheme(follower: Way, private: Private, secure: bool) -> None:
    """Upgrades are no better: to the client it is another origin."""
    with ExitStack() as servers:
        tls = [private.server, None] if secure else [None, private.server]
        one, other = (servers.enter_context(serving(tls=each)) for each in tls)
        one.handler, other.handler = Site(one.origin), Site(other.origin)
        sites = Sites(one.handler, other.handler)
        sites.mcp.hops = {"/mcp": f"{other.origin}/mcp"}
        oauth = follower.oauth(one.handler.url, store=sites.store, **follower.trusting(private.authority))
        caller = Caller(oauth, authority=private.authority)
        assert follower.call(Call("GET", sites.mcp.url, follow=True), caller).status == 200
        assert (sites.with_token(), len(sites.evil.seen)) == (["/mcp"], 1)


def test_RULES_1_1_the_callers_own_requests_have_the_token_at_all_of_the_origin(way: Way, sites: Sites) -> None:
    """What he asks for himself is no redirect."""
    oauth = way.oauth(sites.mcp.url, store=sites.store)
    for level in way.levels:
        sites.forget()
        for path in ("/", "/mcpx", "/mcp/below"):
            assert way.at_level(level, Call("GET", f"{sites.mcp.origin}{path}"), oauth).status == 200
        assert sites.with_token() == ["/", "/mcpx", "/mcp/below"]


def test_RULES_1_1_a_client_that_speaks_to_others_too_takes_no_token_there(way: Way, sites: Sites) -> None:
    sites.evil.hostile = True
    oauth = way.oauth(sites.mcp.url, store=sites.store, user=sites.mcp.login)
    elsewhere = [f"{sites.evil.origin}/mcp", sites.mcp.url.replace("127.0.0.1", "localhost")]

    def script() -> Script[list[Answer]]:
        first = yield Call("GET", elsewhere[0])
        second = yield Call("GET", elsewhere[1])
        third = yield Call("GET", sites.mcp.url)
        return [first, second, third]

    assert [answer.status for answer in way.run(script(), Caller(oauth))] == [401, 200, 200]
    assert sites.with_token() == ["/mcp"]
    assert sites.nothing_happened()


@pytest.mark.parametrize("challenged", [True, False], ids=["challenged-first", "token-at-hand"])
def test_a_redirect_that_is_not_followed_is_the_callers(way: Way, sites: Sites, challenged: bool) -> None:
    sites.mcp.hops = {"/mcp": f"{sites.evil.origin}/mcp"}
    oauth = way.oauth(sites.mcp.url, store=sites.store)
    if challenged:
        sites.mcp.valid.clear()
    for level in way.levels:
        answer = way.at_level(level, Call("GET", sites.mcp.url), oauth)
        assert (answer.status, answer.headers["location"]) == (307, f"{sites.evil.origin}/mcp")
    assert sites.evil.seen == []


# --- The caller's own credentials, and what he keeps ------------------------------------------------------------------


@pytest.mark.parametrize("hostile", [True, False], ids=["demanded", "not-demanded"])
def test_netrc_never_overrides_the_token(follower: Way, sites: Sites, netrc: None, hostile: bool) -> None:
    """At the first hop, and where a stack asks it again for each redirect."""
    sites.mcp.hops, sites.mcp.hostile = {"/mcp/from": "/mcp/below"}, hostile
    oauth = follower.oauth(sites.mcp.url, store=sites.store)
    for level in follower.levels:
        sites.forget()
        caller = Caller(oauth if level == "client" else None, environment=True)
        call = Call("GET", f"{sites.mcp.url}/from", auth=oauth if level == "request" else None, follow=True)
        assert follower.call(call, caller).status == 200
        first, *_, last = sites.mcp.seen
        assert str(first.token).startswith("Bearer")
        assert not str(last.token).startswith("Basic")


def test_the_token_goes_before_the_callers_own_authorization_header_which_serves_elsewhere(
    way: Way, sites: Sites
) -> None:
    oauth = way.oauth(sites.mcp.url, store=sites.store)
    own = {"authorization": "Basic b3du"}
    tokens = []
    for url in (sites.mcp.url, f"{sites.evil.origin}/mcp"):
        for level in way.levels:
            tokens.append(way.at_level(level, Call("GET", url, headers=own), oauth).json()["token"])
    here, there = tokens[: len(way.levels)], tokens[len(way.levels) :]
    assert all(token.startswith("Bearer CANARY-access") for token in here)
    assert set(there) == {"Basic b3du"}


def test_what_the_caller_keeps_of_a_request_and_its_copies_and_pickles_hold_no_token(way: Way, sites: Sites) -> None:
    for thing in way.residue(way.oauth(sites.mcp.url, store=sites.store), f"{sites.mcp.url}/quiet"):
        assert "CANARY" not in repr(thing)
        assert "CANARY" not in str(thing)
        assert b"CANARY" not in pickled(thing)
    assert sites.with_token()


@pytest.mark.parametrize("answer", [None, b"", b"nonsense\r\n\r\n"], ids=["refused", "cut", "nonsense"])
def test_the_stacks_own_errors_are_the_callers_and_hold_no_token(way: Way, answer: bytes | None) -> None:
    with answering(answer or b"") as origin:
        url, store = f"{origin}/mcp", MemoryStore()
        world = World(origin)
        put_grant(store, world, expires_in=1000)
        oauth = way.oauth(url, store=store)
        if answer is not None:
            error = error_of(way, url, oauth)
    if answer is None:
        error = error_of(way, url, oauth)
    assert not isinstance(error, OAuthError)
    for thing in (error, getattr(error, "request", None), getattr(error, "request_info", None)):
        assert "CANARY" not in f"{thing!r} {thing}"
        assert b"CANARY" not in pickled(thing)


def error_of(way: Way, url: str, oauth: Any) -> Exception:
    with pytest.raises(Exception) as caught:
        way.call(Call("GET", url), Caller(oauth))
    return caught.value


def pickled(thing: Any) -> bytes:
    """Nothing, where it cannot be."""
    try:
        return pickle.dumps(thing)
    except (TypeError, AttributeError, pickle.PicklingError):
        return b""
