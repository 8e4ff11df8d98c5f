"""A draft tree as a job: nodes in columns of their own behind the image, each seeing its ancestors alone.

Node i is fed at the place of its depth and kept in column base + i. What stands of a tree is a path; as far
as that path lies in the first columns, the cache keeps it, and the rest is fed again with the next job.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from cloud_server.layout import Layout
from cloud_server.session import Job, Session
from shared.decoding.acceptance import Judged, Judgement, Rule
from shared.decoding.tree import ancestors, unseen, walk
from shared.messages import Draft, Tokens, no_tokens


def job_of(session: Session, draft: Draft) -> Job:
    """The job of a checked draft, chain or tree."""
    if not len(draft.parents):
        return Job.judging(session, draft)
    return TreeJob(session, draft.span, draft.catch_up, draft.features, parents=draft.parents)


@dataclass(frozen=True, eq=False)
class TreeJob(Job):
    """A job whose span is a tree of N nodes; the door sees to it that N columns are left."""

    parents: Tokens = field(default_factory=no_tokens)

    @property
    def ends_image(self) -> bool:
        """Never: a node that ends the image is fed like any other, its row is not read."""
        return False

    def layout(self) -> Layout:
        """The chain's, but for the places of the nodes and what they must not see."""
        chain = super().layout()
        stem = len(chain.tokens) - len(self.span)
        depths = [self.base + len(above) for above in ancestors(self.parents)]
        hidden = [[self.base + node for node in nodes] for nodes in unseen(self.parents)]
        return replace(chain, places=[*chain.places[:stem], *depths], unseen=[*[[]] * stem, *hidden])

    def judge(self, rule: Rule, judged: Judged) -> Judgement:
        """Walk down the tree by the rule of the order."""
        lenient = self.session.order.acceptance == "relaxed"
        return walk(rule, judged, self.parents, self.session.limits.image_tokens, lenient=lenient)

    def commit(self, judgement: Judgement) -> None:
        """Keep the path; of the cache, what of it lies where the image will have it."""
        session, path, base = self.session, judgement.path, self.base
        lying = next((depth for depth, node in enumerate(path) if node != depth), len(path))
        session.fed = session.prefix_rows + base + lying
        session.tokens += [*self.catch_up.tolist(), *self.span[list(path)].tolist()]
        session.tokens += [] if judgement.token is None else [judgement.token]
