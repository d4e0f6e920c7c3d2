"""Many runs, or none: each verb takes the stack that `fit` takes and gives back an overlay."""
