"""What is special to requests: its hooks, prepared requests, adapters and certificates. The rest is in `contract`."""

from __future__ import annotations

import copy
import io
import pickle
import socket
import ssl
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme
from requests.adapters import BaseAdapter, HTTPAdapter
from urllib3 import Retry

from mcp_oauth.exceptions import AccessError, AuthorizationRequired, ConfigurationError
from mcp_oauth.io.requests import OAuth
from mcp_oauth.sansio.errors import Reason
from mcp_oauth.sansio.messages import Request, Response, get, post_form
from mcp_oauth.sansio.steps import Send, SendFailed
from mcp_oauth.store.memory import MemoryStore
from tests.io.servers import PATIENCE, Reply, Seen, World, answering, put_grant, raw, serving, world_on_loopback

pytestmark = pytest.mark.usefixtures("nothing_is_left_of_threads")

EVERYWHERE = "https://mcp.example/mcp"


def logged_in(world: World, **options: Any) -> OAuth:
    """With a token that the server accepts, and no person to ask."""
    store = MemoryStore()
    put_grant(store, world, expires_in=1000)
    return OAuth(world.url, store=store, interactive=False, **options)


def logging_in(world: World) -> OAuth:
    return OAuth(world.url, store=MemoryStore(), user=world.login)


@pytest.fixture
def served() -> Iterator[World]:
    with world_on_loopback() as world:
        yield world


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


# --- Hooks ------------------------------------------------------------------------------------------------------------


def test_the_callers_hooks_see_the_last_answer_only(served: World, session: requests.Session) -> None:
    heard: list[int] = []
    session.hooks["response"].append(lambda response, **_: heard.append(response.status_code))
    assert session.get(served.url, auth=logging_in(served)).status_code == 200
    assert heard == [200]


def test_what_came_before_is_in_the_history_and_empty(served: World, session: requests.Session) -> None:
    response = session.get(served.url, auth=logging_in(served))
    assert [(past.status_code, past.content) for past in response.history] == [(401, b"")]


def test_cookies_of_the_challenge_are_kept_and_sent(session: requests.Session) -> None:
    seen: list[Seen] = []

    def handler(request: Seen) -> Reply:
        seen.append(request)
        if request.path.startswith("/mcp") and request.token is None:
            refused = world(request)
            return refused._replace(headers=(*refused.headers, ("set-cookie", "who=you")))
        return world(request)

    with serving(handler) as server:
        world = World(server.origin)
        assert session.get(world.url, auth=logging_in(world)).status_code == 200
    assert [request.headers.get("cookie") for request in seen if request.path == "/mcp"] == [None, "who=you"]
    assert session.cookies.get_dict() == {"who": "you"}


# --- Prepared requests ------------------------------------------------------------------------------------------------


def test_a_prepared_request_can_be_sent_again_and_by_many_threads(served: World, session: requests.Session) -> None:
    prepared = session.prepare_request(requests.Request("POST", served.url, json=1, auth=logged_in(served)))
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(session.send, [prepared] * 24))
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["body"] for answer in answers} == {"1"}


def test_one_that_was_prepared_long_ago_gets_a_new_token(served: World, session: requests.Session) -> None:
    prepared = session.prepare_request(requests.Request("GET", served.url, auth=logged_in(served)))
    served.valid.clear()
    assert session.send(prepared).status_code == 200
    assert served.refreshes == 1


COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_FN_54_a_copy_holds_no_token_and_gets_none(
    served: World, session: requests.Session, copied: Callable[[Any], Any]
) -> None:
    prepared = session.prepare_request(requests.Request("GET", served.url, auth=logged_in(served)))
    assert "CANARY" not in repr(prepared.headers)
    copies = [copied(prepared), copied(session.send(prepared)).request]
    assert [session.send(each).status_code for each in copies] == [401, 401]
    assert [seen.token for seen in served.at("/mcp")[1:]] == [None, None]


def shown_by_frames(error: BaseException) -> list[str]:
    """The functions in whose local variables a token is to be seen, as pytest, rich and Sentry show them."""
    frames = [each for link in chain_of(error) for each, _ in traceback.walk_tb(link.__traceback__)]
    return [each.f_code.co_name for each in frames if "Bearer CANARY" in repr(each.f_locals)]


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def test_FN_54_an_exception_shows_no_token(served: World, session: requests.Session) -> None:
    def cut(connection: socket.socket) -> None:
        connection.close()

    with raw(cut) as origin:
        world = World(origin)
        with pytest.raises(requests.ConnectionError) as caught:
            session.get(world.url, auth=logged_in(world))
    assert isinstance(caught.value.request, requests.PreparedRequest)
    assert "authorization" in caught.value.request.headers
    assert "CANARY" not in repr(vars(caught.value.request))
    assert "CANARY" not in repr(caught.value.request.copy().headers)
    assert b"CANARY" not in pickle.dumps(caught.value.request)
    assert shown_by_frames(caught.value) == []


def test_a_request_to_another_place_is_not_touched(session: requests.Session) -> None:
    with serving(lambda seen: Reply(401, (("www-authenticate", "Bearer"),), str(seen.token).encode())) as server:
        request = requests.Request("GET", server.origin, headers={"authorization": "mine"}, auth=OAuth(EVERYWHERE))
        prepared = session.prepare_request(request)
        assert prepared.hooks["response"] == []
        assert session.send(prepared).content == b"mine"


def test_RULES_1_1_the_callers_own_authorization_makes_way_and_is_not_sent_on(
    served: World, session: requests.Session
) -> None:
    def handler(seen: Seen) -> Reply:
        return Reply(307, (("location", "/elsewhere"),)) if seen.path == "/mcp" else Reply(200)

    with serving() as server:
        world, tokens = World(server.origin), []

        def watching(seen: Seen) -> Reply:
            tokens.append(seen.token)
            return handler(seen)

        server.handler = watching
        response = session.get(world.url, headers={"Authorization": "mine"}, auth=logged_in(world))
    assert response.url.endswith("/elsewhere")
    assert [str(token).startswith("Bearer CANARY") for token in tokens] == [True, False]
    assert tokens[1] is None


# --- Bodies -----------------------------------------------------------------------------------------------------------


class Pipe(io.RawIOBase):
    """Can be read, and not rewound."""

    def __init__(self, content: bytes) -> None:
        self.content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self.content.readinto(buffer)

    def tell(self) -> int:
        raise OSError("a pipe")


class Read:
    """Knows where it is, and cannot go back."""

    def __init__(self, content: bytes) -> None:
        self.content = io.BytesIO(content)

    def read(self, size: int = -1) -> bytes:
        return self.content.read(size)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.content)

    def tell(self) -> int:
        return self.content.tell()


def test_a_file_is_sent_again_from_where_it_was(served: World, session: requests.Session) -> None:
    body = io.BytesIO(b"header|the rest")
    body.seek(7)
    assert session.post(served.url, data=body, auth=logging_in(served)).json()["body"] == "the rest"


@pytest.mark.parametrize("kind", [Pipe, Read])
def test_what_cannot_be_rewound_gives_the_typed_error(
    served: World, session: requests.Session, kind: Callable[[bytes], Any]
) -> None:
    with pytest.raises(AccessError) as caught:
        session.post(served.url, data=kind(b"once"), auth=logging_in(served))
    assert caught.value.reason is Reason.BODY_NOT_REPLAYABLE


def test_FN_47_the_response_is_closed_where_a_login_fails(session: requests.Session) -> None:
    closed = threading.Event()

    def endless(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 401 who?\r\nwww-authenticate: Bearer\r\n\r\n")
        try:
            while True:
                connection.sendall(bytes(1 << 16))
        except OSError:
            closed.set()

    with raw(endless) as origin:
        oauth = OAuth(f"{origin}/mcp", store=MemoryStore(), interactive=False)
        with pytest.raises(AuthorizationRequired):
            session.get(oauth.server_url, auth=oauth)
        assert closed.wait(PATIENCE)


# --- Adapters ---------------------------------------------------------------------------------------------------------


def send(request: Request, *, seconds: float = PATIENCE, most: int = 1 << 20, **options: Any) -> Any:
    with OAuth(EVERYWHERE, store=MemoryStore(), **options).open_sender() as sender:
        return sender(Send(request, most, seconds))


class Answering(BaseAdapter):
    """Has nothing beneath."""

    def __init__(self, content: bytes = b"", error: Exception | None = None) -> None:
        self.content, self.error = content, error

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        if self.error:
            raise self.error
        response = requests.Response()
        response.status_code, response.raw = 200, io.BytesIO(self.content)
        response.headers["content-encoding"] = "gzip"  # undone already, as whoever answers by himself must
        return response

    def close(self) -> None:
        pass


def test_FN_57_an_adapter_that_answers_by_itself_is_read_under_the_same_limit() -> None:
    assert send(get(EVERYWHERE), adapter=lambda: Answering(b"fine")).body == b"fine"
    failed = send(get(EVERYWHERE), most=100, adapter=lambda: Answering(bytes(101)))
    assert failed == SendFailed("the body is longer than 100 bytes", may_have_arrived=True)


@pytest.mark.parametrize(
    ("error", "arrived"),
    [
        (requests.ConnectTimeout("CANARY"), False),
        (requests.exceptions.InvalidURL("CANARY"), False),
        (requests.exceptions.InvalidSchema("CANARY"), False),
        (requests.ConnectionError("CANARY"), True),
        (requests.ReadTimeout("CANARY"), True),
        (requests.exceptions.SSLError("CANARY"), True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_RULES_4_9_an_adapter_without_urllib3_is_taken_at_its_word(error: Exception, arrived: bool) -> None:
    failed = send(get(EVERYWHERE), adapter=lambda: Answering(error=error))
    assert failed == SendFailed(type(error).__name__, may_have_arrived=arrived)


class Eager(HTTPAdapter):
    """Would send everything three times."""

    def __init__(self) -> None:
        super().__init__(max_retries=Retry(3, allowed_methods=None, status_forcelist=[503], backoff_factor=0))


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 503 later\r\ncontent-length: 0\r\n\r\n"], ids=["cut", "503"])
def test_RULES_4_9_an_adapter_that_repeats_does_not_repeat_oauth_traffic(answer: bytes) -> None:
    connections: list[socket.socket] = []

    def once(connection: socket.socket) -> None:
        connections.append(connection)
        connection.sendall(answer)

    with raw(once) as origin:
        result = send(post_form(origin, [("refresh_token", "x")]), adapter=Eager)
    assert len(connections) == 1
    assert isinstance(result, Response if answer else SendFailed)


class Stubborn(HTTPAdapter):
    """Tries a place where nobody listens, and the right one, in this or that order."""

    def __init__(self, *prefixes: str) -> None:
        super().__init__()
        self.prefixes = prefixes

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        url = request.url
        for prefix in self.prefixes:
            request.url = prefix or url
            with suppress(requests.ConnectionError):
                return super().send(request, *args, **options)
        raise requests.ConnectTimeout


@pytest.mark.parametrize("prefixes", [("http://127.0.0.1:1/", ""), ("", "http://127.0.0.1:1/")], ids=["then", "before"])
def test_RULES_4_9_what_an_adapter_sent_by_itself_has_been_sent(prefixes: tuple[str, str]) -> None:
    """Whatever could not be connected to before or after."""
    with answering(b"cut") as origin:
        failed = send(post_form(origin, [("refresh_token", "x")]), adapter=lambda: Stubborn(*prefixes))
    assert failed == SendFailed("ConnectionError", may_have_arrived=True)


def test_a_connection_is_used_again_within_a_run_and_ends_at_the_deadline_of_its_second_exchange_too() -> None:
    """The server answers the first request on a connection, and says nothing to the second."""
    connections: list[int] = []

    def answer_once(connection: socket.socket) -> None:
        connections.append(1)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        assert connection.recv(65536)
        assert connection.recv(65536) == b""

    with raw(answer_once) as origin, OAuth(EVERYWHERE, store=MemoryStore()).open_sender() as sender:
        sender(Send(get(origin)))
        failed = sender(Send(get(origin), seconds=0.5))
    assert failed == SendFailed("no answer within 0 seconds", may_have_arrived=True)
    assert connections == [1]


def test_an_adapter_that_the_caller_uses_too_is_not_watched_outside_of_oauth_traffic(
    served: World, session: requests.Session
) -> None:
    shared = HTTPAdapter()
    session.mount("http://", shared)
    oauth = OAuth(served.url, store=MemoryStore(), user=served.login, adapter=lambda: shared)
    assert session.get(served.url, auth=oauth).status_code == 200
    assert session.get(served.url, auth=oauth).status_code == 200


@pytest.mark.parametrize("proxy", ["socks9://a:CANARY@127.0.0.1:1", "http://"])
def test_a_proxy_that_cannot_be_has_sent_nothing_and_its_password_is_not_shown(proxy: str) -> None:
    failed = send(get("https://as.example/metadata"), proxy=proxy)
    assert isinstance(failed, SendFailed)
    assert not failed.may_have_arrived
    assert "CANARY" not in failed.reason


def test_RULES_2_1_the_url_is_sent_byte_for_byte() -> None:
    with serving(lambda seen: Reply(200, (), seen.url.encode())) as server:
        url = f"{server.origin}/%7Emetadata/a%2Fb?x=%7E"
        assert send(get(url)).body.decode() == url


# --- Certificates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_FN_57_the_environments_ca_bundle_is_used_as_by_requests(
    variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    with serving(lambda seen: Reply(200), tls=context) as server:
        refused = send(get(server.origin))
        monkeypatch.setenv(variable, str(tmp_path / "ca.pem"))
        assert send(get(server.origin)).status == 200
    assert "verify=" in refused.reason
    assert not refused.may_have_arrived


def test_a_bundle_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="verify: there is no CA bundle"):
        OAuth(EVERYWHERE, verify=tmp_path / "none.pem")


def test_verification_cannot_be_switched_off() -> None:
    options: dict[str, Any] = {"verify": False}
    with pytest.raises(ConfigurationError, match="TLS is always verified"):
        OAuth(EVERYWHERE, **options)
