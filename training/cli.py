"""`ciar-train`: the command line of the training verbs. The only file here that reads argv."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliPositionalArg,
    CliSubCommand,
    SettingsConfigDict,
    get_subcommand,
)

from shared.config import wrong_values
from shared.errors import CiarError, ModelMismatch
from shared.models.zoo import load_cloud, load_device_package
from training.adopt import Adoption, adopt
from training.artwork import make_artwork
from training.base import BaseRun
from training.clones import CLONES
from training.conversion import CONVERTED, Conversion
from training.convert import convert
from training.critic import CriticRun, CriticTrainer
from training.cut import Cut, cut, read_prompts
from training.gate import GateRun, fit_model, gate_prompts
from training.masked_verbs import MarBase, MarDevice, MarVae
from training.presets import PRESETS
from training.scale_verbs import VarBase, VarDevice, VarTokenizer
from training.step_verbs import DitBase, DitDevice
from training.tokenizer import TokenizerRun, TokenizerTrainer
from training.verbs import Ablate, Bridge, Device, PlacedRun, Run, train_at, train_base


class Tokenizer(Run):
    """Train the VQ tokenizer."""

    preset: str = Field("everyday", description=f"one of {sorted(PRESETS)}")
    steps: int = Field(900, description="optimiser steps", gt=0)
    warmup_share: float = Field(0.1, description="share of the steps before the codebook exists", ge=0, lt=1)
    decoder_of: Path | None = Field(None, description="exported tokenizer whose decoder alone is trained on")

    def run(self) -> None:
        """Train, then export `OUT/vq`."""
        settings = self.model_dump(exclude={"threads"})
        TokenizerTrainer(TokenizerRun(**settings)).train()


class Base(PlacedRun):
    """Train the cloud model on scenes encoded by a tokenizer."""

    tokenizer: Path = Field(description="exported tokenizer, RUN/vq")
    preset: str = Field("everyday", description=f"one of {sorted(PRESETS)}")
    steps: int = Field(3000, description="optimiser steps", gt=0)
    cooldown: int = Field(0, description="last steps over which the rates fall; 0: over all of them", ge=0)
    start_from: Path | None = Field(None, description="run whose checkpoint a new run starts from")
    grown_from: Path | None = Field(
        None, description="model folder of other words or codes whose cloud a new run grows from"
    )

    def run(self) -> None:
        """Train, then export `OUT/cloud`."""
        train_at(self.place(), self.threads, train_base, BaseRun(**self.settings()))


class Gate(BaseModel):
    """Fit the gates of a finished pair: the agreement network, radii, tables. Then: ciar-eval rehearse."""

    model: CliPositionalArg[Path] = Field(
        description="model folder; gate.safetensors and calibration.json of its device/ are written"
    )
    prompts: Path | None = Field(None, description="one prompt a line, or instead")
    data: Path | None = Field(None, description="picture folder whose captions are the prompts, with")
    preset: str = Field("everyday", description=f"the preset of the pair, one of {sorted(PRESETS)}")
    images: int = Field(192, description="images the cloud draws: half fit, half calibrate", gt=1)
    cache: Path | None = Field(None, description="file that keeps the drawn images for the next time")
    threads: int = Field(1, description="torch threads", gt=0)

    def run(self) -> None:
        """Draw, fit, write, print how well every gate ranks."""
        prompts = gate_prompts(self.prompts, self.data, self.preset, self.images)
        fitted = fit_model(GateRun(self.model, prompts, self.cache))
        ranks = ", ".join(f"{name} {rank:.3f}" for name, rank in fitted.ranks.items())
        print(f"{self.model}: gates fitted on {len(prompts)} images; AUROC {ranks}")


class Critic(Run):
    """Train the image-text encoder that judges pictures."""

    preset: str = Field("everyday", description=f"one of {sorted(PRESETS)}")
    steps: int = Field(3000, description="optimiser steps", gt=0)
    batch: int = Field(64, description="scenes per step", gt=1)

    def run(self) -> None:
        """Train, then export `OUT/critic`."""
        CriticTrainer(CriticRun(**self.model_dump(exclude={"threads"}))).train()


class Artwork(BaseModel):
    """Make a picture folder from clones of public emoji repositories."""

    source: dict[str, Path] = Field(
        description=f"NAME=PATH of a local clone, once for each of {', '.join(CLONES)}"
    )
    out: Path = Field(description="picture folder to write")

    def run(self) -> None:
        """Draw every style of every clone."""
        print(f"{self.out}: {make_artwork(self.source, self.out)}")


class Bundle(BaseModel):
    """Put a trained tokenizer, cloud and device into one model folder that cloud-server and device-client
    load."""

    tokenizer: Path = Field(description="exported tokenizer, RUN/vq")
    cloud: Path = Field(description="exported cloud model, RUN/cloud")
    device: Path = Field(description="exported device model, RUN/device")
    critic: Path | None = Field(None, description="exported critic, RUN/critic, to ship with the models")
    out: Path = Field(description="model folder, for example shared/models/bundled/emoji")
    threads: int = Field(1, description="torch threads", gt=0)

    def run(self) -> None:
        """Copy them, then load them as their users would."""
        parts = {"vq": self.tokenizer, "cloud": self.cloud, "device": self.device, "critic": self.critic}
        for name, source in parts.items():
            if source:
                shutil.copytree(source, self.out / name, dirs_exist_ok=True)
        cloud = load_cloud(str(self.out), self.out.parent)
        package = load_device_package(str(self.out), self.out.parent)
        if package.cloud_digest != cloud.digest:
            raise ModelMismatch(
                f"{self.device} belongs to cloud {package.cloud_digest}", f"{self.cloud} is {cloud.digest}"
            )
        print(f"{self.out}: cloud {cloud.digest}, device {package.digest}")


class Convert(BaseModel):
    """Turn official weight files into a model folder that cloud-server loads."""

    source: CliPositionalArg[Path] = Field(description="the transformer: a file, or a folder as published")
    target: CliPositionalArg[Path] = Field(description="model folder to write: cloud/, vq/, tokenizer/")
    family: str = Field(description=f"one of {', '.join(CONVERTED)}")
    pixels: int = Field(description="side of the images the weights were trained on, such as 512", gt=0)
    vq: Path | None = Field(None, description="the VQ, where it is not inside SOURCE")
    heads: int | None = Field(None, description="attention heads of a LlamaGen of unpublished width", gt=0)
    tokens: int = Field(128, description="longest prompt of a Chameleon or Janus, in tokens", gt=3)
    tokenizer: Path | None = Field(
        None, description="tokenizer.json of a Chameleon or Janus, if not inside SOURCE"
    )
    threads: int = Field(1, description="torch threads", gt=0)

    def run(self) -> None:
        """Convert and print the digests."""
        cloud, vq = convert(Conversion(**self.model_dump(exclude={"threads"})))
        print(f"{self.target}: cloud {cloud}, vq {vq}")


class Cutting(BaseModel):
    """Make a device model of a cloud's first layers, without training, so that the two are a pair."""

    model: CliPositionalArg[Path] = Field(description="model folder with cloud/ and vq/; device/ is written")
    layers: int = Field(1, description="layers of the device model", gt=0)
    prompts: Path | None = Field(
        None, description="one prompt a line: the cloud draws them to calibrate the gates"
    )
    images: int = Field(16, description="how many of the prompts", gt=0)
    threads: int = Field(1, description="torch threads", gt=0)

    def run(self) -> None:
        """Cut, calibrate, print the digest and what works."""
        prompts = read_prompts(self.prompts, self.images)
        written = cut(Cut(self.model, self.layers, prompts))
        hint = "" if prompts else "; no gate is calibrated: use --mode exact --span 5, or give --prompts"
        print(f"{self.model}: device {written}{hint}")


class Adopting(BaseModel):
    """Make a smaller published VAR or MAR the device of a converted one, without training."""

    model: CliPositionalArg[Path] = Field(description="model folder with cloud/ and vae/; device/ is written")
    source: CliPositionalArg[Path] = Field(description="weights of the smaller model, as published")
    heads: int | None = Field(None, description="its attention heads, if its width was never published", gt=0)
    images: int = Field(0, description="of a VAR: pictures the cloud draws to calibrate the gates", ge=0)
    threads: int = Field(1, description="torch threads", gt=0)

    def run(self) -> None:
        """Adopt, calibrate, print the digest."""
        print(f"{self.model}: device {adopt(Adoption(**self.model_dump(exclude={'threads'})))}")


class TrainApp(BaseSettings):
    """Train the models of CIAR (artwork, tokenizer, base, device, gate, bridge, ablate, critic, bundle;
    var-tokenizer, var-base, var-device; dit-base, dit-device; mar-vae, mar-base, mar-device), or take
    published ones (convert, cut, adopt).

    Example: ciar-train tokenizer --data artwork --out runs/tokenizer
    """

    model_config = SettingsConfigDict(
        env_prefix="CIAR_TRAIN_", cli_kebab_case=True, cli_prog_name="ciar-train", cli_enforce_required=True
    )
    artwork: CliSubCommand[Artwork]
    tokenizer: CliSubCommand[Tokenizer]
    base: CliSubCommand[Base]
    device: CliSubCommand[Device]
    bridge: CliSubCommand[Bridge]
    ablate: CliSubCommand[Ablate]
    critic: CliSubCommand[Critic]
    gate: CliSubCommand[Gate]
    bundle: CliSubCommand[Bundle]
    convert: CliSubCommand[Convert]
    cut: CliSubCommand[Cutting]
    adopt: CliSubCommand[Adopting]
    var_tokenizer: CliSubCommand[VarTokenizer]
    var_base: CliSubCommand[VarBase]
    var_device: CliSubCommand[VarDevice]
    dit_base: CliSubCommand[DitBase]
    dit_device: CliSubCommand[DitDevice]
    mar_vae: CliSubCommand[MarVae]
    mar_base: CliSubCommand[MarBase]
    mar_device: CliSubCommand[MarDevice]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Exit status 0, 1 for an error that says what to do, 2 for a wrong flag, 130 for an
    interrupt."""
    try:
        verb = get_subcommand(CliApp.run(TrainApp, cli_args=list(sys.argv[1:] if argv is None else argv)))
    except ValidationError as error:
        print(f"error: {wrong_values(error.errors())}", file=sys.stderr)
        return 2
    trained = Tokenizer | Base | Device | Gate | Bridge | Critic
    others = VarTokenizer | VarBase | VarDevice | DitBase | DitDevice | MarVae | MarBase | MarDevice
    assert isinstance(verb, trained | others | Artwork | Bundle | Convert | Cutting | Adopting)
    if not isinstance(verb, Artwork):
        torch.set_num_threads(verb.threads)
    try:
        verb.run()
    except CiarError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
