"""What can go wrong, told apart by the one thing that a retry must know: whether the server may have seen the request.

Messages name cause and cure. They quote nothing that a peer sent, no header and no URL's query.
"""

from __future__ import annotations

import anyio

STREAM_ERRORS = (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.BusyResourceError)
"""What a stream raises when it is of no use any more; `ssl.SSLError` is an `OSError`."""


class ExchangeError(Exception):
    """A request got no whole answer."""


class NotSent(ExchangeError):
    """The server has certainly not seen the request: no connection, no trust, no tunnel, or a request that cannot be.

    Sending it again is safe (RULES 4.9).
    """


class Broken(ExchangeError):
    """The request was on its way: the connection was cut, or the answer cannot be read.

    The server may have acted on it (RULES 4.9).
    """
