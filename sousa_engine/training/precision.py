"""Use this machine's fast path for float32 matrix products if a self-test shows that it keeps float32's precision."""

from __future__ import annotations

import torch

LARGEST_ERROR = 1e-5
"""Largest relative error of a 512-wide product that still counts as float32 (float32: about 3e-7, bf16: 2e-3)."""


def use_fast_float32() -> str:
    """Try PyTorch's "medium" matmul precision on the CPU; keep it only if products remain float32.

    Returns a line for the log. On this path oneDNN may choose faster kernels. A CPU with bf16 units would round to
    bf16 instead; the self-test notices that, and nothing is changed.
    """
    before = torch.get_float32_matmul_precision()
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 512, 512, generator=generator)
    exact = a.double() @ b.double()
    torch.set_float32_matmul_precision("medium")
    error = ((a @ b).double() - exact).abs().max().item() / exact.abs().max().item()
    if error <= LARGEST_ERROR:
        return f"float32 matmul: medium (self-test error {error:.1e})"
    torch.set_float32_matmul_precision(before)
    return f"float32 matmul: {before} (medium has self-test error {error:.1e})"
