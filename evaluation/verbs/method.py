"""`ciar-eval method`: the method's own tables over the real wire, resumable like all of them."""

from __future__ import annotations

import sys
from typing import Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg

from evaluation.campaign import Turn
from evaluation.columns import Sample
from evaluation.comparison import Matched
from evaluation.method import METHOD, compared
from evaluation.policies import BASE
from evaluation.report import Jury, make_table, write_table
from evaluation.verbs.study import Study


class Method(Study):
    """One of: modes over loopback, gates at equal forwards, waiting at 50 ms, what the dial buys."""

    name: CliPositionalArg[Literal["modes", "gates", "waiting", "dial"]] = Field(
        description=f"one of {', '.join(METHOD)}"
    )

    def run(self) -> None:
        """Draw what is missing, write OUT/table-N.md and .csv, print the table and what follows from it."""
        spec, images = METHOD[self.name], self.wanted()
        jury = self.jury() if self.name == "dial" else Jury()
        with self.campaign() as campaign:
            sys.stdout.write(write_table(self.out, *make_table(spec, campaign, jury, images)))
            samples = {}
            for line in spec.lines:
                assert line.row is not None and not isinstance(line.row, Matched)
                turns = Turn(line.row, line.link), Turn(BASE, line.link)
                ours, base = campaign.records(turns, images)
                samples[line.name] = Sample(tuple(ours), tuple(base))
        sys.stdout.write("".join(f"- {told}\n" for told in compared(self.name, samples)))
