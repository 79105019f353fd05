"""The front door: gRPC and HTTP servers, text, admission, routing and dispatch."""
