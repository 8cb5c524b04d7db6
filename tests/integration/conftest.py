"""Real servers for the integration tests, one of each kind for the whole run. A test that turns their knobs, or wants
short-lived tokens, starts its own with `serving(…)`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers import oidc_provider as npm
from tests.servers import sdk_server as sdk
from tests.servers.oidc_provider import OidcProvider
from tests.servers.sdk_server import SdkServer


@pytest.fixture(scope="session")
def oidc_provider() -> Iterator[OidcProvider]:
    with npm.serving() as server:
        yield server


@pytest.fixture(scope="session")
def sdk_server() -> Iterator[SdkServer]:
    with sdk.serving() as server:
        yield server
