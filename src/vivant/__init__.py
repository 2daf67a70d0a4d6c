"""vivant: a still picture, brought to life."""

__version__ = "0.1.0"
