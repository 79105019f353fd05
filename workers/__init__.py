"""One replica of one model: engine, KV cache, models, kernels, and the actor that serves them."""
