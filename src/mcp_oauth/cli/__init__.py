"""The command `mcp-oauth`: log in to MCP servers, and see, test and end what was granted. Its extra is `cli`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

NEEDS = ("click", "rich")
"""What the extra brings. Nothing of it is imported before it is known to be there."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command (None: with the arguments of the process) and return its exit code (docs/cli.md).

    Where a browser may be opened, the secrets that the command knows are gone from `os.environ` afterwards.
    """
    try:
        from mcp_oauth.cli.app import run

        return run(arguments)
    except ModuleNotFoundError as error:
        if error.name not in NEEDS:
            raise
        sys.stderr.write(f'mcp-oauth needs the package {error.name}: pip install "mcp-oauth-sansio[cli]"\n')
        return 2
    except KeyboardInterrupt:
        return 130
