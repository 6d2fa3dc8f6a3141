"""The report's sections, in the order in which a reader asks: trust, what, how fast, than what, why, is it right."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vsa_rt.render.blocks import Section
from vsa_rt.render.sections.contests import against_baselines
from vsa_rt.render.sections.latency import latency
from vsa_rt.render.sections.layers import layers
from vsa_rt.render.sections.limits import distance
from vsa_rt.render.sections.machine import environment, method, resource_use, skipped
from vsa_rt.render.sections.measured import measured
from vsa_rt.render.sections.parity import parity
from vsa_rt.render.sections.points import accuracy_and_latency
from vsa_rt.render.sections.stages import time_split

if TYPE_CHECKING:
    from vsa_rt.bench.report import Report

_SECTIONS = (
    measured,
    latency,
    against_baselines,
    time_split,
    distance,
    layers,
    parity,
    accuracy_and_latency,
    resource_use,
    environment,
    skipped,
    method,
)


def sections(report: Report) -> list[Section]:
    """Every section that has something to say."""
    found = [make(report) for make in _SECTIONS]
    return [section for section in found if section is not None]
