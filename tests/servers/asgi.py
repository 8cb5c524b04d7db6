"""How the servers in Python listen, whatever interpreter they run in: uvicorn alone is imported."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from typing import Any

import uvicorn


def serve(make: Callable[[str], Any]) -> None:
    """Serve the ASGI application that `make` makes for an origin, on a free port of loopback, and say where.

    TLS_PEM in the environment names a file with the key and the certificate: then it is https.
    """
    pem = os.environ.get("TLS_PEM")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        origin = f"{'https' if pem else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(
            make(origin), ssl_certfile=pem, ssl_keyfile=pem, log_level="warning", timeout_graceful_shutdown=1
        )
        print("READY", json.dumps({"mcp": f"{origin}/mcp", "issuer": origin}), flush=True)
        uvicorn.Server(config).run(sockets=[listener])
