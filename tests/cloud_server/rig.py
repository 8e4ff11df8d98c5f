"""What the tests of the cloud share: orders, a raw client of the stream, and the image a seed stands for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from cloud_server.engine import Engine
from cloud_server.server import CloudServer
from cloud_server.session import Job, Session
from shared.decoding.warp import Warp
from shared.messages import Draft, Finish, Open, Opened, Tokens, Usage, Verdict
from shared.models.zoo import CloudModel
from shared.wire import codec
from shared.wire.pb import ciar_pb2 as pb
from shared.wire.pb import ciar_pb2_grpc as rpc
from tests.tiny import WARP
from training.base import sample

PROMPT = "a red cat"


def order(cloud: CloudModel, seed: int = 0, prompt: str = PROMPT, warp: Warp = WARP, **changes: Any) -> Open:
    """An order that fits `cloud`, `changes` aside."""
    vocab = cloud.model.config.vocab_size
    plain = Open(cloud.name, cloud.digest, vocab, prompt, seed, warp, prefix_tokens=1, acceptance="coupled")
    return replace(plain, **changes)


def base_image(cloud: CloudModel, wanted: Open) -> Tokens:
    """The tokens cloud-only decoding draws for an order: int32 [T]."""
    drawn: NDArray[np.int32] = sample(cloud.model, [wanted.prompt], [wanted.seed], wanted.warp)[0].numpy()
    return drawn.astype(np.int32)


def tokens(*ids: int) -> Tokens:
    """A token vector."""
    return np.array(ids, dtype=np.int32)


def spoil(span: Tokens, keep: int, vocab: int) -> Tokens:
    """The span with token number `keep` and all later ones replaced by wrong ones."""
    return np.where(np.arange(len(span)) < keep, span, (span + 1) % vocab).astype(np.int32)


def dial(server: CloudServer) -> grpc.aio.Channel:
    """A connection of its own."""
    return grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")


async def eventually(holds: Callable[[], bool], patience_s: float = 5.0) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(patience_s):
        while not holds():
            await asyncio.sleep(0.005)


def draw_all(engine: Engine, session: Session) -> list[int]:
    """Cloud-only: one token per forward up to the end of the image."""
    while len(session.tokens) < session.limits.image_tokens:
        engine.run([Job(session)])
    return session.tokens


class RawDevice:
    """One stream, spoken frame by frame."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.call = rpc.CiarServiceStub(channel).Generate()

    async def send(self, message: Open | Draft | Finish) -> None:
        """Write one message."""
        match message:
            case Open():
                await self.call.write(codec.encode_open(message))
            case Draft():
                await self.call.write(codec.encode_draft(message))
            case Finish():
                await self.call.write(codec.encode_finish(message))

    async def receive(self) -> Opened | Verdict | Usage | None:
        """Read one message, None at the end of the stream; raises the error of an Error frame."""
        frame = await self.call.read()
        return codec.decode_response(frame) if isinstance(frame, pb.GenerateResponse) else None

    async def open(self, wanted: Open) -> list[int]:
        """Open, and the tokens this device owns then."""
        await self.send(wanted)
        opened = await self.receive()
        assert isinstance(opened, Opened)
        return [*wanted.resume.tolist(), *opened.prefix.tolist()]

    async def ask(self, draft: Draft) -> Verdict:
        """One round."""
        await self.send(draft)
        verdict = await self.receive()
        assert isinstance(verdict, Verdict)
        return verdict

    async def finish(self) -> Usage:
        """Finish, and the costs."""
        await self.send(Finish())
        usage = await self.receive()
        assert isinstance(usage, Usage)
        assert await self.receive() is None
        assert await self.call.code() is grpc.StatusCode.OK
        return usage


async def draw_image(
    channel: grpc.aio.Channel, wanted: Open, truth: Tokens, keeps: Sequence[int] = (2, 0, 9)
) -> list[int]:
    """A whole image by rounds whose drafts are right for keeps[0], keeps[1], ... tokens of four."""
    device = RawDevice(channel)
    owned = await device.open(wanted)
    number = 0
    while len(owned) < len(truth):
        right = truth[len(owned) : len(owned) + 4]
        span = spoil(right, keeps[number % len(keeps)], wanted.codebook_size)
        verdict = await device.ask(Draft(number, len(owned), span))
        owned += span[: verdict.accepted].tolist()
        owned += [] if verdict.token is None else [verdict.token]
        number += 1
    await device.finish()
    return owned
