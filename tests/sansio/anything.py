"""A world that answers each effect with anything: plausible, odd, hostile, persistent.

A `World` chooses by a `random.Random`. Hypothesis hands in one whose choices it searches and shrinks (towards the
first option of each `pick`); a fixed seed gives the same walk for ever, which is how the tables are explored.
"""

from __future__ import annotations

from random import Random
from typing import Any, TypeVar
from urllib.parse import quote_plus, unquote_plus

import msgspec
from msgspec.structs import replace

from mcp_oauth.sansio import (
    uris,
)
from mcp_oauth.sansio.errors import Reason, failure
from mcp_oauth.sansio.grant import (
    Grant,
    GrantRecord,
    Intent,
    LoginClaim,
    Record,
    Registration,
    RegistrationRecord,
    Scopes,
    grant_key,
    token_of,
)
from mcp_oauth.sansio.messages import Request, Response
from mcp_oauth.sansio.metadata import AuthorizationServerMetadata, authorization_server
from mcp_oauth.sansio.plan import ClientMetadataDocument, Dynamic, Plan, PreRegistered
from mcp_oauth.sansio.steps import (
    ANSWERS,
    Acquired,
    Allowed,
    Answered,
    Because,
    Busy,
    Conflict,
    Effect,
    Ensured,
    Event,
    Extended,
    How,
    Listen,
    Listening,
    Loaded,
    Need,
    NotEnsured,
    OpenBrowser,
    Proceed,
    Redirected,
    Released,
    Save,
    Saved,
    Send,
    SendFailed,
    StillWaiting,
    StoreFailed,
    UserFailed,
    Woke,
)
from mcp_oauth.sansio.values import Now, Seed, fingerprint
from tests.sansio.walks import CANARY, NOW

T = TypeVar("T")

SERVER = "https://mcp.example/mcp"
ORIGIN = "https://mcp.example"
ISSUERS = ("https://as.example", "https://other.example/tenant")
EVIL = "https://evil.example"
CHALLENGED = f"{ORIGIN}/meta?key=1"
NEARBY = "http://127.0.0.1/m"
"""A challenge of a public server that aims at us."""
REDIRECT_URI = "http://127.0.0.1:4711/callback"
SEED = Seed(b"0123456789abcdef0123456789abcdef")
KEY = grant_key(SERVER, "")
TIRED = 120
"""Events after which a world only gives its first answers: longer walks find nothing new."""


class World:
    """Answers effects. Its moods are drawn once, and make whole walks succeed or stay stuck."""

    def __init__(self, rnd: Random) -> None:
        self.rnd = rnd
        self.now = NOW
        self.events = 0
        self.stored: dict[str, Record | None] = {}
        self.waited = False
        self.minted = 0
        self.temper = self.pick(0, 5, 20, 60)
        """Of a hundred answers, how many are odd."""
        self.has_resource_metadata = self.chance(85)
        self.metadata_is_odd = self.chance(15)
        self.contended = self.chance(20)
        """Others write to the store all the time."""
        self.slow = self.pick(0, 0, 1, 3)
        """Times that the person lets us wait."""
        self.haunted = self.chance(15)
        """Another login takes the claim over meanwhile, and the server has forgotten our client."""
        self.fleeting = self.chance(50)
        """What others save is lost again."""
        self.habits: dict[type[Any], type[Any]] = {}
        if self.chance(25):
            self.habits = {effect: self.pick(*events) for effect, events in ANSWERS.items() if self.chance(30)}

    # --- Choices ------------------------------------------------------------------------------------------------------

    def pick(self, *options: T) -> T:
        """One of these; the first is what shrinking leads to."""
        return options[0] if self.events > TIRED else options[self.rnd.randrange(len(options))]

    def chance(self, percent: int) -> bool:
        return self.events <= TIRED and self.rnd.randrange(100) >= 100 - percent

    def maybe(self, good: T, *odd: T) -> T:
        """The good one, unless the world is in a temper."""
        return self.pick(*odd) if self.chance(self.temper) else good

    def canary(self, what: str) -> str:
        """A new secret, long enough to be one."""
        self.minted += 1
        return f"{CANARY}-{what}-{self.minted:08}+/=%"

    # --- Answers ------------------------------------------------------------------------------------------------------

    def answer(self, effect: Effect) -> Event:
        """An event that may answer the effect."""
        self.events += 1
        kinds = ANSWERS[type(effect)]
        kind = self.habits.get(type(effect)) or self.maybe(kinds[0], *kinds)
        if isinstance(effect, OpenBrowser) and self.slow:
            self.slow, kind = self.slow - 1, StillWaiting
        if isinstance(effect, Save) and self.contended and self.chance(50):
            kind = Conflict
        if self.haunted:
            kind = self._haunt(effect, kind)
        event: Event = getattr(self, f"_{kind.__name__.lower()}")(effect)
        if isinstance(effect, Save):
            self._store(effect, event)
        return event

    def _haunt(self, effect: Effect, kind: type[Any]) -> type[Any]:
        if isinstance(effect, OpenBrowser) and not effect.opened:
            self.waited = True
            return StillWaiting
        return Conflict if isinstance(effect, Save) and self.waited else kind

    def tick(self) -> Now:
        """Time goes on, mostly by a second; the wall clock may jump."""
        seconds = self.pick(1.0, 0.0, 30.0, 700.0, 4000.0) if self.chance(10) else 1.0
        jump = self.pick(0.0, -100.0, -1e7, 1e7, 1e12) if self.chance(2) else 0.0
        self.now = Now(self.now.wall + seconds + jump, self.now.elapsed + seconds)
        return self.now

    def _store(self, effect: Save, event: Event) -> None:
        lost = isinstance(event, StoreFailed) and self.chance(50)
        if isinstance(event, Saved) or lost:
            self.stored[effect.key] = effect.record
        elif isinstance(event, Conflict) and not self.fleeting:
            self.stored[effect.key] = event.record

    def _response(self, effect: Send) -> Response:
        if self.chance(self.temper):
            return self._odd_response(effect.request)
        return self._good_response(effect.request)

    def _sendfailed(self, effect: Send) -> SendFailed:
        return SendFailed("connection lost", self.chance(50))

    def _listening(self, effect: Listen) -> Listening:
        return Listening(self.pick(REDIRECT_URI, effect.redirect_uri))

    def _userfailed(self, effect: Effect) -> UserFailed:
        return UserFailed("nobody is there")

    def _redirected(self, effect: OpenBrowser) -> Redirected:
        endpoint = effect.url.partition("?")[0]
        known = next((name for name in (*ISSUERS, ORIGIN) if endpoint.startswith(name)), ISSUERS[0])
        ours = self.maybe(f"state={effect.state}", "state=other", "", "&=&%zz")
        code = f"&code={quote_plus(self.canary('code'))}"
        code = self.maybe(code, "&code=", "&code=%00", "", f"{code}&code=x")
        error = self.maybe("", "&error=access_denied", "&error=invalid_client", f"&error={code[6:]}", "&error=")
        error = "&error=invalid_client" if self.haunted else error
        iss = self.maybe(self.pick(f"&iss={known}", ""), f"&iss={EVIL}", "&iss=")
        return Redirected(f"{effect.redirect_uri}?{ours}{code}{error}{iss}")

    def _stillwaiting(self, effect: OpenBrowser) -> StillWaiting:
        return StillWaiting()

    def _allowed(self, effect: Effect) -> Allowed:
        return Allowed()

    def _woke(self, effect: Effect) -> Woke:
        return Woke()

    def _released(self, effect: Effect) -> Released:
        return Released()

    def _acquired(self, effect: Any) -> Acquired:
        lease = self.pick(None, self.now.elapsed + 30.0, self.now.elapsed + 5.0)
        return Acquired(self.record(effect.key), lease, lease is None, self.pick("", "pid 1 on host"))

    def _extended(self, effect: Effect) -> Extended:
        return Extended(self.pick(self.now.elapsed + 30.0, self.now.elapsed + 5.0, None))

    def _busy(self, effect: Effect) -> Busy:
        return Busy("pid 1 on host")

    def _loaded(self, effect: Any) -> Loaded:
        return Loaded(self.record(effect.key))

    def _saved(self, effect: Effect) -> Saved:
        return Saved(durable=not self.chance(20))

    def _conflict(self, effect: Save) -> Conflict:
        theirs = self.varied(effect.key, effect.record) if self.chance(60) else self.record(effect.key)
        if Save in self.habits and self.chance(90):
            theirs = self.stored.get(effect.key)
        elif self.haunted and isinstance(effect.record, GrantRecord):
            theirs = replace(effect.record, login=self.claim())
        return Conflict(theirs if theirs is None else replace(theirs, revision=f"theirs-{self.events}"))

    def _storefailed(self, effect: Effect) -> StoreFailed:
        return StoreFailed("disk full")

    def _answered(self, effect: Proceed) -> Answered:
        return Answered(self.pick(401, 200, 403, 500), self.challenges(), not self.chance(10))

    def _ensured(self, effect: Any) -> Ensured:
        how: How = self.pick("stored", "renewed", "login", "none")
        return Ensured(None if how == "none" else token_of(self.grant()), how)

    def _notensured(self, effect: Any) -> NotEnsured:
        reason = self.pick(Reason.AUTHORIZATION_REQUIRED, Reason.SCOPE_LIMIT, Reason.STEP_UP_DENIED)
        return NotEnsured(failure(reason, "no"))

    # --- Servers ------------------------------------------------------------------------------------------------------

    def challenges(self) -> tuple[str, ...]:
        scope = self.pick("a", "a b", "c", "")
        error = self.pick("insufficient_scope", "invalid_token", "")
        return self.pick(
            (f'Bearer error="{error}", scope="{scope}", resource_metadata="{CHALLENGED}"',),
            (),
            ("Basic realm=x",),
            ('Bearer resource_metadata="javascript:x"', "\x00"),
        )

    def _good_response(self, request: Request) -> Response:
        if request.method == "GET":
            return self._metadata(request.url)
        if request.method == "DELETE":
            return Response(self.pick(204, 200, 401, 404, 500))
        if b"client_name" in request.body:
            return document(self._registered(), self.pick(201, 200))
        if b"token_type_hint" in request.body:
            return Response(self.pick(200, 503, 400))
        return document(self._tokens(), 200)

    def _metadata(self, url: str) -> Response:
        listed = next((name for name in self._issuers() if url in uris.authorization_server_metadata_urls(name)), None)
        if listed is not None:
            found = self._issuer_document(listed)
            return document(found) if not self.chance(self.temper) else Response(404)
        if not self.has_resource_metadata:
            return Response(self.pick(404, 405))
        return document(self._resource_document())

    def _issuers(self) -> tuple[str, ...]:
        return (*ISSUERS, ORIGIN, f"{ORIGIN}/", EVIL, "http://127.0.0.1:9000")

    def _resource_document(self) -> dict[str, Any]:
        odd = self.metadata_is_odd
        servers = self.pick(ISSUERS, ISSUERS[:1], ISSUERS[1:], (EVIL, *ISSUERS))
        return {
            "resource": self.pick(f"{ORIGIN}/x", EVIL, "\ud7ff")
            if odd and self.chance(30)
            else self.pick(SERVER, ORIGIN),
            "authorization_servers": self.pick((), ("javascript:x",), ("http://127.0.0.1:9000",)) if odd else servers,
            "scopes_supported": self.pick(None, ("a", "b"), ("offline_access",), ()),
            "bearer_methods_supported": self.pick(("body",), 7) if odd and self.chance(30) else None,
        }

    def _issuer_document(self, name: str) -> dict[str, Any]:
        base = name.removesuffix("/")
        members = {
            "issuer": name,
            "authorization_endpoint": f"{base}/authorize?kept=1",
            "token_endpoint": f"{base}/token",
            "registration_endpoint": self.pick(f"{base}/register", None),
            "revocation_endpoint": self.pick(f"{base}/revoke", None),
            "scopes_supported": self.pick(None, ("openid", "offline_access"), ("a",)),
            "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": self.maybe(None, ["none"], ["client_secret_post"], ["tls"]),
            "revocation_endpoint_auth_methods_supported": self.pick(None, ["client_secret_post"]),
            "authorization_response_iss_parameter_supported": self.maybe(None, True),
            "client_id_metadata_document_supported": self.pick(True, None),
        }
        if self.metadata_is_odd and self.chance(60):
            members |= self.pick(
                {"issuer": EVIL},
                {"token_endpoint": f"{EVIL}/token"},
                {"token_endpoint": None},
                {"authorization_endpoint": f"{base}/authorize?state=1"},
                {"registration_endpoint": "http://127.0.0.1/register"},
                {"code_challenge_methods_supported": None},
                {"revocation_endpoint": f"{base}/revoke#x"},
            )
        return members

    def _registered(self) -> dict[str, Any]:
        with_secret = self.chance(50)
        return {
            "client_id": f"client-{self.minted}",
            "client_secret": self.canary("client-secret") if with_secret else None,
            "client_secret_expires_at": self.maybe(0, self.now.wall + 9e5, self.now.wall - 5) if with_secret else None,
            "token_endpoint_auth_method": self.maybe(None, "client_secret_basic", "client_secret_post", "tls"),
            "registration_client_uri": self.pick(None, f"{ISSUERS[0]}/register/1", f"{EVIL}/1"),
            "registration_access_token": self.pick(None, self.canary("registration-access-token")),
        }

    def _tokens(self) -> dict[str, Any]:
        return {
            "access_token": self.canary("access-token"),
            "refresh_token": self.pick(None, self.canary("refresh-token")),
            "token_type": self.pick("Bearer", "bearer", None),
            "expires_in": self.pick(3600, "3600", 0, 5, None, -1, 1e300),
            "scope": self.pick(None, "a", "a b c"),
        }

    def _odd_response(self, request: Request) -> Response:
        """Errors that repeat all that was sent, redirects, and what is no document at all."""
        echo = "\n".join((*(value for _, value in request.headers), request.body.decode("latin-1")))
        if self.chance(40):
            shown = self.pick(echo, unquote_plus(echo), echo[::2] + unquote_plus(echo)[40:])
            members = {self.pick("error_description", "error", "message", "issuer", "resource"): shown}
            error = self.pick("invalid_grant", "invalid_client", "invalid_request", "invalid_scope")
            return document({"error": error, **members}, self.pick(400, 401, 200, 500))
        status = self.pick(404, 500, 503, 429, 400, 401, 200, 204, 302, 307, 308, 418)
        headers = self.pick(
            (),
            (("Location", "/elsewhere?key=1"),),
            (("location", f"{EVIL}/x"),),
            (("Retry-After", self.pick("3", "999999999", "-1")),),
            (("content-type", "application/x-www-form-urlencoded"),),
        )
        body = self.pick(b"", b"<html>", b"[" * 3000, b'{"a":"\xff"}', b"error=x&scope=%ff", b"null", b'{"ok":false}')
        return Response(status, headers, body)

    # --- Records ------------------------------------------------------------------------------------------------------

    def record(self, key: str) -> Record | None:
        """What is stored, mostly; else what others may have put there."""
        stored = self.stored.get(key)
        return self.varied(key, stored) if self.chance(60 if self.waited else self.temper) else stored

    def varied(self, key: str, base: Record | None) -> Record | None:
        """Another record, or the same with something changed by somebody."""
        if not key.startswith("grant-"):
            return self.pick(self.registrations(), None, base, self.grants())
        if not isinstance(base, GrantRecord) or self.chance(20):
            return self.pick(self.grants(), None, self.registrations(), replace(self.grants(), logged_out=True))
        if base.grants and self.chance(40):
            return replace(base, grants=(*base.grants[:-1], self.changed(base.grants[-1])))
        return self.pick(
            replace(base, login=None),
            replace(base, login=self.claim()),
            replace(base, logged_out=True, login=None, grants=()),
            replace(base, grants=(self.grant(),), login=self.pick(base.login, None)),
            replace(base, grants=()),
            replace(base, intent=self.intent(base.grants[-1])) if base.grants else base,
            base,
        )

    def intent(self, grant: Grant) -> Intent:
        presented = fingerprint(grant.refresh_token or "")
        until = self.now.wall + self.pick(10.0, -10.0, -100.0)
        return Intent(f"theirs-{self.events}", presented, "pid 2 on host", until)

    def claim(self) -> LoginClaim:
        return LoginClaim("theirs", "pid 2 on host", self.now.wall + self.pick(15.0, 400.0, -1.0))

    def changed(self, grant: Grant) -> Grant:
        """The grant after a renewal, refusal or login by somebody else."""
        spent = fingerprint(grant.refresh_token or "")
        renewed = replace(grant, access_token=self.canary("access-token"), generation=grant.generation + 1)
        renewed = replace(renewed, parent=spent, refresh_token=self.canary("refresh-token"))
        return self.pick(
            renewed,
            replace(renewed, expires_at=self.now.wall + 3600, parent=grant.parent),
            replace(renewed, lineage="another", expires_at=self.now.wall + self.pick(3600, -5)),
            replace(grant, refused=spent, client_refused=self.chance(50)),
            replace(grant, next_attempt_at=self.now.wall + self.pick(2, 500)),
            replace(grant, renewals=(self.now.wall,) * 40),
        )

    def grants(self) -> GrantRecord:
        first, second = self.grant(), self.grant(1)
        return GrantRecord(
            f"revision-{self.minted}",
            SERVER,
            "",
            self.pick((first,), (second, first), (), (second,)),
            self.pick(first.issuer, second.issuer, None),
            resource_metadata_seen=self.chance(50),
            allowed_issuers=self.pick((), ISSUERS),
            login=self.claim() if self.chance(20) else None,
            no_login_before=self.maybe(None, self.now.wall + 300, self.now.wall - 1),
            denied_scopes=self.maybe((), (("a",),), (("a", "b"), ("c",))),
        )

    def grant(self, n: int = 0) -> Grant:
        refresh_token = self.pick(self.canary("refresh-token"), self.canary("refresh-token"), None)
        spent = fingerprint(refresh_token or "")
        return Grant(
            ISSUERS[n],
            self.registered(ISSUERS[n]),
            f"{ISSUERS[n]}/token",
            self.canary("access-token"),
            self.now.wall - self.pick(3600, 10, 0),
            self.pick("lineage", "another"),
            logged_in_at=self.pick(self.now.wall - 3600, self.now.wall - 10, None),
            generation=self.pick(0, 1),
            expires_at=self.pick(self.now.wall - 10, self.now.wall + 3600, self.now.wall + 3, None),
            refresh_token=refresh_token,
            parent=self.pick(None, "parent"),
            resource=self.maybe(SERVER, None),
            requested=self.pick(None, ("a",), ("a", "b", "c")),
            granted=self.pick(None, ("a",)),
            revocation_endpoint=self.pick(f"{ISSUERS[n]}/revoke", None),
            revocation_auth_methods=self.pick(None, ("client_secret_post",), ("none",), ("tls",)),
            refused=spent if self.chance(15) else None,
            client_refused=self.chance(15),
            unanswered=self.chance(15),
            refusals=self.pick(0, 2),
            next_attempt_at=self.now.wall + 3 if self.chance(10) else None,
        )

    def registered(self, name: str) -> Registration:
        secret = self.pick(None, self.canary("client-secret"))
        return Registration(
            name,
            self.pick("pre", "https://app.example/client"),
            self.pick("dcr", "dcr", "preregistered", "cimd"),
            self.pick("client_secret_basic", "client_secret_post") if secret else "none",
            self.pick(REDIRECT_URI, None, "http://127.0.0.1/callback"),
            self.pick(None, ("a",)),
            secret,
            self.maybe(None, self.now.wall + 9e5, self.now.wall),
            self.pick(f"{name}/register/1", None),
            self.pick(self.canary("registration-access-token"), None),
        )

    def registrations(self) -> RegistrationRecord:
        names = self.pick((ISSUERS[0],), (*ISSUERS, ISSUERS[0]), ())
        known = tuple(replace(self.registered(name), kind="dcr") for name in names)
        return RegistrationRecord(f"revision-{self.minted}", known, self.pick((KEY,), (), ("x",)))

    # --- What the caller configured and wants -------------------------------------------------------------------------

    def plan(self) -> Plan:
        plan = Plan(
            SERVER,
            scopes=self.maybe(None, ("a",), ()),
            scope_limit=self.maybe(None, ("a", "b")),
            resource=self.maybe("always", "never", "https://override.example"),
            ask_issuer=self.chance(30),
            authorization_params=self.pick((), (("prompt", "login"), ("audience", "x"))),
            token_params=self.pick((), (("audience", "x"),)),
            login_seconds=self.pick(300.0, 10.0, 1e9),
            jitter=self.pick(0.0, 0.5),
        )
        if self.chance(40):
            secret = self.pick(self.canary("preregistered-secret"), None)
            named = self.maybe(None, ISSUERS[0])
            plan = replace(plan, preregistered=PreRegistered("pre", secret, named, self.pick(None, REDIRECT_URI)))
        if self.chance(40):
            plan = replace(plan, metadata_document=ClientMetadataDocument("https://app.example/client"))
        if self.chance(40):
            initial = self.pick(self.canary("initial-access-token"), None)
            redirect_uri = self.pick(None, REDIRECT_URI)
            dynamic = Dynamic(initial_access_token=initial, redirect_uri=redirect_uri)
            plan = replace(plan, dynamic=self.pick(dynamic, dynamic, None))
        if self.chance(30):
            plan = replace(plan, interactive=not self.chance(20), two_leg=self.chance(50), assume_s256=self.chance(50))
        if self.chance(30):
            plan = replace(plan, trusted_issuer=((ISSUERS[0], EVIL),), strict_resource=self.chance(50))
        if self.chance(30):
            plan = replace(plan, legacy_2025_03_26=True, allow_private=self.chance(50), prefer_issuer=ISSUERS[1])
        return plan

    def need(self) -> Need:
        because: tuple[Because, ...] = ("refused", "asked", "scope", "missing", "expiring", "forced")
        return Need(
            self.pick(*because),
            self.pick(None, fingerprint("x")),
            never_accepted=self.chance(20),
            scopes=self.pick(None, ("a",), ("c",)),
            resource_metadata=self.pick((), (CHALLENGED,), (NEARBY, CHALLENGED)),
            may_renew=not self.chance(20),
            may_login=not self.chance(20),
        )

    def metadata(self) -> AuthorizationServerMetadata:
        """Metadata that has been accepted."""
        odd, self.metadata_is_odd = self.metadata_is_odd, False
        found = authorization_server(msgspec.json.decode(msgspec.json.encode(self._issuer_document(ISSUERS[0]))))
        self.metadata_is_odd = odd
        assert found is not None
        return found

    def scopes(self) -> Scopes | None:
        return self.pick(None, ("a",), ("a", "b"))


def document(members: dict[str, Any], status: int = 200) -> Response:
    """A JSON answer; members that are None are left out."""
    present = {name: value for name, value in members.items() if value is not None}
    return Response(status, (("content-type", "application/json"),), msgspec.json.encode(present))
