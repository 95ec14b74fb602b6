"""Solvers: iterations on a whole problem, which no gradient transformation can express."""
