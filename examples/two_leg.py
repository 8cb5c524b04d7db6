"""A login in two legs, as a web application makes it: begun by one process, finished by another.

    python -m examples.two_leg begin SERVER_URL FOLDER                       prints where to send the browser
    python -m examples.two_leg finish SERVER_URL FOLDER REDIRECTED_URL       prints what was granted

In a web application `begin` and `finish` are two request handlers, the binding is a random cookie of the browser,
and what is pending lives in a database from which a row is taken once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mcp_oauth.io.httpx2 import OAuth
from mcp_oauth.io.two_leg import TwoLeg
from mcp_oauth.sansio.plan import Dynamic
from mcp_oauth.store.encrypted_file import EncryptedFileStore

CALLBACK = "http://127.0.0.1:8000/oauth/callback"


def two_leg(server_url: str, folder: Path) -> TwoLeg:
    """The same in both processes: one store, one key."""
    key_file = folder / "pending.key"
    if not key_file.exists():
        key_file.touch(mode=0o600)
        key_file.write_bytes(os.urandom(32))
    oauth = OAuth(
        server_url, store=EncryptedFileStore(folder / "grants"), client=Dynamic("Example", redirect_uri=CALLBACK)
    )
    return TwoLeg(oauth, key_file.read_bytes())


def begin(server_url: str, folder: Path, binding: str) -> str:
    leg = two_leg(server_url, folder).begin(binding)
    (folder / "pending").write_bytes(leg.sealed)
    return leg.url


def finish(server_url: str, folder: Path, binding: str, redirected: str) -> str:
    taken = folder / f"taken-{os.getpid()}"
    (folder / "pending").rename(taken)  # atomic: of two requests with one redirect, the second finds nothing
    sealed = taken.read_bytes()
    taken.unlink()
    token = two_leg(server_url, folder).finish(sealed, redirected, binding)
    return f"logged in at {token.issuer}: {' '.join(token.granted or ())}"


if __name__ == "__main__":
    cookie = os.environ.get("EXAMPLE_COOKIE", "one-browser")
    match sys.argv[1:]:
        case ["begin", url, folder]:
            print(begin(url, Path(folder), cookie))
        case ["finish", url, folder, redirected]:
            print(finish(url, Path(folder), cookie, redirected))
        case _:
            print(__doc__)
