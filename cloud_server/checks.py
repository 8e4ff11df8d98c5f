"""What arrives at the door of a session: ids, features and proposals against the limits of the model.

Knows nothing of sessions. Form was checked by the wire; here is what depends on V, T and d_f.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shared.errors import InvalidDraft, InvalidRequest, ModelMismatch, ModelUnavailable
from shared.messages import Features, ModelInfo, Open, Proposal, Tokens

# A row of fp16 probabilities sums to one within rounding, whatever its length.
_MASS_TOLERANCE = 0.01


@dataclass(frozen=True)
class Limits:
    """What a draft is measured against; the same for all sessions of an engine."""

    codebook_size: int  # V
    image_tokens: int  # T
    feature_width: int  # d_f
    max_span: int  # largest K


def check_model(order: Open, info: ModelInfo) -> None:
    """Raise ModelUnavailable or ModelMismatch unless the order is for this model."""
    if order.model != info.name:
        raise ModelUnavailable(f"no model {order.model!r} here", f"this server serves {info.name!r}")
    if order.cloud_digest not in ("", info.digest):
        why = f"the device belongs to cloud weights {order.cloud_digest}, this server has {info.digest}"
        next_step = (
            "give the device the package trained for this cloud, or start the cloud it was trained for"
        )
        raise ModelMismatch(f"device and cloud disagree about {info.name!r}", why, next_step)
    if order.codebook_size != info.codebook_size:
        what = f"the device has {order.codebook_size} codes, the cloud {info.codebook_size}"
        raise ModelMismatch(
            what, "both must use the same codebook", "install the device package of this model"
        )


def check_ids(ids: Tokens, limits: Limits, name: str, refuse: type[InvalidRequest]) -> None:
    """Raise `refuse` unless every id is in 0 .. V - 1."""
    if not ids.size or (ids.min() >= 0 and ids.max() < limits.codebook_size):
        return
    place = int(((ids < 0) | (ids >= limits.codebook_size)).argmax())
    why = f"allowed: 0 to {limits.codebook_size - 1}"
    raise refuse(f"{name} holds token {int(ids.flat[place])} at {place}", why)


def check_features(sent: Features | None, tokens: int, limits: Limits, refuse: type[InvalidRequest]) -> None:
    """Raise `refuse` unless the features have width d_f and name ascending places below `tokens`."""
    if sent is None:
        return
    if sent.codes.shape != (len(sent.index), limits.feature_width) or sent.scale.shape != sent.index.shape:
        shapes = f"index {sent.index.shape}, codes {sent.codes.shape} and scale {sent.scale.shape}"
        raise refuse(f"the features have {shapes}", f"allowed: [n], [n, {limits.feature_width}] and [n]")
    places = sent.index.astype(np.int64)
    if len(places) and (places[-1] >= tokens or (np.diff(places) <= 0).any()):
        raise refuse(f"the features have places {places[:8].tolist()}", f"allowed: ascending, below {tokens}")


def check_proposal(proposal: Proposal, span: Tokens, limits: Limits) -> None:
    """Raise InvalidDraft unless every row is a distribution over distinct ids that holds its span token."""
    ids, probabilities = proposal.ids, proposal.probabilities.astype(np.float32)
    if ids.ndim != 2 or ids.shape != probabilities.shape or len(ids) != len(span):
        shapes = f"{ids.shape} and {probabilities.shape}"
        raise InvalidDraft(f"the proposal has shapes {shapes}", f"allowed: two of ({len(span)}, k)")
    check_ids(ids, limits, "the proposal", InvalidDraft)
    if (np.diff(np.sort(ids, axis=1), axis=1) == 0).any():
        raise InvalidDraft("a proposal row names one id twice", "allowed: distinct ids")
    mass = probabilities.sum(axis=1)
    if not ((probabilities >= 0).all() and (abs(mass - 1) <= _MASS_TOLERANCE).all()):
        raise InvalidDraft(
            f"proposal rows sum to {mass.min():g} .. {mass.max():g}", "allowed: 1 within rounding"
        )
    drawn = (probabilities * (ids == span[:, None])).sum(axis=1)
    if not (drawn > 0).all():
        place = int((drawn <= 0).argmax())
        raise InvalidDraft(
            f"span token {int(span[place])} has probability 0 in its proposal", "it was drawn from it"
        )
