"""Values: frozen, equal by content, and silent about their secrets; the seed."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_oauth import sansio
from mcp_oauth.sansio.values import Now, Secret, SecretBytes, Seed, Value, base64url, fingerprint

CANARY = "c4n4ry"


class Shy(Value, frozen=True):
    shown = ("name", "where", "more")

    name: str
    where: str = "https://h.example/a?key=c4n4ry#c4n4ry"
    more: tuple[Any, ...] = ("see https://h.example?c4n4ry=' or http://x/#c4n4ry", 7)
    secret: Secret = CANARY
    raw: SecretBytes = CANARY.encode()


class Open(Value, frozen=True):
    shown = ("a",)

    a: int


class Mute(Value, frozen=True):
    a: int = 1


class Empty(Value, frozen=True):
    pass


def test_only_what_is_shown_is_in_the_repr() -> None:
    expected = "Shy(name='n', where='https://h.example/a', more=('see https://h.example or http://x/', 7), ...)"
    assert repr(Shy("n")) == str(Shy("n")) == f"{Shy('n')}" == expected
    assert repr((Open(1), Mute(), Empty())) == "(Open(a=1), Mute(...), Empty())"


def test_rich_shows_no_more() -> None:
    """msgspec brings a `__rich_repr__` that names every field."""
    assert dict(Shy("n").__rich_repr__()).keys() == {"name", "where", "more"}
    assert CANARY not in repr(Shy("n").__rich_repr__())
    assert list(Empty().__rich_repr__()) == []


def test_frozen_and_equal_by_content() -> None:
    assert Shy("n") == Shy("n") != Shy("m")
    assert len({Shy("n"), Shy("n")}) == 1
    value: Any = Shy("n")
    with pytest.raises(AttributeError):
        value.name = "m"


# --- Every value of the core ------------------------------------------------------------------------------------------


def core_values() -> Iterator[type[Value]]:
    for module in pkgutil.iter_modules(sansio.__path__):
        importlib.import_module(f"mcp_oauth.sansio.{module.name}")
    known: list[type[Value]] = [Value]
    for kind in known:
        known += kind.__subclasses__()
    return (kind for kind in known if kind.__module__.startswith(sansio.__name__))


def is_secret(hint: Any) -> bool:
    marked = get_origin(hint) is Annotated and any(getattr(meta, "extra", None) for meta in get_args(hint)[1:])
    return marked or (get_origin(hint) is not Literal and any(map(is_secret, get_args(hint))))


def is_text(hint: Any) -> bool:
    return hint in (str, bytes) or (get_origin(hint) is not Literal and any(map(is_text, get_args(hint))))


def test_the_search_for_secrets_finds_them() -> None:
    secret: list[Any] = [Secret, Secret | None, tuple[SecretBytes, ...], tuple[tuple[str, Secret | None], ...] | None]
    open_: list[Any] = [str, str | None, Literal["a"], Annotated[str, msgspec.Meta(min_length=1)], tuple[()]]
    assert all(map(is_secret, secret))
    assert not any(map(is_secret, open_))


def test_no_secret_field_is_shown() -> None:
    """FN 54."""
    fields = [
        (kind, name, hint) for kind in core_values() for name, hint in get_type_hints(kind, include_extras=True).items()
    ]
    assert len(fields) > 100
    assert [
        f"{kind.__qualname__}.{name}" for kind, name, hint in fields if name in kind.shown and is_secret(hint)
    ] == []


def test_what_is_called_a_secret_is_one() -> None:
    """FN 54: a field with the name of a secret is annotated as one."""
    called = re.compile(r"(.*_)?(token|secret|verifier|password|code|headers|body)")
    fields = [
        (f"{kind.__qualname__}.{name}", get_type_hints(kind, include_extras=True)[name])
        for kind in core_values()
        for name in kind.__struct_fields__
        if called.fullmatch(name)
    ]
    assert [name for name, hint in fields if is_text(hint) and not is_secret(hint)] == []


def test_what_is_shown_exists() -> None:
    assert [
        f"{kind.__qualname__}.{name}"
        for kind in core_values()
        for name in kind.shown
        if name not in kind.__struct_fields__
    ] == []


def test_every_value_is_frozen_and_tagged() -> None:
    for kind in core_values():
        assert kind.__struct_config__.frozen, kind
        assert kind.__struct_config__.tag, kind


def test_states_are_tagged_by_module() -> None:
    """DESIGN 1: two machines may have states of one name."""
    machines = [
        importlib.import_module(f"mcp_oauth.sansio.{module.name}") for module in pkgutil.iter_modules(sansio.__path__)
    ]
    states = {state for machine in machines for state in getattr(machine, "TABLE", ())}
    assert [
        state
        for state in states
        if state.__struct_config__.tag != f"{state.__module__.rpartition('.')[2]}.{state.__name__}"
    ] == []


# --- The seed ---------------------------------------------------------------------------------------------------------

SEED = Seed(bytes(32))
labels = st.text(max_size=8)


def test_seed_is_silent() -> None:
    assert repr(SEED) == "Seed(...)"


def test_same_seed_same_values() -> None:
    assert SEED.text("state") == Seed(bytes(32)).text("state") == "FnLcXrixzbI17ndpB5IsKiwdi3gpj6LWYm0s1omUX2c"
    assert SEED.child("login", 2) == Seed(bytes(32)).child("login", 2)


def test_another_label_number_or_seed_gives_another_value() -> None:
    seeds = (SEED, Seed(b"\1" * 32), SEED.child("a"), SEED.child("a", 1), SEED.child("b"))
    texts = {seed.text(label, n) for seed in seeds for label in ("a", "b") for n in (0, 1)}
    assert len(texts) == 20


@given(labels, st.integers(0, 9))
def test_a_published_text_is_never_the_key_of_a_child(label: str, n: int) -> None:
    assert SEED.text(label, n) != base64url(SEED.child(label, n).key)


@given(labels, st.integers(0, 9))
def test_text_is_a_verifier(label: str, n: int) -> None:
    """RFC 7636 section 4.1."""
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", SEED.text(label, n))


@given(st.binary(min_size=32, max_size=32), labels)
def test_fraction(key: bytes, label: str) -> None:
    assert 0 <= Seed(key).fraction(label) < 1
    assert Seed(key).fraction(label) == Seed(key).fraction(label, 0) != Seed(key).fraction(label, 1)
    assert Seed(key).fraction(label) != Seed(key).fraction(f"{label}x")


def test_fractions_are_spread() -> None:
    tenths = [int(SEED.fraction("jitter", n) * 10) for n in range(1000)]
    assert all(70 < tenths.count(tenth) < 130 for tenth in range(10))


def test_base64url() -> None:
    """RFC 7515 appendix C."""
    assert base64url(bytes([3, 236, 255, 224, 193])) == "A-z_4ME"
    assert base64url(bytes([0, 5, 215])) == "AAXX"


def test_fingerprint() -> None:
    assert fingerprint("abc") == "ungWv48Bz-pBQUDeXa4iI7ADYaOWF3qctBD_YfIAFa0"  # FIPS 180-4
    assert fingerprint("\ud800") != fingerprint("\ud801")


def test_now() -> None:
    assert repr(Now(1.5, 2.5)) == "Now(wall=1.5, elapsed=2.5)"
