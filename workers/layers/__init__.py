"""The parts a model is composed of: linear layers, norms, rotary embedding, attention, KV cache."""
