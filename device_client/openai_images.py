"""POST /v1/images/generations as OpenAI's Images API defines it, so that its clients need another URL only.

Settings that mean something here beyond theirs (seed, mode, gate, cloud_budget, ...) are taken from the body
as well; a client sends them as extra fields. Knows nothing of how a picture is drawn.
"""

from __future__ import annotations

import asyncio
import base64
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Annotated, Any, Literal

from fastapi import Body, FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from device_client.answers import OpenAIFailed, UnknownModel, explain, openai_explain, status_of
from device_client.events import Event, partials_due, stream, unfinished
from device_client.generate import CALLER_GONE, MAX_PICTURES, NO_STORE, plans_of
from device_client.jobs import Job, Picture
from device_client.studio import Studio, while_connected
from device_client.tiles import Tiles
from device_client.wish import Plan, Wish
from shared.decoding.noise import SEED_LIMIT
from shared.errors import InvalidRequest

# OpenAI's own names draw with the model that is here: a program that names one needs no other change.
THEIR_MODELS = re.compile(r"(gpt-image|dall-e|chatgpt-image)[\w.-]*")
MAX_SIDE = 2048  # larger pictures than the model's are scaled up, to this
FRESH_SEEDS = 2**32  # seeds drawn for those who name none: short enough for every JSON reader


class ImagesBody(BaseModel):
    """The body, as far as OpenAI defines it. Every other field is a setting, as in /generate."""

    model_config = ConfigDict(extra="allow", strict=True)
    prompt: str
    model: str | None = Field(None, description="the model served here, or one of OpenAI's names")
    n: int | None = Field(None, ge=1, le=MAX_PICTURES)
    seed: int | None = Field(None, ge=0, lt=SEED_LIMIT, description="which picture; a new one where unset")
    size: str | None = Field(None, description="auto, or a square: the model's own or larger (scaled up)")
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = Field(None, ge=0, le=100, description="quality of jpeg and webp")
    response_format: Literal["b64_json"] | None = None
    stream: bool | None = None
    partial_images: int | None = Field(None, ge=0, le=3)
    background: Literal["opaque", "auto"] | None = None
    quality: str | None = Field(None, description="ignored, as are the four below")
    style: str | None = None
    moderation: str | None = None
    user: str | None = None
    safety_identifier: str | None = None


EXAMPLES: dict[str, Any] = {
    "one picture": {"value": {"prompt": "a cat"}},
    "a certain one, streamed": {
        "value": {"prompt": "a cat", "seed": 7, "stream": True, "partial_images": 2, "mode": "exact"}
    },
}


class Settings(Wish):
    """The fields that are not OpenAI's."""

    model_config = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True)
class Form:
    """How a finished picture is handed out."""

    side: int
    kind: str  # png, jpeg or webp
    quality: int

    def encode(self, image: Image.Image) -> str:
        """The picture in this form, as base64."""
        file, sides = BytesIO(), (self.side, self.side)
        sized = image if image.size == sides else image.resize(sides, Image.Resampling.LANCZOS)
        sized.save(file, self.kind.upper(), **({} if self.kind == "png" else {"quality": self.quality}))
        return base64.b64encode(file.getvalue()).decode("ascii")

    def finished(self, picture: Picture) -> str:
        """As `encode`, but what needs no change keeps the settings inside the file."""
        with Image.open(BytesIO(picture.png)) as image:
            if self.kind == "png" and image.width == self.side:
                return base64.b64encode(picture.png).decode("ascii")
            return self.encode(image)

    def described(self) -> dict[str, Any]:
        """What every answer says about it."""
        return {"size": f"{self.side}x{self.side}", "output_format": self.kind, "background": "opaque"}


class Images:
    """The handlers below /v1/."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    async def generations(
        self,
        body: Annotated[ImagesBody, Body(openapi_examples=EXAMPLES)],
        request: Request,
        idempotency_key: Annotated[str | None, Header()] = None,
    ) -> Response:
        """Draw pictures as OpenAI's Images API does, streamed or not."""
        form = self._form(body)
        job = self._studio.jobs.begin(lambda: self._plans(body), body.model_dump_json(), idempotency_key)
        if body.stream:
            teller = _Teller(form, await self._studio.tiles(), body.partial_images or 0)
            headers = {**NO_STORE, "X-Job-Id": job.id}
            return StreamingResponse(stream(job, teller), media_type="text/event-stream", headers=headers)
        pictures = await while_connected(request, job.result())
        if pictures is None:
            return Response(status_code=CALLER_GONE)
        content = await asyncio.to_thread(_response, pictures, form)
        return JSONResponse(content, headers={"X-Job-Id": job.id})

    async def models(self) -> dict[str, Any]:
        """The one model there is."""
        model = {"id": self._studio.package.name, "object": "model", "created": 0, "owned_by": "ciar"}
        return {"object": "list", "data": [model]}

    def _form(self, body: ImagesBody) -> Form:
        """Raises InvalidRequest and UnknownModel for what cannot be had."""
        name = self._studio.package.name
        if body.model not in (None, name) and not THEIR_MODELS.fullmatch(str(body.model)):
            raise UnknownModel(f"model {body.model!r} is not served here", f"allowed: {name}")
        quality = 100 if body.output_compression is None else body.output_compression
        return Form(self._side(body.size), body.output_format or "png", quality)

    def _side(self, size: str | None) -> int:
        own = self._studio.pixels
        if size in (None, "auto"):
            return own
        match = re.fullmatch(r"(\d{1,4})x\1", str(size))
        if match is None or not own <= int(match[1]) <= MAX_SIDE:
            allowed = f"auto, and squares from {own}x{own} to {MAX_SIDE}x{MAX_SIDE}"
            raise InvalidRequest(f"size {size!r} is not allowed", f"allowed: {allowed}")
        return int(match[1])

    def _plans(self, body: ImagesBody) -> list[Plan]:
        count = body.n or 1
        seed = secrets.randbelow(FRESH_SEEDS) if body.seed is None else body.seed
        if seed + count > SEED_LIMIT:
            raise InvalidRequest(f"n {count} seeds from {seed} on", f"allowed: up to {SEED_LIMIT - 1}")
        try:
            wish = Settings.model_validate({**(body.model_extra or {}), "prompt": body.prompt, "seed": seed})
        except ValidationError as error:
            wrong = [{**item, "loc": ("body", *item["loc"])} for item in error.errors()]
            raise RequestValidationError(wrong) from error
        return plans_of(self._studio, wish, count)


@dataclass
class _Teller:
    """The events of OpenAI's stream."""

    form: Form
    tiles: Tiles
    partials: int
    _partials: int = 0
    _pictures: int = 0

    async def __call__(self, job: Job) -> list[Event]:
        """Everything new, in order."""
        events: list[Event] = []
        while self._pictures < len(job.pictures):
            picture = job.pictures[self._pictures]
            image = await asyncio.to_thread(self.form.finished, picture)
            more = {"usage": _usage([picture]), "seed": picture.plan.request.seed}
            events.append(self._event("completed", image, more))
            self._pictures, self._partials = self._pictures + 1, 0
        if job.latest is not None and partials_due(job.latest, self.partials) > self._partials:
            mosaic = unfinished(self.tiles, job.latest)
            image = await asyncio.to_thread(self.form.encode, mosaic)
            events.append(self._event("partial_image", image, {"partial_image_index": self._partials}))
            self._partials += 1
        return [*events, *_last_words(job)]

    def _event(self, kind: str, image: str, more: Mapping[str, object]) -> Event:
        name = f"image_generation.{kind}"
        about = {**self.form.described(), "quality": "auto", "created_at": int(time.time())}
        return name, {"type": name, "b64_json": image, **about, **more}


def add_routes(app: FastAPI, studio: Studio) -> None:
    """POST /v1/images/generations, GET /v1/models."""
    handlers = Images(studio)
    codes = (400, 404, 409, 429, 500, 503)
    answers: dict[int | str, dict[str, Any]] = {code: {"model": OpenAIFailed} for code in codes}
    example = {"created": 1767225600, "data": [{"b64_json": "iVBORw0KGgo...", "seed": 7}]}
    answers[200] = {"content": {"application/json": {"example": example}, "text/event-stream": {}}}
    path = "/v1/images/generations"
    app.add_api_route(path, handlers.generations, methods=["POST"], responses=answers, response_model=None)
    app.add_api_route("/v1/models", handlers.models)


def _response(pictures: Sequence[Picture], form: Form) -> dict[str, Any]:
    data = [{"b64_json": form.finished(picture), "seed": picture.plan.request.seed} for picture in pictures]
    return {"created": int(time.time()), "data": data, **form.described(), "usage": _usage(pictures)}


def _usage(pictures: Sequence[Picture]) -> dict[str, Any]:
    """Tokens as OpenAI counts them; those of a prompt are its words."""
    words = len(pictures[0].plan.request.prompt.split())
    drawn = sum(len(picture.progress.tokens) for picture in pictures)
    return {
        "input_tokens": words,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": words},
        "output_tokens": drawn,
        "output_tokens_details": {"image_tokens": drawn, "text_tokens": 0},
        "total_tokens": words + drawn,
    }


def _last_words(job: Job) -> list[Event]:
    """An error, where there was one: the client raises it."""
    if (problem := job.problem) is None:
        return []
    return [("error", openai_explain(status_of(problem), explain(problem)).model_dump())]
