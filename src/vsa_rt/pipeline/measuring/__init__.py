"""A benchmark's parts: what is opened, fed, run and compared."""
