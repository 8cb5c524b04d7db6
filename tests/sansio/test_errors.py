"""The error taxonomy."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest

from mcp_oauth.sansio import errors
from mcp_oauth.sansio.errors import Attempt, Failure, Fault, Reason, Stage
from mcp_oauth.sansio.messages import Response
from tests.sansio.worlds import document

URL = "https://h.example/a?key=s3cret#x"
BARE = "https://h.example/a"


@pytest.mark.parametrize("reason", Reason, ids=lambda reason: reason.value)
def test_every_reason_has_stage_fault_and_cure(reason: Reason) -> None:
    """FN 53."""
    assert reason.stage in get_args(Stage)
    assert reason.fault in get_args(Fault)
    assert len(reason.cure) > 8
    assert reason.value == reason.name.lower().replace("_", "-")
    assert {kind.value: kind for kind in Reason}[reason.value] is reason
    assert reason == reason.value  # a text, for whoever logs or compares it
    assert msgspec.json.decode(msgspec.json.encode(reason), type=Reason) is reason


def test_each_stage_and_fault_is_somebodys() -> None:
    assert {reason.stage for reason in Reason} == set(get_args(Stage))
    assert {reason.fault for reason in Reason} == set(get_args(Fault))


@pytest.mark.parametrize(
    ("attempt", "text"),
    [
        (Attempt(BARE, 404), f"{BARE}: HTTP 404"),
        (Attempt(BARE, reason="no route"), f"{BARE}: no route"),
        (Attempt(BARE, 302, "refused"), f"{BARE}: HTTP 302, refused"),
    ],
)
def test_attempt(attempt: Attempt, text: str) -> None:
    assert str(attempt) == text


def test_failure() -> None:
    attempts = (Attempt(BARE, 404),)
    found = errors.failure(Reason.NO_S256, "one\ntwo\x1b", url=URL, attempts=attempts)
    assert found == Failure(Reason.NO_S256, "one two", BARE, attempts=attempts)
    assert str(found) == f"one two ({Reason.NO_S256.cure})"
    assert "s3cret" not in repr(found) + str(found)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Failure) == found


def test_failure_without_a_url() -> None:
    assert errors.failure(Reason.CONFIGURATION, "x" * 3000) == Failure(Reason.CONFIGURATION, "x" * 2000)


def test_repr_names_the_reason() -> None:
    assert "no-s256" in repr(errors.failure(Reason.NO_S256, "message"))


def refuse(**members: Any) -> Failure:
    return errors.refused(Reason.EXCHANGE_REFUSED, "the server", URL, document(members))


@pytest.mark.parametrize(
    ("members", "message", "code"),
    [
        pytest.param(
            {"error": "invalid_grant", "error_description": "Used up"},
            "the server answered HTTP 200: invalid_grant: Used up",
            "invalid_grant",
            id="RFC6749-5.2",
        ),
        pytest.param({"error": "e"}, "the server answered HTTP 200: e", "e", id="RFC6749-5.2-no-description"),
        pytest.param({"message": "No"}, "the server answered HTTP 200: No", None, id="FN-42-message"),
        pytest.param({"msg": "No"}, "the server answered HTTP 200: No", None, id="FN-supabase"),
        pytest.param(
            {"error_description": "a", "message": "b", "msg": "c"},
            "the server answered HTTP 200: a",
            None,
            id="the-standard-one",
        ),
        pytest.param({"error": {"code": 1}}, "the server answered HTTP 200", None, id="no-text"),
        pytest.param({"error": "a\nb\x1b"}, "the server answered HTTP 200: a b", "a b", id="printable-code"),
        pytest.param({"error": "e" * 99}, "the server answered HTTP 200: " + "e" * 80, "e" * 80, id="short-code"),
        pytest.param(
            {"message": "\x1b[2J" * 200}, "the server answered HTTP 200: " + (" [2J" * 125)[1:], None, id="printable"
        ),
    ],
)
def test_refused(members: dict[str, Any], message: str, code: str | None) -> None:
    assert refuse(**members) == Failure(Reason.EXCHANGE_REFUSED, message, BARE, 200, code)


def test_refused_without_a_document() -> None:
    attempts = (Attempt(BARE, 500),)
    found = errors.refused(Reason.CLIENT_REFUSED, "it", URL, Response(500, (), b"<html>"), attempts)
    assert found == Failure(Reason.CLIENT_REFUSED, "it answered HTTP 500", BARE, 500, attempts=attempts)


LONG = "0123456789abcdef-and-more"


@pytest.mark.parametrize(
    ("text", "secrets", "shown"),
    [
        pytest.param("s1 and s2", (), "s1 and s2", id="FN-54-nothing-to-hide"),
        pytest.param("s1 and s2", (None, ""), "s1 and s2", id="FN-54-no-secrets"),
        pytest.param("s1 and s2", (None, "s2", "s1"), "[hidden] and [hidden]", id="FN-54-all-of-them"),
        pytest.param("a%2Fb+c of a/b c", ("a/b c",), "[hidden] of [hidden]", id="FN-54-form-encoded"),
        pytest.param(f"bad {LONG[:20]}... given", (LONG,), "bad [hidden] given", id="FN-54-cut-short"),
        pytest.param(f"bad {LONG[:15]} given", (LONG,), f"bad {LONG[:15]} given", id="FN-54-too-short-to-tell"),
        pytest.param("x \ud800", ("\ud800",), "x [hidden]", id="FN-54-lone-surrogate"),
    ],
)
def test_conceal(text: str, secrets: tuple[str | None, ...], shown: str) -> None:
    assert errors.conceal(text, secrets) == shown


def test_refused_hides_before_it_cuts() -> None:
    """FN 54: no beginning of a secret is left over at the end of what is shown."""
    answer = document(error="e" * 70 + LONG, error_description="d" * 490 + LONG)
    found = errors.refused(Reason.EXCHANGE_REFUSED, "it", URL, answer, hide=(LONG,))
    assert LONG[:4] not in repr(found) + str(found)
    assert found.oauth_error == "e" * 70 + "[hidden]"
