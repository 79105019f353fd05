"""What clients ask for: conversations, agents, retrieval, bursts, and recorded traces."""
