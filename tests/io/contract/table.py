"""All the ways there are."""

from __future__ import annotations

from tests.io.contract.aiohttp_ways import WAYS as AIOHTTP
from tests.io.contract.anyio_ways import WAYS as ANYIO
from tests.io.contract.httpx_ways import WAYS as HTTPX
from tests.io.contract.requests_ways import WAYS as REQUESTS
from tests.io.contract.urllib_ways import WAYS as URLLIB
from tests.io.contract.ways import Way

WAYS: tuple[Way, ...] = (*HTTPX, *ANYIO, *AIOHTTP, *REQUESTS, *URLLIB)
STACKS: tuple[Way, ...] = tuple({way.stack: way for way in WAYS}.values())
"""One way of each stack."""
DRIVERS: tuple[Way, ...] = tuple(way for way in STACKS if way not in URLLIB)
"""Those that are part of the library: with all their options, and connections that are watched from the beginning."""
FOLLOWERS: tuple[Way, ...] = tuple(way for way in WAYS if way.follows)
"""Those whose clients follow redirects by themselves."""
