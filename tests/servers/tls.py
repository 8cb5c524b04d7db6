"""A private certificate authority, and the certificate of a server on loopback: what a company has."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class PrivateCA:
    """Its files."""

    certificate: Path
    """What a client must trust."""
    server: Path
    """Key and certificate of the server, in one file."""

    def context(self) -> ssl.SSLContext:
        """Trusts this authority and no other."""
        return ssl.create_default_context(cafile=str(self.certificate))


def private_ca(folder: Path, *, host: str = "127.0.0.1") -> PrivateCA:
    """A new authority, with a certificate for `host`."""
    authority = trustme.CA()
    made = PrivateCA(folder / "ca.pem", folder / "server.pem")
    authority.cert_pem.write_to_path(str(made.certificate))
    authority.issue_cert(host).private_key_and_cert_chain_pem.write_to_path(str(made.server))
    return made


def settings(ca: PrivateCA | None) -> dict[str, str]:
    """What a server's program reads from its environment: behind TLS, or not."""
    return {} if ca is None else {"TLS_PEM": str(ca.server)}
