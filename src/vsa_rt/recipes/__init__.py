"""Shipped recipes and heads: package data, read by ``vsa_rt.recipe``."""
