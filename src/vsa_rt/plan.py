"""The plan: which precision each backbone of a graph is computed in, and what is left out of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from vsa_rt.contracts import Precision
from vsa_rt.errors import UsageError

#: What a backbone can be lowered to.
BACKBONE_PRECISIONS = (Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8)
#: What can stand around int8: the type of what is not quantised in such a backbone.
AROUND = (Precision.FP32, Precision.FP16, Precision.BF16)
#: What the head can be: its sums are long and its cost is next to nothing.
HEADS = (Precision.FP32, Precision.FP16)


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which precision each backbone has.

    Attributes:
        backbones: Tap of every backbone, in the graph's order, to its precision.
        around: Of what is not quantised in an int8 backbone: pools, additions, activations. TensorRT wants it in
            half; OpenVINO only finds its int8 kernels where it is fp32.
        head: Of what comes after the backbones: fp32, or fp16 where a GPU has no products in fp32.
        exclude: Names of nodes of the FP32 graph that stay in fp32 whatever their backbone's precision is.
    """

    backbones: dict[str, Precision]
    around: Precision = Precision.FP32
    head: Precision = Precision.FP32
    exclude: list[str] = []

    def __post_init__(self) -> None:
        for tap, precision in self.backbones.items():
            if precision not in BACKBONE_PRECISIONS:
                raise ValueError(f"backbone {tap!r} cannot be {precision}")
        if self.around not in AROUND:
            raise ValueError(f"nothing around int8 can be {self.around}")
        if self.head not in HEADS:
            raise ValueError(f"the head cannot be {self.head}")

    @classmethod
    def uniform(
        cls,
        taps: Iterable[str],
        precision: Precision,
        *,
        around: Precision = Precision.FP32,
        head: Precision = Precision.FP32,
        exclude: Sequence[str] = (),
    ) -> Plan:
        """The plan that gives every backbone the same precision."""
        return cls(backbones=dict.fromkeys(taps, precision), around=around, head=head, exclude=list(exclude))

    @property
    def precision(self) -> Precision:
        """The one precision that all backbones have, else ``mixed``."""
        used = set(self.backbones.values()) or {Precision.FP32}
        return used.pop() if len(used) == 1 else Precision.MIXED

    def taps(self, precision: Precision) -> list[str]:
        """The backbones of this precision."""
        return [tap for tap, given in self.backbones.items() if given is precision]

    def with_backbone(self, tap: str, precision: Precision) -> Plan:
        """The same plan with another precision of one backbone.

        Raises:
            UsageError: It has no such backbone.
        """
        if tap not in self.backbones:
            raise UsageError(f"backbone {tap!r}: unknown; there are {', '.join(self.backbones)}")
        return msgspec.structs.replace(self, backbones=self.backbones | {tap: precision})

    def without(self, nodes: Iterable[str]) -> Plan:
        """The same plan with these nodes left in fp32 as well."""
        return msgspec.structs.replace(self, exclude=list(dict.fromkeys([*self.exclude, *nodes])))

    def __str__(self) -> str:
        precision = self.precision
        if precision is Precision.MIXED:
            text = ", ".join(f"{tap} {given}" for tap, given in self.backbones.items())
        else:
            text = f"all {precision}"
        if Precision.INT8 in self.backbones.values() and self.around is not Precision.FP32:
            text += f" in {self.around}"
        return f"{text}, {len(self.exclude)} nodes in fp32" if self.exclude else text
