"""The page at `/`: files of the package as they are, and the tiles it paints unfinished pictures with.

Nothing on it comes from elsewhere, and the browser is told so. Knows nothing of what the page does.
"""

from __future__ import annotations

import asyncio
from io import BytesIO

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from device_client.studio import Studio

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
FRESH = {"Cache-Control": "no-cache"}  # look whether it changed: the model or the program may have
HEADERS = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", **FRESH}


class Page(StaticFiles):
    """The files of device_client/web."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """A file, with the headers that keep the page to itself."""
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


class Site:
    """The handlers of what only a browser asks for."""

    def __init__(self, studio: Studio, files: Page) -> None:
        self._studio, self._files = studio, files

    async def index(self, request: Request) -> Response:
        """The page."""
        return await self._files.get_response("index.html", request.scope)

    async def atlas(self) -> Response:
        """All tokens as tiles of colour in one PNG, in raster order, as many columns as it is tiles wide."""
        tiles = await self._studio.tiles()
        file = BytesIO()
        await asyncio.to_thread(lambda: tiles.atlas().save(file, "PNG", optimize=True))
        return Response(file.getvalue(), media_type="image/png", headers=FRESH)


def add_routes(app: FastAPI, studio: Studio) -> None:
    """GET /, /tiles.png and the files below /web/."""
    files = Page(packages=[(__package__, "web")])
    site = Site(studio, files)
    app.add_api_route("/", site.index, include_in_schema=False)
    app.add_api_route("/tiles.png", site.atlas, response_class=Response)
    app.mount("/web", files)
