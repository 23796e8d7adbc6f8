"""Tasks out of the stream: taken, claimed, done once, told of, and given up with the reason."""
