"""Import torchaudio on a CPU-only torch. Call `import_torchaudio` before transformers is first imported.

The torchaudio wheel of the default index contains a compiled extension linked to CUDA. With a CPU-only torch that
extension cannot be loaded, so `import torchaudio` fails, and with it transformers' AST, which checks for the package.
Nothing here needs the extension, and torchaudio works without it: its loader returns False if the file is absent. On a
healthy installation this is a plain import.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def import_torchaudio() -> ModuleType:
    """Import the torchaudio package, without its compiled extension if that cannot be loaded."""
    try:
        return importlib.import_module("torchaudio")
    except OSError:
        pass
    for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
        del sys.modules[name]
    package = importlib.util.find_spec("torchaudio")
    assert package is not None and package.origin is not None
    name = "torchaudio._extension.utils"
    spec = importlib.util.spec_from_file_location(name, Path(package.origin).parent / "_extension" / "utils.py")
    assert spec is not None and spec.loader is not None
    loader = importlib.util.module_from_spec(spec)
    sys.modules[name] = loader
    spec.loader.exec_module(loader)
    loader._load_lib = lambda lib: False  # pyright: ignore[reportAttributeAccessIssue]
    return importlib.import_module("torchaudio")
