"""Plots as SVG: from plain numbers and names to bytes, the same bytes for the same numbers."""
