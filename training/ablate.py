"""`ciar-train ablate`: the loss without each of its terms, other sizes and other numbers of heads, in one
table. Knows nothing of how a device is trained.

Every variant is a device run in a folder of its own, which any device can load; all share the cloud's images.
The table is one JSON line per finished variant, so a stopped ablation goes on where it was.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shared.errors import InvalidRequest
from shared.models.checkpoint import read_config
from training.device import DeviceRun, DeviceTrainer
from training.engine import Engine
from training.inter_dro import TERMS
from training.presets import preset

LAYERS, HEADS = (1, 2, 3, 5), (1, 2, 3, 4, 5)
COLUMNS = ("differ", "auroc_interval", "auroc_entropy", "auroc_margin", "radius_mean", "radius_within")
GROUPS = ("loss", "guidance", "layers", "heads")


@dataclass(frozen=True)
class Variant:
    """One line of the table."""

    name: str
    run: DeviceRun


def variants(base: DeviceRun, groups: Sequence[str], cloud_layers: int) -> Iterator[Variant]:
    """What `groups` ask for, each a change to `base`; device models have no more layers than the cloud.

    Raises InvalidRequest for an unknown group.
    """
    unknown = sorted(set(groups) - set(GROUPS))
    if unknown:
        raise InvalidRequest(f"unknown groups {unknown}", f"allowed: {', '.join(GROUPS)}")
    yield Variant("whole", base)
    if "loss" in groups:
        for term in TERMS:
            yield Variant(f"without {term}", replace(base, loss=base.loss.without(term)))
        other = "prob" if base.loss.bounds == "logit" else "logit"
        yield Variant(f"{other} bounds", replace(base, loss=replace(base.loss, bounds=other)))
    if "guidance" in groups:
        yield Variant("two rows", replace(base, distill_guidance=not base.distill_guidance))
    if "layers" in groups:
        wanted = (count for count in LAYERS if count <= cloud_layers and count != base.layers)
        yield from (Variant(f"layers {count}", replace(base, layers=count)) for count in wanted)
    if "heads" in groups:
        for count in HEADS:
            if count != base.heads:
                yield Variant(f"heads {count}", replace(base, heads=count))
        yield Variant(f"heads {HEADS[-1]} voting", replace(base, heads=HEADS[-1], combine="voting"))


def ablate(base: DeviceRun, groups: Sequence[str], engine: Engine) -> str:
    """Train whatever the table lacks and return it as Markdown; `base.out` gets `table.jsonl`, `table.md` and
    per variant a model folder without a cloud. Raises InvalidRequest where the folder holds an ablation of
    another run."""
    folder = base.out
    with engine.first_in_turn():
        engine.folder(folder).begin(base, preset(base.preset))
    cloud_layers = int(read_config(base.cloud, "cloud")["transformer"]["n_layer"])
    wanted = list(variants(replace(base, images=base.images or folder / "images"), groups, cloud_layers))
    table = folder / "table.jsonl"
    done = {line["variant"]: line for line in _lines(table)}
    for variant in wanted:
        if variant.name not in done:
            done[variant.name] = _measure(variant, folder / variant.name.replace(" ", "-"), engine)
            if engine.main:
                with table.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(done[variant.name]) + "\n")
        engine.wait()
    text = markdown([done[variant.name] for variant in wanted])
    if engine.main:
        (folder / "table.md").write_text(text, encoding="utf-8")
    return text


def _measure(variant: Variant, out: Path, engine: Engine) -> dict[str, Any]:
    """Train one variant, or what is left of it, and export it. Its last evaluation and step."""
    run = replace(variant.run, out=out)
    DeviceTrainer(run, engine).train()
    if engine.main:
        shutil.copytree(run.tokenizer, out / "vq", dirs_exist_ok=True)
    engine.wait()
    last: dict[str, Any] = {}
    for line in _lines(out / "log.jsonl"):
        last |= line
    return {"variant": variant.name, **{name: last[name] for name in last if name != "time_s"}}


def _lines(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]


def markdown(lines: Sequence[dict[str, Any]]) -> str:
    """One row per variant: the share of differing draws, how gates rank them, how the radii lie."""
    rows = [["variant", "steps", *COLUMNS], ["---"] + ["--:"] * (len(COLUMNS) + 1)]
    for line in lines:
        rows.append([line["variant"], str(line["step"]), *(f"{line[name]:.4f}" for name in COLUMNS)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
