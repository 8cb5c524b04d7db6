"""The machine of one request of a caller: header, challenge, budget, step-up. At most 12 effects, normally 1.

    Proceed -> Answered
    Proceed -> Answered(401) -> Ensure -> Proceed -> Answered

It holds no lock, and a request with a usable token waits for nothing. On 401 the order is: a newer stored token, one
renewal, one login; each at most once for a request, but for a renewed token that ran out on its way. On 403
`insufficient_scope`: a login for more scopes, once for each set (spec, "Step-Up Authorization Flow"). After that the
answer is the caller's, as it is.
"""

from __future__ import annotations

from msgspec.structs import replace

from mcp_oauth.sansio.challenge import Demand, demand
from mcp_oauth.sansio.errors import Failure, Reason, failure
from mcp_oauth.sansio.grant import Token, alive, fresh, ran_out
from mcp_oauth.sansio.steps import (
    Answered,
    Await,
    Done,
    Ensure,
    Ensured,
    Event,
    Failed,
    How,
    Misuse,
    Need,
    NotEnsured,
    Proceed,
    Step,
    Table,
)
from mcp_oauth.sansio.values import Now, Value

MOST_REPEATS = 5
"""Times that a request is sent again."""
MOST_EFFECTS = 2 * MOST_REPEATS + 2

GIVE_UP = (Reason.SCOPE_LIMIT, Reason.STEP_UP_DENIED)
"""Why a 403 is handed to the caller as it is."""


class Budget(Value, frozen=True):
    """What one request may still do."""

    shown = ("repeats", "adopted", "renewals", "logged_in")

    replayable: bool
    """The body can be sent again."""
    never_accepted: bool
    """This process obtained the token at hand itself, and no server has accepted it yet."""
    repeats: int = 0
    adopted: bool = False
    """After a 401 a newer token was stored."""
    renewals: int = 0
    logged_in: bool = False


class Finished(Value, frozen=True):
    """The last answer is the caller's."""

    shown = ("accepted",)

    accepted: Token | None
    """The token that was sent, if the server did not refuse it."""


class Ensuring(Value, frozen=True, tag="access.Ensuring"):
    """Waits for a token."""

    shown = ("need", "budget")

    need: Need
    budget: Budget
    token: Token | None
    """The one at hand."""
    answered: bool
    """The server has answered, and the caller can have that answer."""


class Proceeding(Value, frozen=True, tag="access.Proceeding"):
    """The caller's request is under way."""

    shown = ("budget", "token")

    budget: Budget
    token: Token | None


State = Ensuring | Proceeding
Out = Step[State, Finished]


def begin(
    token: Token | None, *, now: Now, jitter: float = 0.0, replayable: bool = True, never_accepted: bool = False
) -> Out:
    """Begin with the token at hand; see `Budget` for the rest."""
    budget = Budget(replayable, never_accepted)
    if token is None:
        return _ensure(Need("missing"), budget, None)
    if not fresh(token, now, jitter):
        return _ensure(Need("expiring"), budget, token)
    return _proceed(budget, token)


def advance(state: State, event: Event, *, now: Now) -> Out:
    """Judge an answer, or go on with what was ensured."""
    match state, event:
        case Ensuring(), Ensured(token, how):
            return _ensured(state, token, how)
        case Ensuring(), NotEnsured(error):
            return _not_ensured(state, error, now)
        case Proceeding(budget, token), Answered():
            return _answered(budget, token, event, now)
        case _:
            raise Misuse(state, event)


def authorization(token: Token) -> str:
    """The value of the `Authorization` field (RFC 6750 section 2.1)."""
    return f"Bearer {token.access_token}"


def _ensure(need: Need, budget: Budget, token: Token | None, answered: bool = False) -> Out:
    return Await(Ensuring(need, budget, token, answered), Ensure(need))


def _proceed(budget: Budget, token: Token | None) -> Out:
    headers = () if token is None else (("authorization", authorization(token)),)
    return Await(Proceeding(budget, token), Proceed(headers))


def _ensured(state: Ensuring, token: Token | None, how: How) -> Out:
    same = token is not None and state.token is not None and token.fingerprint == state.token.fingerprint
    budget = _spent(state, how, same)
    if not state.answered:
        return _proceed(budget, token)
    if token is None or same or (how == "stored" and state.need.because == "refused" and _had_both(state.budget)):
        return _finish(state)
    if not budget.replayable:
        message = "the server wants a token, and the request's body cannot be sent twice"
        return Failed(failure(Reason.BODY_NOT_REPLAYABLE, message))
    return _proceed(replace(budget, repeats=budget.repeats + 1), token)


def _had_both(budget: Budget) -> bool:
    """A newer token of the store, and a renewal, be it a peer's that was waited for."""
    return budget.adopted and budget.renewals > 0


def _spent(state: Ensuring, how: How, same: bool) -> Budget:
    """What is left after a token came so. A token of the store may have been accepted from others."""
    budget, obtained = state.budget, how in ("renewed", "login") and not same
    peers = how == "stored" and state.need.because == "refused" and budget.adopted
    return replace(
        budget,
        never_accepted=obtained or (same and budget.never_accepted),
        adopted=budget.adopted or (how == "stored" and state.need.because == "refused"),
        renewals=budget.renewals + (obtained or peers),
        logged_in=budget.logged_in or (obtained and how == "login"),
    )


def _finish(state: Ensuring) -> Out:
    """The answer that is there is the caller's; with a 403 the token was accepted."""
    return Done(Finished(state.token if state.need.because == "scope" else None))


def _not_ensured(state: Ensuring, error: Failure, now: Now) -> Out:
    """A failed early renewal leaves the still valid token in use; a step-up beyond the limits leaves the 403."""
    usable = state.token is not None and alive(state.token, now) and error.reason is not Reason.LOGGED_OUT
    if not state.answered and usable:
        return _proceed(state.budget, state.token)
    if state.answered and error.reason in GIVE_UP:
        return _finish(state)
    return Failed(error)


def _answered(budget: Budget, token: Token | None, event: Answered, now: Now) -> Out:
    wanted = demand(event.challenges) if event.challenges else None
    may_repeat = event.ours and budget.repeats < MOST_REPEATS
    if event.status == 401 and may_repeat and (not budget.logged_in or ran_out(token, now)):
        return _ensure(_refused(budget, token, wanted, now), budget, token, answered=True)
    if event.status == 403 and may_repeat and token is not None and _more(token, wanted):
        # The token was accepted; and a login of this request may have been for a challenge with fewer scopes.
        need = replace(_refused(budget, token, wanted, now), because="scope", never_accepted=False, may_login=True)
        return _ensure(need, budget, token, answered=True)
    return Done(Finished(token if event.ours and event.status != 401 else None))


def _refused(budget: Budget, token: Token | None, wanted: Demand | None, now: Now) -> Need:
    """A token that ran out on its way (the machine slept) says nothing against its grant: it may be renewed anew.

    And one that does so again and again is no reason for a login. Whether there may be one is for upkeep to judge.
    """
    on_its_way = ran_out(token, now)
    may_renew = budget.renewals < (2 if on_its_way else 1)
    return Need(
        "refused",
        token.fingerprint if token else None,
        never_accepted=budget.never_accepted,
        scopes=wanted.scope if wanted else None,
        resource_metadata=wanted.resource_metadata if wanted else (),
        may_renew=may_renew,
        may_login=not budget.logged_in and (may_renew or not on_its_way),
    )


def _more(token: Token, wanted: Demand | None) -> bool:
    """The server demands scopes that this token was not asked for with: once for each set."""
    if wanted is None or wanted.error != "insufficient_scope" or not wanted.scope:
        return False
    return not set(wanted.scope) <= set(token.requested or ())


TABLE: Table = {
    Ensuring: ((Ensure,), {Ensured: (Proceeding, Done, Failed), NotEnsured: (Proceeding, Done, Failed)}),
    Proceeding: ((Proceed,), {Answered: (Ensuring, Done)}),
}
