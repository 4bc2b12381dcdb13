"""The chat page: one file, and a policy that lets it load and reach nothing but this server."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources

from fastapi import FastAPI, Response


def add_page(app: FastAPI) -> None:
    """Serves the page at `/`."""
    html = resources.files("phikit.serve").joinpath("page.html").read_text(encoding="utf-8")
    found = re.search(r"<script>(.*?)</script>", html, re.DOTALL)
    assert found is not None
    digest = base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
    headers = {
        "Content-Security-Policy": "default-src 'none'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response(html, media_type="text/html", headers=headers)
