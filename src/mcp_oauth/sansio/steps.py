"""Steps, effects and events: the whole language between the pure core and the world.

A machine is two pure functions. `begin(...)` and `advance(state, event, now=...)` return a step:

    Await(state, effect, notices)   the world owes this state the answer to one effect
    Done(value)
    Failed(error)

A driver performs the effect and feeds the answering event back, until the step is no longer an `Await`. `ANSWERS`
says which events may answer which effect; any other raises `Misuse`, which is a bug of the driver. Whatever a peer
sends never raises: it ends in `Failed`. A state is a frozen value and JSON; a machine inside a machine is a state
with a field `inner`, run by `within`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, Literal, TypeVar

from msgspec.structs import replace

from mcp_oauth.sansio.errors import Failure
from mcp_oauth.sansio.grant import Record, Scopes, Token
from mcp_oauth.sansio.messages import DEADLINE, MAX_BODY, Request, Response, SecretHeaders
from mcp_oauth.sansio.values import Secret, Value

S = TypeVar("S", covariant=True)
R = TypeVar("R", covariant=True)

Because = Literal["missing", "expiring", "refused", "scope", "asked", "forced"]
"""No token in memory; in its leeway; a 401; a 403 `insufficient_scope`; the program asks for a token by itself; for a
new login in any case.
"""

How = Literal["stored", "renewed", "login", "none"]
"""Where a token comes from: the store, a renewal, a login."""

NoticeName = Literal[
    "resource-broader-than-server",
    "trusted-issuer",
    "issuer-first-used",
    "issuer-unavailable",
    "registered",
    "registered-again",
    "scopes-reduced",
    "login-elsewhere",
    "lock-busy",
    "logged-in",
    "renewed",
    "renewal-postponed",
    "grant-refused",
    "not-persisted",
    "persisted",
    "not-fresh",
    "not-durable",
    "revoked",
    "revocation-failed",
]


# --- Effects: imperatives -------------------------------------------------------------------------------------------


class Send(Value, frozen=True):
    """Send one HTTP request: no redirect followed, no cookie, no netrc, no compression. -> Response, SendFailed."""

    shown = ("request",)

    request: Request
    max_bytes: int = MAX_BODY
    """The answer's body may have this many bytes, counted while streaming; a longer one is `SendFailed`."""
    seconds: float = DEADLINE
    """From the first byte of the connection to the last of the answer."""


class Listen(Value, frozen=True):
    """Be ready to receive the redirect, before any browser opens. -> Listening, UserFailed."""

    shown = ("redirect_uri", "port")

    redirect_uri: str
    """With a port: exactly that one. Without, on loopback: any free port."""
    port: int | None = None
    """The port registered earlier, to be used again if it is free (FN 37)."""


class OpenBrowser(Value, frozen=True):
    """Show the authorization URL and wait for the redirect. -> Redirected, StillWaiting, UserFailed."""

    shown = ("redirect_uri", "seconds", "opened")

    url: Secret
    redirect_uri: str
    state: Secret
    """The `state` parameter that a redirect must carry to be ours."""
    seconds: float
    """How long to wait before `StillWaiting`."""
    opened: bool = False
    """True: it is open already, only go on waiting."""


class AskIssuer(Value, frozen=True):
    """Ask the application whether to log in at this authorization server. -> Allowed, UserFailed."""

    shown = ("server_url", "issuer", "scopes")

    server_url: str
    issuer: str
    scopes: Scopes | None


class Sleep(Value, frozen=True):
    """Wait. -> Woke."""

    shown = ("seconds",)

    seconds: float


class Acquire(Value, frozen=True):
    """Try once to take the cross-process lock, and read the record under it. -> Acquired, Busy, StoreFailed."""

    shown = ("key",)

    key: str


class Extend(Value, frozen=True):
    """Let the lock's lease run anew from now on. -> Extended, StoreFailed."""


class Release(Value, frozen=True):
    """Give the lock back now; otherwise it ends with the machine. -> Released."""


class Load(Value, frozen=True):
    """Read a record without the lock. -> Loaded, StoreFailed."""

    shown = ("key",)

    key: str


class Save(Value, frozen=True):
    """Compare-and-swap a record. -> Saved, Conflict, StoreFailed."""

    shown = ("key", "expected")

    key: str
    record: Record
    """Its `revision` is new."""
    expected: str | None
    """The revision that must be stored now; None: nothing."""


class Proceed(Value, frozen=True):
    """Send the caller's own request with these headers. -> Answered."""

    headers: SecretHeaders
    """The `Authorization` field, or nothing."""


class Ensure(Value, frozen=True):
    """Get a token from the grant's upkeep. -> Ensured, NotEnsured."""

    shown = ("need",)

    need: Need


Effect = Send | Listen | OpenBrowser | AskIssuer | Sleep | Acquire | Extend | Release | Load | Save | Proceed | Ensure


# --- Events: past participles ---------------------------------------------------------------------------------------


class SendFailed(Value, frozen=True):
    """No usable answer came."""

    shown = ("reason", "may_have_arrived")

    reason: str
    may_have_arrived: bool
    """False: the server certainly did not process the request (no connection was made)."""


class Listening(Value, frozen=True):
    """The redirect can be received at this URI."""

    shown = ("redirect_uri",)

    redirect_uri: str


class Redirected(Value, frozen=True):
    """The browser came back: the whole redirect URL, or what a person pasted."""

    url: Secret


class StillWaiting(Value, frozen=True):
    """Nobody came back yet."""


class UserFailed(Value, frozen=True):
    """The person or the user agent is not to be had, or said no."""

    shown = ("reason",)

    reason: str


class Allowed(Value, frozen=True):
    """The application allows it."""


class Woke(Value, frozen=True):
    """The time is over."""


class Acquired(Value, frozen=True):
    """The lock is ours; this is what is stored."""

    shown = ("record", "valid_until", "exclusive", "left_by")

    record: Record | None
    valid_until: float | None = None
    """Elapsed seconds at which a lease lapses; None: a kernel lock."""
    exclusive: bool = True
    """A previous holder is certainly dead (kernel locks only)."""
    left_by: str = ""
    """Who had a kernel lock and died with it, as in `Busy`; "": nobody."""


class Extended(Value, frozen=True):
    """The lease runs until then, if it was not lost."""

    shown = ("valid_until",)

    valid_until: float | None
    """Elapsed seconds; None: it is lost."""


class Busy(Value, frozen=True):
    """The lock is somebody else's."""

    shown = ("holder",)

    holder: str


class Released(Value, frozen=True):
    """The lock is free."""


class Loaded(Value, frozen=True):
    """What is stored; None: nothing."""

    shown = ("record",)

    record: Record | None


class Saved(Value, frozen=True):
    """It is stored."""

    shown = ("durable",)

    durable: bool = True
    """False: a power failure may take it back."""


class Conflict(Value, frozen=True):
    """Somebody saved first; this is what is stored now."""

    shown = ("record",)

    record: Record | None


class StoreFailed(Value, frozen=True):
    """The store could not."""

    shown = ("reason",)

    reason: str


class Answered(Value, frozen=True):
    """The caller's request was answered."""

    shown = ("status", "challenges")

    status: int
    challenges: tuple[str, ...] = ()
    """The values of `WWW-Authenticate`."""
    ours: bool = True
    """False: another URL answered than those where the token belongs; its challenge means nothing (RULES 1.1)."""


class Ensured(Value, frozen=True):
    """A token; None: there is no grant yet, and nobody has asked for one."""

    shown = ("token", "how")

    token: Token | None
    how: How


class NotEnsured(Value, frozen=True):
    """No token."""

    shown = ("failure",)

    failure: Failure


Event = (
    Response
    | SendFailed
    | Listening
    | Redirected
    | StillWaiting
    | UserFailed
    | Allowed
    | Woke
    | Acquired
    | Extended
    | Busy
    | Released
    | Loaded
    | Saved
    | Conflict
    | StoreFailed
    | Answered
    | Ensured
    | NotEnsured
)

ANSWERS: Mapping[type[Any], tuple[type[Any], ...]] = {
    Send: (Response, SendFailed),
    Listen: (Listening, UserFailed),
    OpenBrowser: (Redirected, StillWaiting, UserFailed),
    AskIssuer: (Allowed, UserFailed),
    Sleep: (Woke,),
    Acquire: (Acquired, Busy, StoreFailed),
    Extend: (Extended, StoreFailed),
    Release: (Released,),
    Load: (Loaded, StoreFailed),
    Save: (Saved, Conflict, StoreFailed),
    Proceed: (Answered,),
    Ensure: (Ensured, NotEnsured),
}
"""Which events may answer which effect."""


# --- What a caller's request needs of the grant's upkeep --------------------------------------------------------------


class Need(Value, frozen=True):
    """Why a token is wanted, and what it must be."""

    shown = ("because", "unlike", "scopes", "resource_metadata")

    because: Because
    unlike: str | None = None
    """Fingerprint of the token that will not do."""
    never_accepted: bool = False
    """This process obtained that token itself, and no server has accepted it yet."""
    scopes: Scopes | None = None
    """The scopes of the challenge."""
    resource_metadata: tuple[str, ...] = ()
    """The metadata URLs of the challenge (RFC 9728 section 5.1)."""
    may_renew: bool = True
    may_login: bool = True


# --- Notices: progress and audit, without secrets ---------------------------------------------------------------------


class Notice(Value, frozen=True):
    """Something a person or an auditor may want to know. Holds no secret."""

    shown = ("name", "message")

    name: NoticeName
    message: str

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


# --- Steps ------------------------------------------------------------------------------------------------------------


class Await(Value, Generic[S], frozen=True):
    """The world owes `state` the answer to `effect`. A dump of it is secret: see `sealing`."""

    shown = ("state", "effect", "notices")

    state: S
    effect: Effect
    notices: tuple[Notice, ...] = ()


class Done(Value, Generic[R], frozen=True):
    """The machine's result."""

    shown = ("value", "notices")

    value: R
    notices: tuple[Notice, ...] = ()


class Failed(Value, frozen=True):
    """The machine ended without its result."""

    shown = ("error", "notices")

    error: Failure
    notices: tuple[Notice, ...] = ()


Step = Await[S] | Done[R] | Failed


class Misuse(Exception):
    """An event that the effect did not ask for: a bug of the driver, never of a peer."""

    def __init__(self, state: Value, event: Value) -> None:
        super().__init__(f"{type(event).__name__} does not answer what {type(state).__name__} waits for")


Q = TypeVar("Q")
T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")


def within(
    step: Step[A, B],
    wrap: Callable[[A], T],
    then: Callable[[B], Step[T, Q]],
    otherwise: Callable[[Failure], Step[T, Q]] = Failed,
) -> Step[T, Q]:
    """Run a machine inside another: its waits become ours, its result goes to `then`, its failure to `otherwise`."""
    match step:
        case Await(state, effect, notices):
            return Await(wrap(state), effect, notices)
        case Done(value, notices):
            return noting(then(value), *notices)
        case _:
            return noting(otherwise(step.error), *step.notices)


def noting(step: Step[A, B], *notices: Notice) -> Step[A, B]:
    """The step, with these notices before its own."""
    return replace(step, notices=notices + step.notices) if notices else step


# --- Tables -----------------------------------------------------------------------------------------------------------

Row = Mapping[type[Any], tuple[type[Any], ...]]
Table = Mapping[type[Any], tuple[tuple[type[Any], ...], Row]]
"""A machine: state -> (the effects that it waits for, event -> the states, Done or Failed that may follow)."""


def inside(inner: Table, *ends: type[Any]) -> tuple[tuple[type[Any], ...], Row]:
    """The row of a state that runs an inner machine: its effects; `ends` is what may follow any answer to them."""
    effects = tuple(dict.fromkeys(effect for waits, _ in inner.values() for effect in waits))
    return effects, {event: ends for effect in effects for event in ANSWERS[effect]}
