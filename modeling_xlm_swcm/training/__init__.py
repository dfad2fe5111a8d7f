"""What only training needs (`pip install 'xlm-swcm[train]'`)."""

from .denoising import DataCollatorForDenoising


__all__ = ["DataCollatorForDenoising"]
