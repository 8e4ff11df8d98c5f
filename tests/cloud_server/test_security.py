"""Certificates and tokens: who is let in, who is not, and that nobody learns why from inside."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cloud_server.security import Tls, read_tls, warning
from cloud_server.server import CloudServer, Settings, running
from device_client.identity import Identity, read_identity
from device_client.link import CloudLink
from shared.errors import CiarError, CloudUnreachable, InvalidRequest, Refused
from shared.models.zoo import CloudModel
from shared.tokens import read_tokens
from tests.cloud_server.rig import order

TOKEN, OTHER = "correct-horse-battery-staple", "wrong-horse-battery-staple"


@dataclass(frozen=True)
class Files:
    """PEM files of one authority, of a server and of a device it signed for."""

    ca: Path
    cert: Path
    key: Path
    device_cert: Path
    device_key: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return issue(tmp_path_factory.mktemp("pem"))


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The same of an authority nobody asked for."""
    return issue(tmp_path_factory.mktemp("strange"))


def issue(folder: Path) -> Files:
    ca = trustme.CA()
    made = Files(*(folder / f"{name}.pem" for name in ("ca", "cert", "key", "device_cert", "device_key")))
    ca.cert_pem.write_to_path(str(made.ca))
    for names, cert, key in (
        (("localhost", "127.0.0.1"), made.cert, made.key),
        (("device",), made.device_cert, made.device_key),
    ):
        issued = ca.issue_cert(*names)
        issued.cert_chain_pems[0].write_to_path(str(cert))
        issued.private_key_pem.write_to_path(str(key))
    return made


def identity(
    ca: Path | None = None, cert: Path | None = None, key: Path | None = None, token: str | None = None
) -> Identity:
    return read_identity(tls=False, ca=ca, cert=cert, key=key, token_file=None, variable=token)


async def opens(server: CloudServer, cloud: CloudModel, who: Identity) -> int:
    """Draw a prefix; how long it is."""
    target = f"localhost:{server.port}"
    async with CloudLink(target, connect_s=2.0, retry_s=0.0, identity=who) as link:
        assert (await link.info()).models[0].name == cloud.name
        opened = await link.open(order(cloud))
        await link.finish()
    return len(opened.prefix)


# ---- certificates


async def test_tls_lets_in_whoever_believes_the_server(
    cloud: CloudModel, files: Files, strange: Files
) -> None:
    async with running(cloud, Settings(tls=read_tls(files.cert, files.key, None))) as server:
        assert await opens(server, cloud, identity(files.ca)) == 1
        for who in (identity(), identity(strange.ca)):
            with pytest.raises(CloudUnreachable):
                await opens(server, cloud, who)
        assert server.telemetry.value("ciar_sessions_opened_total") == 1


async def test_mutual_tls_lets_in_only_devices_of_its_authority(
    cloud: CloudModel, files: Files, strange: Files
) -> None:
    async with running(cloud, Settings(tls=read_tls(files.cert, files.key, files.ca))) as server:
        assert await opens(server, cloud, identity(files.ca, files.device_cert, files.device_key)) == 1
        for who in (identity(files.ca), identity(files.ca, strange.device_cert, strange.device_key)):
            with pytest.raises(CloudUnreachable):
                await opens(server, cloud, who)
        assert server.telemetry.value("ciar_sessions_opened_total") == 1


def test_certificates_that_do_not_work_are_named(files: Files, strange: Files, tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    for cert, key, ca, says in (
        (files.cert, None, None, "--tls-key is missing"),
        (None, files.key, None, "--tls-cert is missing"),
        (None, None, files.ca, "is missing"),
        (tmp_path / "none", files.key, None, "--tls-cert .*none cannot be read"),
        (files.cert, strange.key, None, "do not work"),
        (junk, files.key, None, "do not work"),
        (files.cert, files.key, junk, "do not work"),
    ):
        with pytest.raises(InvalidRequest, match=says):
            read_tls(cert, key, ca)
    for ca, cert, key, says in (
        (junk, None, None, "does not work"),
        (tmp_path / "none", None, None, "--tls-ca"),
        (None, files.device_cert, strange.device_key, "do not work"),
        (None, files.device_cert, None, "--tls-cert needs --tls-key"),
    ):
        with pytest.raises(InvalidRequest, match=says):
            identity(ca, cert, key)


# ---- tokens


@pytest.fixture
async def guarded(cloud: CloudModel) -> AsyncIterator[CloudServer]:
    async with running(cloud, Settings(tokens=(OTHER + "2", TOKEN))) as server:
        yield server


async def test_a_known_token_is_let_in_and_no_other(guarded: CloudServer, cloud: CloudModel) -> None:
    assert await opens(guarded, cloud, identity(token=TOKEN)) == 1
    for token in (None, OTHER, TOKEN[:-1], TOKEN + "x", TOKEN.upper()):
        with pytest.raises(Refused, match="UNAUTHENTICATED") as refused:
            await opens(guarded, cloud, identity(token=token))
        assert TOKEN not in str(refused.value) and "CIAR_TOKEN" in refused.value.next_step
    assert guarded.telemetry.value("ciar_sessions_opened_total") == 1


METHODS = (
    "/ciar.v1.CiarService/Generate",
    "/ciar.v1.CiarService/GetInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/no.such.Service/Method",
)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", TOKEN),),
        (("authorization", f"Basic {TOKEN}"),),
        (("authorization", "Bearer "),),
        (("authorization", f"Bearer {TOKEN}"), ("authorization", f"Bearer {TOKEN}")),
        (("authorization", "Bearer \x7e" + "x" * 4000),),
    ],
    ids=["none", "bare", "basic", "empty", "twice", "long"],
)
async def test_no_method_is_beside_the_guard(
    guarded: CloudServer, method: str, metadata: tuple[tuple[str, str], ...]
) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{guarded.port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as unary:
            await channel.unary_unary(method)(b"", metadata=metadata, timeout=5)
        stream = channel.stream_stream(method)(metadata=metadata, timeout=5)
        with pytest.raises(grpc.aio.AioRpcError) as streamed:
            await stream.read()
    for refused in (unary.value, streamed.value):
        assert refused.code() is grpc.StatusCode.UNAUTHENTICATED
        assert refused.details() == "a known token is needed: metadata 'authorization: Bearer TOKEN'"


@pytest.mark.parametrize("health_needs_token", [False, True])
async def test_health_is_free_unless_it_is_guarded_too(cloud: CloudModel, health_needs_token: bool) -> None:
    settings = Settings(tokens=(TOKEN,), health_needs_token=health_needs_token)
    async with (
        running(cloud, settings) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        check = health_pb2_grpc.HealthStub(channel).Check
        known = (("authorization", f"bearer {TOKEN}"),)
        answer = await check(health_pb2.HealthCheckRequest(), metadata=known)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        if not health_needs_token:
            await check(health_pb2.HealthCheckRequest())
            return
        with pytest.raises(grpc.aio.AioRpcError):
            await check(health_pb2.HealthCheckRequest())


async def test_reflection_works_with_a_token(guarded: CloudServer) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{guarded.port}") as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(metadata=(("authorization", f"Bearer {TOKEN}"),))
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        assert (await call.read()).list_services_response.service
        call.cancel()


def test_tokens_come_from_a_file_and_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# of the tablets\n{TOKEN}\n\n  {OTHER}  \n")
    assert read_tokens(file, None) == (TOKEN, OTHER)
    assert read_tokens(None, f"{TOKEN}\n") == (TOKEN,)
    assert read_tokens(file, OTHER + "3") == (TOKEN, OTHER, OTHER + "3")
    assert read_tokens(None, None) == read_tokens(None, " ") == ()


@pytest.mark.parametrize("text", ["", "# none\n", "short\n", f"{TOKEN} twice\n", "ü" * 20])
def test_tokens_that_cannot_be_are_refused_unseen(tmp_path: Path, text: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(text)
    with pytest.raises(InvalidRequest, match="token") as refused:
        read_tokens(file, None)
    assert TOKEN not in str(refused.value) and "short" not in str(refused.value)


def test_a_device_reads_its_token_from_a_file_before_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    none = {"tls": False, "ca": None, "cert": None, "key": None}
    assert read_identity(**none, token_file=file, variable=OTHER) == Identity(token=TOKEN)
    file.write_text("two words\n")
    with pytest.raises(InvalidRequest, match=r"--token-file .* holds no token"):
        read_identity(**none, token_file=file, variable=None)
    with pytest.raises(InvalidRequest, match="CIAR_TOKEN holds no token"):
        read_identity(**none, token_file=None, variable="two words")


def test_secrets_are_in_no_representation(files: Files) -> None:
    tls = read_tls(files.cert, files.key, None)
    assert isinstance(tls, Tls) and "PRIVATE" not in repr(tls)
    assert TOKEN not in repr(Settings(tokens=(TOKEN,))) + repr(identity(token=TOKEN))


# ---- what an operator is told


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7"])
def test_an_open_door_is_named(host: str) -> None:
    both = warning(host, encrypted=False, guarded=False)
    assert both is not None and "--tls-cert" in both and "--token-file" in both
    plain, anybody = (warning(host, encrypted=e, guarded=not e) for e in (False, True))
    assert plain is not None and "not encrypted" in plain and "anybody" not in plain
    assert anybody is not None and "anybody" in anybody and "encrypted" not in anybody
    assert warning(host, encrypted=True, guarded=True) is None
    assert warning("127.0.0.1", encrypted=False, guarded=False) is None


def test_mutual_tls_counts_as_a_guard(files: Files) -> None:
    mutual = read_tls(files.cert, files.key, files.ca)
    assert Settings(host="0.0.0.0", tls=mutual).warning is None
    assert Settings(host="0.0.0.0", tls=read_tls(files.cert, files.key, None)).warning is not None


async def test_an_unusable_port_is_named_with_tls_as_well(cloud: CloudModel, files: Files) -> None:
    tls = read_tls(files.cert, files.key, None)
    async with running(cloud, Settings(tls=tls)) as server:
        with pytest.raises(CiarError, match=f"cannot listen on 127.0.0.1:{server.port}"):
            await CloudServer(cloud, Settings(tls=tls, port=server.port)).start()
