"""What holds the nodes together: settings, the Redis registry and the block hashes."""
