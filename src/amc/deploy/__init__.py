"""Exports networks to files that runtimes load, and measures their latency there."""
