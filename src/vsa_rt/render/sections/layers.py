"""Layers: the slowest, and where they belong."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from vsa_rt.render.blocks import Block, Cell, Figure, Figures, Heading, Paragraph, Section, table
from vsa_rt.render.numbers import count, decimals, fixed, percent, rounded
from vsa_rt.render.plots import bars as plots

if TYPE_CHECKING:
    from vsa_rt.bench.records.limits import Layer, Profile
    from vsa_rt.bench.report import Report

#: Layers that are shown; ``report.json`` has all.
_SLOWEST = 15
#: Bars of a plot by backbone or kind.
_BARS = 12


def _sums(layers: list[Layer], key: Callable[[Layer], str], groups: list[str]) -> list[plots.Bar]:
    sums: dict[str, float] = defaultdict(float)
    for layer in layers:
        sums[key(layer)] += layer.ms
    ordered = sorted(sums.items(), key=lambda s: -s[1])
    found = [plots.Bar(name, ms, name if name in groups else "") for name, ms in ordered[:_BARS]]
    if len(ordered) > _BARS:
        found.append(plots.Bar("all others", sum(ms for _, ms in ordered[_BARS:])))
    return found


def _figure(title: str, caption: str, rows: list[plots.Bar], total: float, groups: list[str]) -> Figure:
    said = "; ".join(f"{r.name} {rounded(r.ms)} ms" for r in rows)
    return Figure(title, f"Milliseconds per call: {said}.", caption, partial(plots.bars, rows, total, groups))


def _figures(profile: Profile) -> Figures:
    total = sum(layer.ms for layer in profile.layers)
    slowest = [
        plots.Bar(f"{k} {layer.kind}", layer.ms, layer.backbone)
        for k, layer in enumerate(profile.layers[:_SLOWEST], 1)
    ]
    backbones = sorted({layer.backbone for layer in profile.layers if layer.backbone})
    kinds = _sums(profile.layers, lambda layer: layer.kind, [])
    parts = _sums(profile.layers, lambda layer: layer.backbone or "no backbone", backbones)
    return Figures(
        [
            _figure("Slowest layers", "Numbers are rows of the table.", slowest, total, backbones),
            _figure("By kind of layer", "", kinds, total, []),
            _figure("By backbone", "", parts, total, backbones),
        ],
        tall=True,
    )


def _table(profile: Profile) -> Block:
    shown = profile.layers[:_SLOWEST]
    total = sum(layer.ms for layer in profile.layers)
    places = decimals([layer.ms for layer in shown])
    rows = [
        (
            str(place),
            layer.name,
            layer.backbone or Cell("none" if layer.nodes else "added by the backend", "quiet"),
            layer.kind,
            layer.precision,
            str(len(layer.nodes)),
            fixed(layer.ms, places),
            percent(layer.ms / total if total else None),
        )
        for place, layer in enumerate(shown, 1)
    ]
    title = f"The {len(shown)} slowest of {count(len(profile.layers), 'layer')}"
    return table(
        "#>", "layer", "backbone", "kind", "precision", "nodes>", "ms>", "share>", rows=rows, title=title
    )


def layers(report: Report) -> Section | None:
    """Profiles with their slowest layers and sums."""
    profiles = [p for p in report.profiles if p.layers]
    if not profiles:
        return None
    section = Section("layers", "Layers")
    section.lead = "Measured by the backend's own counters, which make a call slower: shares count, not sums."
    for profile in profiles:
        total = sum(layer.ms for layer in profile.layers)
        section.blocks += [
            Heading(f"{profile.plan}, batch {profile.batch}"),
            Paragraph(
                f"{profile.source}, means over {count(profile.calls, 'call')}; layers add up to "
                f"{rounded(total)} ms of {rounded(profile.call_ms)} ms per profiled call."
            ),
            _figures(profile),
            _table(profile),
        ]
    return section
