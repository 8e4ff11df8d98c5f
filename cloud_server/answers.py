"""The verdicts a session has given, so that a repeated round gets its own again. Knows no models."""

from __future__ import annotations

from shared.errors import InvalidDraft
from shared.messages import Draft, Verdict


class Answers:
    """By round; the last `most` of them, where one takes much room. None: all."""

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._verdicts: dict[int, tuple[int, Verdict]] = {}

    def given(self, draft: Draft) -> Verdict | None:
        """The verdict already given to this round, or None. Raises InvalidDraft if its base was another, or
        if it is none and comes too late."""
        base, verdict = self._verdicts.get(draft.round, (draft.base, None))
        if base != draft.base:
            why = f"its base was {base}; one number never names two drafts"
            raise InvalidDraft(f"round {draft.round} came again with base {draft.base}", why)
        if verdict is None and self._verdicts and draft.round < (last := max(self._verdicts)):
            raise InvalidDraft(f"round {draft.round} is out of order", f"allowed: above {last}")
        return verdict

    def keep(self, draft: Draft, verdict: Verdict) -> Verdict:
        """Remember and return it."""
        self._verdicts[draft.round] = (draft.base, verdict)
        if self._most is not None and len(self._verdicts) > self._most:
            del self._verdicts[min(self._verdicts)]
        return verdict
