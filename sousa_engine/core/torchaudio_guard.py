"""Let torchaudio be imported beside a PyTorch that its compiled extension does not match. Standard library only.

The torchaudio wheel of the default index has an extension linked to CUDA. Beside a CPU build of PyTorch the extension
cannot be loaded, so `import torchaudio` fails, and with it `import peft` and transformers' AST, which only look whether
the package is there. Nothing of ours needs the extension, and torchaudio works without it: its loader answers False
where the file is absent. `install` makes it answer False as well where the file cannot be loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

_UTILS = "torchaudio._extension.utils"

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
