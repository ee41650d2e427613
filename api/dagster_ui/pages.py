"""The page at which a browser gets its session."""

import html
from typing import Final

from starlette.responses import HTMLResponse

__all__ = ["login_page", "safe_next"]

_STYLE: Final = (
    "body{font:16px system-ui,sans-serif;background:#f5f6f8;color:#1b1d22;display:grid;"
    "place-items:center;min-height:100vh;margin:0}"
    "form{background:#fff;padding:32px;border-radius:8px;width:min(92vw,360px);"
    "box-shadow:0 1px 4px #0003}h1{font-size:20px;margin:0 0 4px}p{margin:0 0 16px;color:#555}"
    "label{display:block;margin:0 0 4px}input{width:100%;box-sizing:border-box;padding:10px;"
    "font:inherit;border:1px solid #999;border-radius:4px}button{margin-top:16px;padding:10px 16px;"
    "font:inherit;border:0;border-radius:4px;background:#3740c2;color:#fff;cursor:pointer}"
    ".error{color:#a40000}"
)
_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Sign in - Dagster of vyvo</title><style>{style}</style></head><body>
<form method="post" action="/dagster/login"><h1>Dagster</h1>
<p>Sign in with an API key that has the scope dagster:read, or admin.</p>{error}
<label for="key">API key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
<input type="hidden" name="next" value="{next}">
<button>Sign in</button></form></body></html>
"""
_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)


def login_page(target: str, error: str | None = None, status: int = 200) -> HTMLResponse:
    """The form; `target` is where the browser goes then, as `safe_next` gave it."""
    shown = "" if error is None else f'<p class="error" role="alert">{html.escape(error)}</p>'
    body = _PAGE.format(style=_STYLE, error=shown, next=html.escape(target, quote=True))
    headers = {
        "Content-Security-Policy": _POLICY, "X-Frame-Options": "DENY", "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin",
    }  # fmt: skip
    return HTMLResponse(body, status, headers)


def safe_next(target: str | None) -> str:
    """`target` where it is a place in Dagster's UI, else its front page: no open redirect."""
    good = (
        target is not None
        and (target == "/dagster" or target.startswith(("/dagster/", "/dagster?")))
        and len(target) <= 2000
        and target.isascii()
        and target.isprintable()
        and "\\" not in target
        and not target.startswith("/dagster/login")
    )
    return target if good and target is not None else "/dagster/"
