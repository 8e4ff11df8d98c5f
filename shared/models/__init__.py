"""Models: one transformer core, the VQ tokenizer, the Inter-Head, text, checkpoints. Knows nothing of wire or
loop."""
