"""``python -m vsa_rt``."""

from vsa_rt.cli import main

main()
