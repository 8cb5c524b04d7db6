"""requests, in threads."""

from __future__ import annotations

import io
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from mcp_oauth.io.requests import OAuth
from tests.io.contract.ways import CONTENT, PAYLOAD, Answer, Authority, Call, Caller, SyncWay, Way, generated
from tests.io.servers import PATIENCE


class Requests(SyncWay):
    stack = "requests"
    replayable = ("none", "bytes", "json", "form", "multipart", "file")
    once = ("generator",)

    @property
    def driver(self) -> Any:
        return OAuth

    def beneath(self, used: Callable[[], object]) -> dict[str, Any]:
        class Adapter(HTTPAdapter):
            def send(self, *args: Any, **options: Any) -> requests.Response:
                used()
                return super().send(*args, **options)

        return {"adapter": Adapter}

    def unmakeable(self, make: Callable[[], Any]) -> dict[str, Any]:
        return {"adapter": make}

    def trusting(self, authority: Authority) -> dict[str, Any]:
        return {"verify": authority.path}

    @contextmanager
    def open(self, caller: Caller) -> Generator[Any]:
        def hook(response: requests.Response, **_: Any) -> None:
            assert caller.touched
            caller.touched(response.url)

        with requests.Session() as session:
            session.trust_env = caller.environment
            session.auth = caller.auth
            session.headers.update(caller.headers)
            session.cookies.update(caller.cookies)
            if caller.authority:
                session.verify = str(caller.authority.path)
            if caller.touched:
                session.hooks["response"].append(hook)
            yield session

    def send(self, client: Any, call: Call) -> Answer:
        request = {"headers": call.headers, "allow_redirects": call.follow, "auth": call.auth} | _body(call.body)
        streams = call.on_chunk is not None
        with client.request(call.method, call.url, timeout=PATIENCE, stream=streams, **request) as response:
            if call.on_chunk is not None:
                for chunk in response.iter_content(None):
                    call.on_chunk(chunk)
            headers = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status_code, response.url, headers, b"" if streams else response.content)

    def naive(self, token: str) -> Any:
        def auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
            request.headers["authorization"] = token
            return request

        return auth

    def residue(self, oauth: Any, url: str) -> Sequence[object]:
        with requests.Session() as session:
            request = requests.Request("GET", url, auth=oauth)
            prepared = session.prepare_request(request)
            response = session.send(prepared, timeout=PATIENCE)
            assert response.status_code == 200
        sent = response.request
        return [response, request.headers, vars(prepared), vars(sent), vars(sent.copy()), sent.headers]


def _body(kind: str) -> dict[str, Any]:
    match kind:
        case "bytes":
            return {"data": CONTENT}
        case "json":
            return {"json": PAYLOAD}
        case "form":
            return {"data": PAYLOAD}
        case "multipart":
            return {"files": {"file": ("name", io.BytesIO(CONTENT))}}
        case "file":
            return {"data": io.BytesIO(CONTENT)}
        case "generator":
            return {"data": generated()}
    return {}


WAYS: tuple[Way, ...] = (Requests(),)
