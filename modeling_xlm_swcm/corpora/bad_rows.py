"""The error for data that cannot be used, and the collection of rows that cannot be used."""

import os
from collections import Counter
from dataclasses import dataclass, field

import torch
from transformers.utils import logging

from modeling_xlm_swcm.checkpoints.errors import ConversionError


logger = logging.get_logger(__name__)

# Number of rows that an error message names.
NAMED_ROWS = 5

TO_UTF8 = "iconv -f ENCODING -t UTF-8"

EMPTY = "is empty"


class DataError(ConversionError):
    """Data or data options that cannot be used. The message names the place and says what to do."""

    def __init__(self, message: str):
        # A DataLoader raises the error of its worker again with the whole traceback as the message.
        super().__init__(message.split(f"{__name__}.DataError: ")[-1].strip())


@dataclass
class BadRows:
    """
    Collect rows that cannot be used, and report them as an error or as a warning.

    Args:
        skip (`bool`, *optional*, defaults to `False`):
            Whether to skip such rows with a warning instead of raising a [`DataError`].
        can_skip (`bool`, *optional*, defaults to `True`):
            Whether the caller has the argument `skip_bad_rows`.
        allow_empty (`bool`, *optional*, defaults to `False`):
            Whether to ignore rows without text.
        renamed (`tuple[str, str]`, *optional*):
            Path of a file, and its name in messages. Defaults to the path.
    """

    skip: bool = False
    can_skip: bool = True
    allow_empty: bool = False
    renamed: tuple[str, str] = ("", "")
    count: int = 0
    reasons: Counter = field(default_factory=Counter)
    named: list[str] = field(default_factory=list)
    last_place: str | None = None
    reported: int = 0  # rows at the last report

    def reject(self, place: str, reason: str, details: str = ""):
        """Count the row at `place` (example: `train.jsonl:7`) for a `reason` (example: "is empty").

        A row with several faults is counted once.
        """
        if self.allow_empty and reason.startswith(EMPTY):
            return
        path, name = self.renamed
        place = name + place.removeprefix(path) if place.startswith(path) else place
        self.reasons[reason] += 1
        if place == self.last_place:
            return
        self.last_place = place
        self.count += 1
        if len(self.named) < NAMED_ROWS:
            self.named.append(f"{place} {reason}{details}")

    def report(self, so_far: bool = False):
        """
        Raise an error or log a warning if rows were rejected.

        Args:
            so_far (`bool`, *optional*, defaults to `False`):
                Report only if there are ten times as many rows as at the last report.

        Raises:
            DataError: if rows were rejected and must not be skipped.
        """
        if not self.count or (so_far and self.count < 10 * self.reported):
            return
        more = f"; and {self.count - len(self.named)} more" if self.count > len(self.named) else ""
        rows = "1 row" if self.count == 1 else f"{self.count} rows"
        if not self.skip:
            is_encoding = any("UTF-8" in reason or "NUL" in reason for reason in self.reasons)
            how = f" (convert text with {TO_UTF8})" if is_encoding else ""
            longer = ", pass a larger maximum length" if any("tokens" in reason for reason in self.reasons) else ""
            skip = ", or pass `skip_bad_rows=True`" if self.can_skip else ""
            raise DataError(
                f"{rows} cannot be used: {'; '.join(self.named)}{more}. Correct the data{how}{longer}{skip}."
            )
        self.reported = self.count
        worker = torch.utils.data.get_worker_info()
        # Only one process and one worker reports.
        if os.environ.get("RANK", "0") != "0" or (worker is not None and worker.id > 0):
            return
        reasons = "; ".join(f"{reason} ({number})" for reason, number in self.reasons.most_common())
        logger.warning(f"Skipped {rows}{' so far' if so_far else ''}: {reasons}. First rows: {'; '.join(self.named)}.")
