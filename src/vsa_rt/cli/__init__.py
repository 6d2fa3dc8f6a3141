"""The command line: each command parses, calls one function and prints."""

# Imported in the order in which the help lists their commands.
from vsa_rt.cli import machine, make, lower, use, ingest, prove, measure, sign  # isort: skip
from vsa_rt.cli.app import app, main

__all__ = ["app", "ingest", "lower", "machine", "main", "make", "measure", "prove", "sign", "use"]
