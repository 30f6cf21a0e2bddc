"""The fine-tuning methods: what each adapts, which settings it reads, what it costs. No torch.

Sources: LoRA (Hu et al. 2021), rsLoRA (Kalajdzievski 2023), DoRA (Liu et al. 2024), PiSSA (Meng et al. 2024), LoRA+
(Hayou et al. 2024), LoKr (Yeh et al. 2023), IA3 (Liu et al. 2022), AdaLoRA (Zhang et al. 2023), BitFit (Ben Zaken et
al. 2021). tests/training/test_methods.py checks what PEFT 0.21 does with each kind of module.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

_ALL = frozenset({"Linear", "Conv1d", "Conv2d", "Conv3d", "Embedding"})
_MATRICES = frozenset({"Linear", "Conv2d"})


@dataclass(frozen=True, kw_only=True)
class Method:
    """kinds: modules it adapts; empty: it takes no targets. settings: the fields of `lora` it reads besides head.

    help: the predicate of a sentence about the method, without a full stop.
    """

    name: str
    title: str
    help: str
    kinds: frozenset[str]
    settings: tuple[str, ...]

    @property
    def takes_targets(self) -> bool:
        return bool(self.kinds)

    @property
    def sentence(self) -> str:
        """A sentence about the method: "LoRA adds a low-rank update ..."."""
        return f"{self.title} {self.help}."

    @property
    def takes_ranks(self) -> bool:
        """Whether a module can have a separate rank."""
        return "rank_pattern" in self.settings

    def reason(self, kind: str) -> str:
        """Why the method cannot adapt a module of this kind; "" if it can."""
        if not self.kinds or kind in self.kinds:
            return ""
        return f"{self.title} adapts {' and '.join(sorted(self.kinds))} only, not {kind}."

    def cost(self, shape: tuple[int, ...], r: int) -> int:
        """Trainable parameters on a module whose weight has this shape (out, in, ...)."""
        return _OTHER_COSTS.get(self.name, _low_rank)(shape, r)


def first_rank(r: int) -> int:
    """The rank that AdaLoRA starts with: 1.5 r, reduced to r on average during training."""
    return math.ceil(1.5 * r)


def _low_rank(shape: tuple[int, ...], r: int) -> int:
    return r * (shape[0] + math.prod(shape[1:]))


def _kronecker(shape: tuple[int, ...], r: int) -> int:
    """LoKr: the update is a Kronecker product w1 x w2; w2 has rank r where that is smaller than w2 itself."""
    (out_1, out_2), (in_1, in_2) = _factors(shape[0]), _factors(shape[1])
    kernel = math.prod(shape[2:])
    whole = r >= max(out_2, in_2) / 2
    return out_1 * in_1 + (out_2 * in_2 * kernel if whole else r * (out_2 + in_2 * kernel))


def _factors(size: int) -> tuple[int, int]:
    """The two factors of `size` nearest to its square root, the smaller first."""
    small = max(n for n in range(1, math.isqrt(size) + 1) if size % n == 0)
    return small, size // small


_OTHER_COSTS: dict[str, Callable[[tuple[int, ...], int], int]] = {
    "dora": lambda shape, r: _low_rank(shape, r) + shape[0],
    "adalora": lambda shape, r: _low_rank(shape, first_rank(r)) + first_rank(r),
    "ia3": lambda shape, r: shape[0],
    "lokr": _kronecker,
}
_LORA = ("r", "alpha", "dropout", "rank_pattern")
METHODS = {
    method.name: method
    for method in (
        Method(
            name="lora",
            title="LoRA",
            help="adds a low-rank update (B·A) to each selected module",
            kinds=_ALL,
            settings=_LORA,
        ),
        Method(
            name="rslora",
            title="rsLoRA",
            help="is LoRA scaled by alpha / sqrt(r), so that high ranks learn as fast as low ones",
            kinds=_ALL,
            settings=_LORA,
        ),
        Method(
            name="dora",
            title="DoRA",
            help="applies LoRA to the direction of each weight row and trains its magnitude separately; slower",
            kinds=_MATRICES,
            settings=_LORA,
        ),
        Method(
            name="pissa",
            title="PiSSA",
            help="is LoRA initialised with the main singular directions of each weight; linear layers only",
            kinds=frozenset({"Linear"}),
            settings=_LORA,
        ),
        Method(
            name="loraplus",
            title="LoRA+",
            help="is LoRA with a higher learning rate for B than for A (lora.plus_ratio)",
            kinds=_ALL,
            settings=(*_LORA, "plus_ratio"),
        ),
        Method(
            name="lokr",
            title="LoKr",
            help="adds an update that is a Kronecker product: far fewer parameters, somewhat slower",
            kinds=_MATRICES,
            settings=("r", "alpha", "rank_pattern"),
        ),
        Method(
            name="ia3",
            title="IA3",
            help="trains one factor for each output of the selected modules; it has no rank",
            kinds=_MATRICES,
            settings=(),
        ),
        Method(
            name="adalora",
            title="AdaLoRA",
            help="starts with rank 1.5 r everywhere and prunes it where it helps least, down to r on average",
            kinds=_MATRICES,
            settings=("r", "alpha", "dropout"),
        ),
        Method(
            name="bitfit",
            title="BitFit",
            help="trains only the biases of the backbone; a baseline that takes no targets",
            kinds=frozenset(),
            settings=(),
        ),
        Method(
            name="full",
            title="Full fine-tuning",
            help="trains every parameter; a baseline that takes no targets",
            kinds=frozenset(),
            settings=(),
        ),
    )
}
