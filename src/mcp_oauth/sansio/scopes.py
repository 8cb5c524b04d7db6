"""Which scopes to ask for, and what was granted (spec, "Scope Selection Strategy"; RULES 2.15, 3.5)."""

from __future__ import annotations

from collections.abc import Iterable

from mcp_oauth.sansio.grant import Grant, Scopes
from mcp_oauth.sansio.metadata import AuthorizationServerMetadata
from mcp_oauth.sansio.plan import Plan

OFFLINE = "offline_access"


def to_request(
    plan: Plan, challenged: Scopes | None, supported: Scopes | None, metadata: AuthorizationServerMetadata
) -> Scopes | None:
    """The caller's, else the challenge's, else the resource metadata's, else None: leave the parameter out.

    A limit of the caller's holds for what the server suggests. `offline_access` comes with it where the authorization
    server lists it, and only there: it is no scope of a resource, whatever the resource says.
    """
    if plan.scopes is not None:
        return plan.scopes or None
    limit = plan.scope_limit
    named = challenged or supported or ()
    suggested = tuple(scope for scope in named if scope != OFFLINE and (limit is None or scope in limit))
    if not suggested:
        return None
    return union(suggested, (OFFLINE,) if OFFLINE in (metadata.scopes_supported or ()) else ())


def to_step_up(plan: Plan, grant: Grant | None, challenged: Scopes) -> Scopes | None:
    """What was requested before and what is challenged now, or None: that is beyond the caller's limit.

    Where nothing was requested by name, what was granted takes its place, or it would be lost.
    """
    if plan.scope_limit is not None and not set(challenged) <= set(plan.scope_limit):
        return None
    before = (grant.requested or grant.granted) if grant is not None else None
    return union(before or (), challenged)


def union(*sets: Iterable[str]) -> Scopes:
    """All of them, each once, in order."""
    return tuple(dict.fromkeys(scope for scopes in sets for scope in scopes))


def missing(requested: Scopes | None, granted: Scopes | None) -> Scopes:
    """What was asked for and not granted; nothing where either is unknown."""
    return () if requested is None or granted is None else tuple(s for s in requested if s not in granted)
