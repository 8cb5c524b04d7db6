"""What must hold, whatever happens. The servers know which tokens live and who received them, the media what was saved
when; the library is asked nothing.

A grant is *lost* if no live token of it is left in the store though one reached a process that could have saved it:
never. It is *unsavable* if the answer was lost or its process ended before the save, at a server without grace, if its
process stood still between its last look at the clock and the save, or if the store took back what it had saved. These
are counted, and somebody must be told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from mcp_oauth.sansio.errors import Failure, Reason
from mcp_oauth.sansio.exchange import MOST_RENEWALS
from mcp_oauth.sansio.grant import Grant, GrantRecord, LoginClaim, Record, current_grant
from mcp_oauth.sansio.messages import Headers, Request, Response
from mcp_oauth.sansio.steps import Notice
from mcp_oauth.sansio.values import fingerprint
from tests.simulation.scheduler import Task
from tests.simulation.servers import CLIENT_REVOKED, Family, Refresh, replay_seconds

EPOCH = 1_790_000_000.0
"""The wall clock at the beginning of a run."""

if TYPE_CHECKING:
    from tests.simulation.processes import Process, Session
    from tests.simulation.world import World

Place = tuple[str, str]
"""What processes share, and a key."""

BEYOND_HELP = {"killed", "not persisted", "taken back", "clock jumped", "arrived late"}
"""Troubles of a refresh token after which another process may present it again."""
GRACE = {
    "strict": 0,
    "refuse": 0,
    "static": 0,
    "grace-5": 4,
    "grace-10": 9,
    "grace-30": 29,
    "until-used": 60,
    "replay": 59,
}
"""Seconds within which a lost answer can be had again, less one for the way."""
LOOK_AGAIN = 5.0
"""Seconds after which a login in a browser notices a logout."""
PATIENCE = 32.0
"""Seconds that a lock is waited for (RULES 4.4), and a little more."""
BACK_OFF = 4.0
"""Seconds for which a refused token is left in peace."""
MOST_SLEEP_UNDER_LOCK = 0.5


class Oracle:
    """Sees all, and says what is wrong."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.truth: dict[Place, GrantRecord] = {}
        self.unsavable: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.notices: Counter[str] = Counter()
        self._saving: dict[Task, tuple[str, Record | None, str | None]] = {}
        self._revisions: dict[Place, set[str]] = {}
        self._buried: set[str] = set()
        """Lineages that ended with a logout."""
        self._saved_access: set[tuple[str, str]] = set()
        """(what processes share, access token)"""
        self._unsaved: dict[Process, str] = {}
        """Processes that were told of an unsaved token."""
        self._in_hand: dict[Process, list[Refresh]] = {}
        """Refresh tokens that a process is about to exchange, or whose successor it has and has not saved."""
        self._logged_out_at = -1.0
        self._logged_in_at = -1.0
        self._to_be_revoked: list[Family] = []
        """What was stored at a logout."""
        self._begun_with: dict[Process, bool] = {}
        """Whether a living grant was stored when a process began to log in."""
        self._unclaimed: dict[Process, float] = {}
        """When a process has taken back its claim."""
        self._silent: dict[Process, str] = {}
        """Processes that have found a grant dead, and have yet to say so."""

    def _wrong(self, rule: str, what: str) -> None:
        self._world.violated(rule, what)

    # --- OAuth traffic --------------------------------------------------------------------------------------------

    def sending(self, process: Process, request: Request) -> None:
        """A process is about to send this: no credential to a host that is not its own."""
        host = urlsplit(request.url).netloc
        text = request.url + request.body.decode() + "".join(value for _, value in request.headers)
        for server in self._world.servers.values():
            credentials = (*server.refresh_tokens, *server.access_tokens, *server.clients)
            if urlsplit(server.issuer).netloc != host and any(_holds(text, one) for one in credentials):
                self._wrong("credential-elsewhere", f"{process} sends what {server.issuer} gave to {host}")
        found = self._refresh(request)
        if found is not None:
            self._in_hand.setdefault(process, []).append(found)

    def _refresh(self, request: Request) -> Refresh | None:
        token = dict(parse_qsl(request.body.decode())).get("refresh_token", "") if request.url.endswith("token") else ""
        return next((s.refresh_tokens[token] for s in self._world.servers.values() if token in s.refresh_tokens), None)

    def answered(self, process: Process, request: Request, response: Response | None) -> None:
        """What became of it; None: no answer came."""
        found = self._refresh(request)
        if found is None:
            return
        if response is None or response.status >= 500:
            found.troubles.append("answer lost")
            found.missed_at = self._world.scheduler.seconds
        elif response.status != 200 and found in self._in_hand.get(process, []):
            self._in_hand[process].remove(found)

    def arriving_late(self, request: Request) -> None:
        """It is processed after its sender has given it up, and maybe sent it again."""
        found = self._refresh(request)
        if found is not None:
            found.troubles.append("arrived late")

    def reused(self, found: Refresh, taken: bool) -> None:
        """A spent token came again. That is for the last resort, and where the server allows it, it must help."""
        troubles = set(found.troubles)
        beyond_help = bool(troubles & BEYOND_HELP) or ("stopped" in troubles and self._world.medium.leases)
        beyond_help = beyond_help or found.refused_at is not None
        if not beyond_help and "answer lost" not in troubles:
            who = ", ".join(presenter.name for presenter in found.presenters)
            self._wrong("presented-twice", f"{found} was spent, and came again from {who}")
        setting = self._world.setting
        grace = replay_seconds(setting.lifetime) - 1 if setting.policy == "replay" else GRACE[setting.policy]
        beyond_help = beyond_help or ("store" in self._world.happened and self._world.medium.leases)
        in_time = grace and found.missed_at < (found.spent_at or 0.0) + grace
        once = found.troubles.count("answer lost") < 2 and "stopped" not in troubles
        if not taken and in_time and once and not beyond_help:
            self._wrong("lost", f"{found} came too late for a server with grace: {found.troubles}")
        if not taken:
            self.unsavable[found.troubles[0] if found.troubles else "?"] += 1

    def hurried(self, found: Refresh, seconds: float) -> None:
        """A refused token came again."""
        if "skew" in self._world.setting.kinds:
            return
        if seconds < BACK_OFF and not self._world.happened & {*_DISTURBANCES, "unavailable"}:
            self._wrong("no-backoff", f"{found} came again {seconds:.1f} s after it was refused")

    def interrupted(self, process: Process, how: str) -> None:
        """A process was killed or stopped."""
        for found in self._in_hand.get(process, []):
            found.troubles.append(how)

    def taken_back(self, how: str) -> None:
        """All media have fallen back, or a clock has jumped: nobody can tell."""
        self._buried.clear()
        for server in self._world.servers.values():
            for found in server.refresh_tokens.values():
                found.troubles.append(how)

    def unsent(self, process: Process, request: Request) -> None:
        """It did not even leave."""
        found = self._refresh(request)
        if found is None:
            return
        if "answer lost" in found.troubles:
            found.troubles.append("answer lost")
        if found in self._in_hand.get(process, []):
            self._in_hand[process].remove(found)

    # --- The store ------------------------------------------------------------------------------------------------

    def found(self, place: str, key: str, record: GrantRecord) -> None:
        """What was there before the run began."""
        self.truth[place, key] = record
        self._saved_access |= {(place, grant.access_token) for grant in record.grants}

    def forked(self, parent: Process, child: Process) -> None:
        """A child has the access tokens of its parent."""
        theirs = {token for place, token in self._saved_access if place == parent.place}
        self._saved_access |= {(child.place, token) for token in theirs}
        if parent in self._unsaved:
            self._unsaved[child] = self._unsaved[parent]

    def saving(self, task: Task, key: str, record: Record | None, expected: str | None) -> None:
        """A task has asked its store to save this."""
        self._saving[task] = key, record, expected

    def committed(self, process: Process) -> None:
        """The save of the running task is in the medium."""
        key, record, _ = self._saving[self._world.scheduler.current]
        place = process.place, key
        if record is None or record.revision in self._revisions.setdefault(place, set()):
            self._wrong("revision-recurs", f"{process} saves a revision that was there before")
            return
        self._revisions[place].add(record.revision)
        if not isinstance(record, GrantRecord):
            return
        before = self.truth.get(place)
        self.truth[place] = record
        self._world.remember()
        self._world.say(f"{process} has saved {_told(record)}")
        if record.login is not None:
            self._judge_claim(process, before, record.login)
        else:
            self._unclaimed[process] = self._world.scheduler.seconds
        self._judge_logout(process, before, record)
        self._judge_change(process, before, record)
        for grant in record.grants:
            self._saved_access.add((process.place, grant.access_token))
            mine = self._in_hand.get(process, [])
            mine[:] = [found for found in mine if fingerprint(found.token) != grant.parent]

    def _judge_claim(self, process: Process, before: GrantRecord | None, claim: LoginClaim) -> None:
        """A claim that has lapsed may be taken over. It lapses only if its holder could not renew it."""
        old = before.login if before is not None else None
        if old is not None and old.id == claim.id:
            return
        if old is not None and old.until <= process.wall() and self._world.happened & _DISTURBANCES:
            for session in self._world.sessions(process.place):
                session.claimed = session.claimed and session.process.name != old.holder
        if claim.holder == process.name:
            self._begun_with[process] = self._living(current_grant(before))

    def _living(self, grant: Grant | None) -> bool:
        return grant is not None and self._world.servers[grant.issuer].lives(grant.refresh_token)

    def _judge_logout(self, process: Process, before: GrantRecord | None, record: GrantRecord) -> None:
        if record.logged_out:
            self._logged_out_at = self._world.scheduler.seconds
        if record.logged_out and before is not None:
            self._buried |= {grant.lineage for grant in before.grants}
            tokens = [(grant.issuer, grant.refresh_token or "") for grant in before.grants]
            found = [self._world.servers[issuer].refresh_tokens.get(token) for issuer, token in tokens]
            self._to_be_revoked += [one.family for one in found if one is not None]
        if any(grant.lineage in self._buried for grant in record.grants):
            self._wrong("logout-undone", f"{process} has written back a grant that was logged out")

    def _judge_change(self, process: Process, before: GrantRecord | None, record: GrantRecord) -> None:
        old, new = current_grant(before), current_grant(record)
        if new is not None and (old is None or new.lineage != old.lineage):
            self._logged_in_at = self._world.scheduler.seconds
        if old is None or new is None or old.issuer != new.issuer:
            return
        server = self._world.servers[new.issuer]
        if old.lineage == new.lineage and new.refresh_token is None and old.refresh_token is not None:
            self._wrong("refresh-token-dropped", f"{process} has saved a grant without its refresh token")
        if server.lives(old.refresh_token) and old.lineage == new.lineage and not server.lives(new.refresh_token):
            self._wrong("lost", f"{process} has put the dead {new.refresh_token} over the living {old.refresh_token}")
        if new.refused and not old.refused:
            self._refused(process, new)

    def _refused(self, process: Process, grant: Grant) -> None:
        server = self._world.servers[grant.issuer]
        if server.lives(grant.refresh_token) and not self._world.happened & {
            "clients forgotten",
            "unavailable",
            "refuses early",
        }:
            self._wrong("lost", f"{process} has discarded {grant.refresh_token}, which is alive")
        self._silent[process] = grant.refresh_token or ""

    def told(self, process: Process, notice: Notice) -> None:
        """The application was told something."""
        self._world.say(f"{process} is told {notice.name}: {notice.message}")
        self.notices[notice.name] += 1
        if notice.name == "not-persisted":
            if "store" not in self._world.happened:
                self._wrong("needless-unsaved", f"{process} could not save, and the store was in order")
            self._unsaved[process] = notice.message
            self.interrupted(process, "not persisted")
        if notice.name == "grant-refused":
            self._silent.pop(process, None)

    # --- Callers and people ---------------------------------------------------------------------------------------

    def proceeding(self, process: Process, headers: Headers) -> None:
        """A caller's request is about to go out."""
        current = self._world.scheduler.current
        if any(task.ended or task is current for task in process.locks.values()):
            self._wrong("lock-across-request", f"{process} holds the lock of a grant while a request is under way")
        token = dict(headers).get("authorization", "").removeprefix("Bearer ")
        saved = not token or (process.place, token) in self._saved_access
        if not saved and process not in self._unsaved:
            self._wrong("served-unsaved", f"{process} uses {token}, which is not saved, and nobody was told")

    def pausing(self, seconds: float) -> None:
        """A task begins to wait."""
        task = self._world.scheduler.current
        if seconds > MOST_SLEEP_UNDER_LOCK and task in self._world.process.locks.values():
            self._wrong("lock-while-sleeping", f"{task.name} sleeps for {seconds:.1f} s under the lock")

    def caller_ended(self, process: Process, result: Response | Failure) -> None:
        """A caller has got this."""
        name = result.reason.value if isinstance(result, Failure) else str(result.status)
        self.reasons[name] += 1
        self._world.say(f"{process} got {name}" + (f": {result.message}" if isinstance(result, Failure) else ""))
        if isinstance(result, Failure) and result.reason is Reason.RENEWAL_BUSY:
            self._judge_busy(process)
        causes = self._causes(result)
        if causes is not None and not self._world.happened & causes:
            self._wrong("unexplained-failure", f"{process} got {name}, and nothing had happened: {result}")

    def _judge_busy(self, process: Process) -> None:
        """Whoever waits for a dead holder is served before he gives up."""
        since = self._world.scheduler.seconds - PATIENCE
        alive = any(other.locks or max(other.resumes_at, other.died_at) > since for other in self._world.processes)
        if not alive and not self._world.happened & {"store", "clock jumped", "slow", "taken back"}:
            self._wrong("busy-after-death", f"{process} gave up, and nobody who lives has the lock")

    def _causes(self, result: Response | Failure) -> set[str] | None:
        """Of which one must have happened; None: nothing."""
        if isinstance(result, Failure):
            return CAUSES[result.reason]
        return (
            None
            if result.status == 200
            else {"refused", "scopes", "logged out", "revoked elsewhere", "issuer changed", "clock jumped", "stopped"}
        )

    def browser_opened(self, session: Session) -> None:
        """One at a time, and none while a renewal could still succeed."""
        process, world = session.process, self._world
        claims = [record.login for (place, _), record in self.truth.items() if place == process.place]
        session.claimed = any(
            claim and claim.holder == process.name and claim.until > process.wall() for claim in claims
        )
        for other in world.sessions(process.place):
            over = max(
                max(self._logged_out_at, world.disturbed_at) + LOOK_AGAIN, self._unclaimed.get(other.process, -1.0)
            )
            just_logged_in = other.opened_at <= self._logged_in_at > world.scheduler.seconds - LOOK_AGAIN
            excused = other.opened_at <= over or just_logged_in or "clock jumped" in world.happened
            if other is not session and other.claimed and not excused:
                self._wrong("two-browsers", f"{process} opens a browser while {other.process} has one open")
        record = next((r for (identity, _), r in self.truth.items() if identity == process.place), None)
        grant = current_grant(record)
        if self._living(grant) and self._begun_with.get(process, True) and not world.happened & REASONS_TO_LOG_IN:
            self._wrong("needless-browser", f"{process} opens a browser, and {grant and grant.refresh_token} is alive")

    def logged_out(self, process: Process, end: Any) -> None:
        """A logout is over."""
        self._world.say(f"{process} has logged out: {end}")

    # --- The end --------------------------------------------------------------------------------------------------

    def judge_healed(self) -> None:
        """A minute after the last fault, whoever is not in a login is answered."""
        stuck = [task.name for task in self._world.unanswered() if not self._login_pending()]
        if stuck:
            self._wrong("stuck", f"{', '.join(stuck)} got no answer")

    def _login_pending(self) -> bool:
        wall = EPOCH + self._world.scheduler.seconds
        claims = [record.login for record in self.truth.values() if record.login is not None]
        sessions = [session for process in self._world.living() for session in process.listeners]
        just_over = any(seconds > self._world.scheduler.seconds - LOOK_AGAIN for seconds in self._unclaimed.values())
        return bool(sessions) or just_over or any(claim.until > wall for claim in claims)

    def judge_answered(self) -> None:
        """At last, everybody is answered."""
        if waiting := self._world.unanswered():
            self._wrong("stuck", f"{waiting[0].name} was never answered")

    def judge_end(self) -> None:
        """What is left when nobody asks for anything any more."""
        for process in self._world.living():
            flights = process.flights
            if flights._by_key or flights._slots or flights._queue:
                self._wrong("flight-left", f"{process} has flights: {list(flights._by_key)}")
            if process.locks:
                self._wrong("lock-left", f"{process} holds a lock")
            if process.listeners:
                self._wrong("listener-left", f"{process} listens")
        left = [task.name for task in self._world.scheduler.tasks if not (task.ended or task.machine.dead)]
        if left:
            self._wrong("thread-left", ", ".join(left))
        if self._world.medium.locked(self._world.medium_seconds()):
            self._wrong("lock-left", "a lock outlives its holder")
        self._judge_claims()
        self._judge_budgets()
        doubtful = self._world.setting.medium in ("disk", "redis") and not self._world.medium.durable
        if doubtful and self.notices["not-durable"] < self.notices["renewed"]:
            self._wrong("silent-loss", "what was saved may be lost, and nobody was told")
        self._judge_grants()
        for process, token in self._silent.items():
            if not process.dead and not self._world.happened & {"store", "taken back"}:
                self._wrong("silent-loss", f"{process} has found {token} dead, and told nobody")

    def _judge_grants(self) -> None:
        """No family is dead by our own doing that is still in use; none is alive that was logged out."""
        for record in self.truth.values():
            grant = current_grant(record)
            found = self._world.servers[grant.issuer].refresh_tokens.get(grant.refresh_token or "") if grant else None
            revoked = found is not None and found.family.revoked == CLIENT_REVOKED
            if revoked and not record.logged_out and "taken back" not in self._world.happened:
                self._wrong("lost", f"{found} is in use, and was revoked")
        left = [family for family in self._to_be_revoked if not family.revoked]
        if left and not self._world.happened & {*_DISTURBANCES, "unavailable", "clients forgotten"}:
            self._wrong("logout-incomplete", f"family {left[0].number} lives on after its logout")

    def _judge_claims(self) -> None:
        for record in self.truth.values():
            lasts = record.login is not None and record.login.until > EPOCH + self._world.scheduler.seconds
            if record.login is not None and lasts and "clock jumped" not in self._world.happened:
                self._wrong("claim-left", f"{record.login.holder} has left its claim")

    def _judge_budgets(self) -> None:
        """At most so many renewals of a grant in a minute, and one for each expiry where nothing happens."""
        for server in self._world.servers.values():
            for family in server.families:
                self._judge_pace(family)
        setting = self._world.setting
        if not self._world.happened and setting.policy != "static" and setting.medium != "memory":
            expiries = self._world.scheduler.seconds / (setting.lifetime * 0.9) + 1
            refreshes = sum(server.refreshes for server in self._world.servers.values())
            if refreshes > expiries:
                self._wrong("too-many-refreshes", f"{refreshes} in {self._world.scheduler.seconds:.0f} s")

    def _judge_pace(self, family: Family) -> None:
        times = family.renewed_at
        ends = zip(times, times[MOST_RENEWALS + 2 :], strict=False)
        if any(last - first < 60.0 for first, last in ends):
            self._wrong("budget", f"family {family.number} was renewed more than {MOST_RENEWALS} times in a minute")


def _holds(text: str, credential: str) -> bool:
    return credential in text


def _told(record: GrantRecord) -> str:
    grant = current_grant(record)
    parts = ["a logout" if record.logged_out else f"{grant.refresh_token}/{grant.generation}" if grant else "no grant"]
    parts += ["refused"] if grant is not None and grant.refused else []
    parts += [f"a login of {record.login.holder}"] if record.login else []
    parts += [f"the intent of {record.intent.holder}"] if record.intent else []
    return ", ".join(parts)


_DISTURBANCES = {"store", "killed", "stopped", "network", "clock jumped", "taken back", "slow", "exited"}
_NETWORK = {"network", "unavailable"}
_STANDSTILL = {"killed", "stopped", "suspended", "exited", "store", "locks lost", "clock jumped", "slow"}
_PERSON = {"person", "network", "unavailable", "killed", "clients forgotten"}
_DEAD = {
    "network", "killed", "stopped", "suspended", "store", "taken back", "revoked elsewhere", "logged out", "scopes",
    "refused", "clients forgotten", "issuer changed", "clock jumped", "unavailable", "new", "locks lost", "forked",
    "exited",
}  # fmt: skip
REASONS_TO_LOG_IN = {
    "refused", "scopes", "clients forgotten", "issuer changed", "refuses early", "killed",
}  # fmt: skip

CAUSES: Mapping[Reason, set[str]] = {reason: set() for reason in Reason} | {
    Reason.SERVER_UNAVAILABLE: _NETWORK,
    Reason.NO_ISSUER_METADATA: _NETWORK,
    Reason.REGISTRATION_UNAVAILABLE: _NETWORK,
    Reason.REGISTRATION_REFUSED: _NETWORK,
    Reason.RENEWAL_UNAVAILABLE: {*_NETWORK, "refuses early", "scopes"},
    Reason.RENEWAL_AMBIGUOUS: {*_NETWORK, "suspended", "stopped"},
    Reason.RENEWAL_REFUSED: {"unavailable", "refuses early", "clients forgotten"},
    Reason.RENEWAL_BUSY: _STANDSTILL | _NETWORK,
    Reason.RENEWAL_TOO_OFTEN: {"refused"},
    Reason.CLIENT_REFUSED: {"clients forgotten"},
    Reason.EXCHANGE_LOST: _NETWORK | {"suspended", "stopped"},
    Reason.EXCHANGE_REFUSED: _NETWORK | {"clients forgotten"},
    Reason.AUTHORIZATION_REQUIRED: _DEAD,
    Reason.USER_UNAVAILABLE: {"person", "cancelled", "exited"},
    Reason.LOGIN_TIMED_OUT: {"person", "clients forgotten", "suspended", "stopped"},
    Reason.LOGIN_ELSEWHERE: _PERSON,
    Reason.LOGIN_HELD_BACK: {*_PERSON, "refused", "issuer changed", "revoked elsewhere", "clock jumped"},
    Reason.STEP_UP_DENIED: {"person"},
    Reason.ACCESS_DENIED: {"person"},
    Reason.LOGGED_OUT: {"logged out"},
    Reason.STOPPED: {"exited", "cancelled"},
    Reason.STORE_FAILED: {"store", "slow", "stopped", "suspended"},
    Reason.STORE_CONTENDED: {"store", "logged out", "network", "slow"},
}
"""What may have brought a failure about: without it, the failure is unexplained."""
