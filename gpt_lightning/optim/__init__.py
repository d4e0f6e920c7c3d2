"""Optimizers, parameter groups and schedules; they see names, roles and tensors, never the model."""
