"""The evaluation loss: a mean over tokens that does not depend on the size of the batches."""

import torch
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput, has_length


class TokenLossTrainer(Trainer):
    r"""
    A [`~transformers.Trainer`] whose evaluation loss is the mean over all labels.

    Transformers averages the mean losses of the batches. This average depends on the size of the batches, because a
    label in a batch with short targets counts more.

    With several processes, repeated rows fill up the last batches. The trainer leaves out the repeated rows. Each
    other row of these batches counts with the mean loss of its batch, so the result is only close to the mean.
    """

    # sum of the loss and number of labels, of shape (rows, 2), for each batch of the current evaluation
    _row_losses: list[torch.Tensor] | None = None

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        """Evaluate as in Transformers, and replace the loss by the mean over all labels."""
        self._row_losses = []
        try:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
            if self._row_losses:
                rows = torch.cat(self._row_losses)
                # Rows that only fill up the last batches of several processes come last.
                rows = rows[: len(dataloader.dataset)] if has_length(dataloader.dataset) else rows
                loss, count = rows.double().sum(0).tolist()
                output.metrics[f"{metric_key_prefix}_loss"] = loss / max(count, 1)
            return output
        finally:
            self._row_losses = None

    def _get_num_items_in_batch(self, batch_samples, device):
        # Transformers would divide the loss of a batch by the number of labels of all processes. During an evaluation
        # the loss of a batch is the mean over the labels of the batch.
        return None if self._row_losses is not None else super()._get_num_items_in_batch(batch_samples, device)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None, **kwargs):
        """Evaluate one batch as in Transformers, and keep its loss and its number of labels."""
        labels = inputs.get("labels")
        loss, logits, gathered_labels = super().prediction_step(
            model, inputs, prediction_loss_only, ignore_keys, **kwargs
        )
        if loss is not None and labels is not None and self._row_losses is not None:
            self._row_losses.append(self._share_loss(loss, labels))
        return loss, logits, gathered_labels

    def _share_loss(self, loss: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the sum of the loss and the number of labels for each row, gathered from all processes."""
        count = (labels != -100).sum().to(loss.device)
        shares = loss.new_zeros(max(len(labels), self.args.eval_batch_size), 2, dtype=torch.float32)
        # The mean of a batch without labels is not a number.
        if count:
            shares[: len(labels)] = torch.stack([loss * count, count]) / len(labels)
        return self.gather_function(shares).cpu()
