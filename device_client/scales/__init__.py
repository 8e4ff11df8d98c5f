"""`ciar-scales`: pictures of models by scales."""
