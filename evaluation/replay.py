"""What a drawn image decided, and the same decisions again at the shapes of a larger model: how long they
take there, without its weights. Knows no tables of the paper.

The replayed cloud has random weights but for its output, which is zero: every draw is then the largest noise,
which the device knows beforehand. So it drafts rightly what was accepted, wrongly what was refused, and real
forwards over the real wire give the recorded verdicts. Every row is judged by the coupled draws: which rule
judges changes no forward.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from cloud_server.server import Settings, running
from device_client.drafter import Drafter, Step
from device_client.link import CloudLink
from device_client.progress import Progress, Source
from device_client.rounds import Round
from evaluation.promptless import PromptlessModel, promptless_cloud, random_transformer
from shared.config import DeviceConfig, TransformerConfig, VQConfig, from_dict
from shared.decoding.calibration import Calibration
from shared.decoding.noise import gumbel
from shared.errors import CiarError, InvalidRequest
from shared.messages import Draft, Open, Verdict
from shared.models.inter_head import DeviceModel
from shared.models.vq import VQModel
from shared.models.zoo import CloudModel, DevicePackage

SEED = 0
HEADER = (
    "row",
    "tokens",
    "cloud forwards",
    "seconds",
    "without the prompt",
    "speed-up",
    "cloud s",
    "device s",
)


@dataclass(frozen=True)
class Decision:
    """One round: tokens kept before it, tokens drafted, how many of these were accepted."""

    kept: int
    span: int
    accepted: int


@dataclass(frozen=True)
class Trace:
    """One image's decisions: what the cloud drew first, the rounds, the gate, whether features travelled."""

    image_tokens: int
    prefix: int
    gate: str
    features: bool
    rounds: tuple[Decision, ...] = ()

    def first(self, tokens: int) -> Trace:
        """The same of an image of `tokens` tokens: its share of the prefix, and rounds as far as they go."""
        return replace(self, image_tokens=tokens, prefix=self.prefix * tokens // self.image_tokens)


def trace_of(image: Progress, gate: str, *, features: bool) -> Trace:
    """The decisions of a finished image that was drawn with one round in flight, without trees.

    Raises InvalidRequest for rounds of several forwards: draws by noise alone would accept every guess.
    """
    if any(trip.cloud_forwards > 1 for trip in image.trips):
        what = "rounds of several forwards cannot be replayed"
        raise InvalidRequest(what, "", "draw with --max-forwards 1")
    place = prefix = sum(source == Source.PREFIX for source in image.sources)
    rounds = []
    for trip in image.trips:
        kept = 0
        while image.sources[place + kept] == Source.KEPT:
            kept += 1
        rounds.append(Decision(kept, trip.drafted, trip.accepted))
        place += kept + trip.accepted + trip.drawn
    return Trace(len(image.tokens), prefix, gate, features, tuple(rounds))


def write_traces(path: Path, traces: Mapping[str, Trace]) -> None:
    """Rows by name, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({name: asdict(trace) for name, trace in traces.items()}) + "\n", encoding="utf-8"
    )


def read_traces(path: Path) -> dict[str, Trace]:
    """What `write_traces` wrote. Raises InvalidRequest for anything else."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return {name: _trace(raw) for name, raw in told.items()}
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"{path} holds no decisions"
        raise InvalidRequest(what, f"{type(error).__name__}: {error}", "ciar-eval trace writes it") from error


def _trace(raw: Mapping[str, object]) -> Trace:
    rounds = raw["rounds"]
    assert isinstance(rounds, list)
    return from_dict(Trace, {**raw, "rounds": tuple(from_dict(Decision, decision) for decision in rounds)})


@dataclass(frozen=True)
class Replayed:
    """Seconds and cloud forwards of one image."""

    tokens: int
    forwards: int
    total_s: float
    cloud_s: float
    device_s: float


@dataclass(frozen=True, eq=False)
class Pair:
    """A cloud and a one-layer device of one shape, as a replay needs them."""

    cloud: CloudModel
    package: DevicePackage
    prompt: int = 8  # rows

    @classmethod
    def random(cls, name: str, shape: TransformerConfig, dtype: torch.dtype, fitted: DevicePackage) -> Pair:
        """Random weights in `dtype`, the device in fp32; the gates' fits are those of another pair."""
        gpt = random_transformer(shape, dtype)
        gpt.output.load_state_dict({name: torch.zeros_like(x) for name, x in gpt.output.state_dict().items()})
        small = PromptlessModel(random_transformer(replace(shape, n_layer=1), torch.float32))
        width = VQConfig(ch=8, ch_mult=(1,), z_channels=8, codebook_size=shape.vocab_size, codebook_dim=8)
        calibration = Calibration("", PromptlessModel.warp, 1, 0.0, {}, default_gate="entropy")
        model = DeviceModel(small, DeviceConfig("")).eval()
        package = DevicePackage(name, "", model, VQModel(width), calibration, fitted.learned)
        return cls(promptless_cloud(gpt, name), package)


class _Image:
    """One image under replay."""

    def __init__(self, pair: Pair, trace: Trace, link: CloudLink) -> None:
        shape = pair.package.model.base.config
        self._trace, self._link, self._vocab = trace, link, shape.vocab_size
        self._right = gumbel(SEED, range(trace.image_tokens), shape.vocab_size).argmax(-1).tolist()
        self._prompt, self._pair = str(min(pair.prompt, shape.prefix_len)), pair
        self.tokens: list[int] = []
        self.forwards, self.cloud_s, self.device_s = 0, 0.0, 0.0

    async def draw(self) -> None:
        """All of it. Raises CiarError where the cloud decides otherwise than it did."""
        package, trace = self._pair.package, self._trace
        warp = PromptlessModel.warp
        ordered = (package.name, "", self._vocab, self._prompt, SEED, warp, trace.prefix, "coupled")
        opened = await self._link.open(Open(*ordered))
        self._take(opened.prefix.tolist(), opened.cloud_forwards, opened.cloud_s)
        if len(self.tokens) < trace.image_tokens:
            began_s = time.perf_counter()
            self._drafter = Drafter(package, self._prompt, SEED, warp, gate=trace.gate)
            self.device_s += time.perf_counter() - began_s
        for number, decision in enumerate(trace.rounds, 1):
            if len(self.tokens) >= trace.image_tokens:
                break
            await self._round(number, decision)
        await self._link.finish()

    async def _round(self, number: int, decision: Decision) -> None:
        room = self._trace.image_tokens - len(self.tokens)
        kept = min(decision.kept, room - 1)
        span = min(decision.span, room - kept)
        accepted = min(decision.accepted, span)
        began_s = time.perf_counter()
        draft = self._draft(number, kept, span, accepted)
        self.device_s += time.perf_counter() - began_s
        await self._link.send(draft)
        verdict = await self._link.receive()
        if verdict.accepted != accepted:
            raise CiarError(f"the cloud accepted {verdict.accepted} of {span}", f"recorded were {accepted}")
        self._settle(kept, verdict)

    def _draft(self, number: int, kept: int, span: int, accepted: int) -> Draft:
        ahead: list[int] = []
        steps: list[Step] = []
        for place in range(kept + span):
            right = self._right[len(self.tokens) + place]
            token = (right + 1) % self._vocab if place == kept + accepted else right
            step = self._drafter.step([*self.tokens, *ahead])
            steps.append(replace(step, token=token))
            ahead.append(token)
        drawn = Round(kept=steps[:kept], span=steps[kept:])
        end = len(self.tokens) + len(ahead)
        return drawn.draft(number, end, None, self._drafter if self._trace.features else None)

    def _settle(self, kept: int, verdict: Verdict) -> None:
        place = len(self.tokens)
        judged = [*self._right[place : place + kept + verdict.accepted], *verdict.drawn]
        self._take(judged, verdict.cloud_forwards, verdict.cloud_s)
        self._drafter.rewind(len(self.tokens) - 1)

    def _take(self, tokens: Sequence[int], forwards: int, cloud_s: float) -> None:
        self.tokens.extend(tokens)
        self.forwards += forwards
        self.cloud_s += cloud_s


async def replay(pair: Pair, traces: Mapping[str, Trace], repeats: int) -> dict[str, list[Replayed]]:
    """Every trace so often, in turns, after a start that warms up. Raises CiarError as `_Image.draw`."""
    found: dict[str, list[Replayed]] = {name: [] for name in traces}
    async with running(pair.cloud, Settings(max_sessions=1)) as server:
        *_, last = traces.values()
        await _replayed(pair, last.first(min(4, last.image_tokens)), server.port)
        for _ in range(repeats):
            for name, trace in traces.items():
                found[name].append(await _replayed(pair, trace, server.port))
    return found


async def _replayed(pair: Pair, trace: Trace, port: int) -> Replayed:
    async with CloudLink(f"127.0.0.1:{port}", deadline_s=300.0) as link:
        image = _Image(pair, trace, link)
        began_s = time.perf_counter()
        await image.draw()
        total_s = time.perf_counter() - began_s
    return Replayed(len(image.tokens), image.forwards, total_s, image.cloud_s, image.device_s)
