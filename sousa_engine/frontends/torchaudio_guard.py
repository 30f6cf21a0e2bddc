"""Import torchaudio on a CPU-only torch. Call `import_torchaudio` before transformers is first imported.

The torchaudio wheel of the default index carries a compiled extension linked to CUDA. Beside a CPU-only torch that
extension cannot be loaded, and then `import torchaudio` fails, and with it transformers' AST, which looks whether the
package is there. Nothing here needs the extension, and torchaudio runs without it: its loader answers False where the
file is absent. On a healthy installation this is a plain import.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def import_torchaudio() -> ModuleType:
    """The torchaudio package, imported; without its compiled extension where that cannot be loaded."""
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
