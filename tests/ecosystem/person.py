"""A person who agrees, and whose browser is patient with a program that listens late: FastMCP opens the page first.

`BROWSER="python -m tests.ecosystem.person %s &"` makes it the machine's browser, which the program does not wait for.
"""

from __future__ import annotations

import sys

import httpx

from tests.servers import consent

if __name__ == "__main__":
    redirect = consent.follow(sys.argv[1])
    with httpx.Client(transport=httpx.HTTPTransport(retries=6), trust_env=False, timeout=30) as browser:
        browser.get(redirect)
