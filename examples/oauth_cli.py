"""The command `mcp-oauth`, for who has not installed it: `python examples/oauth_cli.py --help`."""

import sys

from mcp_oauth.cli import main

if __name__ == "__main__":
    sys.exit(main())
