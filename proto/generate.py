"""Makes `vyvo_dagster/protocol/grpc` from the .proto files: `python proto/generate.py [FOLDER]`."""

import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Final

from grpc_tools import protoc

_PROTO: Final = Path(__file__).parent
_PACKAGE: Final = _PROTO.parent / "vyvo_dagster" / "protocol" / "grpc"


def generate(target: Path) -> None:
    """Write the modules of every .proto file into `target`.

    Raises:
        RuntimeError: the compiler refuses a file; it has said why.
    """
    sources = sorted(str(path.relative_to(_PROTO)) for path in _PROTO.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as made:
        options = [f"--{kind}_out={made}" for kind in ("python", "pyi", "grpc_python")]
        include = [f"-I{_PROTO}", f"-I{files('grpc_tools') / '_proto'}"]
        if protoc.main(["protoc", *include, *options, *sources]):
            raise RuntimeError("protoc failed")
        for path in sorted(Path(made).rglob("*.py*")):
            # The compiler imports by the file's place in proto/; ours is this package.
            text = path.read_text().replace(
                "from vyvo.v1 import", "from vyvo_dagster.protocol.grpc import"
            )
            (target / path.name).write_text(text)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else _PACKAGE)
