"""The model that the flags ask for, and how many sessions of it fit into memory. Knows nothing of sockets."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import InvalidRequest

if TYPE_CHECKING:
    from cloud_server.cli import Flags
    from cloud_server.memory import Need
    from cloud_server.staff import Served


def _load_tokens(flags: Flags) -> tuple[Served, int]:
    """The model as the flags want it, and how many sessions it can serve; refused before it is read."""
    from cloud_server import memory
    from cloud_server.packed import pack, packable
    from shared.models.zoo import find, load_cloud

    told_to_pack = flags.pack_weights and "pack_weights" in flags.model_fields_set
    if flags.compile and told_to_pack:
        why = "compiled code reads weights in their plain layout"
        raise InvalidRequest("--compile and --pack-weights exclude each other", why, "leave one of them out")
    models, dtype = flags.models.expanduser(), memory.DTYPES[flags.dtype]
    wants = memory.need(find(flags.model, models), dtype, flags.device)
    usable = memory.usable_bytes(flags.memory_fraction, flags.device)
    sessions = memory.sessions(wants, usable, flags.max_sessions)
    logging.getLogger(__name__).info("%s", memory.plan_line(wants, usable, sessions))
    cloud = load_cloud(flags.model, models, dtype, flags.device)
    if told_to_pack or (flags.pack_weights and not flags.compile and packable(cloud.model.gpt)):
        pack(cloud.model.gpt)
    return cloud, sessions


def _load_scales(flags: Flags) -> tuple[Served, int]:
    """The same for a model that draws scale by scale."""
    from cloud_server import scale_desk
    from shared.models.by_scale import load_scale_cloud

    sessions = _plain_sessions(flags, scale_desk.need)
    return load_scale_cloud(flags.model, flags.models.expanduser()), sessions


def _load_steps(flags: Flags) -> tuple[Served, int]:
    """The same for a model that denoises step by step."""
    from cloud_server import step_desk
    from shared.models.by_step import load_step_cloud

    sessions = _plain_sessions(flags, step_desk.need)
    return load_step_cloud(flags.model, flags.models.expanduser()), sessions


def _load_masked(flags: Flags) -> tuple[Served, int]:
    """The same for a model of continuous tokens."""
    from cloud_server import masked_desk
    from shared.models.by_mask import load_masked_cloud

    sessions = _plain_sessions(flags, masked_desk.need)
    return load_masked_cloud(flags.model, flags.models.expanduser()), sessions


def _plain_sessions(flags: Flags, need: Callable[[Path], Need]) -> int:
    """How many sessions fit of a model that is served in fp32 on the CPU alone. Raises InvalidRequest for
    flags it has no use for."""
    from cloud_server import memory
    from shared.models.zoo import find

    for name in ("dtype", "device", "compile", "pack_weights", "fold_prefix"):
        if getattr(flags, name) != (plain := type(flags).model_fields[name].default):
            what = f"--{name.replace('_', '-')} {getattr(flags, name)} is not for this kind of model"
            raise InvalidRequest(what, f"allowed: {plain}")
    wants = need(find(flags.model, flags.models.expanduser()))
    usable = memory.usable_bytes(flags.memory_fraction, flags.device)
    sessions = memory.sessions(wants, usable, flags.max_sessions)
    logging.getLogger(__name__).info("%s", memory.plan_line(wants, usable, sessions))
    return sessions


_LOADERS = {"var": _load_scales, "dit": _load_steps, "mar": _load_masked}


def loader(family: str) -> Callable[[Flags], tuple[Served, int]]:
    """What loads a family; every other one draws token after token."""
    return _LOADERS.get(family, _load_tokens)
