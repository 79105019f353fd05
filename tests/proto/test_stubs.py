"""The stubs that are checked in are those that the proto files give."""

import shutil
from pathlib import Path

from ops.stubs import PROTO_ROOT, stale_stubs, write_stubs


def test_checked_in_stubs_are_up_to_date() -> None:
    assert stale_stubs(PROTO_ROOT) == [], "run `make proto`"


def test_stubs_follow_their_proto_files(tmp_path: Path) -> None:
    """Changed, left-over and missing stubs are all named, and writing mends them all."""
    root = tmp_path / "proto"
    shutil.copytree(PROTO_ROOT / "trunkline", root / "trunkline")
    package = root / "trunkline" / "v1"
    proto = package / "sampling.proto"
    proto.write_text(proto.read_text().replace("uint32 top_k = 2", "uint32 top_k = 20"))
    (package / "gone_pb2.py").touch()
    shutil.copytree(package, root / "build" / "lib")  # as building a wheel does
    (package / "inference_pb2_grpc.py").unlink()

    stale = {path.name for path in stale_stubs(root)}

    assert stale == {"sampling_pb2.py", "gone_pb2.py", "inference_pb2_grpc.py"}
    write_stubs(root)
    assert stale_stubs(root) == []
