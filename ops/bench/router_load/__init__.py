"""A router between a load and replicas that compute nothing, each in a process of its own."""
