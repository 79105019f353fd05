"""The SDK stays light."""

import subprocess
import sys

PROGRAM = """
import sys
import google.protobuf.message, grpc, grpc.aio
before = {name.split(".")[0] for name in sys.modules}
import trunkline
after = {name.split(".")[0] for name in sys.modules}
print(*(after - before - set(sys.stdlib_module_names)))
"""


def test_the_sdk_imports_grpc_protobuf_and_the_standard_library_alone() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True
    )
    assert run.stdout.split() == ["trunkline"]
