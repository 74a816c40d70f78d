"""The score of a network, and the score of a policy."""
