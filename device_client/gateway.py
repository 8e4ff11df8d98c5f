"""The device as a local REST service: the same wishes as the command line, one link to the cloud per request.

Knows nothing of argv, environment or gRPC.
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from device_client.answers import Failed, failure, install
from device_client.draw import Upstream, finish, steps
from device_client.link import CloudLink
from device_client.loop import Progress, Source
from device_client.wish import Plan, Wish, make_plan, release
from shared.errors import CiarError, CloudUnreachable, InvalidRequest, ModelMismatch
from shared.models.zoo import DevicePackage

POLL_S = 0.1  # how often a running request looks whether its caller is still there
PROBE_S = 2.0  # patience of /readyz
GRACE_S = 10  # time that running requests get when the service stops
CALLER_GONE = 499  # nobody reads this answer
ResultT = TypeVar("ResultT")


class GenerateBody(Wish):
    """What POST /generate takes: one picture to draw."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"prompt": "a cat", "seed": 7, "mode": "ciar"}]},
    )


class Generated(BaseModel):
    """What POST /generate answers, unless image/png is asked for."""

    image: str = Field(description="the picture: PNG in base64, with the settings in its text chunks")
    prompt: str
    seed: int
    mode: str
    settings: dict[str, Any] = Field(description="policy, warp, model and the digests of its weights")
    counters: dict[str, Any] = Field(description="what the picture cost")
    sources: list[str] = Field(description="who decided each token, in raster order")
    notes: list[str] = Field(description="what the caller should know, such as ignored words")


class Gateway:
    """The handlers of one model and one cloud."""

    def __init__(self, package: DevicePackage, upstream: Upstream) -> None:
        self.package, self.upstream = package, upstream

    async def generate(self, body: GenerateBody, request: Request) -> Response:
        """Draw one picture. `Accept: image/png` gets the file, its counters in `X-CIAR-Counters`."""
        plan = make_plan(self.package, body)
        drawn = await _while_connected(request, self._draw(plan))
        if drawn is None:
            return Response(status_code=CALLER_GONE)
        png, progress = drawn
        if _wants_png(request.headers.get("accept", "")):
            counters = json.dumps(progress.counters.as_dict())
            return Response(png, media_type="image/png", headers={"X-CIAR-Counters": counters})
        return JSONResponse(_generated(plan, png, progress).model_dump())

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
            "family": package.model.base.family,
        }
        return {"models": [model]}

    async def _draw(self, plan: Plan) -> tuple[bytes, Progress]:
        last = None
        async with aclosing(steps(self.package, plan, self.upstream)) as progress:
            async for step in progress:
                last = step
        assert last is not None and last.done, "the loop ends with a finished picture"
        return await asyncio.to_thread(finish, self.package, plan, last), last

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


def create_app(package: DevicePackage, upstream: Upstream) -> FastAPI:
    """The service as an ASGI application. Its own documentation is at /docs."""
    gateway = Gateway(package, upstream)
    app = FastAPI(
        title="CIAR device",
        version=release(),
        description="Draws pictures on this device, with the help of a large model in the cloud.",
    )
    install(app)
    answers: dict[int | str, dict[str, Any]] = {code: {"model": Failed} for code in (409, 422, 429, 500, 503)}
    answers[200] = {"model": Generated, "content": {"image/png": {}}}
    app.add_api_route("/generate", gateway.generate, methods=["POST"], responses=answers, response_model=None)
    app.add_api_route("/livez", gateway.livez)
    app.add_api_route("/readyz", gateway.readyz, responses={503: {"model": Failed}})
    app.add_api_route("/version", gateway.version)
    app.add_api_route("/models", gateway.models)
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


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM; running requests then get GRACE_S seconds."""
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE_S)
    uvicorn.Server(config).run(sockets=[listening])


async def _while_connected(request: Request, work: Coroutine[Any, Any, ResultT]) -> ResultT | None:
    """The result of `work`, or None, with the work stopped, once the caller has hung up.

    Nobody tells a handler that its caller is gone: it has to look.
    """
    task = asyncio.create_task(work)
    try:
        while not (await asyncio.wait({task}, timeout=POLL_S))[0]:
            if await request.is_disconnected():
                return None
        return task.result()
    finally:
        task.cancel()
        await asyncio.wait({task})


def _wants_png(accept: str) -> bool:
    kinds = {kind.split(";")[0].strip().lower() for kind in accept.split(",")}
    return "image/png" in kinds and "application/json" not in kinds


def _generated(plan: Plan, png: bytes, progress: Progress) -> Generated:
    return Generated(
        image=base64.b64encode(png).decode("ascii"),
        prompt=plan.request.prompt,
        seed=plan.request.seed,
        mode=plan.policy.mode,
        settings=dict(plan.settings),
        counters=progress.counters.as_dict(),
        sources=[Source(source).name.lower() for source in progress.sources],
        notes=list(plan.notes),
    )
