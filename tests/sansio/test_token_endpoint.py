"""The token endpoint: which authentication, what is sent, what an answer means."""

from __future__ import annotations

import base64
from urllib.parse import parse_qsl, unquote_plus

import msgspec
import pytest
from hypothesis import given

from mcp_oauth.sansio import token_endpoint
from mcp_oauth.sansio.errors import HIDDEN, Failure, Reason
from mcp_oauth.sansio.grant import AuthMethod, Registration
from mcp_oauth.sansio.messages import Request, Response, header, header_values
from mcp_oauth.sansio.token_endpoint import LONGEST_LIFE, TokenAnswer, choose_auth_method
from tests.sansio.walks import CANARY, NOW, RESPONSES, TEXT, answer, table

URL = "https://as.example/token?tenant=1"
FORM = "application/x-www-form-urlencoded"
BASIC, POST = "client_secret_basic", "client_secret_post"
METHODS: tuple[AuthMethod, ...] = ("none", "client_secret_basic", "client_secret_post")


def registered(
    method: AuthMethod = "none", client_id: str = "client", secret: str | None = f"{CANARY}-secret"
) -> Registration:
    return Registration("https://as.example", client_id, "dcr", method, client_secret=secret)


def params(request: Request) -> list[tuple[str, str]]:
    return parse_qsl(request.body.decode("ascii"), keep_blank_values=True, strict_parsing=True)


def basic(request: Request) -> str:
    """The pair in a Basic header."""
    scheme, _, credentials = (header(request.headers, "authorization") or "").partition(" ")
    assert scheme == "Basic"
    return base64.b64decode(credentials, validate=True).decode("ascii")


class TestClientAuthentication:
    @table(
        "client_id, secret, pair",
        {
            "RFC6749-2.3.1-plain": ("s6BhdRkqt3", "gX1fBat3bV", "s6BhdRkqt3:gX1fBat3bV"),
            "RFC6749-2.3.1-colon-in-secret": ("id", "a:b", "id:a%3Ab"),
            "RFC6749-2.3.1-colon-in-id": ("urn:id", "s", "urn%3Aid:s"),
            "RFC6749-2.3.1-slash-in-id": ("https://a.b/c", "s", "https%3A%2F%2Fa.b%2Fc:s"),
            "RFC6749-B-vector": ("id", " %&+£€", "id:+%25%26%2B%C2%A3%E2%82%AC"),
            "RFC3986-2.3-unreserved-stays-for-servers-that-do-not-decode": ("id", "Aa0-._~", "id:Aa0-._~"),
            "RFC6749-2.3.1-empty-secret": ("id", "", "id:"),
            "RFC6749-2.3.1-no-secret": ("id", None, "id:"),
        },
    )
    def test_basic(self, client_id: str, secret: str | None, pair: str) -> None:
        request = token_endpoint.request(URL, registered("client_secret_basic", client_id, secret), ())
        assert basic(request) == pair

    def test_basic_is_the_header_of_the_standard(self) -> None:
        client = registered("client_secret_basic", "s6BhdRkqt3", "7Fjfp0ZBr1KtDRbnfVdmIw")
        headers, _ = token_endpoint.authenticate(client, "client_secret_basic")
        assert headers == (("authorization", "Basic czZCaGRSa3F0Mzo3RmpmcDBaQnIxS3REUmJuZlZkbUl3"),)

    @given(TEXT, TEXT)
    def test_basic_comes_back(self, client_id: str, secret: str) -> None:
        pair = basic(token_endpoint.request(URL, registered("client_secret_basic", client_id, secret), ()))
        assert tuple(map(unquote_plus, pair.split(":"))) == (client_id, secret)

    @table(
        "method, credentials, headers",
        {
            "RULES-2.18-none-keeps-the-secret-at-home": ("none", [("client_id", "client")], 0),
            "FN-42-no-client_id-beside-basic": (BASIC, [], 1),
            "RULES-2.18-post": (
                "client_secret_post",
                [("client_id", "client"), ("client_secret", f"{CANARY}-secret")],
                0,
            ),
        },
    )
    def test_one_method_per_request(self, method: AuthMethod, credentials: list[tuple[str, str]], headers: int) -> None:
        request = token_endpoint.request(URL, registered(method), (("a", "b"),))
        assert params(request) == [("a", "b"), *credentials]
        assert len(header_values(request.headers, "authorization")) == headers
        assert CANARY not in repr(request)

    def test_rules_2_18_an_endpoint_with_a_method_of_its_own(self) -> None:
        request = token_endpoint.request(URL, registered("client_secret_basic"), (), "client_secret_post")
        assert params(request) == [("client_id", "client"), ("client_secret", f"{CANARY}-secret")]
        assert header(request.headers, "authorization") is None

    @table(
        "said, secret, supported, chosen",
        {
            "RULES-2.10-obeyed-none-despite-a-secret": ("none", "s", (BASIC,), "none"),
            "RULES-2.10-obeyed-none": ("none", None, (BASIC,), "none"),
            "RULES-2.10-obeyed": (POST, "s", (BASIC,), POST),
            "RULES-2.10-obeyed-basic": (BASIC, "s", None, BASIC),
            "RFC6749-2.3.1-empty-secret": (BASIC, "", None, BASIC),
            "RULES-2.10-secret-demanded-and-not-given": (BASIC, None, None, None),
            "RULES-2.10-one-we-do-not-have": ("private_key_jwt", "s", (BASIC,), None),
            "RULES-2.10-one-we-do-not-have-without-secret": ("private_key_jwt", None, None, None),
            "RFC7591-2-public": (None, None, None, "none"),
            "FN-33-public-though-unlisted": (None, None, (BASIC,), "none"),
            "RFC8414-2-default": (None, "s", None, BASIC),
            "RFC8414-2-empty-list": (None, "s", (), BASIC),
            "RFC6749-2.3.1-basic-first": (None, "s", ("none", POST, BASIC), BASIC),
            "RULES-2.10-post": (None, "s", ("none", POST), POST),
            "RULES-2.10-metadata-has-no-secrets": (None, "s", ("private_key_jwt", "none"), "none"),
            "RULES-2.10-nothing-in-common": (None, "s", ("private_key_jwt",), None),
        },
    )
    def test_choice(
        self, said: str | None, secret: str | None, supported: tuple[str, ...] | None, chosen: str | None
    ) -> None:
        assert choose_auth_method(said, secret, supported) == chosen


class TestRequests:
    RESOURCE = "https://MCP.example/%7emcp/?a=1"

    @table(
        "resource, extra, more",
        {
            "RULES-2.16-resource-never": (None, (), []),
            "RFC8707-2.2-byte-for-byte": (RESOURCE, (), [("resource", RESOURCE)]),
            "FN-41-extras": (RESOURCE, (("audience", "x"),), [("resource", RESOURCE), ("audience", "x")]),
        },
    )
    def test_bodies(
        self, resource: str | None, extra: tuple[tuple[str, str], ...], more: list[tuple[str, str]]
    ) -> None:
        code = token_endpoint.code_request(
            URL,
            registered(),
            code=f"{CANARY}/+code",
            verifier=f"{CANARY}-verifier",
            redirect_uri="http://127.0.0.1:1/cb",
            resource=resource,
            extra=extra,
        )
        refresh = token_endpoint.refresh_request(
            URL, registered(), refresh_token=f"{CANARY}/+refresh", resource=resource, extra=extra
        )
        assert params(code) == [
            ("grant_type", "authorization_code"),
            ("code", f"{CANARY}/+code"),
            ("redirect_uri", "http://127.0.0.1:1/cb"),
            ("code_verifier", f"{CANARY}-verifier"),
            *more,
            ("client_id", "client"),
        ]
        assert params(refresh) == [
            ("grant_type", "refresh_token"),
            ("refresh_token", f"{CANARY}/+refresh"),
            *more,
            ("client_id", "client"),
        ]  # RULES 2.15: no scope
        for request in (code, refresh):
            assert (request.method, request.url) == ("POST", URL)
            assert header(request.headers, "content-type") == FORM
            assert header(request.headers, "accept") == "application/json"
            assert header(request.headers, "user-agent")
            assert CANARY not in repr(request)


def form(body: str, status: int = 200, content_type: str = FORM) -> Response:
    return Response(status, (("Content-Type", content_type),), body.encode())


def read(response: Response, *hide: str | None) -> TokenAnswer | Failure:
    return token_endpoint.read(response, URL, NOW, Reason.EXCHANGE_REFUSED, hide=hide)


def granted(
    life: float | None = None, *, token: str = "at", refresh: str | None = None, scopes: tuple[str, ...] | None = None
) -> TokenAnswer:
    return TokenAnswer(token, NOW.wall, None if life is None else NOW.wall + life, refresh, scopes)


OK = {"access_token": "at", "token_type": "Bearer"}


class TestSuccess:
    @table(
        "response, expected",
        {
            "RFC6749-5.1-least": (answer(200, **OK), granted()),
            "RFC6749-5.1-all": (
                answer(200, **OK, expires_in=3600, refresh_token="rt", scope="a b", id_token="x"),
                granted(3600, refresh="rt", scopes=("a", "b")),
            ),
            "RULES-2.17-201": (answer(201, **OK), granted()),
            "RULES-2.17-any-case": (answer(200, access_token="at", token_type="bEARER"), granted()),
            "RULES-2.17-type-absent": (answer(200, access_token="at"), granted()),
            "FN-42-entra-text": (answer(200, **OK, expires_in="3600"), granted(3600)),
            "FN-42-zero": (answer(200, **OK, expires_in=0), granted(0)),
            "FN-42-null-is-absent": (answer(200, **OK, expires_in=None), granted()),
            "FN-42-true-is-absent": (answer(200, **OK, expires_in=True), granted()),
            "RULES-2.17-clamped-from-below": (answer(200, **OK, expires_in=-5), granted(0)),
            "RULES-2.17-clamped": (answer(200, **OK, expires_in=1e300), granted(LONGEST_LIFE)),
            "RULES-2.17-beyond-a-float": (
                form(f'{{"access_token":"at","expires_in":1{"0" * 400}}}', content_type="application/json"),
                granted(LONGEST_LIFE),
            ),
            "FN-33-empty-scope": (answer(200, **OK, scope=""), granted()),
            "FN-33-scope-of-another-type": (answer(200, **OK, scope=["a"]), granted()),
            "RFC6749-3.3-once": (answer(200, **OK, scope=" b  a b "), granted(scopes=("b", "a"))),
            "FN-42-commas": (answer(200, **OK, scope="repo,gist"), granted(scopes=("repo", "gist"))),
            "FN-33-empty-refresh-token": (answer(200, **OK, refresh_token=""), granted()),
            "FN-33-error-null": (answer(200, **OK, error=None), granted()),
            "FN-33-error-empty": (answer(200, **OK, error=""), granted()),
            "FN-42-slack-ok": (answer(200, **OK, ok=True), granted()),
            "RULES-2.17-beyond-b64token": (answer(200, access_token="a+/=~!"), granted(token="a+/=~!")),
            "FN-42-github-form": (
                form("access_token=at&scope=repo%2Cgist&token_type=bearer"),
                granted(scopes=("repo", "gist")),
            ),
            "FN-42-form-number": (form("access_token=at&expires_in=5"), granted(5)),
            "FN-42-form-type": (form("access_token=at", content_type=f"{FORM.upper()} ; charset=utf-8"), granted()),
            "RULES-2.17-json-in-disguise": (form('{"access_token":"at"}', content_type="text/html"), granted()),
        },
    )
    def test_answer(self, response: Response, expected: TokenAnswer) -> None:
        assert read(response) == expected

    def test_rules_1_5_an_id_token_is_dropped(self) -> None:
        kept = read(answer(200, **OK, id_token=f"{CANARY}-id"))
        assert CANARY not in msgspec.json.encode(kept).decode()

    def test_nothing_of_it_is_shown(self) -> None:
        assert repr(read(answer(200, access_token="at", refresh_token="rt", scope="a"))) == (
            "TokenAnswer(expires_at=None, scopes=('a',), ...)"
        )

    def test_rules_2_17_ten_years_are_enough(self) -> None:
        assert LONGEST_LIFE == 315_360_000


class TestRefusal:
    @table(
        "response, reason, error, message",
        {
            "RFC6749-5.2": (
                answer(400, error="invalid_grant", error_description="expired"),
                Reason.EXCHANGE_REFUSED,
                "invalid_grant",
                "the token endpoint answered HTTP 400: invalid_grant: expired",
            ),
            "FN-42-error-in-200": (
                answer(200, **OK, error="bad_verification_code"),
                Reason.EXCHANGE_REFUSED,
                "bad_verification_code",
                "the token endpoint answered HTTP 200: bad_verification_code",
            ),
            "FN-42-github-error-in-a-form": (
                form("error=bad_verification_code&error_description=The+code"),
                Reason.EXCHANGE_REFUSED,
                "bad_verification_code",
                "the token endpoint answered HTTP 200: bad_verification_code: The code",
            ),
            "FN-42-slack-not-ok": (answer(200, **OK, ok=False), Reason.EXCHANGE_REFUSED, None, "HTTP 200"),
            "FN-42-slack-error": (
                answer(200, ok=False, error="invalid_code"),
                Reason.EXCHANGE_REFUSED,
                "invalid_code",
                "invalid_code",
            ),
            "RULES-2.11-invalid-client": (
                answer(400, error="invalid_client"),
                Reason.CLIENT_REFUSED,
                "invalid_client",
                "HTTP 400: invalid_client",
            ),
            "RULES-2.11-in-200": (answer(200, error="invalid_client"), Reason.CLIENT_REFUSED, "invalid_client", ""),
            "RFC6749-5.2-401-without-a-body": (Response(401), Reason.CLIENT_REFUSED, None, "HTTP 401"),
            "RULES-3.2-in-401": (answer(401, error="invalid_grant"), Reason.EXCHANGE_REFUSED, "invalid_grant", ""),
            "RULES-3.2-unauthorized-client": (
                answer(400, error="unauthorized_client"),
                Reason.EXCHANGE_REFUSED,
                "unauthorized_client",
                "",
            ),
            "FN-31-not-oauth-json": (answer(422, message="nope"), Reason.EXCHANGE_REFUSED, None, "HTTP 422: nope"),
            "FN-53-not-json": (form("<html>", 502, "text/html"), Reason.EXCHANGE_REFUSED, None, "HTTP 502"),
            "RULES-1.4-never-redirected": (
                Response(307, (("location", "https://evil.example/"),)),
                Reason.EXCHANGE_REFUSED,
                None,
                "HTTP 307",
            ),
            "RFC6749-5.1-token-in-a-400": (answer(400, **OK), Reason.EXCHANGE_REFUSED, None, "HTTP 400"),
            "FN-53-printable": (answer(400, error="a\x1b[31m\nb"), Reason.EXCHANGE_REFUSED, "a [31m b", "a [31m b"),
        },
    )
    def test_refused(self, response: Response, reason: Reason, error: str | None, message: str) -> None:
        found = read(response)
        assert isinstance(found, Failure)
        assert (found.reason, found.oauth_error, found.status) == (reason, error, response.status)
        assert message in found.message
        assert found.url == "https://as.example/token"

    @table(
        "response, message",
        {
            "FN-5-not-json": (form("<html>", content_type="text/html"), "neither JSON nor form-encoded"),
            "FN-5-not-a-form": (form("{}"), "neither JSON nor form-encoded"),
            "DESIGN-1-lone-surrogate": (Response(200, (), b'{"a":"\\ud800"}'), "neither JSON"),
            "DESIGN-1-bad-utf-8": (Response(200, (), b'{"a":"\xed\xa0\x80"}'), "neither JSON"),
            "DESIGN-1-too-deep": (Response(200, (), b"[" * 100_000), "neither JSON"),
            "RFC6749-5.1-nothing": (answer(200), "no access_token"),
            "FN-33-null": (answer(200, access_token=None), "no access_token"),
            "RFC6749-5.1-not-text": (answer(200, access_token=["at"]), "no access_token"),
            "RULES-2.17-space": (answer(200, access_token="a b"), "header can carry"),
            "RULES-2.17-line-break": (answer(200, access_token="a\r\nx: y"), "header can carry"),
            "RULES-2.17-line-break-at-the-end": (answer(200, access_token="at\n"), "header can carry"),
            "RULES-2.17-not-ascii": (answer(200, access_token="é"), "header can carry"),
            "RULES-2.17-unknown-type": (answer(200, access_token="at", token_type="mac"), "'mac'"),
            "FN-53-not-endless": (answer(200, access_token="at", token_type="x" * 99), f"token_type '{'x' * 40}'"),
            "RULES-5.5-unasked-dpop": (answer(200, access_token="at", token_type="DPoP"), "'DPoP'"),
        },
    )
    def test_unreadable(self, response: Response, message: str) -> None:
        found = read(response)
        assert isinstance(found, Failure)
        assert (found.reason, found.url) == (Reason.TOKEN_UNREADABLE, "https://as.example/token")
        assert message in found.message


class TestSecretsAreNotRepeated:
    LONG = f"{CANARY}-" + "x" * 600

    @table(
        "secret, error, told, shown",
        {
            "FN-54-in-description": ("c4n4ry", "e", "a c4n4ry, c4n4ry!", f"e: a {HIDDEN}, {HIDDEN}!"),
            "FN-54-in-error": ("c4n4ry", "c4n4ry", None, HIDDEN),
            "FN-54-form-encoded": ("c/+y", "e", "body: code=c%2F%2By&x", f"e: body: code={HIDDEN}&x"),
            "FN-54-cut-in-description": (LONG, "e", f"{'-' * 480} {LONG}", f"e: {'-' * 480} {HIDDEN}"),
            "FN-54-cut-in-error": (LONG, LONG, "told", f"{HIDDEN}: told"),
            "FN-54-lone-surrogate": ("\ud800", "e", "told", "e: told"),
            "FN-54-cut-to-its-head": (LONG, f"{'-' * 70}{LONG}", None, f"{'-' * 70}{HIDDEN}"),
            "FN-54-cut-by-a-letter": ("seventeen-letters", f"{'-' * 64}seventeen-letters", None, f"{'-' * 64}{HIDDEN}"),
            "FN-54-an-empty-secret-hides-nothing": ("", "e", "told", "e: told"),
            "FN-54-no-secret-hides-nothing": (None, "e", "told", "e: told"),
            "FN-54-short-is-whole": ("exactly 16 chars", "e", "exactly 16 charsX", f"e: {HIDDEN}X"),
        },
    )
    def test_echo(self, secret: str | None, error: str, told: str | None, shown: str) -> None:
        found = read(answer(400, error=error, error_description=told), None, secret)
        assert isinstance(found, Failure)
        assert found.message == f"the token endpoint answered HTTP 400: {shown}"
        assert not secret or secret[:16] not in repr(found) + str(found)

    @pytest.mark.parametrize("method", METHODS)
    def test_what_a_request_holds(self, method: AuthMethod) -> None:
        client = registered(method, secret=f"{CANARY} secret")
        code = token_endpoint.code_request(
            URL, client, code="c o", verifier="v", redirect_uri="r", resource="x", extra=(("token", "t"),)
        )
        refresh = token_endpoint.refresh_request(URL, client, refresh_token="rt", resource=None)
        secret = f"{CANARY} secret"
        pair = base64.b64encode(f"client:{CANARY}+secret".encode()).decode()
        header = (pair, secret) if method == "client_secret_basic" else ("", "")
        body = (secret,) if method == "client_secret_post" else ()
        assert token_endpoint.secrets_of(code) == (*header, "c o", "v", "t", *body)
        assert token_endpoint.secrets_of(refresh) == (*header, "rt", *body)


@given(RESPONSES)
def test_any_answer_is_judged(response: Response) -> None:
    found = read(response, CANARY)
    if isinstance(found, TokenAnswer):
        assert found.access_token.isascii()
        assert found.access_token.isprintable()
        assert " " not in found.access_token
        assert found.expires_at is None or 0 <= found.expires_at - NOW.wall <= LONGEST_LIFE
    else:
        assert found.message.isprintable()
        assert (found.oauth_error or "").isprintable()
