"""RULES 6.4: a login that leaves the process is sealed, bound to its browser, and short-lived."""

from __future__ import annotations

import pytest

from mcp_oauth.sansio.errors import Failure, Reason
from mcp_oauth.sansio.fetching import Fetching, begin
from mcp_oauth.sansio.sealing import FORMAT, LIFE, dump, seal, unseal
from mcp_oauth.sansio.steps import Await
from mcp_oauth.sansio.values import Now

KEY = bytes(range(32))
NONCE = b"n" * 12
NOW = Now(1000.0, 5.0)
DATA = b'{"secret":"canary"}'


def sealed() -> bytes:
    return seal(DATA, key=KEY, binding="browser", nonce=NONCE, now=NOW)


def opened(data: bytes, key: bytes = KEY, binding: str = "browser", wall: float = 1000.0) -> bytes | Failure:
    return unseal(data, key=key, binding=binding, now=Now(wall, 0.0))


def test_opens_what_it_sealed() -> None:
    assert opened(sealed()) == DATA


def test_nothing_is_in_plain_text() -> None:
    assert b"canary" not in sealed()


def test_the_browser_binding_is_not_in_it() -> None:
    assert b"browser" not in sealed()


@pytest.mark.parametrize("at", range(0, len(FORMAT) + 12 + 16, 5))
def test_RULES_6_4_tampered(at: int) -> None:
    data = bytearray(sealed())
    data[at] ^= 1
    result = opened(bytes(data))
    assert isinstance(result, Failure)
    assert result.reason is Reason.CALLBACK_STATE


@pytest.mark.parametrize("length", [0, 1, len(FORMAT), len(FORMAT) + 5, len(FORMAT) + 12, len(FORMAT) + 27])
def test_RULES_6_4_truncated(length: int) -> None:
    result = opened(sealed()[:length])
    assert isinstance(result, Failure)
    assert result.reason is Reason.CALLBACK_STATE


def test_RULES_6_4_another_browser() -> None:
    result = opened(sealed(), binding="another")
    assert isinstance(result, Failure)
    assert "belongs to another browser" in result.message


def test_RULES_6_4_any_text_binds() -> None:
    data = seal(DATA, key=KEY, binding="\udc80", nonce=NONCE, now=NOW)
    assert opened(data, binding="\udc80") == DATA


def test_RULES_6_4_another_key() -> None:
    assert isinstance(opened(sealed(), key=bytes(32)), Failure)


@pytest.mark.parametrize(("age", "alive"), [(0, True), (LIFE - 1, True), (LIFE, False), (LIFE + 86400, False)])
def test_RULES_6_4_expires(age: float, alive: bool) -> None:
    result = opened(sealed(), wall=NOW.wall + age)
    if alive:
        assert result == DATA
    else:
        assert isinstance(result, Failure)
        assert result.reason is Reason.LOGIN_TIMED_OUT


def test_a_dump_is_the_step_as_json() -> None:
    step = begin("https://mcp.example/")
    assert isinstance(step, Await)
    assert b'"type":"fetching.Fetching"' in dump(step)
    assert Fetching.__name__ in repr(step)
