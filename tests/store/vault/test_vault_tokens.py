"""How the Vault store comes by its token and keeps it: given, asked for, or by AppRole; renewed in passing (FN 18)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mcp_oauth.store.base import (
    Stored,
    StoreError,
    UnavailableError,
    WrongPasswordError,
)
from tests.servers.openbao import OpenBao
from tests.store.vaults import (
    CALLS,
    Clock,
    Make,
    policy,
    put,
    take,
)


def revoke(bao: OpenBao, token: str) -> None:
    bao.ask("POST", "auth/token/revoke", {"token": token})


def renewals(requests: list[str]) -> int:
    return requests.count("post auth/token/renew-self")


def log_ins(requests: list[str]) -> int:
    return sum(request.endswith("/login") for request in requests)


def test_a_token_that_is_refused_is_told(bao: OpenBao, make: Make, prefix: str) -> None:
    token = bao.token_for(policy(prefix))
    store = make(token=token)
    put(store, "key", b"value")
    revoke(bao, token)
    for call in CALLS.values():
        with pytest.raises(WrongPasswordError, match="refuses this token; it has expired, was revoked"):
            call(store)
        with pytest.raises(WrongPasswordError, match="refuses this token"):
            call(make(token=token))


def test_a_callable_is_asked_once_and_again_when_its_token_is_refused(bao: OpenBao, make: Make, prefix: str) -> None:
    tokens = [bao.token_for(policy(prefix)) + "\n" for _ in range(2)]
    asked: list[str] = []

    def next_token() -> str:
        asked.append(tokens[len(asked)])
        return asked[-1]

    store = make(token=next_token)
    put(store, "key", b"value")
    store.load("key")
    assert len(asked) == 1
    revoke(bao, tokens[0].strip())
    put(store, "key", b"next", "r2", "r1")
    store.load("key")
    assert len(asked) == 2


def test_what_a_callable_raises_is_a_store_error(make: Make) -> None:
    def fail() -> str:
        raise OSError("hvs.secret")

    with pytest.raises(StoreError, match=r"asking for the token of Vault raised OSError$"):
        make(token=fail).load("key")

    def refuse() -> str:
        raise UnavailableError("not configured")

    with pytest.raises(UnavailableError, match="not configured"):
        make(token=refuse).load("key")


@pytest.mark.parametrize("token", ["", " \n", "hvs.a\nb", "hvs.ä", "hvs.\0"])
def test_what_is_no_token_is_not_sent(make: Make, requests: list[str], token: str) -> None:
    with pytest.raises(WrongPasswordError, match="is no token"):
        make(token=token).load("key")
    assert requests == []


def test_a_token_that_may_not_look_itself_up_will_do(bao: OpenBao, make: Make, prefix: str) -> None:
    store = make(token=bao.token_for(policy(prefix), no_default_policy=True, ttl="1h"))
    put(store, "key", b"value")
    with take(store):
        assert store.keys() == ("key",)


@pytest.mark.parametrize(("age", "renewed"), [(2300, 0), (2500, 1)], ids=["more-than-a-third-left", "less"])
def test_fn18_a_token_is_renewed_when_a_third_of_its_life_is_left(
    bao: OpenBao, make: Make, prefix: str, clock: Clock, requests: list[str], age: float, renewed: int
) -> None:
    store = make(token=bao.token_for(policy(prefix), ttl="1h"))
    put(store, "key", b"value")
    clock.ahead = age
    store.load("key")
    store.load("key")
    assert renewals(requests) == renewed
    clock.ahead += 2500
    store.load("key")
    assert renewals(requests) == renewed + 1


def test_fn18_a_token_that_is_given_late_is_renewed_at_once(
    bao: OpenBao, make: Make, prefix: str, requests: list[str]
) -> None:
    token = bao.token_for(policy(prefix), ttl="1h")
    bao.ask("POST", "auth/token/renew", {"token": token, "increment": "10m"})
    store = make(token=token)
    store.load("key")
    store.load("key")
    assert renewals(requests) == 1


@pytest.mark.parametrize("about", [{"ttl": "1h", "renewable": False}, {"ttl": "0"}], ids=["not-renewable", "short"])
def test_a_token_that_cannot_be_renewed_is_used_to_its_end(
    bao: OpenBao, make: Make, prefix: str, clock: Clock, requests: list[str], about: dict[str, object]
) -> None:
    store = make(token=bao.token_for(policy(prefix), **about))
    put(store, "key", b"value")
    clock.ahead = 3000
    assert store.load("key") == Stored(b"value", "r1")


def test_a_token_that_may_not_be_renewed_is_tried_once(
    bao: OpenBao, make: Make, prefix: str, clock: Clock, requests: list[str]
) -> None:
    look_up = ' path "auth/token/lookup-self" { capabilities = ["read"] }'
    store = make(token=bao.token_for(policy(prefix) + look_up, ttl="1h", no_default_policy=True))
    put(store, "key", b"value")
    clock.ahead = 3000
    for _ in range(3):
        assert store.load("key") == Stored(b"value", "r1")
    assert renewals(requests) == 1


def test_an_approle_logs_in_once_and_again_when_its_token_is_refused(
    bao: OpenBao, make: Make, prefix: str, requests: list[str]
) -> None:
    role_id, secret_id = bao.approle(policy(prefix))
    store = make(role_id=role_id, secret_id=secret_id)
    put(store, "key", b"value")
    with take(store):
        assert log_ins(requests) == 1
        assert store._server._token is not None
        revoke(bao, store._server._token.value)
        put(store, "key", b"next", "r2", "r1")
    assert log_ins(requests) == 2


def test_threads_log_in_once(bao: OpenBao, make: Make, prefix: str, requests: list[str]) -> None:
    role_id, secret_id = bao.approle(policy(prefix))
    store = make(role_id=role_id, secret_id=secret_id)
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(store.load, ["key"] * 8)) == [None] * 8
        assert log_ins(requests) == 1
        assert store._server._token is not None
        revoke(bao, store._server._token.value)
        assert list(threads.map(store.load, ["key"] * 8)) == [None] * 8
    assert log_ins(requests) == 2


def test_an_approle_elsewhere_and_without_a_secret(bao: OpenBao, make: Make, prefix: str) -> None:
    open_role = {"bind_secret_id": False, "token_bound_cidrs": ["127.0.0.1/32"]}
    role_id, _ = bao.approle(policy(prefix), mount="team/roles")
    bao.ask("POST", "auth/team/roles/role/tested", {**open_role, "token_policies": ["tested"]})
    put(make(role_id=role_id, auth_mount="/team/roles/"), "key", b"value")


@pytest.mark.parametrize("wrong", ["role_id", "secret_id", "auth_mount"])
def test_an_approle_that_is_refused_is_told(bao: OpenBao, make: Make, prefix: str, wrong: str) -> None:
    role_id, secret_id = bao.approle(policy(prefix))
    given = {"role_id": role_id, "secret_id": secret_id, "auth_mount": "approle", wrong: "wrong"}
    for call in CALLS.values():
        with pytest.raises(WrongPasswordError, match="refuses this role_id and secret_id at auth/") as told:
            call(make(**given))
        assert role_id not in str(told.value)
        assert secret_id not in str(told.value)


def test_fn18_an_approles_token_is_renewed_or_followed_by_another(
    bao: OpenBao, make: Make, prefix: str, clock: Clock, requests: list[str]
) -> None:
    role_id, secret_id = bao.approle(policy(prefix), token_ttl="1h")
    store = make(role_id=role_id, secret_id=secret_id)
    put(store, "key", b"value")
    clock.ahead = 2500
    store.load("key")
    assert (renewals(requests), log_ins(requests)) == (1, 1)
    assert store._server._token is not None
    revoke(bao, store._server._token.value)
    clock.ahead += 4000
    assert store.load("key") == Stored(b"value", "r1")
    assert (renewals(requests), log_ins(requests)) == (2, 2)


def test_fn18_a_token_that_lives_is_used_though_no_other_is_to_be_had(
    bao: OpenBao, make: Make, prefix: str, clock: Clock, requests: list[str]
) -> None:
    role_id, secret_id = bao.approle(policy(prefix), token_ttl="1h", token_type="batch")
    store = make(role_id=role_id, secret_id=secret_id)
    put(store, "key", b"value")
    clock.ahead = 2500
    store.load("key")
    assert (renewals(requests), log_ins(requests)) == (0, 2), "a batch token is followed by another"
    bao.ask("DELETE", "auth/approle/role/tested")
    clock.ahead += 2500
    for _ in range(2):
        assert store.load("key") == Stored(b"value", "r1")
    assert log_ins(requests) == 3
    clock.ahead += 2500
    with pytest.raises(WrongPasswordError):
        store.load("key")


def test_the_environment_is_not_asked_for_a_token_or_a_vault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make: Make
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".vault-token").write_text("wrong")
    for name in ("VAULT_TOKEN", "VAULT_ADDR", "VAULT_NAMESPACE"):
        monkeypatch.setenv(name, "wrong")
    put(make(), "key", b"value")
