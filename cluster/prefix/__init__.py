"""The prefix cache as all components see it: how blocks of tokens are named."""
