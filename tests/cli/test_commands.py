"""Every command, against a real loopback server."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from mcp_oauth.cli.commands import _client as client_of_options
from mcp_oauth.cli.session import Session
from mcp_oauth.io.options import Client
from mcp_oauth.sansio.grant import ClientKind, current_grant, encode
from mcp_oauth.sansio.plan import ClientMetadataDocument, Dynamic, PreRegistered
from mcp_oauth.store.base import Conflict, Held, ProcessLease, Saved, Stored
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from mcp_oauth.store.memory import MemoryStore
from mcp_oauth.token_manager import TokenManager
from mcp_oauth.tokens import OAuthTokens
from tests.cli.site import DANGEROUS, HOSTILE, Run, Site
from tests.io.servers import Reply, document, key_of, put_grant, serving, stored


@pytest.fixture
def logged_in(run: Run, site: Site) -> Site:
    assert run("auth", "demo", site.url, "--quiet").code == 0
    return site


# --- auth -------------------------------------------------------------------------------------------------------------


def test_auth_logs_in_says_how_it_goes_and_keeps_the_name(run: Run, site: Site, store: EncryptedFileStore) -> None:
    ran = run("auth", "demo", site.url)
    assert ran.code == 0
    assert f"Server\t{site.url}" in ran.out
    assert f"Logging in to demo at {site.url}" in ran.err
    assert "registered at" in ran.err
    assert TokenManager(store=store).server_url("demo") == site.url


def test_auth_uses_the_login_that_is_there(run: Run, logged_in: Site) -> None:
    assert run("auth", "again", logged_in.url).code == 0
    assert logged_in.logins == 1


def test_auth_force_logs_in_anew(run: Run, logged_in: Site) -> None:
    assert run("auth", "demo", logged_in.url, "--force").code == 0
    assert logged_in.logins == 2


@pytest.mark.parametrize(
    "options",
    [["--scope", "read", "--scope", "write"], ["--scopes", "read write"], ["--scopes", "read,write,read"]],
    ids=["repeated", "with-spaces", "with-commas"],
)
def test_auth_asks_for_the_scopes(run: Run, site: Site, options: list[str]) -> None:
    assert run("auth", "demo", site.url, *options).code == 0
    assert site.requested == "read write"


def test_auth_takes_a_client_registered_by_hand_and_its_secret_from_a_file(
    run: Run, site: Site, store: EncryptedFileStore, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_text("CANARY-client-secret\n")
    ran = run("auth", "demo", site.url, "--client-id", "by-hand", "--client-secret-file", str(file))
    assert ran.code == 0
    assert "by-hand (registered by hand)" in ran.out
    grant = current_grant(stored(store, site))
    assert grant is not None
    assert grant.registration.client_secret == "CANARY-client-secret"
    assert run("test", "demo").code == 0, "later commands are the same client"
    assert run("auth", "demo", site.url, "--force").code == 0
    assert site.at("/register") == []


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--issuer", "https://other.example"], "Note: the server does not name https://other.example, so"),
        (["--client-id", "https://app.example/client.json"], "Note: no client metadata documents are taken there, so"),
    ],
)
def test_auth_says_what_is_not_as_asked(run: Run, site: Site, given: list[str], told: str) -> None:
    ran = run("auth", "demo", site.url, "--quiet", *given)
    assert ran.code == 0
    assert told in ran.err


@pytest.mark.parametrize("name", ["", " ", "https://mcp.example/mcp"])
def test_auth_takes_no_name_that_cannot_be_used(run: Run, site: Site, name: str) -> None:
    ran = run("auth", name, site.url)
    assert ran.code == 2
    assert "mcp-oauth auth NAME URL" in ran.err
    assert run("list", "--json").json["servers"] == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_auth_redirect_host(run: Run, site: Site, store: EncryptedFileStore, host: str) -> None:
    assert run("auth", "demo", site.url, "--redirect-host", host).code == 0
    grant = current_grant(stored(store, site))
    assert grant is not None
    assert re.fullmatch(rf"http://{host}:\d+/callback", grant.registration.redirect_uri or "")


def test_auth_gives_a_name_to_another_server_and_says_so(run: Run, logged_in: Site, store: EncryptedFileStore) -> None:
    before, logged_in.path = logged_in.url, "/mcp?two"
    ran = run("auth", "demo", logged_in.url)
    assert ran.code == 0
    assert f"demo was {before} until now" in ran.err
    assert TokenManager(store=store).server_url("demo") == logged_in.url


def test_an_account_is_another_login(run: Run, logged_in: Site) -> None:
    assert run("auth", "demo", logged_in.url, "--account", "work").code == 0
    assert logged_in.logins == 2
    assert [row["account"] for row in run("list", "--json").json["servers"]] == ["", "work"]


DOCUMENT = "https://client.example/mcp-oauth.json"
REDIRECT = "http://localhost:7777/callback"


@pytest.mark.parametrize(
    ("given", "client"),
    [
        ((None, None, None, None), None),
        ((None, None, None, REDIRECT), Dynamic("mcp-oauth", REDIRECT)),
        (("id", None, None, None), PreRegistered("id")),
        (
            ("id", "secret", "https://as.example", REDIRECT),
            PreRegistered("id", "secret", "https://as.example", REDIRECT),
        ),
        ((DOCUMENT, None, None, None), ClientMetadataDocument(DOCUMENT)),
        ((DOCUMENT, None, None, REDIRECT), ClientMetadataDocument(DOCUMENT, REDIRECT)),
        ((DOCUMENT, "secret", None, None), PreRegistered(DOCUMENT, "secret")),
    ],
    ids=["that-of-before", "dynamic", "public", "confidential", "CIMD", "CIMD-redirect", "RULES-2.12-no-secret"],
)
def test_which_client_the_options_describe(given: tuple[str | None, ...], client: Client | None) -> None:
    assert client_of_options(*given) == client


@pytest.mark.parametrize("kind", ["preregistered", "cimd", "dcr"])
def test_RULES_4_3_later_commands_are_the_client_of_the_login(
    run: Run, site: Site, store: EncryptedFileStore, kind: ClientKind
) -> None:
    """Whatever client got it, and whether or not it was asked for with `resource`: the grant is renewed with it."""
    put_grant(store, site)
    record = stored(store, site)
    assert record is not None
    registration = replace(record.grants[0].registration, kind=kind, client_id=DOCUMENT)
    grants = tuple(replace(grant, registration=registration, resource=None) for grant in record.grants)
    store.save(key_of(site), encode(replace(record, revision="2", grants=grants)), revision="2", expected="first")
    assert run("test", site.url).code == 0
    assert (site.refreshes, site.logins) == (1, 0)


# --- list, get --------------------------------------------------------------------------------------------------------


def test_list_is_tab_separated_in_a_pipe(run: Run, logged_in: Site) -> None:
    name, url, state, expires, scopes, token, account = run("list").out.rstrip("\n").split("\t")
    assert (name, url, state, scopes, account) == ("demo", logged_in.url, "valid", "-", "-")
    assert expires == "in 59 minutes"
    assert token == "...1001"


def test_list_without_a_login_says_what_to_do(run: Run) -> None:
    ran = run("list")
    assert (ran.code, ran.out) == (0, "")
    assert "mcp-oauth auth NAME URL" in ran.err


def test_list_shows_what_programs_logged_in_to(run: Run, site: Site, store: EncryptedFileStore) -> None:
    put_grant(store, site)
    assert run("list").out.split("\t")[:2] == ["-", site.url]


def test_list_and_get_say_the_state_in_the_same_words(run: Run, site: Site, store: EncryptedFileStore) -> None:
    put_grant(store, site)
    words = "expired, renewed at the next use"
    assert run("list").out.split("\t")[2] == words
    assert f"State\t{words}\n" in run("get", site.url).out
    assert run("list", "--json").json["servers"][0]["state"] == run("get", site.url, "--json").json["state"]


def test_get_takes_a_url_for_a_name(run: Run, logged_in: Site) -> None:
    by_name, by_url = run("get", "demo", "--json").json, run("get", logged_in.url, "--json").json
    assert by_url == {**by_name, "name": None}


UNREADABLE = f"grant-{'0' * 64}"


@pytest.fixture
def with_an_unreadable_record(logged_in: Site, store: EncryptedFileStore) -> Site:
    store.save(UNREADABLE, b'{"type":"grants-99"}', revision="1", expected=None)
    return logged_in


@pytest.mark.parametrize("line", ["get demo", "test demo", "tools demo", "auth demo URL", "logout demo", "clear demo"])
def test_a_record_that_cannot_be_read_concerns_nobody_else(
    run: Run, with_an_unreadable_record: Site, line: str
) -> None:
    assert run(*line.replace("URL", with_an_unreadable_record.url).split()).code == 0


def test_list_shows_a_record_that_cannot_be_read(run: Run, with_an_unreadable_record: Site) -> None:
    assert f"-\t{UNREADABLE}\tunreadable: of a newer version, or damaged\t" in run("list").out
    told = run("list", "--json").json["servers"]
    assert [(one["name"], one["state"], one["key"]) for one in told] == [
        ("demo", "valid", None), (None, "unreadable", UNREADABLE)
    ]  # fmt: skip


def test_get_tokens_saved_by_hand(run: Run, store: EncryptedFileStore) -> None:
    TokenManager(store=store).save_tokens("mine", OAuthTokens("CANARY-by-hand-1234", expires_in=90))
    told = run("get", "mine", "--json").json
    assert (told["state"], told["issuer"], told["client_id"], told["access_token_last4"]) == (
        "valid", None, None, "1234"
    )  # fmt: skip


def test_get_after_a_logout_elsewhere_wants_a_login(run: Run, logged_in: Site, store: EncryptedFileStore) -> None:
    assert run("clear", logged_in.url).code == 0
    ran = run("get", "demo", "--json")
    assert (ran.code, ran.json["state"]) == (3, "logged out")


# --- test, tools ------------------------------------------------------------------------------------------------------


def test_test_says_what_came_back(run: Run, logged_in: Site) -> None:
    told = run("test", "demo", "--json").json
    assert told.pop("milliseconds") >= 0
    assert told == {
        "ok": True, "name": "demo", "server_url": logged_in.url, "server": {"name": "demo", "version": "1.0"},
        "protocol_version": "2026-07-28", "tools": 2, "status": 200,
    }  # fmt: skip


def test_test_renews_an_expired_token(run: Run, site: Site, store: EncryptedFileStore) -> None:
    put_grant(store, site)
    assert run("test", site.url).code == 0
    assert site.refreshes == 1


def test_test_sends_tokens_saved_by_hand_to_their_server(run: Run, site: Site, store: EncryptedFileStore) -> None:
    site.valid.add("CANARY-by-hand-1234")
    TokenManager(store=store).save_tokens("mine", OAuthTokens("CANARY-by-hand-1234"))
    assert run("test", "mine").code == 2, "nobody knows yet where they belong"
    assert run("test", "mine", "--url", site.url).code == 0
    assert run("test", "mine").code == 0
    assert site.logins == 0


def test_test_never_opens_a_browser_unasked(run: Run, site: Site) -> None:
    ran = run("test", site.url)
    assert (ran.code, site.logins) == (3, 0)
    assert "mcp-oauth auth NAME URL" in ran.err
    assert "interactive" not in ran.err
    assert run("test", site.url, "--login").code == 0
    assert site.logins == 1


def test_tools_lists_them(run: Run, logged_in: Site) -> None:
    assert run("tools", "demo").out == "echo\tSay it again.\nwhoami\t-\n"
    logged_in.tools = ()
    assert run("tools", "demo").err == "It has no tools.\n"


def test_tools_shortens_a_long_description_but_in_JSON(run: Run, logged_in: Site) -> None:
    page = "\tA line of many.\n" * 1000
    logged_in.tools = [{"name": "long", "description": page}]
    assert len(run("tools", "demo").out) < 220
    assert run("tools", "demo", "--json").json["tools"][0]["description"] == page


def test_RULES_1_3_no_proxy_gets_a_token_for_loopback(run: Run, logged_in: Site, proxy: Site) -> None:
    assert run("test", "demo").code == 0
    assert proxy.seen == []


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """What the environment names as the proxy for http, with no exception."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving() as server:
        server.handler = proxy = Site(server.origin)
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, server.origin)
        yield proxy


def test_a_name_is_one_server(run: Run, logged_in: Site) -> None:
    ran = run("test", "demo", "--url", f"{logged_in.origin}/elsewhere")
    assert ran.code == 2
    assert f"demo is {logged_in.url}" in ran.err


# --- logout, clear ----------------------------------------------------------------------------------------------------


def test_logout_says_what_the_server_said(run: Run, logged_in: Site) -> None:
    ran = run("logout", "demo", "--url", logged_in.url)
    assert ran.code == 0
    assert ran.out == "Here\tforgotten\nRefresh token\trevoked\nAccess token\trevoked\n"
    assert run("get", "demo").code == 4
    assert run("list").out == ""


def test_logout_by_URL_leaves_the_name(run: Run, logged_in: Site) -> None:
    assert run("logout", logged_in.url).code == 0
    assert run("get", "demo", "--json").json["state"] == "logged out"


def by_hand(store: EncryptedFileStore, site: Site) -> None:
    TokenManager(store=store).save_tokens("demo", OAuthTokens("CANARY-by-hand-1234"))


def by_hand_beside_a_grant(store: EncryptedFileStore, site: Site) -> None:
    put_grant(store, site)
    by_hand(store, site)
    TokenManager(store=store).bind("demo", site.url)


def without_an_endpoint(store: EncryptedFileStore, site: Site) -> None:
    put_grant(store, site)
    record = stored(store, site)
    assert record is not None
    grants = tuple(replace(grant, revocation_endpoint=None) for grant in record.grants)
    store.save(key_of(site), encode(replace(record, revision="2", grants=grants)), revision="2", expected="first")
    TokenManager(store=store).bind("demo", site.url)


def without_a_token(store: EncryptedFileStore, site: Site) -> None:
    TokenManager(store=store).bind("demo", site.url)


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        (by_hand, "not told: tokens saved by hand are valid there until they expire"),
        (by_hand_beside_a_grant, "not told: tokens saved by hand are valid there until they expire"),
        (
            without_an_endpoint,
            "not told: it has no revocation endpoint, so the tokens are valid there until they expire",
        ),
        (without_a_token, "not told: there was no token"),
    ],
)
@pytest.mark.parametrize("form", [[], ["--json"]], ids=["plain", "json"])
def test_logout_that_nobody_was_asked_to_confirm_is_not_confirmed(
    run: Run, site: Site, store: EncryptedFileStore, kept: Callable[[EncryptedFileStore, Site], None], told: str,
    form: list[str],
) -> None:  # fmt: skip
    kept(store, site)
    ran = run("logout", "demo", *form)
    assert ran.code == 0
    if form:
        assert (ran.json["cleared"], ran.json["confirmed"]) == (True, None)
    else:
        assert f"Server\t{told}\n" in ran.out
    assert run("get", "demo").code == 4


def test_logout_that_is_confirmed(run: Run, logged_in: Site) -> None:
    assert run("logout", "demo", "--json").json["confirmed"] is True


def test_logout_a_failed_revocation_is_told_and_has_its_own_code(run: Run, logged_in: Site) -> None:
    logged_in.revoked = document({"error": "server_error", "error_description": HOSTILE}, 400)
    ran = run("logout", "demo", "--json")
    assert ran.code == 7
    assert (ran.json["cleared"], ran.json["confirmed"]) == (True, False)
    assert [one["ok"] for one in ran.json["revoked"]] == [False, False]
    assert run("get", "demo").code == 4, "it is gone here all the same"


def test_clear_tells_no_server(run: Run, logged_in: Site) -> None:
    before = len(logged_in.seen)
    ran = run("clear", "demo")
    assert ran.code == 0
    assert "not told" in ran.out
    assert len(logged_in.seen) == before
    assert run("get", "demo").code == 4


@pytest.mark.parametrize("name", ["nobody", "https://nobody.example/mcp"])
def test_clear_where_nothing_is_left(run: Run, name: str) -> None:
    ran = run("clear", name, "--json")
    assert ran.code == 0
    assert ran.json["cleared"] is False


# --- store ------------------------------------------------------------------------------------------------------------


def test_store_where(run: Run, folder: Path) -> None:
    told = run("store", "where", "--json").json
    assert (told["store"], told["identity"]) == ("EncryptedFileStore", f"file:{folder}")
    assert "file" in told["available"], "as --store takes it"
    assert "MCP_OAUTH_STORE" in told["why"]


def test_store_where_says_what_AUTO_chose(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    told = run("store", "where", "--store", "auto", "--json").json
    assert told["store"] in ("EncryptedFileStore", "KeyringStore")
    assert "keyring" in told["why"]


def test_store_check_can_be_repeated(run: Run, logged_in: Site) -> None:
    for _ in range(2):
        told = run("store", "check", "--json").json
        assert told["checked"] == ["write", "read", "compare-and-swap", "lock", "durable"]
    assert run("list").out.startswith("demo\t"), "the probe is no server"


def test_store_check_says_what_is_wrong(run: Run, folder: Path) -> None:
    folder.mkdir(mode=0o700)
    folder.chmod(0o777)
    ran = run("store", "check")
    assert ran.code == 5
    assert f"chmod 700 {folder}" in ran.err


class Broken(MemoryStore):
    """A store that is wrong in one way."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def load(self, key: str) -> Stored | None:
        found = super().load(key)
        return found._replace(value=b"other") if found and self.way == "reads another" else found

    def save(self, key: str, value: bytes, *, revision: str, expected: str | None) -> Saved | Conflict:
        if self.way == "conflicts":
            return Conflict(None)
        there = self.load(key)
        current = there.revision if there and self.way == "last write wins" else expected
        return super().save(key, value, revision=revision, expected=current)

    def try_lock(self, key: str) -> ProcessLease | Held:
        return Held("pid 4711 on host") if self.way == "locked" else super().try_lock(key)


@pytest.mark.parametrize(
    ("way", "told"),
    [
        ("conflicts", "at the same time"),
        ("reads another", "not read back"),
        ("last write wins", "not refused"),
        ("locked", "pid 4711 on host"),
    ],
)
def test_store_check_finds_a_store_that_is_broken(
    run: Run, monkeypatch: pytest.MonkeyPatch, way: str, told: str
) -> None:
    monkeypatch.setattr(Session, "_make", lambda self, password: Broken(way))
    ran = run("store", "check")
    assert ran.code == 5
    assert told in ran.err


def test_store_password_is_set_changed_and_removed(run: Run, logged_in: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCP_OAUTH_NEW_PASSWORD", "CANARY-password-1")
    assert run("store", "password").code == 0
    assert run("get", "demo").code == 5
    monkeypatch.setenv("MCP_OAUTH_PASSWORD", "CANARY-password-1")
    assert run("get", "demo").code == 0
    monkeypatch.setenv("MCP_OAUTH_NEW_PASSWORD", "CANARY-password-2")
    assert run("store", "password", "--json").json["password"] is True
    wrong = run("get", "demo")
    assert wrong.code == 5
    assert "CANARY" not in wrong.all
    monkeypatch.setenv("MCP_OAUTH_PASSWORD", "CANARY-password-2")
    assert run("store", "password", "--remove").code == 0
    monkeypatch.delenv("MCP_OAUTH_PASSWORD")
    assert run("get", "demo").code == 0


def test_store_password_without_a_terminal_is_not_asked_for(run: Run) -> None:
    ran = run("store", "password")
    assert ran.code == 2
    assert "no terminal" in ran.err


def test_store_rekey(run: Run, logged_in: Site, folder: Path) -> None:
    before = (folder / "store.json").read_bytes()
    assert run("store", "rekey").code == 0
    assert (folder / "store.json").read_bytes() != before
    assert run("test", "demo").code == 0


def test_store_rekey_is_for_encrypted_files(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCP_OAUTH_REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("MCP_OAUTH_REDIS_KEY", "00" * 32)
    monkeypatch.delenv("MCP_OAUTH_STORE_DIR")
    ran = run("store", "rekey", "--store", "redis")
    assert ran.code == 2
    assert "--store file" in ran.err


# --- What holds for all -----------------------------------------------------------------------------------------------

EVERY = (
    "auth demo URL", "list", "get demo", "test demo", "tools demo", "store where", "store check", "store rekey",
    "clear demo",
)  # fmt: skip


@pytest.mark.parametrize("line", EVERY)
@pytest.mark.parametrize("form", [[], ["--json"], ["--debug"]], ids=["plain", "json", "debug"])
def test_no_secret_and_no_control_character_gets_out(run: Run, site: Site, line: str, form: list[str]) -> None:
    """Names, descriptions and errors of a hostile server, and all tokens of a login."""
    site.name, site.tools = HOSTILE, [{"name": HOSTILE, "description": HOSTILE}]
    login = run("auth", "demo", site.url, "--debug")
    ran = run(*line.replace("URL", site.url).split(), *form)
    assert (login.code, ran.code) == (0, 0)
    for text in (login.all, ran.all):
        assert "CANARY" not in text
        assert not [character for character in DANGEROUS if character in text]


@pytest.mark.parametrize("line", [*EVERY, "logout demo"])
def test_every_command_has_JSON_and_nothing_else_on_standard_output(run: Run, logged_in: Site, line: str) -> None:
    ran = run(*line.replace("URL", logged_in.url).split(), "--json")
    assert ran.code == 0
    assert isinstance(ran.json, dict)
    assert ran.out.isascii()


def test_quiet_says_nothing_on_standard_error(run: Run, logged_in: Site) -> None:
    assert run("test", "demo", "--quiet").err == ""
    assert run("auth", "demo", logged_in.url, "-q").err == ""


@pytest.mark.parametrize(
    ("answer", "code", "told"),
    [
        (Reply(500), 1, "HTTP 500"),
        (Reply(404), 1, "check that this is the URL"),
        (Reply(200, (("content-type", "text/html"),), b"<h1>hello"), 1, "no MCP message"),
        (Reply(302, (("location", "https://evil.example/x"),)), 1, "redirects to https://evil.example/x"),
        (Reply(302, (("location", "https://evil.example/\x1b[2J"),)), 1, "Error: "),
        (Reply(200, (("content-encoding", "gzip"),), b"no gzip"), 1, "cannot be read"),
        (document({"jsonrpc": "2.0", "id": 1, "error": {"code": -32000, "message": HOSTILE}}), 1, "gnp.exe"),
    ],
    ids=["500", "404", "html", "redirect", "hostile-redirect", "broken-coding", "rpc-error"],
)
def test_what_else_a_server_may_answer(run: Run, logged_in: Site, answer: Reply, code: int, told: str) -> None:
    logged_in.reply = answer
    ran = run("test", "demo")
    assert ran.code == code
    assert told in ran.err
    assert not [character for character in DANGEROUS if character in ran.all]
