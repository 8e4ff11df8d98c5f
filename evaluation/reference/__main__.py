"""`python -m evaluation.reference`, or `make reference`: write docs/protocol.md and docs/rest.md."""

from __future__ import annotations

import sys
from pathlib import Path

from device_client.draw import Upstream
from device_client.gateway import create_app
from evaluation.reference.protocol import protocol_page
from evaluation.reference.rest import rest_page
from shared.models.zoo import load_device_package

ROOT = Path(__file__).parents[2]


def pages() -> dict[Path, str]:
    """Every generated page and its text."""
    app = create_app(load_device_package("emoji", Path()), Upstream(None))
    proto = (ROOT / "proto/ciar/v1/ciar.proto").read_text(encoding="utf-8")
    return {
        ROOT / "docs/protocol.md": protocol_page(proto),
        ROOT / "docs/rest.md": rest_page(app.openapi()),
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{path.relative_to(ROOT)}\n")
