"""Make `import peft` work in every script of this environment, beside a PyTorch that torchaudio was not built for.

    python -m sousa_engine.maintenance.torchaudio_repair

core.torchaudio_guard helps only those who import us first.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_EXTENSIONS = ("_torchaudio", "libtorchaudio")


def remove_broken_extension(
    import_it: Sequence[str] = (sys.executable, "-c", "import torchaudio"), package: Path | None = None
) -> list[Path]:
    """Delete torchaudio's compiled extension if, and only if, torchaudio cannot be imported because of it.

    Afterwards `import peft` works in any script of this environment; reinstalling torchaudio brings the files back.
    import_it: a command that tries the import without us. package: torchaudio's folder. Returns the deleted files.
    """
    if package is None:
        spec = importlib.util.find_spec("torchaudio")
        if spec is None or spec.origin is None:
            return []
        package = Path(spec.origin).parent
    tried = subprocess.run(import_it, capture_output=True, text=True, errors="replace")
    files = [file for name in _EXTENSIONS for file in sorted((package / "lib").glob(f"{name}.*"))]
    if tried.returncode == 0 or not any(str(file) in tried.stderr for file in files):
        return []
    for file in files:
        file.unlink()
    return files


def main() -> None:
    files = remove_broken_extension()
    for file in files:
        print(f"removed {file}")
    print(
        "torchaudio's compiled extension does not match this PyTorch and is not needed; `import peft` works now."
        if files
        else "nothing to do: torchaudio can be imported, or its extension is not the reason"
    )


if __name__ == "__main__":
    main()
