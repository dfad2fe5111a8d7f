"""Push a model to the Hub, with its code and a filled model card."""

from .push import push


__all__ = ["push"]
