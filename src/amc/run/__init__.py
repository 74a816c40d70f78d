"""The files of a run: its directory, line files, JSON records, weights, and their provenance."""
