"""As which client, and to which redirect URI: what is recalled, listened on, registered, remembered."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from mcp_oauth.sansio import client
from mcp_oauth.sansio.client import MOST_SAVES, Query, Ready
from mcp_oauth.sansio.discovery import Discovered
from mcp_oauth.sansio.errors import Reason
from mcp_oauth.sansio.grant import GrantRecord, Registration, RegistrationRecord, grant_key, registration_key
from mcp_oauth.sansio.metadata import AuthorizationServerMetadata
from mcp_oauth.sansio.plan import ClientMetadataDocument, Dynamic, Plan, PreRegistered
from mcp_oauth.sansio.steps import (
    Await,
    Conflict,
    Done,
    Event,
    Failed,
    Listen,
    Listening,
    Load,
    Loaded,
    Misuse,
    Save,
    Saved,
    Send,
    StoreFailed,
    UserFailed,
    Woke,
)
from mcp_oauth.sansio.values import Seed
from tests.sansio.scripts import each
from tests.sansio.walks import CANARY, LOST, NOW, answer, table, walk
from tests.sansio.worlds import Run

SERVER, ISSUER = "https://mcp.example/mcp", "https://as.example"
KEY, CLIENTS = grant_key(SERVER, ""), registration_key(ISSUER, "https://mcp.example")
OURS = "http://127.0.0.1/callback/k-IPvZ2UNvdMJS26"
"""Portless, with a path for the issuer."""
BOUND = OURS.replace("127.0.0.1", "127.0.0.1:5000")
METADATA = AuthorizationServerMetadata(
    ISSUER, f"{ISSUER}/authorize", f"{ISSUER}/token", registration_endpoint=f"{ISSUER}/register"
)
PLAN = Plan(SERVER)
QUERY = Query(PLAN, KEY, Discovered(SERVER, METADATA, None, ISSUER), ("a",), Seed(b"s" * 32))
HERE = Listening(BOUND)
REGISTERED = answer(201, client_id="new")
NEW = Registration(ISSUER, "new", "dcr", "none", BOUND, scopes=("a",))
OLD = replace(NEW, client_id="old")
STALE = replace(NEW, client_id="stale", client_secret=f"{CANARY}-secret", auth_method="client_secret_post")


def known(*clients: Registration, users: tuple[str, ...] = (KEY,), revision: str = "r0") -> RegistrationRecord:
    return RegistrationRecord(revision, clients, users)


def asking(**plan: Any) -> Query:
    return replace(QUERY, plan=replace(PLAN, **plan))


def heard(run: Run) -> list[str]:
    """What the world was asked."""
    return [_line(step.effect) for step in run.steps if isinstance(step, Await)]


def _line(effect: Any) -> str:
    match effect:
        case Load(key):
            assert key == CLIENTS
            return "Load"
        case Listen(redirect_uri, port):
            return f"Listen {redirect_uri} {port}"
        case Send(request):
            return f"{request.method} {request.url}"
        case Save(key, record, expected):
            assert key == CLIENTS
            assert isinstance(record, RegistrationRecord)
            return f"Save {expected}: " + " ".join(one.client_id for one in record.registrations)
        case _:
            raise AssertionError(effect)


def go(query: Query, *events: Event) -> Run:
    return walk(client, client.begin(query, NOW), *events)


def end(run: Run) -> Registration | Reason:
    if isinstance(run.end, Failed):
        return run.end.error.reason
    assert isinstance(run.end, Done)
    assert isinstance(run.end.value, Ready)
    return run.end.value.client


class TestRegistersAnew:
    def test_rules_2_9_the_whole_way(self) -> None:
        run = go(QUERY, Loaded(None), HERE, REGISTERED, Saved())
        assert heard(run) == ["Load", f"Listen {OURS} None", f"POST {ISSUER}/register", "Save None: new"]
        assert run.end == Done(Ready(NEW, BOUND))
        assert run.notices == ["registered"]

    def test_rules_3_8_the_record_says_whose_grant_refers_to_it(self) -> None:
        run = go(QUERY, Loaded(known(users=("other",))), HERE, REGISTERED, Saved())
        saved = run.steps[-2].effect.record
        assert (saved.registrations, saved.users) == ((NEW,), ("other", KEY))

    def test_rules_2_10_with_the_redirect_uri_that_is_listened_on(self) -> None:
        run = go(QUERY, Loaded(None), HERE)
        assert msgspec.json.decode(run.end.effect.request.body)["redirect_uris"] == [BOUND]

    @each(
        "event",
        {
            "RULES-2.9-a-registration-that-is-not-saved-serves-all-the-same": StoreFailed("full"),
            "RULES-2.9-saved": Saved(),
        },
    )
    def test_remembered(self, event: Event) -> None:
        assert end(go(QUERY, Loaded(None), HERE, REGISTERED, event)) == NEW

    def test_rules_2_9_a_conflict_keeps_what_others_registered(self) -> None:
        theirs = known(replace(OLD, redirect_uri="http://127.0.0.1:6000/x"), users=("other",), revision="r1")
        run = go(QUERY, Loaded(None), HERE, REGISTERED, Conflict(theirs), Saved())
        assert heard(run)[-2:] == ["Save None: new", "Save r1: old new"]
        assert run.steps[-2].effect.record.users == ("other", KEY)

    def test_design_1_conflicts_without_end(self) -> None:
        run = go(QUERY, Loaded(None), HERE, REGISTERED, *[Conflict(known(revision="r1"))] * MOST_SAVES)
        assert end(run) == NEW

    def test_rules_2_9_one_registration_for_a_redirect_uri(self) -> None:
        run = go(QUERY, Loaded(known(replace(OLD, scopes=("other",)))), HERE, REGISTERED, Saved())
        assert heard(run)[-1] == "Save r0: new"

    def test_foreign_record_counts_as_none(self) -> None:
        run = go(QUERY, Loaded(GrantRecord("r", SERVER, "")), HERE, REGISTERED, Saved())
        assert heard(run)[-1] == "Save None: new"


class TestReuses:
    def test_fn_37_the_registered_port_and_client(self) -> None:
        run = go(QUERY, Loaded(known(OLD)), HERE)
        assert heard(run) == ["Load", f"Listen {OURS} 5000"]
        assert end(run) == OLD

    def test_fn_37_the_port_is_taken_so_register_again(self) -> None:
        elsewhere = BOUND.replace("5000", "6000")
        run = go(QUERY, Loaded(known(OLD)), Listening(elsewhere), REGISTERED, Saved())
        assert end(run) == replace(NEW, redirect_uri=elsewhere)
        assert heard(run)[-1] == "Save r0: old new"

    @each(
        "redirect_uri",
        {
            "FN-37-another-path": "http://127.0.0.1:5000/other",
            "FN-38-another-host": BOUND.replace("127.0.0.1", "localhost"),
            "FN-37-not-known": None,
        },
    )
    def test_another_registration_lends_no_port(self, redirect_uri: str | None) -> None:
        run = go(QUERY, Loaded(known(replace(OLD, redirect_uri=redirect_uri))))
        assert heard(run)[-1] == f"Listen {OURS} None"

    def test_fn_37_the_latest_port(self) -> None:
        run = go(QUERY, Loaded(known(OLD, replace(NEW, redirect_uri=BOUND.replace("5000", "7000")))))
        assert heard(run)[-1] == f"Listen {OURS} 7000"

    def test_rules_3_8_another_grant_that_uses_it_is_noted(self) -> None:
        run = go(QUERY, Loaded(known(OLD, users=("other",))), HERE, Saved())
        assert heard(run)[-1] == "Save r0: old"
        assert run.end.value.recalled  # FN 31
        assert run.steps[-2].effect.record.users == ("other", KEY)


class TestSecretThatEnds:
    """RULES 2.10: whichever way a registration is reached, its secret's end is looked at."""

    ENDS = replace(STALE, client_id="ends", client_secret_expires_at=NOW.wall + 1e5)
    TWO_LEG = replace(asking(two_leg=True, dynamic=Dynamic(redirect_uri=BOUND)), forget=STALE)

    @table(
        "query, events",
        {
            "RULES-2.10-listening": (QUERY, (Loaded(known(ENDS)), HERE)),
            "RULES-2.10-recalled": (TWO_LEG, (Loaded(known(ENDS)),)),
            "RULES-2.10-another-one-forgotten": (TWO_LEG, (Loaded(known(STALE, ENDS)), Saved())),
            "RULES-2.10-somebody-else-registered": (TWO_LEG, (Loaded(known(STALE)), Conflict(known(ENDS)))),
        },
    )
    def test_recalled(self, query: Query, events: tuple[Event, ...]) -> None:
        assert end(go(query, *events)) == self.ENDS

    def test_rules_2_10_registered(self) -> None:
        new = answer(201, client_id="n", client_secret=f"{CANARY}-secret", client_secret_expires_at=NOW.wall + 1e5)
        assert isinstance(end(go(QUERY, Loaded(None), HERE, new, Saved())), Registration)


class TestForgets:
    """RULES 2.11: a client that the server does not know any more."""

    QUERY = replace(QUERY, forget=STALE)

    def test_rules_2_11_removed_then_registered_again(self) -> None:
        run = go(self.QUERY, Loaded(known(STALE)), Saved(), HERE, REGISTERED, Saved())
        assert [line.partition(":")[0] for line in heard(run)][1] == "Save r0"
        assert heard(run)[1] == "Save r0: "
        assert end(run) == NEW

    def test_rules_4_2_saved_over_what_was_saved_before_and_no_revision_recurs(self) -> None:
        theirs = Conflict(known(revision="r1"))
        run = go(self.QUERY, Loaded(known(STALE)), Saved(), HERE, REGISTERED, theirs, Saved())
        saves = [step.effect for step in run.steps if isinstance(getattr(step, "effect", None), Save)]
        revisions = [save.record.revision for save in saves]
        assert [save.expected for save in saves] == ["r0", revisions[0], "r1"]
        assert len({"r0", "r1", *revisions}) == 5

    def test_rules_2_11_it_is_not_used_even_if_it_cannot_be_removed(self) -> None:
        run = go(self.QUERY, Loaded(known(STALE)), StoreFailed("full"), HERE, REGISTERED, Saved())
        assert end(run) == NEW

    def test_rules_2_11_somebody_else_removed_it(self) -> None:
        run = go(self.QUERY, Loaded(known(STALE)), Conflict(known(OLD, revision="r1")), HERE)
        assert end(run) == OLD

    def test_design_1_conflicts_without_end(self) -> None:
        conflicts = [Conflict(known(STALE, revision="r1"))] * MOST_SAVES
        run = go(self.QUERY, Loaded(known(STALE)), *conflicts, HERE, REGISTERED)
        assert end(run) == NEW

    def test_rules_2_11_not_stored_at_all(self) -> None:
        assert heard(go(self.QUERY, Loaded(None)))[-1] == f"Listen {OURS} None"


class TestRedirectUri:
    """RULES 2.13: ours has a path for each issuer; a configured one is taken as it is."""

    @table(
        "plan, expected",
        {
            "RULES-2.13-preregistered": ({"preregistered": PreRegistered("p")}, "http://127.0.0.1/callback"),
            "FN-35-preregistered-configured": (
                {"preregistered": PreRegistered("p", redirect_uri="http://localhost:3000/cb")},
                "http://localhost:3000/cb",
            ),
            "RULES-2.12-document": (
                {"metadata_document": ClientMetadataDocument("https://app.example/c")},
                "http://127.0.0.1/callback",
            ),
        },
    )
    def test_without_registration(self, plan: dict[str, Any], expected: str) -> None:
        query = asking(**plan)
        found = replace(query.found, metadata=replace(METADATA, client_id_metadata_document_supported=True))
        run = go(replace(query, found=found), HERE)
        assert heard(run) == [f"Listen {expected} None"]
        assert isinstance(run.end, Done)

    def test_rules_2_9_a_document_that_the_issuer_does_not_take(self) -> None:
        query = asking(metadata_document=ClientMetadataDocument("https://app.example/c"))
        assert heard(go(query, Loaded(None)))[-1] == f"Listen {OURS} None"

    def test_rules_2_13_dynamic_configured(self) -> None:
        query = asking(dynamic=Dynamic(redirect_uri="http://localhost:3000/cb"))
        assert heard(go(query, Loaded(None)))[-1] == "Listen http://localhost:3000/cb None"

    def test_rules_2_13_another_issuer_another_path(self) -> None:
        found = replace(QUERY.found, metadata=replace(METADATA, issuer="https://other.example"))
        step = client.begin(replace(QUERY, found=found), NOW)
        assert isinstance(step, Await)
        listening = client.advance(step.state, Loaded(None), now=NOW)
        assert isinstance(listening, Await)
        assert isinstance(listening.effect, Listen)
        assert listening.effect.redirect_uri != OURS

    def test_fn_55_two_legs_need_no_listener(self) -> None:
        uri = "https://app.example/callback"
        query = asking(two_leg=True, preregistered=PreRegistered("p", redirect_uri=uri))
        step = client.begin(query, NOW)
        assert isinstance(step, Done)
        assert step.value.redirect_uri == uri


class TestFails:
    @table(
        "events, reason",
        {
            "RULES-4.10-store": ((StoreFailed("locked"),), Reason.STORE_FAILED),
            "RULES-6.1-listener": ((Loaded(None), UserFailed("port taken")), Reason.USER_UNAVAILABLE),
            "FN-34-registration": ((Loaded(None), HERE, answer(400)), Reason.REGISTRATION_REFUSED),
            "FN-30-registration-unreachable": ((Loaded(None), HERE, LOST), Reason.REGISTRATION_UNAVAILABLE),
        },
    )
    def test_reason(self, events: tuple[Event, ...], reason: Reason) -> None:
        assert end(go(QUERY, *events)) is reason

    def test_rules_2_9_no_client_and_no_listener_for_nothing(self) -> None:
        step = client.begin(asking(dynamic=None), NOW)
        assert isinstance(step, Failed)
        assert step.error.reason is Reason.CLIENT_INFORMATION_NEEDED

    def test_rules_2_9_nowhere_to_register_and_no_listener_for_nothing(self) -> None:
        found = replace(QUERY.found, metadata=replace(METADATA, registration_endpoint=None))
        step = client.begin(replace(QUERY, found=found), NOW)
        assert isinstance(step, Failed)
        assert step.error.reason is Reason.CLIENT_INFORMATION_NEEDED

    def test_rules_2_9_bound_to_the_issuer_as_it_is_listed(self) -> None:
        query = asking(preregistered=PreRegistered("p", issuer="https://listed.example"))
        found = replace(query.found, listed="https://listed.example")
        assert isinstance(end(go(replace(query, found=found), HERE)), Registration)

    def test_rules_2_9_bound_to_another_issuer(self) -> None:
        run = go(asking(preregistered=PreRegistered("p", issuer="https://other.example")), HERE)
        assert end(run) is Reason.CLIENT_OF_ANOTHER_ISSUER

    def test_design_1_misuse(self) -> None:
        step = client.begin(QUERY, NOW)
        assert isinstance(step, Await)
        with pytest.raises(Misuse):
            client.advance(step.state, Woke(), now=NOW)
