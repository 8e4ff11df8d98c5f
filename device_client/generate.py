"""POST /generate and the jobs behind it: one wish in; a PNG, JSON, or a stream of events out.

Knows nothing of how a picture is drawn; every answer is about a job.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Body, FastAPI, Header, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from device_client.answers import Failed, explain
from device_client.events import MAX_PARTIALS, Teller, source_names, stream
from device_client.jobs import Job, Picture, State
from device_client.studio import Studio, while_connected
from device_client.wish import Plan, Wish, make_plan
from shared.decoding.noise import SEED_LIMIT
from shared.errors import InvalidRequest

MAX_PICTURES = 10
CALLER_GONE = 499  # nobody reads this answer
NO_STORE = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # proxies must not hold events back


class GenerateBody(Wish):
    """What POST /generate takes: a picture to draw, or several from neighbouring seeds."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"prompt": "a cat", "seed": 7}]}
    )
    n: int = Field(1, ge=1, le=MAX_PICTURES, description="pictures, with the seeds seed, seed + 1, ...")
    size: str | None = Field(None, description="WIDTHxHEIGHT of the model, or auto")
    partial_images: int = Field(
        8, ge=0, le=MAX_PARTIALS, description="partial pictures per picture in a stream of events"
    )


EXAMPLES: dict[str, Any] = {
    "one picture": {"value": {"prompt": "a cat", "seed": 7}},
    "the cloud's own picture, cheaper": {"value": {"prompt": "a red house", "seed": 7, "mode": "exact"}},
    "without a cloud": {"value": {"prompt": "an owl", "mode": "device-only"}},
    "with a budget": {"value": {"prompt": "a cat", "gate": "margin", "cloud_budget": 0.25, "span": 5}},
    "three seeds": {"value": {"prompt": "a bus", "seed": 7, "n": 3}},
}


class Generated(BaseModel):
    """A picture and what it cost."""

    image: str = Field(description="the picture: PNG in base64, with the settings in its text chunks")
    prompt: str
    seed: int
    mode: str
    settings: dict[str, Any] = Field(description="policy, warp, model and the digests of its weights")
    counters: dict[str, Any] = Field(description="what the picture cost")
    tokens: list[int] = Field(description="codebook ids in raster order")
    sources: list[str] = Field(description="who decided each token, in raster order")
    notes: list[str] = Field(description="what the caller should know, such as ignored words")


class Answer(Generated):
    """What POST /generate answers, unless image/png or text/event-stream is asked for."""

    id: str = Field(description="the job, for GET and DELETE /jobs/{id}")
    more: list[Generated] = Field(description="the other pictures, where n was above 1")


class JobStatus(BaseModel):
    """How far a job is."""

    id: str
    state: State
    pictures: int = Field(description="how many were asked for")
    finished: int = Field(description="how many are finished")
    tokens: int = Field(description="tokens of the picture in work")
    image_tokens: int = Field(description="tokens of a whole picture")
    counters: dict[str, Any] | None = Field(description="of the picture in work")
    error: dict[str, str] | None = Field(description="why it failed")


class Generation:
    """The handlers of /generate and /jobs."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    async def generate(
        self,
        body: Annotated[GenerateBody, Body(openapi_examples=EXAMPLES)],
        request: Request,
        idempotency_key: Annotated[str | None, Header(description="repeats get the same picture")] = None,
    ) -> Response:
        """Draw. `Accept: image/png` gets the file, its counters in `X-CIAR-Counters`; `Accept:
        text/event-stream` gets `job`, then `progress` and `partial`, a `picture` each, and at the end always
        one of `done`, `error`, `cancelled`. Who hangs up stops the work.
        """
        accept = _kinds(request.headers.get("accept", ""))
        as_png = "image/png" in accept and "application/json" not in accept
        self._check(body, as_png)
        job = self._studio.jobs.begin(lambda: self._plans(body), body.model_dump_json(), idempotency_key)
        if "text/event-stream" in accept:
            return await self._events(job, body.partial_images)
        pictures = await while_connected(request, job.result())
        if pictures is None:
            return Response(status_code=CALLER_GONE)
        if as_png:
            return _png(job, pictures[0])
        return JSONResponse(_answer(job, pictures).model_dump(), headers={"X-Job-Id": job.id})

    async def status(self, job_id: str) -> JobStatus:
        """How far a job is. Jobs are known by their id alone: nobody else's can be listed."""
        return _status(self._find(job_id), self._studio.package.model.base.config.image_tokens)

    async def cancel(self, job_id: str) -> JobStatus:
        """Stop a job; whoever waits for it is told. One that is over stays as it is."""
        job = self._find(job_id)
        job.cancel()
        return await self.status(job_id)

    def _find(self, job_id: str) -> Job:
        job = self._studio.jobs.find(job_id)
        if job is None:
            raise HTTPException(404, f"there is no job {job_id[:40]!r} (old ones are forgotten)")
        return job

    def _check(self, body: GenerateBody, as_png: bool) -> None:
        size = f"{self._studio.pixels}x{self._studio.pixels}"
        if body.size not in (None, "auto", size):
            raise InvalidRequest(f"size {body.size!r} is not allowed", f"allowed: {size}, auto")
        if as_png and body.n > 1:
            raise InvalidRequest(f"n {body.n} does not fit image/png", "one file is one picture")
        if body.seed + body.n > SEED_LIMIT:
            raise InvalidRequest(f"n {body.n} seeds from {body.seed} on", f"allowed: up to {SEED_LIMIT - 1}")

    def _plans(self, body: GenerateBody) -> list[Plan]:
        return plans_of(self._studio, body, body.n)

    async def _events(self, job: Job, partials: int) -> Response:
        tiles = await self._studio.tiles() if partials else None
        teller = Teller(_described, _complained, tiles, partials)
        headers = {**NO_STORE, "X-Job-Id": job.id}
        return StreamingResponse(stream(job, teller), media_type="text/event-stream", headers=headers)


def plans_of(studio: Studio, wish: Wish, pictures: int) -> list[Plan]:
    """Plans for neighbouring seeds. Raises InvalidRequest."""
    seeds = range(wish.seed, wish.seed + pictures)
    return [make_plan(studio.package, wish.model_copy(update={"seed": seed})) for seed in seeds]


def add_routes(app: FastAPI, studio: Studio) -> None:
    """POST /generate, GET and DELETE /jobs/{job_id}."""
    handlers = Generation(studio)
    codes = (400, 409, 422, 429, 500, 503)
    answers: dict[int | str, dict[str, Any]] = {code: {"model": Failed} for code in codes}
    events = {"schema": {"type": "string"}, "example": 'event: done\ndata: {"id":"0f..."}\n\n'}
    answers[200] = {"model": Answer, "content": {"image/png": {}, "text/event-stream": events}}
    draw = handlers.generate
    app.add_api_route("/generate", draw, methods=["POST"], responses=answers, response_model=None)
    missing: dict[int | str, dict[str, Any]] = {404: {"model": Failed}}
    app.add_api_route("/jobs/{job_id}", handlers.status, responses=missing)
    app.add_api_route("/jobs/{job_id}", handlers.cancel, methods=["DELETE"], responses=missing)


def _kinds(accept: str) -> set[str]:
    return {kind.split(";")[0].strip().lower() for kind in accept.split(",")}


def _png(job: Job, picture: Picture) -> Response:
    counters = json.dumps(picture.progress.counters.as_dict())
    headers = {"X-CIAR-Counters": counters, "X-Job-Id": job.id}
    return Response(picture.png, media_type="image/png", headers=headers)


def _generated(picture: Picture) -> dict[str, Any]:
    plan, progress = picture.plan, picture.progress
    return {
        "image": base64.b64encode(picture.png).decode("ascii"),
        "prompt": plan.request.prompt,
        "seed": plan.request.seed,
        "mode": plan.policy.mode,
        "settings": dict(plan.settings),
        "counters": progress.counters.as_dict(),
        "tokens": list(progress.tokens),
        "sources": source_names(progress.sources),
        "notes": list(plan.notes),
    }


def _answer(job: Job, pictures: Sequence[Picture]) -> Answer:
    first, *more = [Generated(**_generated(picture)) for picture in pictures]
    return Answer(id=job.id, more=more, **first.model_dump())


def _described(picture: Picture) -> dict[str, Any]:
    """A picture in an event: its tokens and their sources were told already."""
    return {name: value for name, value in _generated(picture).items() if name not in ("tokens", "sources")}


def _complained(error: BaseException) -> dict[str, Any]:
    return Failed(error=explain(error)).model_dump()


def _status(job: Job, image_tokens: int) -> JobStatus:
    now = job.latest
    return JobStatus(
        id=job.id,
        state=job.state,
        pictures=len(job.plans),
        finished=len(job.pictures),
        tokens=len(now.tokens) if now else 0,
        image_tokens=image_tokens,
        counters=now.counters.as_dict() if now else None,
        error=explain(job.error).model_dump() if job.error else None,
    )
