"""The contract between components of the cluster, not for clients."""
