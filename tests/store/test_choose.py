"""Which store, asked for by name: honoured, or refused with the reason and the cure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mcp_oauth.store import choose
from mcp_oauth.store.base import StoreError, UnavailableError
from mcp_oauth.store.choose import TokenStoreBackend
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from mcp_oauth.store.memory import MemoryStore
from mcp_oauth.store.redis import RedisStore
from tests.store.choosing import KEY, create, nothing_configured

LINUX, MACOS, WINDOWS = "linux", "darwin", "win32"
VAULT = {"vault_url": "https://vault.example", "vault_token": "hvs.t"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with nothing_configured(tmp_path, monkeypatch):
        yield tmp_path


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Be on a system of this kind."""
    return lambda platform: monkeypatch.setattr(choose, "sys", SimpleNamespace(platform=platform))


class TestBackends:
    def test_names_and_values_are_the_seeds(self) -> None:
        assert {one.name: one.value for one in TokenStoreBackend} == {
            "KEYCHAIN": "keychain",
            "CREDENTIAL_MANAGER": "windows",
            "SECRET_SERVICE": "secretservice",
            "VAULT": "vault",
            "REDIS": "redis",
            "ENCRYPTED_FILE": "encrypted",
            "MEMORY": "memory",
            "AUTO": "auto",
        }

    def test_they_print_as_the_README_shows(self) -> None:
        assert str([TokenStoreBackend.KEYCHAIN]) == "[TokenStoreBackend.KEYCHAIN]"
        assert f"{TokenStoreBackend.KEYCHAIN}" == "TokenStoreBackend.KEYCHAIN"

    def test_every_option_belongs_to_a_backend(self) -> None:
        for option in choose.StoreOptions.__optional_keys__:
            with pytest.raises(UnavailableError):
                create(TokenStoreBackend.MEMORY, **{option: "x"})


class TestAskedForByName:
    @pytest.mark.parametrize(
        ("platform", "backend", "identity"),
        [
            pytest.param(MACOS, TokenStoreBackend.KEYCHAIN, "keyring:mcp-oauth@keychain", id="macOS"),
            pytest.param(WINDOWS, TokenStoreBackend.CREDENTIAL_MANAGER, "keyring:mcp-oauth@windows", id="Windows"),
            pytest.param(LINUX, TokenStoreBackend.SECRET_SERVICE, "keyring:mcp-oauth@secretservice", id="Linux"),
            pytest.param("freebsd14", TokenStoreBackend.SECRET_SERVICE, "keyring:mcp-oauth@secretservice", id="BSD"),
        ],
    )
    def test_a_keyring_is_of_the_kind_that_was_asked_for(
        self, on: Callable[[str], None], platform: str, backend: TokenStoreBackend, identity: str
    ) -> None:
        on(platform)
        assert create(backend).identity == identity
        assert create(backend, service_name="mine").identity == identity.replace("mcp-oauth", "mine")

    def test_encrypted_files_lie_where_they_were_told_to(self, home: Path) -> None:
        assert create(TokenStoreBackend.ENCRYPTED_FILE).identity == f"file:{home}/.mcp_oauth/tokens"
        store = create(TokenStoreBackend.ENCRYPTED_FILE, token_dir=home / "mine", password="correct horse")
        assert isinstance(store, EncryptedFileStore)
        assert store.identity == f"file:{home}/mine"
        store.save("key", b"value", revision="1", expected=None)
        with pytest.raises(StoreError, match="password"):
            EncryptedFileStore(home / "mine").load("key")

    def test_memory_is_another_store_at_each_call(self) -> None:
        first, second = create(TokenStoreBackend.MEMORY), create(TokenStoreBackend.MEMORY)
        assert isinstance(first, MemoryStore)
        assert first.identity != second.identity

    @pytest.mark.parametrize(
        ("environment", "given"),
        [
            pytest.param({}, {"redis_key": KEY}, id="key"),
            pytest.param({}, {"password": "correct horse"}, id="password"),
            pytest.param({"MCP_OAUTH_REDIS_KEY": KEY.hex()}, {}, id="key-of-the-environment"),
            pytest.param({"MCP_OAUTH_REDIS_KEY": "x"}, {"password": "mine"}, id="what-is-given-comes-first"),
        ],
    )
    def test_redis(self, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], given: dict[str, Any]) -> None:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("MCP_OAUTH_REDIS_URL", "redis://other.example")
        store = create(TokenStoreBackend.REDIS, redis_url="redis://redis.example:6380/1", **given)
        assert isinstance(store, RedisStore)
        assert "redis.example:6380" in store.identity
        assert "other.example" in create(TokenStoreBackend.REDIS, **given).identity

    @pytest.mark.parametrize("name", [one.value for one in TokenStoreBackend if one.value not in ("vault", "redis")])
    def test_None_and_the_defaults_are_nothing_said(self, on: Callable[[str], None], name: str) -> None:
        on({"keychain": MACOS, "windows": WINDOWS}.get(name, LINUX))
        given = dict.fromkeys(choose.StoreOptions.__optional_keys__)
        create(TokenStoreBackend(name), **{**given, "vault_mount_point": "secret", "vault_path_prefix": "mcp-oauth"})


NOTHING = {"token": None, "role_id": None, "secret_id": None, "namespace": None, "verify": None}
VAULT_VARIABLES = {
    "VAULT_ADDR": "https://env.example",
    "VAULT_TOKEN": "hvs.env",
    "VAULT_ROLE_ID": "role-env",
    "VAULT_SECRET_ID": "secret-env",
    "VAULT_NAMESPACE": "team-env",
}


class TestVault:
    """What the store of Vault is made with."""

    @pytest.mark.parametrize(
        ("environment", "given", "made"),
        [
            pytest.param((), VAULT, {"token": "hvs.t"}, id="all-given"),
            pytest.param(VAULT_VARIABLES, VAULT, {"token": "hvs.t", "namespace": "team-env"}, id="a-given-token-alone"),
            pytest.param(
                VAULT_VARIABLES,
                {"vault_url": VAULT["vault_url"], "vault_role_id": "mine"},
                {"role_id": "mine", "secret_id": "secret-env", "namespace": "team-env"},
                id="a-given-role-with-the-secret-of-the-environment-and-not-its-token",
            ),
            pytest.param(
                VAULT_VARIABLES,
                {"vault_url": VAULT["vault_url"], "vault_namespace": "team"},
                {"token": "hvs.env", "namespace": "team"},
                id="token-of-the-environment",
            ),
            pytest.param(
                (),
                {"vault_url": VAULT["vault_url"], "vault_role_id": "mine"},
                {"role_id": "mine"},
                id="a-role-that-needs-no-secret",
            ),
            pytest.param(
                ("VAULT_ROLE_ID", "VAULT_SECRET_ID"),
                {"vault_url": VAULT["vault_url"]},
                {"role_id": "role-env", "secret_id": "secret-env"},
                id="role-of-the-environment",
            ),
        ],
    )
    def test_credentials(
        self, monkeypatch: pytest.MonkeyPatch, environment: Any, given: dict[str, str], made: dict[str, str]
    ) -> None:
        for name in environment:
            monkeypatch.setenv(name, VAULT_VARIABLES[name])
        monkeypatch.setattr("mcp_oauth.store.vault.VaultStore", lambda url, **rest: (url, rest))
        place = {"mount_point": "secret", "path_prefix": "mcp-oauth"}
        store: Any = create(TokenStoreBackend.VAULT, **given)
        assert store == (VAULT["vault_url"], {**NOTHING, **place, **made})

    def test_place(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mcp_oauth.store.vault.VaultStore", lambda url, **rest: (url, rest))
        monkeypatch.setenv("VAULT_ADDR", "https://env.example")
        store: Any = create(
            TokenStoreBackend.VAULT, vault_token="hvs.t", vault_mount_point="kv", vault_path_prefix="mine"
        )
        assert store[0] == "https://env.example"
        assert (store[1]["mount_point"], store[1]["path_prefix"]) == ("kv", "mine")

    def test_its_certificate_may_come_from_the_cas_of_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mcp_oauth.store.vault.VaultStore", lambda url, **rest: (url, rest))
        monkeypatch.setenv("VAULT_CACERT", "/etc/ca.pem")
        store: Any = create(TokenStoreBackend.VAULT, **VAULT)
        assert store[1]["verify"] == "/etc/ca.pem"

    def test_the_real_one_is_made_without_asking_it(self) -> None:
        assert "vault.example" in create(TokenStoreBackend.VAULT, **VAULT).identity


REFUSED: list[tuple[str, str, dict[str, Any], dict[str, str], str]] = [
    # system, backend, options, environment, what the reason says
    (
        LINUX,
        "KEYCHAIN",
        {},
        {},
        "the macOS keychain is not on this system; choose SECRET_SERVICE, ENCRYPTED_FILE or AUTO",
    ),
    (
        LINUX,
        "CREDENTIAL_MANAGER",
        {},
        {},
        "the Windows Credential Manager is not on this system; choose SECRET_SERVICE,",
    ),
    (
        MACOS,
        "SECRET_SERVICE",
        {},
        {},
        "the Secret Service is not on this system; choose KEYCHAIN, ENCRYPTED_FILE or AUTO",
    ),
    (WINDOWS, "SECRET_SERVICE", {}, {}, "the Secret Service is not on this system; choose CREDENTIAL_MANAGER,"),
    (LINUX, "VAULT", {}, {}, "VAULT needs to know where it is: give vault_url, or set VAULT_ADDR"),
    (
        LINUX,
        "VAULT",
        {"vault_url": "https://v.example"},
        {},
        "VAULT needs credentials: give vault_token, or vault_role_id",
    ),
    (LINUX, "VAULT", {"vault_secret_id": "hvs.s"}, {"VAULT_ADDR": "https://v.example"}, "VAULT needs credentials"),
    (LINUX, "VAULT", {}, {"VAULT_ADDR": "https://v.example", "VAULT_TOKEN": ""}, "VAULT needs credentials"),
    (
        LINUX,
        "REDIS",
        {"redis_key": KEY},
        {},
        "REDIS needs to know where it is: give redis_url, or set MCP_OAUTH_REDIS_URL",
    ),
    (
        LINUX,
        "REDIS",
        {"redis_url": "redis://r.example"},
        {},
        "REDIS needs something to seal with: give redis_key or pass",
    ),
    (
        LINUX,
        "REDIS",
        {"redis_url": "redis://r.example", "redis_key": b"short"},
        {},
        "REDIS cannot be used: ",
    ),
    (LINUX, "REDIS", {"redis_url": "http://r.example", "redis_key": KEY}, {}, "REDIS cannot be used: "),
    (LINUX, "REDIS", {"redis_url": "redis://r.example"}, {"MCP_OAUTH_REDIS_KEY": "hvs."}, "is not in hex"),
    (
        MACOS,
        "KEYCHAIN",
        {"password": "p"},
        {},
        "KEYCHAIN has no use for password: leave it out, or choose ENCRYPTED_FILE, ",
    ),
    (
        MACOS,
        "KEYCHAIN",
        {"token_dir": "t"},
        {},
        "KEYCHAIN has no use for token_dir: leave it out, or choose ENCRYPTED_FILE",
    ),
    (
        LINUX,
        "SECRET_SERVICE",
        {"vault_token": "hvs.t"},
        {},
        "SECRET_SERVICE has no use for vault_token: .* choose VAULT",
    ),
    (
        LINUX,
        "ENCRYPTED_FILE",
        {"service_name": "s"},
        {},
        "ENCRYPTED_FILE has no use for service_name: .* SECRET_SERVICE or",
    ),
    (LINUX, "VAULT", {**VAULT, "password": "p"}, {}, "VAULT has no use for password: .* ENCRYPTED_FILE, REDIS or AUTO"),
    (LINUX, "REDIS", {"redis_url": "redis://r.example", "token_dir": "t"}, {}, "REDIS has no use for token_dir"),
    (LINUX, "MEMORY", {"token_dir": "t"}, {}, "MEMORY has no use for token_dir"),
    (
        LINUX,
        "AUTO",
        {"vault_url": "https://v.example"},
        {},
        "AUTO has no use for vault_url: leave it out, or choose VAULT",
    ),
    (LINUX, "AUTO", {"vault_mount_point": "kv"}, {}, "AUTO has no use for vault_mount_point"),
    (LINUX, "AUTO", {"redis_key": KEY}, {}, "AUTO has no use for redis_key: leave it out, or choose REDIS"),
]


class TestRefused:
    """RULES "asking for one store never yields another": a reason and a cure, and no secret in them."""

    @pytest.mark.parametrize(
        ("platform", "backend", "given", "environment", "reason"),
        [pytest.param(*row, id=f"{row[1]}-{'-'.join([*row[2], *row[3]]) or row[0]}") for row in REFUSED],
    )
    def test_with_the_reason_and_the_cure(
        self,
        on: Callable[[str], None],
        monkeypatch: pytest.MonkeyPatch,
        platform: str,
        backend: str,
        given: dict[str, Any],
        environment: dict[str, str],
        reason: str,
    ) -> None:
        on(platform)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UnavailableError, match=reason) as refused:
            create(TokenStoreBackend[backend], **given)
        assert "hvs." not in str(refused.value)

    @pytest.mark.parametrize(
        ("backend", "given", "extra"),
        [
            pytest.param(TokenStoreBackend.SECRET_SERVICE, {}, "keyring", id="keyring"),
            pytest.param(TokenStoreBackend.VAULT, VAULT, "vault", id="vault"),
            pytest.param(
                TokenStoreBackend.REDIS, {"redis_url": "redis://r.example", "redis_key": KEY}, "redis", id="redis"
            ),
        ],
    )
    def test_without_its_extra(
        self, monkeypatch: pytest.MonkeyPatch, backend: TokenStoreBackend, given: dict[str, Any], extra: str
    ) -> None:
        monkeypatch.setattr(choose, "find_spec", lambda name: None)
        with pytest.raises(UnavailableError, match=rf'pip install "mcp-oauth-sansio\[{extra}\]"'):
            create(backend, **given)

    def test_an_option_that_there_is_not(self) -> None:
        with pytest.raises(TypeError, match="no option 'token_folder'"):
            create(TokenStoreBackend.ENCRYPTED_FILE, token_folder="t")

    def test_a_backend_that_there_is_not(self) -> None:
        nonsense: Any = "cloud"
        with pytest.raises(ValueError, match="'cloud' is not a valid TokenStoreBackend"):
            create(nonsense)
