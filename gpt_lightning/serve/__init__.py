"""One trained model that answers, and its ways out of and into this house."""
