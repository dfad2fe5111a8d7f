"""Export a model to a folder that runs without PyTorch."""

from .export import export


__all__ = ["export"]
