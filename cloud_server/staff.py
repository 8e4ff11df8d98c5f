"""Who draws and judges: the desk of each kind of model. The one place that knows them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cloud_server.desk import Desk, TokenDesk
from cloud_server.engine import Engine
from cloud_server.masked_desk import MaskedSeat
from cloud_server.masked_engine import MaskedEngine
from cloud_server.pass_desk import PassDesk
from cloud_server.scale_desk import ScaleSeat
from cloud_server.scale_engine import ScaleEngine
from cloud_server.scheduler import Scheduler
from cloud_server.step_desk import StepSeat
from cloud_server.step_engine import StepEngine
from cloud_server.telemetry import Telemetry
from shared.messages import ModelInfo
from shared.models.by_mask import MaskedCloud
from shared.models.by_scale import ScaleCloud
from shared.models.by_step import StepCloud
from shared.models.zoo import CloudModel

if TYPE_CHECKING:
    from cloud_server.server import Settings

Served = CloudModel | ScaleCloud | StepCloud | MaskedCloud


@dataclass(frozen=True)
class Staff:
    """A desk, what it serves, and what has to be warmed up before: the shapes that were compiled."""

    desk: Desk
    info: ModelInfo
    warm: Callable[[], int] = int


def _tokens(cloud: CloudModel, settings: Settings, telemetry: Telemetry) -> Staff:
    engine = Engine(
        cloud,
        settings.max_sessions,
        settings.max_span,
        fold_prefix=settings.fold_prefix,
        compiled=settings.compiled,
    )
    return Staff(TokenDesk(Scheduler(engine, telemetry, settings.pace)), engine.info, engine.warm)


def _scales(cloud: ScaleCloud, settings: Settings, telemetry: Telemetry) -> Staff:
    engine = ScaleEngine(cloud, settings.max_sessions)
    return Staff(PassDesk(engine, ScaleSeat, telemetry, settings.pace.limit_s), engine.info)


def _steps(cloud: StepCloud, settings: Settings, telemetry: Telemetry) -> Staff:
    engine = StepEngine(cloud, settings.max_sessions)
    return Staff(PassDesk(engine, StepSeat, telemetry, settings.pace.limit_s), engine.info)


def _masked(cloud: MaskedCloud, settings: Settings, telemetry: Telemetry) -> Staff:
    engine = MaskedEngine(cloud, settings.max_sessions)
    return Staff(PassDesk(engine, MaskedSeat, telemetry, settings.pace.limit_s), engine.info)


# A new kind of model is one line here, and one in the loaders of the command line.
_STAFF: Mapping[type, Callable[[Any, Settings, Telemetry], Staff]] = {
    CloudModel: _tokens,
    ScaleCloud: _scales,
    StepCloud: _steps,
    MaskedCloud: _masked,
}


def staff(cloud: Served, settings: Settings, telemetry: Telemetry) -> Staff:
    """The staff of a model."""
    return _STAFF[type(cloud)](cloud, settings, telemetry)
