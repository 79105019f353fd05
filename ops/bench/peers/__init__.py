"""Our engine beside its peers: each in its own process and virtual environment, in turn."""
