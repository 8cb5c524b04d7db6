"""A logout (RULES 3.8, FN 52): ended here for certain, then revoked, then unregistered if nobody else is left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from mcp_oauth.sansio import logout
from mcp_oauth.sansio.errors import Reason
from mcp_oauth.sansio.grant import Grant, GrantRecord, LoginClaim, Registration, RegistrationRecord, registration_key
from mcp_oauth.sansio.logout import MOST_GRANTS, MOST_SAVES, LoggedOut
from mcp_oauth.sansio.messages import Response, header
from mcp_oauth.sansio.revocation import Revoked
from mcp_oauth.sansio.steps import (
    Await,
    Conflict,
    Done,
    Event,
    Failed,
    Load,
    Loaded,
    Misuse,
    Save,
    Saved,
    Send,
    Step,
    StoreFailed,
    Woke,
)
from tests.sansio.scripts import (
    CLIENT,
    ELSEWHERE,
    ISSUER,
    KEY,
    PLAN,
    SEED,
    each,
    grant,
    record,
    saved,
    say,
    secret,
)
from tests.sansio.walks import LOST, NOW, answer, table, walk
from tests.sansio.worlds import Run

Turn = tuple[str, Event]
"""An effect, and its answer."""
OK = Response(200)
BUSY = Response(503)
GONE = Response(204)
FULL = StoreFailed("disk full")
TOLD = (Revoked("refresh_token", None), Revoked("access_token", None))
"""Both tokens are revoked."""
CLIENTS = {registration_key(name, "https://mcp.example"): name for name in (ISSUER, ELSEWHERE)}


def deletable(issuer: str = ISSUER) -> Registration:
    """A client that may be deleted (RFC 7592)."""
    uri, token = f"{issuer}/register/1", secret("", "rat")
    return replace(CLIENT, issuer=issuer, registration_client_uri=uri, registration_access_token=token)


def elsewhere(n: int) -> Grant:
    """A grant of the other issuer."""
    one = grant(n, issuer=ELSEWHERE, revocation_endpoint=f"{ELSEWHERE}/revoke", lineage="elsewhere")
    return replace(one, registration=deletable(ELSEWHERE))


def clients(*users: str, issuer: str = ISSUER) -> RegistrationRecord:
    return RegistrationRecord("c0", (deletable(issuer),), users)


MINE = replace(grant(1), registration=deletable())
BY_HAND = replace(grant(1), registration=replace(CLIENT, kind="preregistered"))
STORED = record(MINE)

LOAD: Turn = ("Load", Loaded(STORED))
BURY: Turn = ("Save r0: logged out", Saved())
REVOKE: tuple[Turn, ...] = (("POST as.example/revoke rt1", OK), ("POST as.example/revoke at1", OK))
ENDED: tuple[Turn, ...] = (LOAD, BURY, *REVOKE)
"""The tokens are gone; now the client."""
ALONE: Turn = ("Load clients of as.example", Loaded(clients(KEY)))
LEAVE: Turn = ("Save clients of as.example c0: 0, used by nobody", Saved())
DELETE = "DELETE as.example/register/1"


def told(step: Step[Any, Any]) -> str:
    """A step in a few words."""
    match step:
        case Done():
            return "Done"
        case Await(effect=Load(key)) if key in CLIENTS:
            return f"Load clients of {CLIENTS[key].removeprefix('https://')}"
        case Await(effect=Save(key, RegistrationRecord() as left, expected)):
            name, users = CLIENTS[key].removeprefix("https://"), " ".join(left.users) or "nobody"
            return f"Save clients of {name} {expected}: {len(left.registrations)}, used by {users}"
        case Await(effect=Save(_, GrantRecord(logged_out=True, grants=()), expected)):
            return f"Save {expected}: logged out"
        case _:
            return say(step)


def log_out(script: Sequence[Turn], end: str = "Done", unsaved: GrantRecord | None = None) -> Run:
    """Play by the script."""
    run = walk(logout, logout.begin(PLAN, SEED, unsaved), *(event for _, event in script))
    assert [told(step) for step in run.steps] == [*(effect for effect, _ in script), end]
    return run


def result(run: Run) -> LoggedOut:
    assert isinstance(run.end, Done)
    value: LoggedOut = run.end.value
    return value


# --- The whole way ----------------------------------------------------------------------------------------------------


def test_RULES_3_8_buried_then_revoked_then_unregistered() -> None:
    run = log_out([*ENDED, ALONE, LEAVE, (DELETE, GONE)])
    assert result(run) == LoggedOut(TOLD, (None,))
    assert run.notices == ["revoked", "revoked"]


def test_RFC7592_2_3_the_deletion_carries_the_registration_access_token_alone() -> None:
    run = log_out([*ENDED, ALONE, LEAVE, (DELETE, GONE)])
    effect = run.steps[-2].effect
    assert isinstance(effect, Send)
    assert header(effect.request.headers, "authorization") == f"Bearer {secret('', 'rat')}"
    assert effect.request.body == b""


def test_RULES_4_2_the_tombstone() -> None:
    claim = LoginClaim("theirs", "pid 2 on host", NOW.wall + 5)
    stored = replace(STORED, login=claim, resource_metadata_seen=True, allowed_issuers=(ISSUER,), doubted=deletable())
    (tombstone,) = saved(log_out([("Load", Loaded(stored)), BURY, *REVOKE], "Load clients of as.example"))
    expected = GrantRecord(
        tombstone.revision, PLAN.server_url, PLAN.account, logged_out=True, resource_metadata_seen=True
    )
    assert tombstone == expected
    assert tombstone.revision not in ("", "r0")


def test_RULES_4_1_each_issuer() -> None:
    run = log_out(
        [
            ("Load", Loaded(record(elsewhere(2), MINE))),
            BURY,
            ("POST other.example/revoke rt2", OK),
            ("POST other.example/revoke at2", OK),
            ("Load clients of other.example", Loaded(clients(KEY, issuer=ELSEWHERE))),
            ("Save clients of other.example c0: 0, used by nobody", Saved()),
            ("DELETE other.example/register/1", LOST),
            *REVOKE,
            ALONE,
            LEAVE,
            (DELETE, GONE),
        ]
    )
    lost, deleted = result(run).unregistered
    assert lost is not None
    assert (lost.reason, lost.url, deleted) == (Reason.REGISTRATION_UNAVAILABLE, f"{ELSEWHERE}/register/1", None)
    assert result(run).revoked == TOLD + TOLD
    clients_saved = [step.effect.record for step in run.steps[:-1] if "Save clients" in told(step)]
    assert len({"c0", *(one.revision for one in clients_saved)}) == 3


# --- The local end ----------------------------------------------------------------------------------------------------

NOTHING = {
    "RULES-3.8-nothing-stored": None,
    "RULES-4.2-a-tombstone": record(logged_out=True),
    "RULES-4.1-another-kind-of-record": clients(KEY),
}


@each("stored", NOTHING)
def test_where_there_is_nothing_nothing_is_saved_or_asked(stored: Any) -> None:
    assert result(log_out([("Load", Loaded(stored))])) == LoggedOut()


@each("theirs", NOTHING)
def test_what_somebody_else_ended_meanwhile_is_left_to_them(theirs: Any) -> None:
    assert result(log_out([LOAD, ("Save r0: logged out", Conflict(theirs))])) == LoggedOut()


@each(
    "stored",
    {
        "RULES-4.13-a-login-under-way": record(login=LoginClaim("theirs", "pid 2 on host", NOW.wall + 5)),
        "RULES-3.4-a-login-held-back": record(no_login_before=NOW.wall + 500),
    },
)
def test_a_record_without_grants_becomes_a_tombstone_too(stored: GrantRecord) -> None:
    assert result(log_out([("Load", Loaded(stored)), BURY])) == LoggedOut()


def test_a_tombstone_with_grants_is_emptied() -> None:
    log_out([("Load", Loaded(record(BY_HAND, logged_out=True))), BURY, *REVOKE])


def test_RULES_4_10_what_was_renewed_meanwhile_is_what_is_revoked() -> None:
    renewed = record(replace(BY_HAND, access_token=secret(2, "at"), refresh_token=secret(2, "rt")), revision="r1")
    run = log_out(
        [
            LOAD,
            ("Save r0: logged out", Conflict(renewed)),
            ("Save r1: logged out", Saved()),
            ("POST as.example/revoke rt2", OK),
            ("POST as.example/revoke at2", OK),
        ]
    )
    assert len(saved(run)) == 2


def test_a_store_that_is_never_quiet_ends_it() -> None:
    script = [LOAD]
    script += [(f"Save r{n}: logged out", Conflict(replace(STORED, revision=f"r{n + 1}"))) for n in range(MOST_SAVES)]
    run = log_out(script, f"Failed {Reason.STORE_CONTENDED.value}")
    assert len(saved(run)) == MOST_SAVES


@each(
    "script",
    {
        "RULES-3.8-cannot-be-read": [("Load", FULL)],
        "RULES-3.8-cannot-be-buried": [LOAD, ("Save r0: logged out", FULL)],
    },
)
def test_what_cannot_be_ended_here_is_not_ended_there(script: list[Turn]) -> None:
    """Else this process says "logged out", and the next one has the grant."""
    run = log_out(script, f"Failed {Reason.STORE_FAILED.value}")
    assert isinstance(run.end, Failed)
    assert "disk full" in run.end.error.message


# --- What the store would not take (RULES 4.11) -----------------------------------------------------------------------


@each(
    "script",
    {
        "RULES-4.11-nothing-stored": [("Load", Loaded(None))],
        "RULES-4.11-buried-by-somebody": [LOAD, ("Save r0: logged out", Conflict(record(logged_out=True)))],
        "RULES-4.11-it-stands-for-its-lineage": [LOAD, BURY],
    },
)
def test_what_is_only_in_memory_is_revoked(script: list[Turn]) -> None:
    unsaved = record(replace(BY_HAND, access_token=secret(2, "at"), refresh_token=secret(2, "rt")))
    revoked: list[Turn] = [("POST as.example/revoke rt2", OK), ("POST as.example/revoke at2", OK)]
    assert result(log_out([*script, *revoked], unsaved=unsaved)).revoked == TOLD


def test_RULES_4_11_another_lineage_is_stored() -> None:
    unsaved = record(replace(BY_HAND, access_token=secret(2, "at"), refresh_token=None, lineage="another"))
    stored = Loaded(record(BY_HAND))
    run = log_out([("Load", stored), BURY, ("POST as.example/revoke at2", OK), *REVOKE], unsaved=unsaved)
    assert result(run).revoked == (Revoked("access_token", None), *TOLD)


def test_RULES_3_8_bounded() -> None:
    many = [replace(BY_HAND, issuer=f"{ISSUER}/{n}", lineage=str(n), refresh_token=None) for n in range(20)]
    script: list[Turn] = [("Load", Loaded(record(*many))), BURY]
    run = log_out([*script, *[("POST as.example/revoke at1", OK)] * MOST_GRANTS])
    assert len(result(run).revoked) == MOST_GRANTS


# --- What the servers say ---------------------------------------------------------------------------------------------


def failures(run: Run) -> list[Reason | None]:
    return [None if one.failure is None else one.failure.reason for one in result(run).revoked]


def refuse(kind: str) -> Response:
    return answer(400, error="unsupported_token_type", error_description=f"not {secret(1, kind)}")


@table(
    "script, reasons, notices",
    {
        "RULES-3.8-503-means-still-alive": (
            [(REVOKE[0][0], BUSY), ("Sleep 1", Woke()), (REVOKE[0][0], BUSY), REVOKE[1]],
            [Reason.EXCHANGE_REFUSED, None],
            ["revocation-failed", "revoked"],
        ),
        "FN-52-refused": (
            [(REVOKE[0][0], refuse("rt")), (REVOKE[1][0], refuse("at"))],
            [Reason.EXCHANGE_REFUSED] * 2,
            ["revocation-failed"] * 2,
        ),
        "FN-52-unreachable": (
            [(REVOKE[0][0], LOST), REVOKE[1]],
            [Reason.SERVER_UNAVAILABLE, None],
            ["revocation-failed", "revoked"],
        ),
    },
)
def test_a_revocation_that_fails_is_told_and_nothing_else_depends_on_it(
    script: list[Turn], reasons: list[Reason | None], notices: list[str]
) -> None:
    run = log_out([LOAD, BURY, *script, ALONE, LEAVE, (DELETE, GONE)])
    assert failures(run) == reasons
    assert (run.notices, result(run).unregistered) == (notices, (None,))
    messages = [notice.message for step in run.steps for notice in step.notices]
    assert all(ISSUER in message and " token" in message for message in messages)


def test_FN_52_without_a_revocation_endpoint_the_result_is_empty() -> None:
    silent = record(replace(BY_HAND, revocation_endpoint=None))
    run = log_out([("Load", Loaded(silent)), BURY])
    assert (result(run), run.notices) == (LoggedOut(), [])


@table(
    "answered, reason, status",
    {
        "RFC7592-2.3-deleted": (GONE, None, None),
        "RFC7592-2.3-unknown": (Response(401), None, None),
        "RULES-3.8-refused": (answer(403, error=f"no {secret('', 'rat')}"), Reason.REGISTRATION_REFUSED, 403),
        "RULES-3.8-unavailable": (LOST, Reason.REGISTRATION_UNAVAILABLE, None),
        "RULES-1.4-no-redirect": (Response(307, (("location", "/x"),)), Reason.REGISTRATION_REFUSED, 307),
    },
)
def test_what_became_of_the_registration(answered: Event, reason: Reason | None, status: int | None) -> None:
    run = log_out([*ENDED, ALONE, LEAVE, (DELETE, answered)])
    (failed,) = result(run).unregistered
    assert (failed and failed.reason, failed and failed.status) == (reason, status)


# --- Who else uses the registration (RULES 3.8, 2.9) ------------------------------------------------------------------


@each("kind", {"RULES-2.9-preregistered": "preregistered", "RULES-2.9-cimd": "cimd"})
def test_a_client_that_did_not_register_itself_is_no_matter_of_a_logout(kind: Any) -> None:
    stored = record(replace(MINE, registration=replace(deletable(), kind=kind)))
    assert result(log_out([("Load", Loaded(stored)), BURY, *REVOKE])) == LoggedOut(TOLD)


@each(
    "script",
    {
        "RULES-3.8-somebody-else-uses-it": [
            ("Load clients of as.example", Loaded(clients("x", KEY, "y"))),
            ("Save clients of as.example c0: 1, used by x y", Saved()),
        ],
        "RULES-3.8-nothing-is-known-of-it": [("Load clients of as.example", Loaded(None))],
        "RULES-4.1-another-kind-of-record": [("Load clients of as.example", Loaded(STORED))],
        "RULES-3.8-nobody-can-tell": [("Load clients of as.example", FULL)],
        "RULES-3.8-somebody-came-between": [ALONE, (LEAVE[0], Conflict(clients(KEY, "x")))],
        "RULES-3.8-cannot-be-noted": [ALONE, (LEAVE[0], FULL)],
    },
)
def test_the_registration_stays(script: list[Turn]) -> None:
    assert result(log_out([*ENDED, *script])) == LoggedOut(TOLD)


@each(
    "client",
    {
        "RFC7592-no-uri": replace(deletable(), registration_client_uri=None),
        "RFC7592-no-token": replace(deletable(), registration_access_token=None),
    },
)
def test_a_registration_that_cannot_be_deleted_is_forgotten(client: Registration) -> None:
    stored = Loaded(record(replace(MINE, registration=client)))
    assert result(log_out([("Load", stored), BURY, *REVOKE, ALONE, LEAVE])) == LoggedOut(TOLD)


# --- Misuse -----------------------------------------------------------------------------------------------------------


def test_misuse() -> None:
    run = log_out([*ENDED, ALONE, LEAVE, (DELETE, GONE)])
    for step in run.steps[:-1]:
        with pytest.raises(Misuse):
            logout.advance(step.state, Woke(), now=NOW)
