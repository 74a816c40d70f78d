"""Policies scored beside each other, by processes of this machine or of a Ray cluster.

A policy's score is a pure function, so it does not matter which worker scores it, or when. `start` decides what workers
there are; a `pool` deals the policies to them; `processes` and `cluster` are the two kinds.
"""
