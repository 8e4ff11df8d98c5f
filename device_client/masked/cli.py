"""`ciar-masked`: a picture of a model of continuous tokens, such as MAR, from the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial

import torch
from PIL import Image
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from device_client import masked_policy, render
from device_client.cloud import Request
from device_client.masked_loop import MaskedProgress, decode_masked
from device_client.masked_policy import MASKED_MODES, Drawing, MaskedPolicy
from device_client.picture_command import PictureOptions, chosen, run_command
from shared.decoding.continuous import TOLERANCE
from shared.decoding.masked import SCHEDULES
from shared.decoding.warp import Warp
from shared.models.by_mask import MaskedPackage, load_masked_package
from shared.models.families.mar import unpatched
from shared.models.families.mar_image import tensor_of

PROGRAM = "ciar-masked"
ABOUT = """Draw one picture of a model of continuous tokens. Modes: cspd keeps the device's tokens where they
are near the cloud's own, exact has the law of the cloud alone, cloud-only with as few --steps is the rival.

  ciar-masked --prompt "a cat" --server host:50051 --steps 16 --tolerance 0.265"""
PACE = 4  # tokens for each step, where --steps is not given


class MaskedDraw(PictureOptions):
    """The command line."""

    model_config = SettingsConfigDict(cli_prog_name=PROGRAM, json_schema_extra={"description": ABOUT})
    model: str = Field("emoji-mar", description="model name or folder")
    mode: str = Field("cspd", description=f"one of {', '.join(MASKED_MODES)}")
    steps: int | None = Field(None, ge=1, description="windows: what the cloud alone would take")
    tolerance: float = Field(TOLERANCE, ge=0, description="of cspd: how far tokens may be from the cloud's")
    prefix: int = Field(masked_policy.DEFAULT_PREFIX, ge=0, description="windows that the cloud draws first")
    stride: int = Field(
        masked_policy.DEFAULT_STRIDE, ge=1, description="of cspd: tokens that the device drafts in one pass"
    )
    window: int = Field(masked_policy.DEFAULT_WINDOW, ge=1, le=16, description="of exact: tokens of a span")
    guidance: float = Field(2.0, description="strength of guidance")
    schedule: str = Field("linear", description=f"of guidance: one of {', '.join(SCHEDULES)}")
    temperature: float = Field(1.0, description="of the steps of the head; of cspd and the two sides alone")
    head_steps: int = Field(100, description="diffusion steps of a token")
    clip: float | None = Field(None, ge=0, description="bound of a head's token; 0: none, unset: the model's")

    def policy(self, package: MaskedPackage) -> MaskedPolicy:
        """The policy of the mode; the bound is the model's own unless one is given. Raises InvalidRequest for
        an unknown mode."""
        tokens, clip = package.model.config.tokens, package.clip if self.clip is None else self.clip
        drawing, steps = Drawing(self.head_steps, self.schedule, clip), self.steps or -(-tokens // PACE)
        policies: dict[str, Callable[[], MaskedPolicy]] = {
            "cspd": lambda: masked_policy.cspd(steps, self.tolerance, self.prefix, drawing, self.stride),
            "exact": lambda: masked_policy.exact(tokens, self.window, drawing),
            "published": lambda: masked_policy.published(steps, self.prefix, drawing),
            "hand-over": lambda: masked_policy.hand_over(steps, self.prefix, drawing),
            "cloud-only": lambda: masked_policy.cloud_only(steps, drawing),
            "device-only": lambda: masked_policy.device_only(steps, drawing),
        }
        return chosen(policies, self.mode)

    def draw(self) -> None:
        """Draw, write, print what it cost. Raises CiarError."""
        render.check_target(self.out)
        torch.set_num_threads(self.threads)
        package = load_masked_package(self.model, self.models.expanduser())
        policy = self.policy(package)
        request = Request(self.prompt, self.seed, Warp(self.guidance, self.temperature))
        last = self.last_step(policy, partial(decode_masked, package, request, policy))
        image = to_image(package, last)
        self.finish(image, package, policy, last.counters, {"warp": asdict(request.warp)})


def to_image(package: MaskedPackage, drawn: MaskedProgress) -> Image.Image:
    """The RGB picture of a complete image."""
    assert drawn.values is not None, "it is complete"
    config = package.model.config
    token_1LC = torch.zeros(1, config.tokens, config.token_dim)
    token_1LC[0, list(drawn.tokens)] = tensor_of(drawn.values)
    with torch.inference_mode():
        return Image.fromarray(package.vae.pictures(unpatched(token_1LC, config.patch))[0].numpy())


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 failed, 2 misused, 3 the cloud is away or full."""
    return run_command(MaskedDraw, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
