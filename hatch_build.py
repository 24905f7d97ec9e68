"""Build hook: compiles `protos/` into `extproc/_pb` (git-ignored) with grpcio-tools.

Runs for wheels and for editable installs, so generated code is never committed and never edited.
`python hatch_build.py` does the same by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent


def compile_protos(root: Path = ROOT) -> list[Path]:
    """Compile every file under `protos/`; returns the generated modules."""
    import grpc_tools
    from grpc_tools import protoc

    out = root / "extproc" / "_pb"
    out.mkdir(parents=True, exist_ok=True)
    (out / "__init__.py").write_text('"""Generated from protos/ at build. Never edit."""\n')
    sources = sorted((root / "protos").glob("*.proto"))
    if not sources:
        raise SystemExit(f"no .proto files in {root / 'protos'}")
    well_known = str(Path(grpc_tools.__file__).parent / "_proto")
    # Each file compiles on its own: a cross-import would need rewriting, since protoc emits
    # absolute imports that ignore the package the modules live in.
    arguments = [
        "protoc",
        f"-I{root / 'protos'}",
        f"-I{well_known}",
        f"--python_out={out}",
        f"--pyi_out={out}",
    ]
    code = protoc.main([*arguments, *(source.name for source in sources)])
    if code:
        raise SystemExit(f"protoc failed with {code}")
    return [out / f"{source.stem}_pb2.py" for source in sources]


class ProtoBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """hatchling calls this before it collects files."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        compile_protos(Path(self.root))


if __name__ == "__main__":
    for path in compile_protos():
        print(path)
