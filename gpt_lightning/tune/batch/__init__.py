"""The batch of a run: timed, and weighed against the noise of its gradients."""
