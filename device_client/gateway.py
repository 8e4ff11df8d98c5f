"""The device as a local REST service and a page: the same wishes as the command line, one link per picture.

Wires the handlers together and answers who asks for its health. Knows nothing of argv, environment or gRPC.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response

from device_client import generate, openai_images, site
from device_client.answers import Failed, failure, install
from device_client.doorkeeper import Doorkeeper
from device_client.draw import Upstream
from device_client.link import CloudLink
from device_client.policy import MODES
from device_client.studio import Studio
from device_client.wish import release
from shared.errors import CiarError, CloudUnreachable, InvalidRequest, ModelMismatch
from shared.models.zoo import DevicePackage

PROBE_S = 2.0  # patience of /readyz
GRACE_S = 10  # time that running requests get when the service stops


class Health:
    """The handlers that tell what runs here and whether it can work."""

    def __init__(self, package: DevicePackage, upstream: Upstream) -> None:
        self.package, self.upstream = package, upstream

    async def livez(self) -> dict[str, str]:
        """The process answers."""
        return {"status": "alive"}

    async def readyz(self) -> Response:
        """The cloud answers, and it serves the weights this device belongs to."""
        try:
            served = await self._served()
        except CiarError as error:
            return failure(503, error)
        return JSONResponse({"status": "ready", "cloud": self.upstream.target, "models": served})

    async def version(self) -> dict[str, str]:
        """What runs here."""
        return {"version": release(), "model": self.package.name, "device_digest": self.package.digest}

    async def models(self) -> dict[str, list[dict[str, Any]]]:
        """The model this device draws with."""
        package, config = self.package, self.package.model.base.config
        model = {
            "name": package.name,
            "device_digest": package.digest,
            "cloud_digest": package.cloud_digest,
            "image_tokens": config.image_tokens,
            "image_pixels": config.grid * package.vq.config.factor,
            "codebook_size": config.vocab_size,
            "gates": sorted(package.calibration.gates),
            "modes": list(MODES),
            "family": package.model.base.family,
        }
        return {"models": [model]}

    async def _served(self) -> list[str]:
        """Names of the models the cloud serves. Raises ModelMismatch unless ours is among them."""
        target, wanted = self.upstream.target, (self.package.name, self.package.cloud_digest)
        if target is None:
            raise CloudUnreachable("no cloud server was named", "only mode device-only works here")
        identity = self.upstream.identity
        async with CloudLink(target, connect_s=PROBE_S, deadline_s=PROBE_S, identity=identity) as link:
            served = (await link.info()).models
        if wanted not in {(model.name, model.digest) for model in served}:
            names = ", ".join(f"{model.name} ({model.digest})" for model in served)
            raise ModelMismatch(
                f"the cloud at {target} does not serve {wanted[0]} ({wanted[1]})", f"it serves {names}"
            )
        return [model.name for model in served]


def create_app(package: DevicePackage, upstream: Upstream, tokens: Sequence[str] = ()) -> FastAPI:
    """The service as an ASGI application. Its page is at /, its own documentation at /docs.

    With `tokens`, every route but the probes wants one of them.
    """
    studio, health = Studio(package, upstream), Health(package, upstream)
    app = FastAPI(
        title="CIAR device",
        version=release(),
        description="Draws pictures on this device, with the help of a large model in the cloud.",
    )
    app.add_middleware(Doorkeeper, tokens=tokens)
    install(app)
    generate.add_routes(app, studio)
    openai_images.add_routes(app, studio)
    app.add_api_route("/livez", health.livez)
    app.add_api_route("/readyz", health.readyz, responses={503: {"model": Failed}})
    app.add_api_route("/version", health.version)
    app.add_api_route("/models", health.models)
    site.add_routes(app, studio)
    return app


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises InvalidRequest for an impossible address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise InvalidRequest(
            f"cannot listen on {host}:{port}",
            error.strerror or str(error),
            "choose another --host or --http-port",
        ) from error


def serve(
    app: FastAPI, listening: socket.socket, cert: Path | None = None, key: Path | None = None
) -> None:
    """Serve until SIGINT or SIGTERM; running requests then get GRACE_S seconds."""
    config = uvicorn.Config(
        app, log_level="warning", timeout_graceful_shutdown=GRACE_S, ssl_certfile=cert, ssl_keyfile=key
    )
    uvicorn.Server(config).run(sockets=[listening])
