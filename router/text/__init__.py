"""Text and tokens: chat templates, tokenizing, incremental detokenizing and stop strings."""
