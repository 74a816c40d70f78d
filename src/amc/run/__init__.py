"""What a run leaves on disk: its directory, line files, JSON records, weights, and where they were made."""
