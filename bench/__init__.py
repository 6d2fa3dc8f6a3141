"""Measuring: comparison, clocks, benchmark scripts."""
