"""Whether a socket has something to read."""

from __future__ import annotations

import selectors
from typing import Any


def readable(sock: Any) -> bool:
    """Whether a read would return at once, if only to say that the peer has closed. A closed socket counts."""
    with selectors.DefaultSelector() as selector:
        try:
            selector.register(sock, selectors.EVENT_READ)
        except ValueError:  # closed: it has no file descriptor
            return True
        return bool(selector.select(0))
