"""The OAuth 2.1 client for MCP servers: a pure protocol core and thin drivers."""
