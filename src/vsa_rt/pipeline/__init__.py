"""Build, fit and check: the only modules that join all the others."""
