"""Every machine of the core, and how it begins in a world of `anything`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from types import ModuleType
from typing import Any, NamedTuple, cast

from msgspec.structs import replace

from mcp_oauth.sansio import (
    access,
    authorization_code,
    client,
    discovery,
    fetching,
    forgetting,
    issuer,
    keeping,
    login,
    logout,
    registration,
    renewal,
    resource,
    revocation,
    upkeep,
)
from mcp_oauth.sansio.grant import (
    Grant,
    GrantRecord,
    registration_key,
    token_of,
)
from mcp_oauth.sansio.metadata import protected_resource
from mcp_oauth.sansio.plan import Dynamic
from mcp_oauth.sansio.steps import (
    Await,
    Event,
    How,
)
from mcp_oauth.sansio.values import Now, fingerprint
from tests.sansio.anything import CHALLENGED, EVIL, ISSUERS, KEY, ORIGIN, REDIRECT_URI, SEED, SERVER, World
from tests.sansio.walks import NOW, advance


class Walk(NamedTuple):
    """One life of a machine: its steps, and what was answered when. There is one more step than events."""

    steps: tuple[Any, ...]
    events: tuple[tuple[Event, Now], ...]

    def turns(self) -> Iterator[tuple[Any, Event, Any]]:
        """Each step that waited, its answer, and the step after."""
        for step, (event, _), after in zip(self.steps, self.events, self.steps[1:], strict=False):
            yield step, event, after


def walked(module: ModuleType, step: Any, world: World) -> Walk:
    """Play a machine in a world to its end, or one effect beyond its bound."""
    steps, events = [step], list[tuple[Event, Now]]()
    while isinstance(steps[-1], Await) and len(events) <= module.MOST_EFFECTS:
        events.append((world.answer(steps[-1].effect), world.tick()))
        steps.append(advance(module, steps[-1], *events[-1]))
    return Walk(tuple(steps), tuple(events))


def _fetching(_: World) -> Any:
    return fetching.begin(CHALLENGED)


def _resource(world: World) -> Any:
    return resource.begin(world.plan(), world.need().resource_metadata)


def _issuer(world: World) -> Any:
    return issuer.begin(issuer.Query(world.plan(), world.pick(*ISSUERS, f"{EVIL}?q", "http://127.0.0.1:9000")))


def _discovery(world: World) -> Any:
    known = ((ISSUERS[0], f"{ISSUERS[0]}/token"), (EVIL, f"{EVIL}/other"))
    stored = world.pick(None, *ISSUERS)
    seen = world.chance(20)
    query = discovery.Query(world.plan(), world.need().resource_metadata, stored, seen, world.pick((), known))
    return world.pick(discovery.begin(query), discovery.resume(query, _found(world)))


def _found(world: World) -> resource.Found:
    servers = world.maybe(ISSUERS, ("javascript:x",), (EVIL,))
    listed = protected_resource({"resource": SERVER, "authorization_servers": list(servers)})
    return resource.Found(world.pick(listed, None))


def _registration(world: World) -> Any:
    known = world.pick((), world.registrations().registrations)
    listed = world.pick(ISSUERS[0], None)
    asked = registration.Query(world.plan(), world.metadata(), listed, REDIRECT_URI, world.scopes(), known)
    return registration.begin(asked, NOW)


def _authorization_code(world: World) -> Any:
    return authorization_code.begin(
        world.plan(),
        world.metadata(),
        world.registered(ISSUERS[0]),
        redirect_uri=REDIRECT_URI,
        resource=world.pick(SERVER, None),
        scopes=world.scopes(),
        consent=world.chance(50),
        seed=SEED,
    )


def _revocation(world: World) -> Any:
    return revocation.begin(world.grant())


def _keeping(world: World) -> Any:
    base = world.grants()
    how: How = world.pick("renewed", "login")
    mine = world.pick(world.changed(base.grants[-1]) if base.grants else world.grant(), world.grant())
    unlike = world.pick(None, fingerprint(mine.access_token))
    keep = keeping.Keep(KEY, how, mine, SEED, unlike, world.pick("theirs", "mine") if how == "login" else None)
    world.stored[KEY] = base
    return world.pick(
        keeping.begin(keep, base, base.revision),
        keeping.settle(keep, base, cast("GrantRecord | None", world.pick(base, world.grants())), NOW),
    )


def _client(world: World) -> Any:
    plan, metadata = world.plan(), world.metadata()
    if world.chance(50):
        dynamic = Dynamic(redirect_uri=REDIRECT_URI)
        plan = replace(plan, two_leg=True, preregistered=None, metadata_document=None, dynamic=dynamic)
    found = discovery.Discovered(SERVER, metadata, None, world.pick(ISSUERS[0], None))
    clients = world.registrations()
    forget = world.pick(None, *clients.registrations)
    world.stored[registration_key(metadata.issuer, ORIGIN)] = world.pick(clients, None)
    return client.begin(client.Query(plan, KEY, found, world.scopes(), SEED, forget), NOW)


def _renewal(world: World) -> Any:
    grant = replace(world.grant(), refused=None, refresh_token=world.canary("refresh-token"))
    intent = world.pick(None, world.intent(grant))
    record = GrantRecord("revision", SERVER, "", (grant,), grant.issuer, intent=intent)
    world.stored[KEY] = world.pick(record, record, world.varied(KEY, record))
    unlike = world.pick(None, fingerprint(grant.access_token))
    return renewal.begin(KEY, grant, unlike=unlike, seed=SEED, jitter=world.pick(0.0, 0.7), holder="us")


def _login(world: World) -> Any:
    plan = world.plan()
    record = world.pick(None, world.grants())
    world.stored[KEY] = record
    known = world.pick(None, None, _found(world))
    return login.begin(plan, KEY, world.need(), record=record, known=known, seed=SEED, now=NOW)


def _upkeep(world: World) -> Any:
    world.stored[KEY] = world.pick(world.grants(), world.grants(), None)
    need, unsaved = world.need(), world.pick(None, None, world.grants())
    stored = world.stored[KEY]
    if isinstance(stored, GrantRecord) and stored.grants:
        need = replace(need, unlike=world.pick(fingerprint(stored.grants[-1].access_token), need.unlike))
    return upkeep.begin(world.plan(), need, SEED, unsaved)


def _access(world: World) -> Any:
    token = world.pick(None, token_of(world.grant()), token_of(world.grant()))
    return access.begin(token, now=NOW, replayable=not world.chance(20), never_accepted=world.chance(50))


def _logout(world: World) -> Any:
    record = world.grants()
    if world.chance(30):
        record = replace(record, grants=tuple(_removable(world, grant) for grant in record.grants), logged_out=False)
    world.stored[KEY] = world.pick(record, record, None)
    for name in ISSUERS:
        clients = replace(world.registrations(), users=world.pick((KEY,), (KEY, "x")))
        world.stored[registration_key(name, ORIGIN)] = world.pick(clients, None)
    unsaved = world.pick(None, None, world.grants())
    return logout.begin(world.plan(), SEED, unsaved)


def _forgetting(world: World) -> Any:
    world.stored[KEY] = world.pick(world.grants(), world.grants(), None)
    return forgetting.begin(world.plan(), SEED)


def _removable(world: World, grant: Grant) -> Grant:
    """A grant without revocation endpoint, whose client can be deleted."""
    uri, token = f"{grant.issuer}/register/1", world.canary("registration-access-token")
    client = replace(grant.registration, kind="dcr", registration_client_uri=uri, registration_access_token=token)
    return replace(grant, registration=client, revocation_endpoint=None)


BEGIN: dict[ModuleType, Callable[[World], Any]] = {
    fetching: _fetching,
    resource: _resource,
    issuer: _issuer,
    discovery: _discovery,
    registration: _registration,
    authorization_code: _authorization_code,
    revocation: _revocation,
    keeping: _keeping,
    client: _client,
    renewal: _renewal,
    login: _login,
    upkeep: _upkeep,
    access: _access,
    logout: _logout,
    forgetting: _forgetting,
}
"""Each machine, and how it begins in a world."""


def any_walk(module: ModuleType, rnd: Random) -> tuple[Walk, World]:
    """One life of a machine in some world."""
    world = World(rnd)
    return walked(module, BEGIN[module](world), world), world
