"""`ciar-eval quality`: the published measures, for users who have their weights."""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic import Field

from evaluation.campaign import Campaign, Turn
from evaluation.coco import read_captions
from evaluation.eyes.clip import ClipEye, load_clip, load_hps
from evaluation.eyes.inception import PIXELS, InceptionEye, load_inception
from evaluation.gallery import pictures, read_pictures
from evaluation.metrics import Reference
from evaluation.policies import BASE, CIAR, EXACT
from evaluation.quality import Measured, against_captions, against_pictures, markdown
from evaluation.records import Record
from evaluation.report import Images, numbered
from evaluation.verbs.study import Study
from shared.errors import InvalidRequest

ROWS = (BASE, EXACT[0], CIAR)


class Quality(Study):
    """FID, IPR, CLIP score and HPSv2.1 of our rows, each where its weights are named on this machine."""

    inception: Path | None = Field(None, description="pt_inception-2015-12-05-6726825d.pth, for FID and IPR")
    clip: Path | None = Field(None, description="folder of openai/clip-vit-base-patch32")
    hps: Path | None = Field(None, description="HPS_v2.1_compressed.pt; --clip has its tokenizer")
    coco: Path | None = Field(None, description="captions_val2017.json: its captions are the prompts")

    def run(self) -> None:
        """Draw what is missing, write OUT/quality.md, print it."""
        self._check()
        images = self._wanted()
        with self.campaign() as campaign:
            drawn = campaign.records([Turn(row) for row in ROWS], images, warm=False)
            rows = self._measured(campaign, drawn, images)
        notes = (
            f"{len(images)} images a row; the second number is the difference to the base.",
            "IPR on InceptionV3's features, 3 neighbours.",
        )
        text = markdown(rows, BASE.name, notes)
        (self.out / "quality.md").write_text(text, encoding="utf-8")
        sys.stdout.write(text)

    def _check(self) -> None:
        if self.inception is None and self.clip is None:
            raise InvalidRequest("no weights are named", "allowed: --inception, --clip, --hps")
        if self.inception is not None and self.reference is None:
            raise InvalidRequest("FID without real pictures", "--reference names their folder")
        if self.hps is not None and self.clip is None:
            raise InvalidRequest("HPSv2 without a tokenizer", "--clip names a folder that has it")

    def _wanted(self) -> Images:
        if self.coco is None:
            return self.wanted()
        return numbered(read_captions(self.coco, self.images), self.images)

    def _measured(
        self, campaign: Campaign, drawn: list[list[Record]], images: Images
    ) -> dict[str, Measured]:
        rows: dict[str, Measured] = {row.name: {} for row in ROWS}
        shown = {
            row.name: pictures(campaign.package().vq, records)
            for row, records in zip(ROWS, drawn, strict=True)
        }
        captions = [prompt for prompt, _ in images]
        for reader in self._readers():
            for name, pixels in shown.items():
                rows[name] |= against_captions(reader, pixels, captions)
        if self.inception is not None and self.reference is not None:
            eye = InceptionEye(load_inception(self.inception))
            real = Reference(eye.look(read_pictures(self.reference, PIXELS)))
            for name, pixels in shown.items():
                rows[name] |= against_pictures(eye, pixels, real)
        return rows

    def _readers(self) -> list[ClipEye]:
        found = [load_clip(self.clip)] if self.clip else []
        if self.hps is not None and self.clip is not None:
            found.append(load_hps(self.hps, self.clip))
        return found
