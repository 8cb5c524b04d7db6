"""The few pages that the loopback listener shows: no script, no external resource, nothing of a request (FN 40)."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import NamedTuple

# Logical properties only ("inline", "start"), so that a translation from right to left needs no other style.
_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #55595f; --paper: #f4f5f7; --card: #fff; --edge: #dcdfe4;
        --good: #14713a; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #eceef1; --soft: #b0b6be; --paper: #141518; --card: #1f2125; --edge: #363a40;
          --good: #6fd695; --bad: #ff9d94; }
}
* { box-sizing: border-box; }
body { margin: 0; min-block-size: 100vh; display: grid; place-items: center; padding: 1.5rem;
       font: 1rem/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); }
main { inline-size: 100%; max-inline-size: 27rem; padding: 2rem; text-align: start;
       background: var(--card); border: 1px solid var(--edge); border-radius: .75rem; }
main.good { border-block-start: .25rem solid var(--good); }
main.bad { border-block-start: .25rem solid var(--bad); }
h1 { margin: 0 0 .5rem; font-size: 1.35rem; line-height: 1.3; }
p { margin: 0; color: var(--soft); }
"""
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_NOTHING_ELSE = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


class Page(NamedTuple):
    """An HTML document and the Content-Security-Policy that it is shown under."""

    html: bytes
    policy: str


NO_PAGE_POLICY = f"default-src 'none'; {_NOTHING_ELSE}"
"""The policy of an answer that is no page."""


def page(tone: str, heading: str, text: str) -> Page:
    """A page of ours. `tone` is "good" or "bad" and only colours it: the words say it, too."""
    html = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(heading)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main class="{escape(tone)}" dir="auto">
<h1>{escape(heading)}</h1>
<p>{escape(text)}</p>
</main>
</body>
</html>
"""
    return Page(html.encode(), f"default-src 'none'; style-src 'sha256-{_HASH}'; {_NOTHING_ELSE}")


def page_of_caller(html: str) -> Page:
    """The application's own document, as it is. It may bring styles and `data:` images; nothing is run or fetched."""
    return Page(html.encode(), f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; {_NOTHING_ELSE}")


# The listener knows that a code came, not what the authorization server will give for it: no page says "logged in".
SUCCESS = page("good", "Login received", "You can close this window. The program carries on.")
FAILURE = page("bad", "The login did not succeed", "The program says why. You can close this window.")
NOT_OURS = page(
    "bad",
    "No login is waiting for this page",
    "Start the login again from the program, and finish it in the window that opens.",
)
TWO_BROWSERS = page(
    "bad",
    "This link has been used already",
    "It opens in one browser only. The login was stopped: start it again from the program.",
)
