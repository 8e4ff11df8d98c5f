"""`ciar-diffusion`: a picture of a model by steps, such as DiT, from the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial

import torch
from PIL import Image
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from device_client import render, step_policy
from device_client.picture_command import PictureOptions, chosen, run_command
from device_client.step_drafter import StepRequest, threshold_of
from device_client.step_loop import Denoised, denoise
from device_client.step_policy import STEP_MODES, StepPolicy
from shared.decoding.denoising import SAMPLERS, SCORES, ddim_spacing
from shared.models.by_step import StepPackage, load_step_package

PROGRAM = "ciar-diffusion"
ABOUT = """Draw one picture of a model that denoises step by step. Modes: ciar asks the cloud before the risk
of what the device predicts grows too large, exact asks at every step, ddim and reuse are what --calls calls
of the cloud give without a model on the device.

  ciar-diffusion --prompt "a cat" --server host:50051 --cloud-budget 0.2"""


class StepDraw(PictureOptions):
    """The command line."""

    model_config = SettingsConfigDict(cli_prog_name=PROGRAM, json_schema_extra={"description": ABOUT})
    model: str = Field("emoji-dit", description="model name or folder")
    mode: str = Field("ciar", description=f"one of {', '.join(STEP_MODES)}")
    steps: str = Field("ddim50", description="denoising steps: ddim50 as DDIM spaces them, 50 evenly")
    sampler: str = Field("ddim", description=f"one of {', '.join(SAMPLERS)}")
    guidance: float = Field(2.0, description="guidance; 1: none")
    cloud_budget: float = Field(0.2, gt=0, le=1, description="share of the steps that are the cloud's")
    threshold: float | None = Field(None, ge=0, description="or: the largest risk between two of its steps")
    gate: str = Field(step_policy.DEFAULT_GATE, description=f"risk by one of {', '.join(SCORES)}")
    prefix: int = Field(step_policy.DEFAULT_PREFIX, ge=1, description="steps that the cloud takes first")
    max_gap: int = Field(step_policy.DEFAULT_GAP, ge=1, description="most steps of the device in a row")
    hindsight: bool = Field(True, description="of ciar: what the last guess was off by mends the next ones")
    calls: int = Field(10, ge=2, description="of ddim, reuse and extrapolate: steps of the cloud")
    precision: str | None = Field(None, description="of what travels: fp16 or fp32; unset: of the mode")

    def plan(self, package: StepPackage) -> tuple[StepRequest, StepPolicy]:
        """What to draw and how. Raises InvalidRequest for an unknown mode, gate or process."""
        request = StepRequest(self.prompt, self.seed, self.guidance, self.steps, self.sampler)
        if self.mode == "ddim":
            request = replace(request, spacing=ddim_spacing(self.calls))
        policies: dict[str, Callable[[], StepPolicy]] = {
            "ciar": lambda: self._ciar(package, request),
            "exact": step_policy.exact,
            "cloud-only": lambda: step_policy.cloud_only(len(request.process)),
            "device-only": step_policy.device_only,
            "ddim": lambda: step_policy.cloud_only(len(request.process), "ddim"),
            "reuse": lambda: step_policy.rival("reuse", self.calls),
            "extrapolate": lambda: step_policy.rival("extrapolate", self.calls),
        }
        policy = chosen(policies, self.mode)
        return request, replace(policy, precision=self.precision) if self.precision else policy

    def draw(self) -> None:
        """Draw, write, print what it cost. Raises CiarError."""
        render.check_target(self.out)
        torch.set_num_threads(self.threads)
        package = load_step_package(self.model, self.models.expanduser())
        request, policy = self.plan(package)
        last = self.last_step(policy, partial(denoise, package, request, policy))
        image = to_image(package, last)
        self.finish(image, package, policy, last.progress.counters, {"request": asdict(request)})

    def _ciar(self, package: StepPackage, request: StepRequest) -> StepPolicy:
        threshold = self.threshold
        if threshold is None:
            threshold = threshold_of(package, self.gate, request, self.cloud_budget)
        return step_policy.ciar(threshold, self.gate, self.prefix, self.max_gap, hindsight=self.hindsight)


def to_image(package: StepPackage, drawn: Denoised) -> Image.Image:
    """The RGB picture of a latent."""
    with torch.inference_mode():
        return Image.fromarray(package.vae.pictures(drawn.latent)[0].numpy())


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 failed, 2 misused, 3 the cloud is away or full."""
    return run_command(StepDraw, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
