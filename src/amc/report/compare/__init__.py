"""Several runs side by side: what each is, costs and scores, and which network to take."""
