"""From settings to a result: prepare a search, score policies, search, select, summarise, load."""
