"""What a person is shown and answers, in the tests of who asks him."""

from __future__ import annotations

STATE = "canary-state-77aa"
CODE = "canary-code-d00d"
AUTHORIZE = "https://as.example/authorize?client_id=c&state=" + STATE
ANSWER = f"?code={CODE}&state={STATE}"
ANY_PORT = "http://127.0.0.1/callback/abc"
SOON = 5.0
"""Far more than anything here takes, in seconds."""
