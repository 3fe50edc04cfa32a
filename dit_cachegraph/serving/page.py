"""The page at `/`: one file, with nothing from outside."""

from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType

PAGE = (resources.files("dit_cachegraph.serving") / "page.html").read_text(encoding="utf-8")
PAGE_HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "Content-Security-Policy": "default-src 'none'; img-src data:; connect-src 'self'; "
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
)
