"""An OpenAPI description as a page. Knows nothing of the service it describes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

HEAD = """<!-- Made by `make reference` from the service's OpenAPI description; edit the code behind it. -->
# REST reference

What `device-client serve` answers: the same as `/openapi.json` of a running one says to programs. Bodies and
answers are JSON unless something else stands here. How to start it: [run it](run.md).
"""
LEFT_OUT = ("HTTPValidationError", "ValidationError")  # the framework's own, which no path here answers with
BOUNDS = {
    "minimum": "from {}",
    "exclusiveMinimum": "above {}",
    "maximum": "to {}",
    "exclusiveMaximum": "below {}",
}
Json = Mapping[str, Any]


def rest_page(description: Json) -> str:
    """The Markdown of an OpenAPI description."""
    parts = [HEAD]
    for path, calls in description["paths"].items():
        for method, call in calls.items():
            parts += _call(f"{method.upper()} {path}", call)
    parts.append("# Bodies and answers\n")
    for name, schema in description["components"]["schemas"].items():
        if name not in LEFT_OUT:
            parts += _schema(name, schema)
    return "\n".join(parts)


def _call(title: str, call: Json) -> Iterator[str]:
    yield f"## `{title}`\n"
    yield f"{call.get('description', call['summary'])}\n"
    given = call.get("parameters", [])
    if given:
        yield _table(("parameter", "in", "meaning"), [_parameter(one) for one in given])
    body = call.get("requestBody", {}).get("content", {}).get("application/json")
    if body:
        yield f"Takes {_type(body['schema'])}. For example:\n"
        yield "```json"
        yield from (json.dumps(example["value"]) for example in body.get("examples", {}).values())
        yield "```\n"
    yield _table(("status", "answer"), list(_answers(call["responses"])))


def _parameter(given: Json) -> tuple[str, ...]:
    needed = "; required" if given.get("required") else ""
    return f"`{given['name']}`", given["in"], f"{given.get('description', 'text')}{needed}"


def _answers(responses: Json) -> Iterator[tuple[str, ...]]:
    """Statuses and what comes with them; those that come with the same share a line."""
    lines: dict[str, list[str]] = {}
    for status, answer in responses.items():
        kinds = answer.get("content", {"": {}})
        told = [_kind(kind, content) for kind, content in kinds.items()]
        if not any(name in one for one in told for name in LEFT_OUT):
            lines.setdefault("; ".join(filter(None, told)) or "a file", []).append(status)
    return ((", ".join(statuses), told) for told, statuses in lines.items())


def _kind(kind: str, content: Json) -> str:
    if kind == "application/json":
        return _type(content.get("schema", {})) or "JSON"
    return f"`{kind}`" if kind else ""


def _schema(name: str, schema: Json) -> Iterator[str]:
    yield f"## {name}\n"
    yield f"{schema.get('description', '')}\n"
    needed = schema.get("required", [])
    rows = [_field(field, value, field in needed) for field, value in schema.get("properties", {}).items()]
    yield _table(("field", "type", "meaning"), rows)


def _field(name: str, schema: Json, needed: bool) -> tuple[str, ...]:
    usual = schema.get("default")
    told = (
        schema.get("description", ""),
        "required" if needed else "",
        f"default `{json.dumps(usual)}`" if usual is not None else "",
    )
    return f"`{name}`", _type(schema), "; ".join(filter(None, told))


def _type(schema: Json) -> str:
    """A schema in words, with links to those that have a section."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{one}`" for one in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    bounds = [words.format(_number(schema[key])) for key, words in BOUNDS.items() if key in schema]
    return " ".join([schema.get("type", ""), *bounds]).strip()


def _number(value: float) -> str:
    return f"{int(value)}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.6g}"


def _table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [titles, ("---",) * len(titles), *rows]
    cells = ([" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)
