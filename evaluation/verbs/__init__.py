"""The verbs of `ciar-eval`: each is its flags and a run. They read no argv and no environment."""
