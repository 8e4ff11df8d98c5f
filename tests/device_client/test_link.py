"""The link against real servers, and against gRPC peers that say what no server should."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

from cloud_server.server import CloudServer, Settings, running
from device_client.link import CloudLink
from shared.errors import (
    CiarError,
    CloudUnreachable,
    InvalidDraft,
    InvalidRequest,
    ModelMismatch,
    ModelUnavailable,
    Overloaded,
    SessionLost,
)
from shared.messages import Draft, Features, Finish, Open, Opened, Tokens, Usage, Verdict
from shared.models.zoo import CloudModel, load_cloud
from shared.wire import codec
from shared.wire.pb import ciar_pb2 as pb
from shared.wire.pb import ciar_pb2_grpc as rpc
from tests.tiny import WARP, build_tiny_model

Frame = Opened | Verdict | Usage | CiarError
Script = list[list[Frame | grpc.StatusCode | None]]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> CloudModel:
    folder = build_tiny_model(tmp_path_factory.mktemp("tiny"), grid=6)
    return load_cloud(str(folder), Path("nowhere"))


@pytest.fixture
async def server(cloud: CloudModel) -> AsyncIterator[CloudServer]:
    async with running(cloud, Settings(max_sessions=1)) as server:
        yield server


def ids(*tokens: int) -> Tokens:
    return np.array(tokens, dtype=np.int32)


def order_for(cloud: CloudModel) -> Open:
    return Open(cloud.name, cloud.digest, 32, "a red cat", 7, WARP, 3, "coupled")


def link_to(server: CloudServer, retry_s: float = 5.0) -> CloudLink:
    return CloudLink(f"127.0.0.1:{server.port}", retry_s=retry_s)


async def ask(link: CloudLink, draft: Draft) -> Verdict:
    """One round, waited for."""
    await link.send(draft)
    return await link.receive()


# ---- targets and servers that are not there


@pytest.mark.parametrize(
    "target",
    ["", "here", "here:", ":50051", "here:0", "here:65536", "http://here:1", "a b:1", "::1:50051", "x:1x"],
)
def test_a_target_is_host_and_port(target: str) -> None:
    with pytest.raises(InvalidRequest, match="host:port"):
        CloudLink(target)


def test_names_and_addresses_are_targets() -> None:
    for target in ("localhost:50051", "10.0.0.1:1", "[::1]:50051", "cloud.example.org:65535"):
        CloudLink(target)


@pytest.fixture
async def silent_port() -> AsyncIterator[int]:
    """A port that takes connections and never says a word."""
    goodbye = asyncio.Event()

    async def ignore(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await goodbye.wait()
        writer.close()

    server = await asyncio.start_server(ignore, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    goodbye.set()
    server.close()
    await server.wait_closed()


async def test_a_server_that_is_not_there_is_given_up_quickly(cloud: CloudModel, silent_port: int) -> None:
    for port in (1, silent_port):
        async with CloudLink(f"127.0.0.1:{port}", connect_s=0.4) as link:
            for act in (link.open(order_for(cloud)), link.info()):
                began = time.monotonic()
                with pytest.raises(CloudUnreachable) as error:
                    await act
                assert time.monotonic() - began < 2
                assert f"no cloud server at 127.0.0.1:{port}" in str(error.value)
                assert f"cloud-server --model emoji --port {port}" in error.value.next_step


async def test_a_server_of_another_kind_is_told_from_a_lost_one(cloud: CloudModel) -> None:
    other = grpc.aio.server()
    port = other.add_insecure_port("127.0.0.1:0")
    await other.start()
    async with CloudLink(f"127.0.0.1:{port}") as link:
        for act in (link.open(order_for(cloud)), link.info()):
            with pytest.raises(CloudUnreachable, match=r"refuses .UNIMPLEMENTED"):
                await act
    await other.stop(0)


# ---- a real server


async def test_info_tells_what_is_served(cloud: CloudModel, server: CloudServer) -> None:
    async with link_to(server) as link:
        info = await link.info()
    assert [(model.digest, model.image_tokens) for model in info.models] == [(cloud.digest, 36)]
    assert info.max_sessions == 1


async def test_one_image_by_hand(cloud: CloudModel, server: CloudServer) -> None:
    async with link_to(server) as link:
        opened = await link.open(order_for(cloud))
        assert (len(opened.prefix), opened.image_tokens, opened.cloud_forwards) == (3, 36, 3)
        verdict = await ask(link, Draft(1, 3, ids(1, 2, 3)))
        assert 0 <= verdict.accepted <= 3 and verdict.token is not None
        usage = await link.finish()
        assert (usage.cloud_forwards, usage.rounds, usage.judged) == (4, 1, 3)
        assert link.resumes == 0
        with pytest.raises(SessionLost):
            await link.finish()


async def test_bytes_are_those_of_the_frames(cloud: CloudModel, server: CloudServer) -> None:
    async with link_to(server) as link:
        order, draft = order_for(cloud), Draft(1, 3, ids(1, 2, 3))
        answers = [await link.open(order), await ask(link, draft), await link.finish()]
    sent = [codec.encode_open(order), codec.encode_draft(draft), codec.encode_finish(Finish())]
    assert link.bytes_up == sum(len(frame.SerializeToString()) + 5 for frame in sent)
    received = [codec.encode_response(answer) for answer in answers]
    assert link.bytes_down == sum(len(frame.SerializeToString()) + 5 for frame in received)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"cloud_digest": "0123456789abcdef"}, ModelMismatch),
        ({"codebook_size": 33}, ModelMismatch),
        ({"model": "another"}, ModelUnavailable),
        ({"acceptance": "kind"}, InvalidRequest),
    ],
)
async def test_refusals_are_raised_as_they_come(
    cloud: CloudModel, server: CloudServer, change: dict[str, object], kind: type[CiarError]
) -> None:
    async with link_to(server) as link:
        began = time.monotonic()
        with pytest.raises(kind):
            await link.open(dataclasses.replace(order_for(cloud), **change))  # type: ignore[arg-type]
        assert time.monotonic() - began < 2  # no second try
        await link.open(order_for(cloud))
        with pytest.raises(InvalidDraft):
            await ask(link, Draft(1, 9, ids(1)))


async def test_a_full_server_is_waited_for(cloud: CloudModel, server: CloudServer) -> None:
    async with link_to(server) as one, link_to(server) as other, link_to(server, retry_s=0.3) as hasty:
        await one.open(order_for(cloud))
        with pytest.raises(Overloaded):
            await hasty.open(order_for(cloud))
        waiting = asyncio.create_task(other.open(order_for(cloud)))
        await asyncio.sleep(0.1)
        await one.finish()
        assert len((await waiting).prefix) == 3


async def test_a_cancelled_round_frees_the_session(cloud: CloudModel, server: CloudServer) -> None:
    async with link_to(server) as one, link_to(server) as other:
        await one.open(order_for(cloud))
        task = asyncio.create_task(ask(one, Draft(1, 3, ids(*range(20)))))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(SessionLost):
            await one.finish()
        await other.open(order_for(cloud))


async def test_a_stopped_server_is_resumed_on_its_successor(cloud: CloudModel) -> None:
    drafts = [Draft(1, 3, ids(1, 2, 3))]
    answers = []
    for stops in (False, True):
        server = CloudServer(cloud, Settings())
        await server.start()
        async with link_to(server) as link:
            opened = await link.open(order_for(cloud))
            verdict = await ask(link, drafts[0])
            base = 3 + verdict.accepted + 1
            if stops:
                await server.stop()
                server = CloudServer(cloud, Settings(port=server.port))
                await server.start()
            second = await ask(link, Draft(2, base, ids(4, 5), catch_up=ids(6, 7)))
            answers.append((opened.prefix.tolist(), verdict.accepted, verdict.token, second.token))
            assert link.resumes == stops
            assert (await link.finish()).rounds == (1 if stops else 2)
        await server.stop()
    assert answers[0] == answers[1]


async def test_a_server_that_does_not_come_back_is_given_up(cloud: CloudModel) -> None:
    server = CloudServer(cloud, Settings())
    await server.start()
    async with CloudLink(f"127.0.0.1:{server.port}", connect_s=0.2, retry_s=0.6) as link:
        await link.open(order_for(cloud))
        await server.stop()
        began = time.monotonic()
        with pytest.raises(CloudUnreachable, match="no cloud server"):
            await ask(link, Draft(1, 3, ids(1)))
        assert 0.3 < time.monotonic() - began < 3


# ---- peers that end, stall or lie


class Scripted(rpc.CiarServiceServicer):
    """Answers stream s with script[s]: None ends the stream, a status aborts it. Keeps what came."""

    def __init__(self, script: Script) -> None:
        self.streams, self.received = iter(script), list[list[Open | Draft | Finish]]()

    async def Generate(
        self, requests: AsyncIterator[pb.GenerateRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GenerateResponse]:
        answers: Iterator[Frame | grpc.StatusCode | None] = iter(next(self.streams))
        self.received.append([])
        async for frame in requests:
            self.received[-1].append(codec.decode_request(frame))
            answer = next(answers)
            if answer is None:
                return
            if isinstance(answer, grpc.StatusCode):
                await context.abort(answer, "as scripted")
            else:
                yield codec.encode_response(answer)


@asynccontextmanager
async def scripted(
    *script: list[Frame | grpc.StatusCode | None],
) -> AsyncIterator[tuple[Scripted, CloudLink]]:
    """A peer that follows the script, and a link to it."""
    peer, server = Scripted(list(script)), grpc.aio.server()
    rpc.add_CiarServiceServicer_to_server(peer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with CloudLink(f"127.0.0.1:{port}", connect_s=1.0, deadline_s=1.0, retry_s=1.0) as link:
        yield peer, link
    await server.stop(0)


ORDER = Open("emoji", "", 32, "a cat", 7, WARP, 3, "coupled")
OPENED = Opened("s", 36, ids(9, 8, 7), 3, 0.1)
RESUMED = Opened("t", 36, ids(), 0, 0.0)


def features(*index: int) -> Features:
    codes = np.array([[place, -place] for place in index], dtype=np.int8)
    return Features(np.array(index, np.uint16), codes, np.ones(len(index), np.float16))


DRAFTS = [
    Draft(1, 3, ids(1, 2, 3), catch_up=ids(4, 5, 6), features=features(0, 2)),
    Draft(2, 9, ids(10, 11), catch_up=ids(12), features=features(0)),
    Draft(3, 13, ids(13)),
]
VERDICTS = [Verdict(1, 2, 20, 0.1), Verdict(2, 2, 21, 0.1), Verdict(3, 0, 22, 0.1)]
OWNED = [9, 8, 7, 4, 5, 6, 1, 2, 20, 12, 10, 11, 21]


@pytest.mark.parametrize(
    "end",
    [
        None,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.CANCELLED,
        SessionLost("bye"),
    ],
)
async def test_a_replay_brings_all_that_is_owned(end: SessionLost | grpc.StatusCode | None) -> None:
    async with scripted([OPENED, VERDICTS[0], VERDICTS[1], end], [RESUMED, VERDICTS[2]]) as (peer, link):
        await link.open(ORDER)
        verdicts = [await ask(link, draft) for draft in DRAFTS]
        assert [verdict.token for verdict in verdicts] == [20, 21, 22]
        assert link.resumes == 1
    replay, again = peer.received[1]
    assert isinstance(replay, Open) and isinstance(again, Draft)
    assert replay.resume.tolist() == OWNED
    assert (replay.prompt, replay.seed, replay.warp, replay.prefix_tokens) == ("a cat", 7, WARP, 3)
    assert replay.resume_features is not None
    assert replay.resume_features.index.tolist() == [3, 5, 9]
    assert replay.resume_features.codes.tolist() == [[0, 0], [2, -2], [0, 0]]
    assert (again.round, again.base, again.span.tolist()) == (3, 13, [13])


# Round 2 is drawn behind round 1, whose bonus it takes to be 20; round 3 behind round 2.
CHAIN = [
    Draft(1, 3, ids(1, 2, 3), catch_up=ids(4), features=features(0)),
    Draft(2, 7, ids(10, 11), catch_up=ids(20, 12), features=features(1), behind=1),
    Draft(3, 11, ids(13), catch_up=ids(21), behind=2),
]
WHOLE = [Verdict(1, 3, 20, 0.1), Verdict(2, 2, 21, 0.1), Verdict(3, 0, 22, 0.1)]
VOID = Verdict(2, 0, None, 0.0, cloud_forwards=0, stale=True)


@pytest.mark.parametrize("end", [None, grpc.StatusCode.UNAVAILABLE, SessionLost("bye")])
@pytest.mark.parametrize("before", [0, 1, 2])
async def test_a_replay_brings_all_that_is_under_way(
    end: SessionLost | grpc.StatusCode | None, before: int
) -> None:
    """The oldest round in flight has become a plain one by then, with the bonus among what is owned."""
    async with scripted([OPENED, *WHOLE[:before], end], [RESUMED, *WHOLE[before:]]) as (peer, link):
        await link.open(ORDER)
        for draft in CHAIN:
            await link.send(draft)
        verdicts = [await link.receive() for _ in CHAIN]
        assert [verdict.token for verdict in verdicts] == [20, 21, 22]
        assert link.resumes == 1 and not link.answered
    replay, *again = peer.received[1]
    assert isinstance(replay, Open)
    owned = [9, 8, 7, 4, 1, 2, 3, 20, 12, 10, 11, 21]
    assert replay.resume.tolist() == owned[: (3, 8, 12)[before]]
    places = [] if replay.resume_features is None else replay.resume_features.index.tolist()
    assert places == [3, 8][:before]
    sent = [draft for draft in again if isinstance(draft, Draft)]
    assert [draft.round for draft in sent] == [1, 2, 3][before:]
    assert [draft.behind for draft in sent] == [None, 1, 2][:1] + [1, 2][before:]
    assert sent[0].base == len(replay.resume)
    assert sent[-1].span.tolist() == [13]


async def test_rounds_that_became_void_are_not_waited_for() -> None:
    bad = Verdict(1, 1, 2, 0.1, more=ids(5), guesses=ids(6, 7), cloud_forwards=2)
    third = dataclasses.replace(VOID, round=3)
    async with scripted([OPENED, bad, VOID, third, Verdict(4, 1, 9, 0.1)]) as (_, link):
        await link.open(ORDER)
        for draft in CHAIN:
            await link.send(draft)
        verdict = await link.receive()
        assert (verdict.drawn, verdict.guesses.tolist(), verdict.cloud_forwards) == ([2, 5], [6, 7], 2)
        assert (await ask(link, Draft(4, 7, ids(8)))).token == 9
        assert link.resumes == 0


async def test_an_answer_is_read_while_nobody_waits_for_it() -> None:
    async with scripted([OPENED, *WHOLE]) as (_, link):
        await link.open(ORDER)
        assert not link.answered
        for draft in CHAIN:
            await link.send(draft)
        for verdict in WHOLE:
            async with asyncio.timeout(1):
                while not link.answered:
                    await asyncio.sleep(0.001)
            assert (await link.receive()).token == verdict.token
        assert not link.answered


async def test_an_image_given_up_with_rounds_under_way_has_its_usage() -> None:
    usage = Usage(4, 1, 3, 3, 0.1)
    async with scripted([OPENED, *WHOLE, usage]) as (_, link):
        await link.open(ORDER)
        for draft in CHAIN:
            await link.send(draft)
        assert await link.finish() == usage


async def test_a_refusal_heard_in_the_background_is_raised_once() -> None:
    async with scripted([OPENED, InvalidDraft("no"), None, None]) as (peer, link):
        await link.open(ORDER)
        for draft in CHAIN:
            await link.send(draft)
        with pytest.raises(InvalidDraft, match="no"):
            await link.receive()
        assert len(peer.received) == 1


async def test_a_fresh_image_is_opened_again_when_the_stream_breaks() -> None:
    async with scripted([None], [grpc.StatusCode.UNAVAILABLE], [OPENED]) as (peer, link):
        assert (await link.open(ORDER)).prefix.tolist() == [9, 8, 7]
        assert link.resumes == 0  # nothing was owned yet
        assert len(peer.received) == 3


async def test_overload_on_replay_is_waited_for() -> None:
    full = Overloaded("full", retry_after_s=0.05)
    async with scripted([full], [OPENED, None], [full], [RESUMED, VERDICTS[0]]) as (_, link):
        await link.open(ORDER)
        assert (await ask(link, DRAFTS[0])).accepted == 2


async def test_a_peer_that_keeps_breaking_off_is_given_up() -> None:
    async with scripted(*[[None]] * 50) as (peer, link):
        began = time.monotonic()
        with pytest.raises(CloudUnreachable):
            await link.open(ORDER)
        assert time.monotonic() - began < 2
        assert 2 <= len(peer.received) <= 6  # pauses of 0.1, 0.2, 0.4, ... seconds


@pytest.mark.parametrize(
    ("answers", "what"),
    [
        ([VERDICTS[0]], "Verdict instead of Opened"),
        ([Opened("s", 36, ids(32), 1, 0.0)], "token 32 of a codebook of 32"),
        ([Opened("s", 2, ids(1, 2, 3), 3, 0.0)], "a prefix of 3 of 2 tokens"),
        ([OPENED, Verdict(2, 2, 20, 0.0)], "round 2"),
        ([OPENED, Verdict(1, 4, 20, 0.0)], "4 tokens accepted"),
        ([OPENED, Verdict(1, 2, None, 0.0)], "token None behind 8 of 36"),
        ([OPENED, Verdict(1, 2, 32, 0.0)], "token 32"),
        ([OPENED, Verdict(1, 3, 20, 0.0, more=ids(1))], "2 tokens behind 9 of 36"),
        ([OPENED, Verdict(1, 0, 20, 0.0, guesses=ids(*range(30)))], "31 tokens behind 6 of 36"),
        ([OPENED, Verdict(1, 0, 20, 0.0, guesses=ids(32))], "token 32"),
        ([OPENED, Usage(1, 1, 1, 1, 0.0)], "Usage instead of Verdict"),
    ],
)
async def test_nonsense_is_refused(answers: list[Frame | grpc.StatusCode | None], what: str) -> None:
    async with scripted(answers) as (_, link):
        with pytest.raises(CiarError, match=what) as error:
            await link.open(ORDER)
            await ask(link, DRAFTS[0])
        assert type(error.value) is CiarError


async def test_every_answer_has_a_deadline() -> None:
    class Silent(rpc.CiarServiceServicer):
        async def Generate(
            self, requests: AsyncIterator[pb.GenerateRequest], context: grpc.aio.ServicerContext
        ) -> AsyncIterator[pb.GenerateResponse]:
            async for _ in requests:
                await asyncio.sleep(3600)
            yield pb.GenerateResponse()

    server = grpc.aio.server()
    rpc.add_CiarServiceServicer_to_server(Silent(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with CloudLink(f"127.0.0.1:{port}", deadline_s=0.2, retry_s=0.5) as link:
        began = time.monotonic()
        with pytest.raises(CloudUnreachable, match=r"no answer within 0.2 s"):
            await link.open(ORDER)
        assert time.monotonic() - began < 3
    await server.stop(0)
