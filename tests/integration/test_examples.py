"""The examples, run as their readers would: in processes of their own, against real servers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from examples import by_hand
from mcp_oauth.sansio.grant import Token
from mcp_oauth.sansio.steps import Done
from tests.servers import consent
from tests.servers.oidc_provider import OidcProvider
from tests.servers.sdk_server import SdkServer


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("which", ["oidc_provider", "sdk_server"])
def test_the_core_driven_by_hand_logs_in(
    which: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def paste(prompt: str) -> str:
        found = re.search(r"https?://\S+", prompt)
        assert found is not None
        return consent.follow(found.group())

    server: OidcProvider | SdkServer = request.getfixturevalue(which)
    monkeypatch.setattr("builtins.input", paste)
    done = by_hand.login(server.mcp)
    assert isinstance(done, Done)
    token: Token = done.value.token
    assert token.issuer.rstrip("/") == server.issuer.rstrip("/")


class TestTwoLeg:
    """A login begun in one process is finished in another."""

    @pytest.fixture
    def begun(self, sdk_server: SdkServer, tmp_path: Path) -> str:
        begun = run("examples.two_leg", "begin", sdk_server.mcp, str(tmp_path))
        assert begun.returncode == 0, begun.stderr
        return consent.follow(begun.stdout.strip())

    @pytest.fixture
    def finish(self, sdk_server: SdkServer, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
        return lambda redirected, **env: run(
            "examples.two_leg", "finish", sdk_server.mcp, str(tmp_path), redirected, **env
        )

    def test_finished_in_another_process(
        self, begun: str, finish: Callable[..., subprocess.CompletedProcess[str]]
    ) -> None:
        finished = finish(begun)
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout.startswith("logged in at http://127.0.0.1:")

    def test_RULES_6_4_taken_once(self, begun: str, finish: Callable[..., subprocess.CompletedProcess[str]]) -> None:
        assert finish(begun).returncode == 0
        again = finish(begun)
        assert again.returncode != 0
        assert "FileNotFoundError" in again.stderr

    def test_RULES_6_4_another_browser_cannot_finish_it(
        self, begun: str, finish: Callable[..., subprocess.CompletedProcess[str]]
    ) -> None:
        finished = finish(begun, EXAMPLE_COOKIE="another-browser")
        assert finished.returncode != 0
        assert "belongs to another browser" in finished.stderr

    def test_the_redirect_of_another_login_is_refused(
        self, begun: str, finish: Callable[..., subprocess.CompletedProcess[str]]
    ) -> None:
        finished = finish(re.sub(r"state=[^&]+", "state=other", begun))
        assert finished.returncode != 0
        assert "the redirect is of another login" in finished.stderr


def test_demo() -> None:
    demo = run("examples.demo")
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "Done: discovered, registered, logged in, called, renewed, restarted, logged out." in demo.stdout
