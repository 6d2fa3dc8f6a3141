"""The CUDA side of engines: one thin seam to driver and library, and the session that launches whole graphs."""
