"""Let torchaudio be imported beside a PyTorch that its compiled extension does not match. Standard library only.

The torchaudio wheel of the default index has an extension linked to CUDA. Beside a CPU build of PyTorch the extension
cannot be loaded, so `import torchaudio` fails, and with it `import peft` and transformers' AST, which only look whether
the package is there. Nothing of ours needs the extension, and torchaudio works without it: its loader answers False
where the file is absent. `install` makes it answer False as well where the file cannot be loaded.

    python -m sousa_engine.core.torchaudio_guard    # for scripts that import peft first; see `remove_broken_extension`
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType

_UTILS = "torchaudio._extension.utils"
_EXTENSIONS = ("_torchaudio", "libtorchaudio")

failures: list[str] = []  # why an extension could not be loaded, in this process


def install() -> None:
    """Apply the guard to the next import of torchaudio. Costs nothing until then; called by `import sousa_engine`."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    if "torchaudio" not in sys.modules:
        sys.modules.pop(_UTILS, None)  # left behind by an import that failed
    sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        found = PathFinder.find_spec(fullname, path, target) if fullname == _UTILS else None
        if found and found.origin:
            found.loader = _Tolerant(fullname, found.origin)
        return found


class _Tolerant(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        load = getattr(module, "_load_lib", None)
        if load is None:  # another version of torchaudio
            return

        def load_or_do_without(lib: str) -> bool:
            try:
                return load(lib)
            except OSError as error:
                failures.append(" ".join(str(error).split()))
                return False

        setattr(module, "_load_lib", load_or_do_without)  # noqa: B010 (a type checker knows no such attribute)


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
