"""One replica as the cluster sees it: engine thread, gRPC service, lease, life on Ray Serve."""
