"""A .proto file as a page: its comments are the text. Reads one layout, a line for each field and brace.

Knows nothing of what the messages mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

HEAD = """<!-- Made by `make reference` from proto/ciar/v1/ciar.proto; edit that file. -->
# Protocol reference

What device and cloud say to each other, from the comments of
[`proto/ciar/v1/ciar.proto`](../proto/ciar/v1/ciar.proto). The REST service is [another page](rest.md).
"""
BLOCK = re.compile(r"(message|enum|service) (\w+) \{(\})?")
FIELD = re.compile(r"(?:(optional|repeated) )?([\w.]+) (\w+) = (\d+);")
VALUE = re.compile(r"(\w+) = (\d+);")
CALL = re.compile(r"rpc (\w+)\((.*?)\) returns \((.*?)\);")
TITLES = {
    "message": ("field", "type", "number", "meaning"),
    "enum": ("value", "number", "meaning"),
    "service": ("call", "takes", "answers", "meaning"),
}


@dataclass
class Block:
    """A message, an enum or a service: its comment, and a row for each thing in it."""

    kind: str
    name: str
    told: str
    rows: list[tuple[str, ...]] = field(default_factory=list)


def protocol_page(proto: str) -> str:
    """The Markdown of a .proto file. Raises ValueError for a line it cannot place."""
    top, _, rest = proto.partition('\nsyntax = "proto3";')
    parts = [HEAD, _prose(line.removeprefix("//").removeprefix(" ") for line in top.splitlines())]
    for block in _blocks(rest):
        parts.append(f"## {block.kind} `{block.name}`\n")
        parts += [f"{block.told}\n"] if block.told else []
        parts += [_table(block)] if block.rows else []
    return "\n".join(parts)


def _prose(lines: Iterator[str]) -> str:
    """Comment lines as paragraphs: indented ones are drawings, a first sentence of a word or two is bold."""
    paragraphs = "\n".join(lines).split("\n\n")
    return "\n\n".join(map(_paragraph, paragraphs)) + "\n"


def _paragraph(text: str) -> str:
    if text.startswith("  "):
        return f"```text\n{text}\n```"
    return re.sub(r"^([A-Z][a-z]+(?: [a-z]+)?)\. ", r"**\1.** ", text)


def _blocks(text: str) -> Iterator[Block]:
    comment: list[str] = []
    block: Block | None = None
    depth = 0
    for line in text.splitlines():
        bare, _, remark = (part.strip() for part in line.partition("//"))
        if not bare:
            comment += [remark] if remark else []
        elif begun := BLOCK.fullmatch(bare):
            block, comment, depth = Block(begun[1], begun[2], " ".join(comment)), [], 1
            yield from [block] if begun[3] else []
        elif bare.endswith("{"):  # a oneof: its members are fields like others
            depth += 1
        elif bare == "}":
            depth -= 1
            yield from [block] if block and depth == 0 else []
        elif block is not None and depth:
            block.rows.append(_row(block.kind, bare, " ".join([*comment, *([remark] if remark else [])])))
            comment = []


def _row(kind: str, line: str, told: str) -> tuple[str, ...]:
    if kind == "service" and (call := CALL.fullmatch(line)):
        return f"`{call[1]}`", f"`{call[2]}`", f"`{call[3]}`", told
    if kind == "enum" and (value := VALUE.fullmatch(line)):
        return f"`{value[1]}`", value[2], told
    if kind == "message" and (found := FIELD.fullmatch(line)):
        return f"`{found[3]}`", f"{found[1] or ''} {found[2]}".strip(), found[4], told
    raise ValueError(f"no {kind} holds {line!r}")


def _table(block: Block) -> str:
    titles = TITLES[block.kind]
    lines = [titles, ("---",) * len(titles), *block.rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
