"""`ciar-train mar-vae`: the autoencoder whose latents are the small MAR's tokens. Knows no transformers.

It begins as the strongest principal components of patches and learns what they leave. What is exported has
tokens of mean 0 and deviation 1 in every number, which is folded into its first and last maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.models.checkpoint import save_folder
from shared.models.generators import describe_kl
from shared.models.kl_vae import KLVAE, LATENT_SCALE
from training.data import keyed_generator
from training.masked_data import KL, encoded
from training.scale_data import Pictures, eighth, psnr_db
from training.tokenizer import cosine, reconstruction_loss
from training.trainer import ModelTrainer

_LOG_VARIANCE = -5.0  # of a token in the beginning


@dataclass(frozen=True)
class MaskedVaeRun:
    """Settings of one run; saved with it. divergence: weight of the distance from the normal law."""

    data: Path
    out: Path
    steps: int = 600
    batch: int = 16
    rate: float = 1e-3
    divergence: float = 1e-4
    squared: float = 2.0
    average: float = 0.995
    seed: int = 0
    checkpoint_every: int = 200


class MaskedVaeTrainer(ModelTrainer[MaskedVaeRun, KLVAE]):
    """One run: step, resume, evaluate, export."""

    def __init__(self, run: MaskedVaeRun) -> None:
        super().__init__(run)
        self.pictures = Pictures(run.data, run.seed)
        torch.manual_seed(run.seed)  # initial weights; everything later is keyed by (seed, step)
        self.model = KLVAE(KL)
        optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=run.rate, betas=(0.9, 0.95), weight_decay=0.01
        )
        start_from_components(self.model, self.pictures.batch(0, 128).image_B3HW)
        self.begin([optimizer], KL)

    def train(self) -> None:
        """Run to the last step, then export `OUT/vae`."""
        self.drive()
        model = self.averaged_model()
        normalise(model, self.pictures.batch(0, 128).image_B3HW, self.run.seed)
        save_folder(self.run.out / "vae", describe_kl(KL), model.state_dict(), torch.float16)

    def advance(self) -> dict[str, float]:
        """One optimiser step on the next pictures."""
        run, step = self.run, self.learner.step
        image = self.pictures.batch(step, run.batch).image_B3HW
        self.learner.set_rates([run.rate * cosine(step, run.steps)])
        with torch.autocast("cpu", torch.bfloat16):
            moments = self.model.moments(image)
        mean, log_variance = moments.float().chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 20)
        noise = torch.from_numpy(keyed_generator(run.seed + 7, step).standard_normal(mean.shape)).float()
        with torch.autocast("cpu", torch.bfloat16):
            drawn = self.model.decode((mean + (log_variance / 2).exp() * noise) * LATENT_SCALE)
        loss = reconstruction_loss(drawn.float(), image, run.squared)
        scaled = log_variance - 2 * torch.tensor(1 / LATENT_SCALE).log()  # the normal law is that of tokens
        divergence = ((mean * LATENT_SCALE).square() + scaled.exp() - 1 - scaled).mean() / 2
        self.learner.learn(loss + run.divergence * divergence)
        return {"loss": round(loss.item(), 4), "divergence": round(divergence.item(), 3)}

    @torch.no_grad()
    def evaluate(self, count: int = 48) -> dict[str, float]:
        """PSNR in dB on training and on held-back pictures; a grid of both."""
        model, figures = self.averaged_model(), {}
        batches = {"psnr_db": self.pictures.batch(0, count), "held_back_psnr_db": self.pictures.held(count)}
        for name, batch in batches.items():
            mean = model.moments(batch.image_B3HW).chunk(2, dim=1)[0]
            drawn, wanted = model.pictures(mean * LATENT_SCALE), eighth((batch.image_B3HW + 1) / 2)
            self.folder.grid(name.removesuffix("_db"), torch.cat([wanted[:12], drawn[:12]]), 12)
            figures[name] = psnr_db(drawn, wanted)
        return figures


@torch.no_grad()
def start_from_components(model: KLVAE, image_B3HW: Tensor) -> None:
    """Make the linear paths an autoencoder over the strongest principal components of patches, tokens of
    deviation 1, and the stacks nearly silent."""
    config = model.config
    width = config.latent
    patches_NP = F.pixel_unshuffle(image_B3HW, config.factor).permute(0, 2, 3, 1).flatten(0, 2)
    patches_NP = patches_NP[patches_NP.std(-1) > 1e-3]  # flat background would outvote the artwork
    mean_P = patches_NP.mean(0)
    _, scale_E, axes_PE = torch.pca_lowrank(patches_NP - mean_P, width, center=False, niter=4)
    gain_E = len(patches_NP) ** 0.5 / scale_E / LATENT_SCALE
    for layer in (model.quant_conv, model.post_quant_conv):
        layer.weight.copy_(torch.eye(len(layer.weight))[:, :, None, None])
    forth, back = model.encoder.linear, model.decoder.linear
    assert forth.bias is not None and back.bias is not None
    for some in (model.quant_conv.bias, model.post_quant_conv.bias):
        assert some is not None
        some.zero_()
    forth.weight.zero_()[:width, :, 0, 0] = (axes_PE * gain_E).T
    forth.bias[:width] = -(mean_P @ axes_PE) * gain_E
    forth.bias[width:] = _LOG_VARIANCE - 2 * torch.tensor(LATENT_SCALE).log()
    back.weight[:, :, 0, 0] = axes_PE / gain_E
    back.bias.copy_(mean_P)
    for last in (model.encoder.conv_out, model.decoder.conv_out):
        nn.init.normal_(last.weight, std=1e-3)
        assert last.bias is not None
        last.bias.zero_()


@torch.no_grad()
def normalise(model: KLVAE, image_B3HW: Tensor, seed: int) -> None:
    """Fold mean and deviation of every number of a token into the maps around it: tokens become standard,
    pictures stay what they were."""
    token_NC = encoded(model, image_B3HW, seed, 0).flatten(0, 1)
    mean_C, std_C = token_NC.mean(0), token_NC.std(0)
    width, last = model.config.latent, model.post_quant_conv
    first = model.quant_conv
    assert first.bias is not None and last.bias is not None
    first.weight[:width] /= std_C[:, None, None, None]
    first.bias[:width] = (first.bias[:width] - mean_C / LATENT_SCALE) / std_C
    first.bias[width:] -= 2 * std_C.log()
    last.bias += last.weight[:, :, 0, 0] @ (mean_C / LATENT_SCALE)
    last.weight *= std_C[:, None, None]
