"""What a person, or a program, reads: tables on a terminal, JSON documents, JSON lines, CSV, pages."""

from vsa_rt.render.bench import bench_report
from vsa_rt.render.bundles import check, manifest
from vsa_rt.render.comparison import baselines, comparison
from vsa_rt.render.ingest_progress import shown as shown_ingest
from vsa_rt.render.ingest_summary import summary as ingest_summary
from vsa_rt.render.machine import diagnosis
from vsa_rt.render.overlay import MapWriter
from vsa_rt.render.pages import require_pages, write_report
from vsa_rt.render.recipes import fit, recipe, recipe_list
from vsa_rt.render.results import results
from vsa_rt.render.timeline import TimelineWriter

__all__ = [
    "MapWriter",
    "TimelineWriter",
    "baselines",
    "bench_report",
    "check",
    "comparison",
    "diagnosis",
    "fit",
    "ingest_summary",
    "manifest",
    "recipe",
    "recipe_list",
    "require_pages",
    "results",
    "shown_ingest",
    "write_report",
]
