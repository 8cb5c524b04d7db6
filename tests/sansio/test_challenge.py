"""WWW-Authenticate as the grammar has it, as servers send it, and as an attacker might."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_oauth.sansio import challenge
from mcp_oauth.sansio.challenge import Challenge, Demand

Params = tuple[tuple[str, str], ...]

META = "https://mcp.example.com/.well-known/oauth-protected-resource/mcp"


def bearer(*params: tuple[str, str]) -> Challenge:
    return Challenge("bearer", None, params)


class TestWellFormed:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            pytest.param("", (), id="RFC9110-5.6.1-empty"),
            pytest.param(" , ,, ", (), id="RFC9110-5.6.1-empty-elements"),
            pytest.param("Bearer", (bearer(),), id="RFC9110-11.3-scheme-alone"),
            pytest.param("Bearer,Negotiate", (bearer(), Challenge("negotiate")), id="RFC9110-11.6.1-schemes-alone"),
            pytest.param('Bearer realm="x"', (bearer(("realm", "x")),), id="RFC9110-11.2-quoted-string"),
            pytest.param("Bearer error=invalid_token", (bearer(("error", "invalid_token")),), id="RFC9110-11.2-token"),
            pytest.param("BEARER Error=E", (bearer(("error", "E")),), id="RFC9110-11.1-any-case"),
            pytest.param('Bearer a = \t"b" ,\tc =d', (bearer(("a", "b"), ("c", "d")),), id="RFC9110-11.2-BWS"),
            pytest.param('Bearer   a="b"', (bearer(("a", "b")),), id="RFC9110-11.3-several-SP"),
            pytest.param('Bearer a="",b="c"', (bearer(("a", ""), ("b", "c")),), id="RFC9110-5.6.4-empty-string"),
            pytest.param(r'Bearer a="b\"c\\d\e"', (bearer(("a", 'b"c\\de')),), id="RFC9110-5.6.4-quoted-pair"),
            pytest.param('Bearer a="b, Basic c=d"', (bearer(("a", "b, Basic c=d")),), id="RFC9110-5.6.4-comma-inside"),
            pytest.param('Bearer a="\u00e9"', (bearer(("a", "\u00e9")),), id="RFC9110-5.6.4-obs-text"),
            pytest.param(",Bearer a=b,,c=d,", (bearer(("a", "b"), ("c", "d")),), id="RFC9110-5.6.1.2-empty-elements"),
            pytest.param("Bearer a=1, A=2", (bearer(("a", "1"), ("a", "2")),), id="FN-25-duplicates"),
            pytest.param(
                "!#$%&'*+-.^_`|~9 a=b", (Challenge("!#$%&'*+-.^_`|~9", None, (("a", "b"),)),), id="RFC9110-5.6.2"
            ),
            pytest.param("Negotiate YII=", (Challenge("negotiate", "YII="),), id="RFC9110-11.2-token68"),
            pytest.param(
                "Basic a-._~+/9== ", (Challenge("basic", "a-._~+/9=="),), id="RFC9110-11.2-token68-characters"
            ),
            pytest.param("Bearer realm", (Challenge("bearer", "realm"),), id="RFC9110-11.2-token68-like-a-name"),
            pytest.param("Bearer realm=", (Challenge("bearer", "realm="),), id="RFC9110-11.2-token68-like-a-parameter"),
            pytest.param("Bearer realm=x", (bearer(("realm", "x")),), id="RFC9110-11.2-parameter-like-token68"),
            pytest.param("Bearer realm==x", (bearer(("realm", "=x")),), id="RFC9110-11.2-parameter-with-equals-sign"),
            pytest.param(
                "X abc== , Bearer a=b", (Challenge("x", "abc=="), bearer(("a", "b"))), id="RFC9110-11.6.1-token68"
            ),
            pytest.param(
                'Newauth realm="apps", type=1, title="Login to \\"apps\\"", Basic realm="simple"',
                (
                    Challenge("newauth", None, (("realm", "apps"), ("type", "1"), ("title", 'Login to "apps"'))),
                    Challenge("basic", None, (("realm", "simple"),)),
                ),
                id="RFC9110-11.6.1-example",
            ),
            pytest.param(
                'DPoP error="use_dpop_nonce", error_description="Nonce, please", algs="ES256 PS256"',
                (
                    Challenge(
                        "dpop",
                        None,
                        (("error", "use_dpop_nonce"), ("error_description", "Nonce, please"), ("algs", "ES256 PS256")),
                    ),
                ),
                id="RFC9449-7.1-example",
            ),
        ],
    )
    def test_read(self, value: str, expected: tuple[Challenge, ...]) -> None:
        assert challenge.parse([value]) == expected

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            pytest.param([], (), id="RFC9110-5.3-no-field"),
            pytest.param(["Bearer a=b", "Basic"], (bearer(("a", "b")), Challenge("basic")), id="RFC9110-5.3-two"),
            pytest.param(["Bearer a=b", "c=d"], (bearer(("a", "b"), ("c", "d")),), id="RFC9110-5.3-one-list"),
            pytest.param(['Bearer a="b', "Basic"], (bearer(("a", "b")), Challenge("basic")), id="FN-25-open-quotation"),
        ],
    )
    def test_several_fields(self, values: list[str], expected: tuple[Challenge, ...]) -> None:
        assert challenge.parse(iter(values)) == expected


HOSTILE = [
    " ",
    ",",
    "=",
    '"',
    "\\",
    "a",
    "/",
    "\x00",
    "\n",
    "a ",
    "a,",
    "a=",
    "a= ",
    'a="",',
    "\\a",
    ' "',
    "a =",
    "aa\x00",
]


class TestMalformed:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            pytest.param(
                f"Bearer resource_metadata={META}?a=b", (("resource_metadata", f"{META}?a=b"),), id="FN-25-bare-url"
            ),
            pytest.param(
                f"Bearer a=b, c={META}, d=e", (("a", "b"), ("c", META), ("d", "e")), id="FN-25-bare-url-between"
            ),
            pytest.param("Bearer scope=a b  c, d=e", (("scope", "a b  c"), ("d", "e")), id="FN-25-bare-words"),
            pytest.param("Bearer a=b c=d", (("a", "b"), ("c", "d")), id="FN-25-comma-forgotten-bare"),
            pytest.param('Bearer a="b" c="d"', (("a", "b"), ("c", "d")), id="FN-25-comma-forgotten"),
            pytest.param('Bearer a="b"c="d"', (("a", "b"), ("c", "d")), id="FN-25-blank-forgotten"),
            pytest.param('Bearer, a="b"', (("a", "b"),), id="FN-25-comma-after-scheme"),
            pytest.param('Bearer a="b\r\n c', (("a", "b\r\n c"),), id="FN-25-open-quotation"),
            pytest.param('Bearer a="b\\\nc"', (("a", "b\nc"),), id="FN-25-escaped-line-break"),
            pytest.param('Bearer a="b\\', (("a", "b"),), id="FN-25-open-quoted-pair"),
            pytest.param('Bearer a="say "no" or", b=c', (("a", "say "), ("b", "c")), id="FN-25-unescaped-quotation"),
            pytest.param('Bearer a="b"\r\n\tc="d"', (("a", "b"), ("c", "d")), id="RFC9112-5.2-folded"),
            pytest.param('Bearer "x" {y} a="b"', (("a", "b"),), id="FN-25-rubbish-between"),
            pytest.param(
                'Bearer a="b", =c, "d", \x00, \u20ac=e, f=g', (("a", "b"), ("f", "g")), id="FN-25-rubbish-elements"
            ),
            pytest.param("Bearer a=b, c=, d=e", (("a", "b"), ("c", ""), ("d", "e")), id="FN-25-no-value"),
            pytest.param("Bearer a=b, c=", (("a", "b"), ("c", "")), id="FN-25-no-value-at-the-end"),
            pytest.param('a=b, Bearer c="d"', (("c", "d"),), id="FN-25-parameter-before-scheme"),
            pytest.param('"Basic, Bearer c="d"', (("c", "d"),), id="FN-25-stray-quotation-mark"),
        ],
    )
    def test_loses_only_what_is_malformed(self, value: str, expected: Params) -> None:
        assert challenge.parse([value]) == (bearer(*expected),)

    def test_a_token68_and_parameters(self) -> None:
        assert challenge.parse(["X abc=, a=b"]) == (Challenge("x", "abc=", (("a", "b"),)),)

    @pytest.mark.parametrize(
        "value",
        ["Bearer: x", "https://evil.example/", "=", '"', '"Bearer"', "\\", "\x00Bearer", "a=b", "\u00e9 a=b"],
        ids="FN-25-no-scheme-{!r}".format,
    )
    def test_no_challenge_at_all(self, value: str) -> None:
        assert challenge.parse([value]) == ()

    @given(st.lists(st.text() | st.text(' ,="\\ab\t\n'), max_size=3))
    def test_never_raises(self, values: list[str]) -> None:
        challenge.demand(values)

    @pytest.mark.parametrize("unit", HOSTILE, ids="linear-time-{!r}".format)
    @pytest.mark.parametrize("start", ["", "Bearer ", 'Bearer a="', "Bearer a=b "], ids="after-{!r}".format)
    @pytest.mark.parametrize("end", ["", "\x00", "=", '"'], ids="before-{!r}".format)
    @pytest.mark.timeout(10)  # milliseconds where the time is linear in the length; minutes where it is quadratic
    def test_100_kb_of_it(self, start: str, unit: str, end: str) -> None:
        value = start + unit * (100_000 // len(unit)) + end

        assert len(challenge.parse([value])) <= value.count(",") + 1


class TestRoundTrip:
    names = st.text("abcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+-.^_`|~", min_size=1, max_size=8)
    values = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]) | st.just("\t"), max_size=12)
    params = st.lists(st.tuples(names, values), max_size=4).map(tuple)
    token68s = st.from_regex(r"[A-Za-z0-9._~+/-]+=*", fullmatch=True)
    challenges = st.lists(
        st.builds(Challenge, names, st.none(), params) | st.builds(Challenge, names, token68s), max_size=4
    ).map(tuple)

    @given(challenges)
    def test_in_one_field_or_several(self, challenges: tuple[Challenge, ...]) -> None:
        fields = [written(one) for one in challenges]

        assert challenge.parse([", ".join(fields)]) == challenges
        assert challenge.parse(fields) == challenges


def written(one: Challenge) -> str:
    params = ", ".join(f'{name}="{quoted(value)}"' for name, value in one.params)
    return " ".join(filter(None, (one.scheme, one.token68, params)))


def quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')


class TestParameters:
    one = bearer(("a", "1"), ("b", ""), ("a", "2"))

    def test_first(self) -> None:
        assert (self.one.first("a"), self.one.first("b"), self.one.first("c")) == ("1", "", None)

    def test_all(self) -> None:
        assert (self.one.all("a"), self.one.all("c")) == (("1", "2"), ())

    def test_repr_hides_values(self) -> None:
        assert repr(self.one) == "Challenge(scheme='bearer', ...)"


class TestDemand:
    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            pytest.param([], None, id="RFC6750-3-no-challenge"),
            pytest.param(['Basic realm="x", error="y"', "Negotiate"], None, id="RFC6750-3-other-schemes"),
            pytest.param(["bearer"], Demand(("bearer",)), id="RFC6750-3-bare"),
            pytest.param(
                [f'Bearer resource_metadata="{META}", scope="a b", error="invalid_token"'],
                Demand(("bearer",), (META,), ("a", "b"), "invalid_token"),
                id="RFC9728-5.1",
            ),
            pytest.param(
                ['DPoP algs="ES256", error="use_dpop_nonce", Bearer, DPoP'],
                Demand(("dpop", "bearer"), error="use_dpop_nonce"),
                id="RFC9449-7.1-both-schemes",
            ),
            pytest.param(
                ['Basic error="no", scope="no", resource_metadata="no"', 'Bearer error="yes"'],
                Demand(("bearer",), error="yes"),
                id="RFC6750-3-parameters-of-other-schemes",
            ),
            pytest.param(
                [
                    "Bearer resource_metadata=https://a/, resource_metadata=https://b/",
                    'Bearer resource_metadata=""',
                    'DPoP resource_metadata="https://a/", resource_metadata=https://c/',
                ],
                Demand(("bearer", "dpop"), ("https://a/", "https://b/", "https://c/")),
                id="FN-25-every-candidate",
            ),
            pytest.param(
                ['Bearer error="e"', 'Bearer scope=" ", scope="b a b"', 'Bearer scope="c"'],
                Demand(("bearer",), scope=("b", "a"), error="e"),
                id="RFC6750-3-first-challenge-with-a-scope",
            ),
            pytest.param(['Bearer scope=""'], Demand(("bearer",)), id="RFC6749-3.3-empty-scope"),
            pytest.param(
                ['Bearer scope="a \udc80 é \\" \\\\ b"'],
                Demand(("bearer",), scope=("a", "b")),
                id="RFC6749-3.3-no-scope-tokens",
            ),
            pytest.param(
                ['Bearer error="\x1b", error="in\x00valid", error_description="\x1b[1mA‮b\udc80 c"'],
                Demand(("bearer",), error="invalid", error_description="[1mAb c"),
                id="FN-54-control-characters",
            ),
            pytest.param(
                [f'Bearer error_description="{"x" * 501}"'],
                Demand(("bearer",), error_description="x" * 500),
                id="FN-54-overlong",
            ),
        ],
    )
    def test_of_an_answer(self, values: list[str], expected: Demand | None) -> None:
        assert challenge.demand(values) == expected

    def test_repr_hides_the_servers_words(self) -> None:
        demand = Demand(("bearer",), (META,), ("a",), "e", "words")

        assert repr(demand) == (
            f"Demand(schemes=('bearer',), resource_metadata=('{META}',), scope=('a',), error='e', ...)"
        )
