"""A model crosses the Internet once: nodes take its files from each other, and one of them asks the source."""
