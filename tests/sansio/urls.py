"""URLs as they come, for the properties of `uris`."""

from __future__ import annotations

from hypothesis import strategies as st

MCP = "https://mcp.example.com/mcp"

labels = st.from_regex(r"[a-z](?:[a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
names = st.lists(labels, min_size=1, max_size=3).map(".".join)
hosts = st.one_of(names, st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map("[{}]".format))
ports = st.one_of(st.just(""), st.integers(1, 65535).map(":{}".format))
segments = st.text("abcXYZ019._~!$&'()*+,;=:@-", max_size=6) | st.sampled_from(["%2F", "%20", "..", ".", ""])
paths = st.lists(segments, max_size=4).map(lambda parts: "".join(f"/{part}" for part in parts))
queries = st.one_of(st.just(""), st.text("ab=&/?%+".replace("%", ""), max_size=8).map("?{}".format))
urls = st.builds("{}://{}{}{}{}".format, st.sampled_from(["http", "https", "HTTPS"]), hosts, ports, paths, queries)
