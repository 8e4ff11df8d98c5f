"""Pure functions of tensors: noise, warp, intervals, gates, acceptance. Knows nothing of models."""
