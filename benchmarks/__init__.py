"""The measurements in RESULTS.md, and the scripts that made the pictures of README and the embedded weights."""
