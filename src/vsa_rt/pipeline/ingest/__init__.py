"""Ingestion: sources of images and videos through a bundle to results that are written exactly once."""
