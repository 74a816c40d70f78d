"""A network -> its score; a policy -> its score."""
