"""How each block of the seed's README is run: what stands before it on that page, and what cannot be had here.

The names are changed everywhere (`renamed`), and the servers of other people are replaced by two local ones. Whatever
else a block needs changed stands in its case, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from string import Template
from typing import NamedTuple

NAMES = {
    "chuk_mcp_client_oauth": "mcp_oauth",
    "chuk-mcp-client-oauth": "mcp-oauth",
    "chuk-oauth": "mcp-oauth",
    ".chuk_oauth": ".mcp_oauth",
}

SERVERS = {
    "https://mcp.notion.com/mcp": "$server",
    "https://mcp.example.com/mcp": "$server",
    "https://your-server.com/mcp": "$server",
    "https://your-mcp-server.com/mcp": "$server",
    "https://mcp.github.com/mcp": "$other",
    "https://mcp.example.com/oauth/": "$origin/",
}
"""Live servers of other people, and the local ones in their place."""


class Case(NamedTuple):
    """How one block is run."""

    before: str = ""
    """What the page has said before."""
    after: str = ""
    """What is looked at afterwards: the program fails if it does not hold."""
    says: tuple[str, ...] = ()
    """What it prints, as regular expressions, in this order."""
    instead: Mapping[str, str] = {}
    """What cannot be had here -> what stands for it."""
    because: str = ""
    """Why."""
    setting: str = "plain"
    """The machine that it runs on: see `settings` in test_seed_readme."""


HANDLER = """
from mcp_oauth import OAuthHandler
handler = OAuthHandler()
"""
LOGGED_IN = f"""{HANDLER}
await handler.ensure_authenticated_mcp("my-server", "$server")
"""
CLIENT = """
from mcp_oauth import MCPOAuthClient
from mcp_oauth.exceptions import *
client = MCPOAuthClient(server_url="$server", redirect_uri="http://127.0.0.1/callback")
"""
TOKENS = """
from mcp_oauth import OAuthTokens
tokens = OAuthTokens("access", expires_in=3600, refresh_token="refresh", scope="read write")
"""
MANAGER = """
import os
from pathlib import Path
from mcp_oauth import TokenManager, TokenStoreBackend
"""

TOKEN = r"[\w.~-]{20}\.\.\."

PYTHON: dict[int, Case] = {
    47: Case(says=(rf"Authenticated! Token: {TOKEN}", r"Authorization header: Bearer [\w.~-]{23}\.\.\.")),
    318: Case(before=HANDLER, after='assert tokens.scope == "read write"'),
    337: Case(
        says=(
            r"Authorization URL: $origin/authorize",
            r"Token URL: $origin/token",
            r"Registration URL: $origin/register",
            r"Supported scopes: .*'read', 'write'",
            r"PKCE methods: .*'S256'",
        ),
    ),
    390: Case(says=("Server supports MCP OAuth", "Auth: $origin/authorize", "Token: $origin/token"), setting="issuer"),
    457: Case(says=(r"Connected! Token expires in 3[56]\d\d seconds",)),
    485: Case(after='assert data == {"pages": ["Home"]}, data'),
    531: Case(
        after="tokens = await manual_oauth_flow()\nassert not tokens.is_expired()",
        says=("Auth URL: $origin/authorize", r"Client ID: \S+", rf"Access Token: {TOKEN}"),
    ),
    599: Case(before=TOKENS, says=("Tokens are valid",), after='assert manager.load_tokens("my-server") is None'),
    620: Case(
        before=TOKENS,
        after='manager.save_tokens("x", tokens)\nassert manager.load_tokens("x") is not None',
        instead={
            "TokenStoreBackend.KEYCHAIN": "TokenStoreBackend.SECRET_SERVICE",
            "https://vault.company.com": "$vault",
            "s.xyz123...": "$vault_token",
        },
        because="there is no Mac here, and the company's Vault is a local one",
        setting="keyring",
    ),
    643: Case(
        before=MANAGER + TOKENS,
        after='manager.save_tokens("x", tokens)\nassert list(Path("$home/tokens").glob("*.enc"))',
        instead={"/secure/custom/path/tokens": "$home/tokens"},
        because="the folder is one of the test's",
    ),
    677: Case(
        says=(r"Available backends: \[.*ENCRYPTED_FILE.*\]", "Auto-detected backend: TokenStoreBackend.ENCRYPTED_FILE"),
    ),
    694: Case(before=MANAGER + TOKENS, after='manager.save_tokens("x", tokens)\nassert manager.has_valid_tokens("x")'),
    700: Case(
        before=MANAGER + TOKENS,
        after='manager.save_tokens("x", tokens)\nassert manager.has_valid_tokens("x")',
        setting="keyring",
    ),
    706: Case(
        before=MANAGER + TOKENS,
        after='manager.save_tokens("x", tokens)\nassert manager.has_valid_tokens("x")',
        setting="vault",
    ),
    716: Case(before=MANAGER + TOKENS, after='manager.save_tokens("x", tokens)\nassert manager.has_valid_tokens("x")'),
    848: Case(after="assert handler.token_manager"),
    858: Case(before=HANDLER, after="assert tokens.access_token"),
    868: Case(before=HANDLER, after='assert headers["Authorization"].startswith("Bearer ")'),
    878: Case(before=LOGGED_IN, after='assert auth.startswith("Bearer ")'),
    885: Case(before=LOGGED_IN, after='assert handler.get_authorization_header("my-server") is None'),
    891: Case(
        before=f"""{LOGGED_IN}
import httpx
auth = {{"Authorization": handler.get_authorization_header("my-server")}}
""",
        after="""
assert handler.get_authorization_header("my-server") is None
assert httpx.post("$server", headers=auth).status_code == 401  # the server knows the token no more
""",
    ),
    913: Case(after="await client.discover_authorization_server()"),
    934: Case(before=TOKENS, after='manager.save_tokens("x", tokens)\nassert manager.has_valid_tokens("x")'),
    955: Case(
        before="from mcp_oauth import OAuthTokens",
        after='assert tokens.get_authorization_header() == "Bearer ..." and tokens.to_dict()["scope"] == "read write"',
    ),
    1017: Case(before='access_token = "x"', after='assert headers["Authorization"] == "Bearer x"'),
    1049: Case(
        before="""
import secrets
from mcp_oauth.sansio.authorization_code import code_challenge as challenge, code_verifier as made
from mcp_oauth.sansio.values import Seed
base64url, sha256 = challenge, lambda text: text
""",
        after="assert len(code_verifier) == len(made(Seed(secrets.token_bytes(32)))) == 128",
    ),
    1093: Case(after="assert redirect_uri"),
    1105: Case(
        before="import secrets\nfrom mcp_oauth.sansio.values import Seed",
        after='assert len(state) == len(Seed(secrets.token_bytes(32)).text("state"))',
    ),
    1114: Case(
        before="from mcp_oauth import ConfigurationError, MCPOAuthClient",
        after="""
await client.discover_authorization_server()
try:
    await client.authorize()
except ConfigurationError as error:
    print(error)
""",
        says=("no browser finds back from myapp://oauth/callback to this program; pass user=",),
    ),
    1152: Case(after="assert issubclass(TokenStorageError, OAuthError)"),
    1176: Case(
        before=f"{HANDLER}\nfrom mcp_oauth.exceptions import *",
        after='assert client.token_url == "$nothing_origin/oauth/token"',
        instead={"https://mcp.example.com/mcp": "$nothing", "https://mcp.example.com/oauth/": "$nothing_origin/oauth/"},
        because="a server without OAuth",
        says=("Discovery failed: ",),
    ),
    1205: Case(before=CLIENT, says=("User denied access", "Please approve"), setting="denying"),
    1229: Case(
        before=f"""{CLIENT}
from mcp_oauth import OAuthHandler, OAuthTokens
handler = OAuthHandler()
server_url = "$server"
old_tokens = await client.authorize(scopes=["read", "write"])
await client.revoke_token(old_tokens.refresh_token)
""",
        after="assert tokens.access_token != old_tokens.access_token",
        says=("Refresh failed: ",),
    ),
    1254: Case(
        before=f"{TOKENS}\nfrom mcp_oauth.exceptions import *",
        after='assert fallback_manager.load_tokens("server").access_token == "access"',
        says=("Storage failed: .*mcp_oauth",),
        setting="no folder",
    ),
    1277: Case(
        before=LOGGED_IN,
        after="assert tokens.access_token",
        instead={"ensure_authenticated_mcp(...)": 'ensure_authenticated_mcp("my-server", "$server")'},
        because="the arguments are left out (the retries: TestTrouble in tests/integration/test_renewal_real.py)",
    ),
    1285: Case(
        before='from mcp_oauth import OAuthHandler\nserver_url = "$server"',
        after="assert tokens.access_token",
    ),
    1311: Case(
        after=f'{HANDLER}\nawait handler.ensure_authenticated_mcp("my-server", "$server")',
        says=(
            r"DEBUG:mcp_oauth:Discovering OAuth server at $origin/",
            r"DEBUG:mcp_oauth:Starting local callback server at http://127.0.0.1:\d+/callback",
            r"INFO:mcp_oauth:registered: registered at $origin",
            r"DEBUG:mcp_oauth:Found authorization_endpoint: $origin/authorize",
        ),
    ),
    1406: Case(
        before=f"""{CLIENT}
tokens = await client.authorize()
tokens.expires_in = 0
""",
        after="assert new_tokens.access_token != tokens.access_token",
    ),
}

NOT_PYTHON = {
    1064: "a description of the encrypted file in a block marked as Python: see test_encrypted_file_as_described"
}


NOT_PUBLISHED = "the checkout itself is installed, and not what a package index may have"
AUTH_TO_CLEAR = (
    "tokens from .* are saved",
    "notion-mcp\\t$server\\tvalid",
    r"Access token\t\.\.\.[\w-]{4}\n",
    r"Protocol\t\d{4}-\d\d-\d\d",
    "revoked the refresh token",
    "revoked the access token",
)
THIS_TEST = "run as they stand they would run this very test"

SHELL: dict[int, Case] = {
    36: Case(
        before="uv init --bare",
        after="uv run python -c 'import mcp_oauth'",
        instead={"uv add mcp-oauth": "uv add $checkout"},
        because=NOT_PUBLISHED,
    ),
    41: Case(
        before="$python -m venv venv && . venv/bin/activate",
        after="python -c 'import mcp_oauth'",
        instead={"pip install mcp-oauth": "pip install $checkout"},
        because=NOT_PUBLISHED,
    ),
    360: Case(),
    438: Case(
        before="uv init --bare",
        after=".venv/bin/python -c 'import mcp_oauth.store.redis, redis, keyring, hvac, click'",
        instead={
            "uv add mcp-oauth": "uv add $checkout",
            "https://github.com/chrishayuk/mcp-oauth.git": "$checkout mcp-oauth",
        },
        because=NOT_PUBLISHED,
    ),
    734: Case(
        says=AUTH_TO_CLEAR,
        instead={"uvx mcp-oauth": "uvx --from '$checkout[cli]' mcp-oauth"},
        because=NOT_PUBLISHED,
    ),
    756: Case(
        before='uv init --bare\nexport PATH="$$PWD/.venv/bin:$$PATH"',
        says=AUTH_TO_CLEAR,
        instead={"uv add mcp-oauth": "uv add $checkout --extra cli"},
        because=NOT_PUBLISHED,
    ),
    771: Case(before="cd $copy", says=("tokens from .* are saved",)),
    804: Case(
        before="cd $copy",
        says=("revoked", "revoked"),
        instead={"uv run examples/basic_mcp_oauth.py\n": "uv run examples/basic_mcp_oauth.py $server\n"},
        because="without a URL it goes to a live server",
    ),
    812: Case(
        before="cd $copy",
        says=("the token is the same: True", "HTTP 400"),
        instead={"oauth_handler_example.py": "oauth_handler_example.py $server"},
        because="without a URL it goes to a live server",
    ),
    823: Case(before="cd $copy", says=("EncryptedFileStore: saved, loaded the same, deleted",) * 2),
    834: Case(before="cd $copy", says=("auth", "list", "logout")),
    1331: Case(
        before="cd $copy",
        instead={
            "uv run pytest": "$python -m pytest --collect-only -q tests/api",
            "--cov=mcp_oauth --cov-report=html": "--cov=mcp_oauth",
            "tests/auth/test_oauth_handler.py": "tests/api/test_handler.py",
        },
        because=THIS_TEST,
    ),
    1351: Case(
        instead={"https://github.com/chrishayuk/mcp-oauth.git": "$checkout mcp-oauth", "make ": "make --dry-run "},
        because=f"{NOT_PUBLISHED}; and {THIS_TEST}",
    ),
    1396: Case(before="uv init --bare", after="uv run python -c 'import keyring'"),
    1413: Case(
        before="mcp-oauth auth notion-mcp $server",
        after="mcp-oauth list",
        says=(r"drwx------ .* \.\n", "drwx------ .* tokens", "notion-mcp"),
    ),
}


def renamed(text: str) -> str:
    for old, new in NAMES.items():
        text = text.replace(old, new)
    return text


def filled(text: str, values: Mapping[str, str]) -> str:
    """The text with `$name` replaced."""
    return Template(text).safe_substitute(values)


def program(code: str, case: Case, values: Mapping[str, str]) -> str:
    """The block as it is run."""
    code = renamed(code)
    for old, new in {**SERVERS, **case.instead}.items():
        assert old not in case.instead or old in code, f"{old} is not in the block any more"
        code = code.replace(old, filled(new, values))
    return f"{filled(case.before, values)}\n{code}\n{filled(case.after, values)}\n"
