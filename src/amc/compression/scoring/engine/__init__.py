"""Runs networks on inputs in memory: with torch, or faster where that gives the same outputs."""
