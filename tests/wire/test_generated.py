"""The committed protobuf code is what proto/ciar/v1/ciar.proto generates."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
GENERATED = ("ciar_pb2.py", "ciar_pb2.pyi", "ciar_pb2_grpc.py")


def test_generated_code_is_up_to_date(tmp_path: Path) -> None:
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    protoc = [sys.executable, "-m", "grpc_tools.protoc", "-I", "shared/wire/pb=proto/ciar/v1", *outputs]
    subprocess.run([*protoc, "shared/wire/pb/ciar.proto"], cwd=ROOT, check=True)
    for name in GENERATED:
        fresh, committed = (base / "shared/wire/pb" / name for base in (tmp_path, ROOT))
        assert fresh.read_text() == committed.read_text(), f"{name} is out of date: run `make proto`"
