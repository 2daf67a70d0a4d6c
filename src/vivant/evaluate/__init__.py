"""Measuring what models do: definitions that are exact, and nothing that a model under test was trained on."""
