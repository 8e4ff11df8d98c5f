"""`ciar-diffusion`: pictures of models by steps."""
