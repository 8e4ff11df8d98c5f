"""Where the tokens of a forward go and what they may see, where that is not simply "behind what is there".

Knows nothing of sessions or models. Columns are entries of the cache, places are those of the image, both
counted from the first image token. A draft tree keeps several nodes of one place in columns of their own;
rows drawn in parallel leave columns empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shared.models.woven import Weave


@dataclass(frozen=True, eq=False)
class Layout:
    """The image tokens that one job feeds, in the order of their columns.

    places  what they are embedded and turned by
    unseen  per token, earlier columns it must not see; None: it sees them all, and its place is its column
    """

    tokens: list[int]
    columns: Sequence[int]
    places: Sequence[int]
    unseen: Sequence[Sequence[int]] | None = None

    def woven(self, prompt: int, rows: int) -> Weave | None:
        """The same in sequence positions, behind `prompt` words that end at position `rows`."""
        if self.unseen is None:
            return None
        turns = [*range(rows - prompt, rows), *(rows + place for place in self.places)]
        hidden = [*[[]] * prompt, *([rows + column for column in columns] for columns in self.unseen)]
        return Weave(turns, hidden)
