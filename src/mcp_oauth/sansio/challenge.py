"""WWW-Authenticate (RFC 9110 section 11.6.1), and what its Bearer and DPoP challenges ask for.

Reading is by the grammar, and tolerant where servers are known to err. A header value is a list of elements, and the
list of challenges and the lists of their parameters share its commas:

    challenge = scheme [ 1*SP ( token68 / #auth-param ) ]
    auth-param = token BWS "=" BWS ( token / quoted-string )

So each element is told by what it begins with. `name =` is a parameter of the challenge before it. Another token is a
scheme, if it stands at the beginning or behind a comma; elsewhere it is a stray word, and dropped. An unquoted value
may hold any character but blanks and commas (URLs are really sent so), and goes on over further words.

One expression reads one part, from wherever the last one ended. Its alternatives begin differently and its
repetitions cannot overlap, so that the time is linear in the length, whatever is sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mcp_oauth.sansio.values import Value

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PART = re.compile(
    rf"""(?P<gap>[ \t\r\n,]*)
    (?: (?P<name>{_TOKEN})[ \t\r\n]*=[ \t\r\n]*
        (?: "(?P<quoted>[^"\\]*(?:\\.[^"\\]*)*)(?:"|\\?\Z)
          | (?P<bare>(?:[^ \t\r\n,"][^ \t\r\n,]*(?:[ \t\r\n]+(?!{_TOKEN}[ \t\r\n]*=)[^ \t\r\n,]+)*)?) )
      | (?P<scheme>{_TOKEN})(?=[ \t\r\n,]|\Z)
        (?: [ \t\r\n]+(?P<token68>[A-Za-z0-9._~+/-]+=*)(?=[ \t\r\n]*(?:,|\Z)) )?
      | [^ \t\r\n,]+
      | \Z )""",
    re.VERBOSE | re.DOTALL,
)
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)
_SCOPE_TOKEN = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")
_OURS = ("bearer", "dpop")
_LONGEST_TEXT = 500


class Challenge(Value, frozen=True):
    """One challenge: what a server would accept (RFC 9110 section 11.3)."""

    shown = ("scheme",)

    scheme: str
    """Lower-cased: "bearer"."""
    token68: str | None = None
    """What some schemes send in place of parameters, as it is."""
    params: tuple[tuple[str, str], ...] = ()
    """Names lower-cased, values unquoted, in order; a name may recur."""

    def all(self, name: str) -> tuple[str, ...]:
        """All values of the parameter `name` (lower-case), in order."""
        return tuple(value for key, value in self.params if key == name)

    def first(self, name: str) -> str | None:
        """The first value of the parameter `name` (lower-case)."""
        return next(iter(self.all(name)), None)


class Demand(Value, frozen=True):
    """What the Bearer and DPoP challenges of one answer ask for (RFC 6750 section 3, RFC 9449 7.1, RFC 9728 5.1)."""

    shown = ("schemes", "resource_metadata", "scope", "error")

    schemes: tuple[str, ...]
    """Of "bearer" and "dpop", those that were seen, in order."""
    resource_metadata: tuple[str, ...] = ()
    """Every candidate for the metadata's URL, once, in order (FN 25): unchecked."""
    scope: tuple[str, ...] | None = None
    """The scopes of the first challenge that names any; None where none does."""
    error: str | None = None
    """The first error code: "invalid_token", "insufficient_scope"."""
    error_description: str | None = None
    """The server's words: printable characters, at most 500."""


def parse(values: Iterable[str]) -> tuple[Challenge, ...]:
    """The challenges in the values of one or more WWW-Authenticate fields (RFC 9110 sections 11.3 and 11.6.1).

    Several fields are one list (RFC 9110 section 5.3), though a quotation left open ends with its field. Never raises:
    what is malformed is left out, and as little else as possible with it.
    """
    found: list[tuple[str, str | None, list[tuple[str, str]]]] = []
    for value in values:
        for part in _PART.finditer(value):
            if part["name"] and found:
                found[-1][2].append((part["name"].lower(), _value(part)))
            elif part["scheme"] and (part.start() == 0 or "," in part["gap"]):
                found.append((part["scheme"].lower(), part["token68"], []))
    return tuple(Challenge(scheme, token68, tuple(params)) for scheme, token68, params in found)


def _value(part: re.Match[str]) -> str:
    if part["quoted"] is None:
        return part["bare"]
    return _QUOTED_PAIR.sub(r"\1", part["quoted"])


def demand(values: Iterable[str]) -> Demand | None:
    """What the WWW-Authenticate values of one answer ask for; None if no challenge is Bearer or DPoP."""
    ours = tuple(challenge for challenge in parse(values) if challenge.scheme in _OURS)
    if not ours:
        return None
    return Demand(
        schemes=tuple(dict.fromkeys(challenge.scheme for challenge in ours)),
        resource_metadata=tuple(dict.fromkeys(filter(None, _all(ours, "resource_metadata")))),
        scope=_scopes(ours),
        error=_text(ours, "error"),
        error_description=_text(ours, "error_description"),
    )


def _all(challenges: tuple[Challenge, ...], name: str) -> tuple[str, ...]:
    return tuple(value for challenge in challenges for value in challenge.all(name))


def _scopes(challenges: tuple[Challenge, ...]) -> tuple[str, ...] | None:
    """The first `scope` with a scope token in it (RFC 6749 section 3.3): each token once, what is none left out."""
    for value in _all(challenges, "scope"):
        tokens = tuple(dict.fromkeys(token for token in value.split() if _SCOPE_TOKEN.fullmatch(token)))
        if tokens:
            return tokens
    return None


def _text(challenges: tuple[Challenge, ...], name: str) -> str | None:
    """The first value of `name` that says anything, fit to be shown."""
    said = ("".join(filter(str.isprintable, value))[:_LONGEST_TEXT] for value in _all(challenges, name))
    return next(filter(None, said), None)
