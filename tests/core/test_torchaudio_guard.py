"""torchaudio imports beside a PyTorch that its compiled extension does not match."""

import subprocess
import sys

import pytest

from sousa_engine.core import torchaudio_guard


def python(code, *, cwd):
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def package(folder, load):
    """A torchaudio whose loader is `load`, as far as the guard knows it."""
    extension = folder / "torchaudio" / "_extension"
    extension.mkdir(parents=True)
    (extension.parent / "__init__.py").write_text("from . import _extension\n")
    (extension / "__init__.py").write_text("from .utils import _load_lib\nhas_it = _load_lib('_torchaudio')\n")
    (extension / "utils.py").write_text(f"def _load_lib(lib):\n    {load}\n")
    return extension.parent


def test_the_real_torchaudio_imports_after_any_part_of_the_engine():
    """PEFT, which needs it, is imported by all tests that train, in processes where the engine came first."""
    code = """
import sousa_engine
import torch, torchaudio.functional
assert torchaudio.functional.resample(torch.ones(1, 320), 32000, 16000).shape == (1, 160)
print("ok")
"""
    assert python(code, cwd=None) == "ok\n"


@pytest.mark.parametrize(
    ("load", "answer"),
    [("raise OSError('no libc10_cuda.so')", "False 1"), ("return True", "True 0"), ("return False", "False 0")],
)
def test_an_extension_that_cannot_be_loaded_counts_as_absent_and_any_other_is_used(tmp_path, load, answer):
    package(tmp_path, load)
    code = f"""
import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(torchaudio_guard.__file__).split("/sousa_engine/")[0]!r}]
from sousa_engine.core import torchaudio_guard as guard
guard.install()
import torchaudio
print(torchaudio._extension.has_it, len(guard.failures), sum(type(f).__name__ == "_Finder" for f in sys.meta_path))
"""
    assert python(code, cwd=tmp_path) == f"{answer} 1\n"


def test_an_import_that_failed_before_ours_succeeds_after_it(tmp_path):
    package(tmp_path, "raise OSError('no libc10_cuda.so')")
    code = f"""
import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(torchaudio_guard.__file__).split("/sousa_engine/")[0]!r}]
try:
    import torchaudio
except OSError:
    import sousa_engine
    import torchaudio
    print("ok")
"""
    assert python(code, cwd=tmp_path) == "ok\n"
