"""On which addresses and ports the loopback listener listens, and who else may."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator

import pytest

from mcp_oauth.io.callback import bind
from tests.io.listeners import named

# --- Ports ------------------------------------------------------------------------------------------------------------


def ports(sockets: list[socket.socket]) -> set[int]:
    return {sock.getsockname()[1] for sock in sockets}


@pytest.fixture
def held() -> Iterator[Callable[[str, int], int]]:
    """Listen on a port in another program's place."""
    with contextlib.ExitStack() as stack:

        def hold(address: str, port: int = 0) -> int:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            sock = stack.enter_context(socket.socket(family))
            sock.bind((address, port))
            sock.listen()
            return int(sock.getsockname()[1])

        yield hold


def close(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


@pytest.mark.parametrize(
    ("host", "addresses"),
    [("127.0.0.1", {"127.0.0.1"}), ("[::1]", {"::1"}), ("localhost", {"127.0.0.1", "::1"})],
    ids=["FN-38-127.0.0.1", "FN-38-[::1]", "FN-38-localhost"],
)
def test_each_host_is_bound_on_its_own_addresses_only(host: str, addresses: set[str]) -> None:
    sockets = bind(host)
    assert {sock.getsockname()[0] for sock in sockets} == addresses
    assert len(ports(sockets)) == 1
    close(sockets)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"], ids=named("RULES-6.1"))
def test_localhost_is_never_half_bound(held: Callable[..., int], address: str) -> None:
    """RULES 6.1: whoever holds the other family would get the browser's redirect."""
    busy = held(address)
    with pytest.raises(OSError, match="in use"):
        bind("localhost", busy)


def test_rules_6_1_localhost_takes_another_port_where_one_family_is_busy(
    held: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = held("::1")
    real = socket.socket.bind
    tried: list[int] = []

    def first_the_busy_one(sock: socket.socket, address: tuple[str, int]) -> None:
        if address == ("127.0.0.1", 0) and not tried:
            address = ("127.0.0.1", busy)
        tried.append(address[1])
        real(sock, address)

    monkeypatch.setattr(socket.socket, "bind", first_the_busy_one)
    sockets = bind("localhost")
    assert tried[:3] == [busy, busy, 0]
    assert len(sockets) == 2
    assert ports(sockets) != {busy}
    close(sockets)


@pytest.mark.parametrize("code", ["EAFNOSUPPORT", "EADDRNOTAVAIL"], ids=named("RULES-6.1"))
def test_without_ipv6_localhost_is_127_0_0_1(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    real = socket.socket.bind

    def no_ipv6(sock: socket.socket, address: tuple[str, int]) -> None:
        if address[0] == "::1":
            raise OSError(getattr(errno, code), code)
        real(sock, address)

    monkeypatch.setattr(socket.socket, "bind", no_ipv6)
    sockets = bind("localhost")
    assert [sock.getsockname()[0] for sock in sockets] == ["127.0.0.1"]
    close(sockets)
    with pytest.raises(OSError, match=code):
        bind("[::1]")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"], ids=named("RULES-6.1"))
def test_a_fixed_port_that_is_busy_is_an_error(held: Callable[..., int], host: str) -> None:
    with pytest.raises(OSError, match="in use"):
        bind(host, held("127.0.0.1"))


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"], ids=named("RULES-6.1"))
def test_nobody_shares_our_port(address: str) -> None:
    sockets = bind("127.0.0.1")
    with socket.socket() as thief:
        for option in ("SO_REUSEADDR", "SO_REUSEPORT"):
            if hasattr(socket, option):
                thief.setsockopt(socket.SOL_SOCKET, getattr(socket, option), 1)
        with pytest.raises(OSError):
            thief.bind((address, *ports(sockets)))
    close(sockets)


def test_a_fixed_port_is_free_again_at_once() -> None:
    """What the last login's connections left behind (TIME_WAIT) does not keep the next one out."""
    (listening,) = bind("127.0.0.1")
    (port,) = ports([listening])
    listening.setblocking(True)
    with socket.create_connection(("127.0.0.1", port)) as browser:
        listening.accept()[0].close()
        assert browser.recv(1) == b""
    listening.close()
    close(bind("127.0.0.1", port))
