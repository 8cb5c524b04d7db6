"""Environments of their own for programs whose versions do not go together: `.venvs/<name>`, from `<name>.txt` here.

    python -m tests.ecosystem.environments          # all that are not up to date
    python -m tests.ecosystem.environments mcp1     # this one

The first line of a text installs this package, editable, with the extras that the program needs.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from uv import find_uv_bin

from tests.servers.process import ROOT, missing

HERE = Path(__file__).parent
OLDEST = (3, 11)
"""pydantic-ai has none for 3.10."""
MAKE = "python -m tests.ecosystem.environments"


def names() -> list[str]:
    """Every environment that there is."""
    return sorted(text.stem for text in HERE.glob("*.txt"))


def python_of(name: str) -> Path:
    """The interpreter of an environment. Where that was not made, the test is skipped; in CI it fails."""
    if not _stamp(name).exists():
        missing(f"the environment {name}", f"{MAKE} {name}")
    return _interpreter(name)


def make(name: str) -> None:
    """Make an environment anew, unless it is what its text asks for. Raises `CalledProcessError`."""
    wanted = _wanted(name)
    stamp = _stamp(name)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    python = sys.executable if sys.version_info >= OLDEST else ">={}.{}".format(*OLDEST)
    _uv("venv", "--clear", "--python", python, str(_folder(name)))
    _uv("pip", "install", "--python", str(_interpreter(name)), "--requirement", str(HERE / f"{name}.txt"))
    stamp.write_text(wanted)


def _wanted(name: str) -> str:
    """Changes with whatever the environment depends on."""
    texts = ((HERE / f"{name}.txt").read_bytes(), (ROOT / "pyproject.toml").read_bytes(), sys.version.encode())
    return hashlib.sha256(b"\0".join(texts)).hexdigest()


def _folder(name: str) -> Path:
    return ROOT / ".venvs" / name


def _stamp(name: str) -> Path:
    return _folder(name) / ".ready"


def _interpreter(name: str) -> Path:
    return _folder(name) / "bin" / "python"


def _uv(*arguments: str) -> None:
    subprocess.run([find_uv_bin(), *arguments, "--quiet"], cwd=ROOT, check=True)


def main(chosen: Iterable[str]) -> None:
    """Make the environments, one after the other."""
    for name in chosen:
        try:
            make(name)
        except subprocess.CalledProcessError:  # uv has said why
            raise SystemExit(f"{_folder(name)} could not be made, so its tests are skipped") from None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the environments of tests/ecosystem")
    parser.add_argument("name", nargs="*", help="one of: " + ", ".join(names()))
    main(parser.parse_args().name or names())
