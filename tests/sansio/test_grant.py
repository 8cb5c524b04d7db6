"""What is kept: grants, registrations and records, their stored form and their keys."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mcp_oauth.sansio import grant
from mcp_oauth.sansio.grant import (
    Grant,
    GrantRecord,
    LoginClaim,
    Record,
    Registration,
    RegistrationRecord,
    Token,
)
from mcp_oauth.sansio.values import Now, fingerprint

CLIENT = Registration("https://a.example", "id", "dcr", "client_secret_basic", client_secret="s3cret-1")
GRANT = Grant(
    "https://a.example",
    CLIENT,
    "https://a.example/token",
    "s3cret-2",
    1000.0,
    "lineage",
    expires_at=2000.0,
    refresh_token="s3cret-3",
    requested=("a", "b"),
    granted=("a",),
)
RECORD = GrantRecord(
    "r1", "https://h.example/mcp", "me", (GRANT,), "https://a.example", login=LoginClaim("1", "pid", 9.0)
)
CLIENTS = RegistrationRecord("r1", (CLIENT,), ("grant-1",))


# --- The stored form --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", [RECORD, CLIENTS, GrantRecord("r", "u", ""), RegistrationRecord("r")])
def test_round_trip(record: Record) -> None:
    assert grant.decode(grant.encode(record)) == record


@pytest.mark.parametrize("record", [RECORD, CLIENTS])
def test_no_secret_is_shown(record: Record) -> None:
    """FN 54."""
    assert "s3cret" not in repr(record)
    assert "s3cret" in grant.encode(record).decode()


def test_format_is_named() -> None:
    """A record of another format must never be read as this one."""
    assert b'"type":"grants-1"' in grant.encode(RECORD)
    assert b'"type":"registrations-1"' in grant.encode(CLIENTS)


@pytest.mark.parametrize("kind", ["preregistered", "cimd", "dcr"])
@pytest.mark.parametrize("method", ["none", "client_secret_basic", "client_secret_post"])
def test_what_is_stored_can_be_read_for_ever(kind: Any, method: Any) -> None:
    """The least that format 1 holds; what is missing has its default."""
    client = f'{{"type":"Registration","issuer":"i","client_id":"c","kind":"{kind}","auth_method":"{method}"}}'
    kept = (
        f'{{"type":"Grant","issuer":"i","registration":{client},"token_endpoint":"t","access_token":"a",'
        '"obtained_at":1.0,"lineage":"l"}'
    )
    record = grant.decode(
        f'{{"type":"grants-1","revision":"r","server_url":"u","account":"","grants":[{kept}]}}'.encode()
    )
    registration = Registration("i", "c", kind, method)
    assert record == GrantRecord("r", "u", "", (Grant("i", registration, "t", "a", 1.0, "l"),))
    [found] = record.grants
    assert (found.generation, found.refusals, found.client_refused, found.renewals) == (0, 0, False, ())
    assert (record.logged_out, record.resource_metadata_seen, record.current, record.login) == (
        False,
        False,
        None,
        None,
    )
    clients = f'{{"type":"registrations-1","revision":"r","registrations":[{client}]}}'
    assert grant.decode(clients.encode()) == RegistrationRecord("r", (registration,))


def test_unknown_members_are_passed_over() -> None:
    stored = msgspec.json.decode(grant.encode(RECORD)) | {"more": [1]}
    assert grant.decode(msgspec.json.encode(stored)) == RECORD


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{}", id="no-format"),
        pytest.param(grant.encode(RECORD).replace(b"grants-1", b"grants-2"), id="newer-format"),
        pytest.param(grant.encode(RECORD)[:-9], id="cut"),
        pytest.param(grant.encode(RECORD).replace(b"1000.0", b'"x"'), id="wrong-type"),
        pytest.param(grant.encode(RECORD).replace(b"lineage", b"\xff"), id="bad-UTF-8"),
        pytest.param(b'{"type":"grants-1","x":' + b"[" * 100_000, id="deep-nesting"),
        pytest.param(b"null", id="null"),
    ],
)
def test_unreadable(data: bytes) -> None:
    assert grant.decode(data) is None


@given(st.binary())
def test_reading_never_raises(data: bytes) -> None:
    assert grant.decode(data) is None


# --- Keys -------------------------------------------------------------------------------------------------------------


def test_keys() -> None:
    """RULES 4.1: SHA-256 over length-prefixed parts."""
    framed = b"\0\0\0\1u\0\0\0\2\xc3\xa9"
    assert grant.grant_key("u", "é") == "grant-" + hashlib.sha256(framed).hexdigest()
    assert grant.registration_key("u", "é") == "registration-" + hashlib.sha256(framed).hexdigest()


def test_fn_16_any_text_is_a_name() -> None:
    assert grant.grant_key("u", "\udc80") != grant.grant_key("u", "\udc81")


parts = st.text("ab/.\0\ud800", max_size=4)


@given(st.lists(st.tuples(parts, parts), min_size=2, max_size=2, unique=True))
def test_no_two_names_have_one_key(names: list[tuple[str, str]]) -> None:
    """FN 16."""
    assert grant.grant_key(*names[0]) != grant.grant_key(*names[1])
    assert grant.registration_key(*names[0]) != grant.registration_key(*names[1])


# --- The grant in use -------------------------------------------------------------------------------------------------

OTHER = replace(GRANT, issuer="https://b.example")


@pytest.mark.parametrize(
    ("record", "current"),
    [
        pytest.param(None, None, id="nothing-stored"),
        pytest.param(RECORD, GRANT, id="RULES-4.1-current"),
        pytest.param(replace(RECORD, grants=(OTHER, GRANT)), GRANT, id="RULES-4.1-the-named-one"),
        pytest.param(replace(RECORD, current=None), None, id="RULES-4.1-none-named"),
        pytest.param(replace(RECORD, current="https://c.example"), None, id="RULES-4.1-named-one-missing"),
        pytest.param(replace(RECORD, logged_out=True), None, id="RULES-4.2-tombstone"),
    ],
)
def test_current_grant(record: GrantRecord | None, current: Grant | None) -> None:
    assert grant.current_grant(record) == current


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param((), (GRANT,), id="first"),
        pytest.param((replace(GRANT, generation=7),), (GRANT,), id="RULES-4.1-one-for-each-issuer"),
        pytest.param((replace(GRANT, generation=7), OTHER), (OTHER, GRANT), id="RULES-4.1-those-of-others-stay"),
    ],
)
def test_with_grant(before: tuple[Grant, ...], after: tuple[Grant, ...]) -> None:
    record = replace(RECORD, grants=before, current="https://b.example", logged_out=True)
    assert grant.with_grant(record, GRANT) == replace(RECORD, grants=after, current=GRANT.issuer, logged_out=False)


def test_token_of() -> None:
    token = grant.token_of(GRANT)
    assert token == Token("s3cret-2", GRANT.issuer, fingerprint("s3cret-2"), 1000.0, 2000.0, ("a", "b"), ("a",))
    assert "s3cret" not in repr(token)


# --- Time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("obtained", "expires", "jitter", "seconds"),
    [
        pytest.param(0, 3600, 0, 60, id="DESIGN-4-at-most-60"),
        pytest.param(0, 600, 0, 60, id="DESIGN-4-a-tenth-is-60"),
        pytest.param(100, 400, 0, 30, id="FN-11-a-tenth"),
        pytest.param(0, 3600, 1, 48, id="DESIGN-4-jitter"),
        pytest.param(0, 100, 0.5, 9, id="DESIGN-4-some-jitter"),
        pytest.param(100, 100, 0, 0, id="RULES-2.17-expires-in-0"),
        pytest.param(100, 50, 0, 0, id="expired-before"),
    ],
)
def test_leeway(obtained: float, expires: float, jitter: float, seconds: float) -> None:
    assert grant.leeway(obtained, expires, jitter) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("wall", "alive", "fresh"),
    [
        pytest.param(1939.9, True, True, id="before-its-leeway"),
        pytest.param(1940.0, True, False, id="in-its-leeway"),
        pytest.param(1999.9, True, False, id="last-moment"),
        pytest.param(2000.0, False, False, id="expired"),
    ],
)
@pytest.mark.parametrize("of", [GRANT, grant.token_of(GRANT)], ids=["grant", "token"])
def test_alive_and_fresh(of: Any, wall: float, alive: bool, fresh: bool) -> None:
    assert grant.alive(of, Now(wall, 0.0)) is alive
    assert grant.fresh(of, Now(wall, 0.0), 0.0) is fresh


def test_jitter_comes_off_the_leeway() -> None:
    assert grant.fresh(GRANT, Now(1945.0, 0.0), 1.0)
    assert not grant.fresh(GRANT, Now(1945.0, 0.0), 0.0)


def test_unknown_expiry_is_fresh() -> None:
    """RULES 2.17: absent is unknown."""
    unknown = replace(GRANT, expires_at=None)
    assert grant.alive(unknown, Now(1e12, 0.0))
    assert grant.fresh(unknown, Now(1e12, 0.0), 0.0)


@pytest.mark.parametrize(
    ("refresh_token", "refused", "renewable"),
    [
        pytest.param("r", None, True, id="has-one"),
        pytest.param(None, None, False, id="has-none"),
        pytest.param("r", fingerprint("r"), False, id="RULES-4.2-refused"),
        pytest.param("r", fingerprint("q"), True, id="RULES-4.2-another-was-refused"),
    ],
)
def test_renewable(refresh_token: str | None, refused: str | None, renewable: bool) -> None:
    assert grant.renewable(replace(GRANT, refresh_token=refresh_token, refused=refused)) is renewable
