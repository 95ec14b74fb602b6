"""Batch transforms, and Objectives that augment the batch themselves."""
