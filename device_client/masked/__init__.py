"""`ciar-masked`: pictures of models of continuous tokens."""
