"""torchaudio's compiled extension is removed only where it prevents the import."""

import sys

from sousa_engine.maintenance import torchaudio_repair


def tries(stderr, code):
    return [sys.executable, "-c", f"import sys; print({stderr!r}, file=sys.stderr); sys.exit({code})"]


def test_only_an_extension_that_prevents_the_import_is_removed(tmp_path):
    folder = tmp_path / "torchaudio"
    (folder / "lib").mkdir(parents=True)
    files = [folder / "lib" / f"{name}.abi3.so" for name in ("_torchaudio", "libtorchaudio")]
    kept = folder / "lib" / "torchaudio_prefixctc.abi3.so"
    for file in (*files, kept):
        file.touch()
    assert torchaudio_repair.remove_broken_extension(tries("", 0), folder) == []
    assert torchaudio_repair.remove_broken_extension(tries("No module named torch", 1), folder) == []
    assert all(file.exists() for file in files)
    assert torchaudio_repair.remove_broken_extension(tries(f"Could not load: {files[0]}", 1), folder) == files
    assert kept.exists() and not any(file.exists() for file in files)
