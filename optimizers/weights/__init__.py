"""Operators on parameters: merging, matching and reparameterisation."""
