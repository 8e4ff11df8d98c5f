"""What a threshold really costs: mode `ciar` rehearsed as its user gets it, over the wire, image by image.

A kept token changes what follows it, the device's own mistakes make it surer, and the cloud's guesses save
forwards: nothing of that shows teacher-forced. So the call rates and promises of a calibration are those of
finished images that nothing was fitted on. Knows nothing of how gates are fitted, and not who serves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from device_client.loop import Request
from device_client.policy import policy_for
from device_client.progress import Source
from device_client.wish import request_for
from evaluation.run import watch
from shared.decoding.calibration import Calibration, GateTable, keep_promises, with_calls
from shared.decoding.noise import gumbel
from shared.decoding.warp import warp_logits
from shared.errors import InvalidRequest
from shared.models.inter_head import quantise_features
from shared.models.zoo import CloudModel, DevicePackage
from training.cut import forced_rows
from training.images import cloud_log_p, device_interval

FIRST_SEED = 30_000_000
ASKED = (0.06, 0.12, 0.2, 0.3, 0.4, 0.55, 0.75)  # shares of places that thresholds would have judged
RISKS = (0.005, 0.01, 0.02, 0.04)  # shares of wrong places among those below a threshold, for promises
PROMISES = (0.01, 0.02, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3)
PROMISED = ("agreement", "certificate")


@dataclass(frozen=True)
class Plan:
    """How much is rehearsed. Raises InvalidRequest where the prompts do not suffice.

    prompts   one image each and threshold, seeds counting up
    images    of them for every gate
    promised  of them for the gates that make promises, which need about 100
    at_once   images under way at a time
    """

    prompts: tuple[str, ...]
    images: int = 12
    promised: int = 96
    at_once: int = 4

    def __post_init__(self) -> None:
        wanted = max(self.images, self.promised)
        if len(self.prompts) < wanted:
            raise InvalidRequest(f"{len(self.prompts)} prompts do not suffice", f"wanted: {wanted}")


@dataclass(frozen=True)
class _Image:
    """Of one finished image: cloud forwards, those of its prefix, kept tokens, and kept ones unlike the
    cloud's draw in the same context, as shares of its tokens."""

    calls: float
    prefix: float
    kept: float
    wrong: float


class Rehearsal:
    """A pair whose cloud is served at `target`; `tell` hears a line per gate."""

    def __init__(
        self, target: str, package: DevicePackage, cloud: CloudModel, plan: Plan, tell: Callable[[str], None]
    ) -> None:
        self._target, self._package, self._cloud, self._plan, self._tell = target, package, cloud, plan, tell

    async def calibrations(self, chosen: Sequence[str] = ()) -> AsyncGenerator[Calibration, None]:
        """The calibration as it is after every gate (of those `chosen`; none: all) that was rehearsed.

        Raises InvalidRequest for a gate that has no table.
        """
        usual, prefixes = policy_for("ciar", self._package.calibration), []
        known = replace(self._package.calibration, span=usual.span, floor=usual.adaptive_floor or 0.0)
        for gate in chosen or list(known.gates):
            table, images = await self._table(gate)
            prefixes += [image.prefix for image in images]
            tables = {**known.gates, gate: table}
            known = replace(known, gates=tables, prefix_share=float(np.mean(prefixes)))
            yield known

    async def _table(self, gate: str) -> tuple[GateTable, list[_Image]]:
        table, promising = self._package.calibration.table(gate), gate in PROMISED
        count = self._plan.promised if promising else self._plan.images
        taus = tried(table, RISKS if promising else ())
        turns = asyncio.Semaphore(self._plan.at_once)
        drawing = (self._draw(gate, tau, number, turns) for tau in taus for number in range(count))
        images = await asyncio.gather(*drawing)
        calls_MN, kept_MN, wrong_MN = (
            np.array([getattr(image, name) for image in images]).reshape(len(taus), count)
            for name in ("calls", "kept", "wrong")
        )
        table = with_calls(table, taus, calls_MN.mean(1).tolist())
        if promising:
            promises, bounds = keep_promises(taus, wrong_MN, kept_MN, PROMISES)
            table = replace(table, promises=promises, bounds=bounds)
        rates = ", ".join(f"{tau:.3g}: {rate:.3f}" for tau, rate in zip(taus, calls_MN.mean(1), strict=True))
        self._tell(f"{gate}: cloud forwards per token at thresholds {rates}; promises {table.promises}")
        return table, images

    async def _draw(self, gate: str, tau: float, number: int, turns: asyncio.Semaphore) -> _Image:
        calibration = self._package.calibration
        policy = policy_for("ciar", calibration, gate=gate, threshold=tau)
        request = request_for(self._package, self._plan.prompts[number], FIRST_SEED + number)
        async with turns:
            steps = await watch(self._package, self._target, request, policy)
        opened, last = steps[0].counters, steps[-1]
        kept_T = np.array([source is Source.KEPT for source in last.sources])
        wrong = 0.0
        if gate in PROMISED:
            unlike_T = unlike_cloud((self._package, self._cloud), request, np.array(last.tokens), kept_T)
            wrong = float((unlike_T & kept_T).mean())
        prefix = opened.cloud_forwards / opened.image_tokens
        return _Image(last.counters.call_rate, prefix, float(kept_T.mean()), wrong)


def tried(table: GateTable, risks: Sequence[float] = ()) -> list[float]:
    """Thresholds to rehearse: those above which a share of ASKED of the places lies, and those below which a
    share of `risks` of the draws differs; a share that no place reaches has none."""
    bins = len(table.differ)
    found = {table.asking(share) for share in ASKED}
    risk = np.cumsum(table.differ) / np.arange(1, bins + 1)
    below = [np.flatnonzero(risk <= share) for share in risks]
    return sorted(found | {table.scores[int(places[-1]) + 1] for places in below if len(places)})


@torch.no_grad()
def unlike_cloud(
    pair: tuple[DevicePackage, CloudModel],
    request: Request,
    tokens_T: NDArray[np.int64],
    kept_T: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Which tokens of an image are not what the cloud draws there, behind the same tokens and what it is told
    of the kept ones [T]."""
    package, cloud = pair
    known_T, heard_T1 = torch.from_numpy(tokens_T), torch.from_numpy(kept_T)[:, None]
    extra_TD = _features(package, request, known_T) @ cloud.bridge_DF.T
    log_p_TV = cloud_log_p(cloud.model, request.prompt, known_T, request.warp, extra_TD * heard_T1)
    noise_TV = gumbel(request.seed, range(len(known_T)), log_p_TV.shape[-1])
    unlike_T: NDArray[np.bool_] = ((log_p_TV + noise_TV).argmax(-1) != known_T).numpy()
    return unlike_T


def _features(package: DevicePackage, request: Request, tokens_T: torch.Tensor) -> torch.Tensor:
    """What would travel for every token [T, d_f] (eq. 5), as the cloud reads it."""
    device = package.model
    centre_TV, radius_TV = device_interval(device, request.prompt, tokens_T, request.warp)
    hidden_TD = forced_rows(device.base, request.prompt, tokens_T)[0]
    log_q_TV = warp_logits(centre_TV, request.warp.unfiltered)
    codes_TF, scale_T = quantise_features(device.feature(hidden_TD, centre_TV, radius_TV, log_q_TV))
    return codes_TF.float() * scale_T.float()[:, None]
