"""Solvers: frozen values that turn a network's predictions into the next, less noisy state. One paper a file."""
