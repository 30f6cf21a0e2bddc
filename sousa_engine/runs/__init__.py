"""Carrying runs out: from a draft to a queued run, its process, and its end."""
