"""What only training needs (the extra `train`)."""

from .denoising import DataCollatorForDenoising


__all__ = ["DataCollatorForDenoising"]
