"""`ciar-scales`: a picture of a model by scales, such as VAR, from the command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

import torch
from PIL import Image
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from device_client import render, scale_policy
from device_client.cloud import Request
from device_client.picture_command import PictureOptions, chosen, run_command
from device_client.scale_loop import decode_scales
from device_client.scale_policy import SCALE_MODES, ScalePolicy
from shared.decoding.warp import Warp
from shared.models.by_scale import ScalePackage, load_scale_package

PROGRAM = "ciar-scales"
ABOUT = """Draw one picture of a model that draws scale by scale. Modes: ciar asks where the device is unsure,
code is one hand-over after --prefix scales, exact is the cloud's own picture.

  ciar-scales --prompt "a cat" --server host:50051 --mode code --prefix 6"""


class ScaleDraw(PictureOptions):
    """The command line."""

    model_config = SettingsConfigDict(cli_prog_name=PROGRAM, json_schema_extra={"description": ABOUT})
    model: str = Field("emoji-var", description="model name or folder")
    mode: str = Field("ciar", description=f"one of {', '.join(SCALE_MODES)}")
    prefix: int = Field(scale_policy.DEFAULT_PREFIX, ge=0, description="scales that the cloud draws first")
    gate: str = Field(scale_policy.DEFAULT_GATE, description="what tells where the device is unsure")
    bad: float = Field(scale_policy.DEFAULT_BAD, description="share of places that are bad on average")
    guidance: float = Field(1.5, description="guidance at the last scale")
    top_k: int = Field(100, description="codes kept; 0: all")
    top_p: float = Field(0.9, description="mass kept; 1: all")

    def policy(self, scales: int) -> ScalePolicy:
        """The policy of the mode. Raises InvalidRequest for an unknown one."""
        policies = {
            "ciar": lambda: scale_policy.ciar(self.prefix, self.gate, self.bad),
            "code": lambda: scale_policy.code(self.prefix),
            "exact": scale_policy.exact,
            "cloud-only": lambda: scale_policy.cloud_only(scales),
            "device-only": scale_policy.device_only,
        }
        return chosen(policies, self.mode)

    def draw(self) -> None:
        """Draw, write, print what it cost. Raises CiarError."""
        render.check_target(self.out)
        torch.set_num_threads(self.threads)
        package = load_scale_package(self.model, self.models.expanduser())
        policy = self.policy(len(package.config.scales))
        request = Request(self.prompt, self.seed, Warp(self.guidance, 1.0, self.top_k, self.top_p))
        last = self.last_step(policy, partial(decode_scales, package, request, policy))
        image = to_image(package, last.tokens)
        self.finish(image, package, policy, last.counters, {"warp": asdict(request.warp)})


def to_image(package: ScalePackage, tokens: Sequence[int]) -> Image.Image:
    """The RGB picture of all scales' tokens."""
    offsets, scales = package.config.offsets, range(len(package.config.scales))
    maps = [torch.tensor([list(tokens[offsets[scale] : offsets[scale + 1]])]) for scale in scales]
    with torch.inference_mode():
        image_3HW = package.vq.picture(package.vq.quantize.sums(maps)[-1])[0]
    return Image.fromarray((image_3HW * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 failed, 2 misused, 3 the cloud is away or full."""
    return run_command(ScaleDraw, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
