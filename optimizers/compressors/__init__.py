"""Compressors: what a worker sends in place of an array, and what that stands for."""
