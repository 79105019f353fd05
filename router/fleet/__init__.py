"""The replicas a router knows, and its streams to them."""
