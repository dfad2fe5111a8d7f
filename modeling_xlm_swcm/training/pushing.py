"""Uploads of a trainer: only the files of its model, without local paths and training arguments."""

import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import PushInProgress

from modeling_xlm_swcm.checkpoints.code import PACKAGE
from modeling_xlm_swcm.hub.files import (
    CARD,
    MODEL_FILES,
    REPORT_FILES,
    TRAINING_FILES,
    find_model_files,
    report_left_out,
    stage_public,
)


# Files of an output folder besides weights and code.
OUTPUT_FILES = (CARD, *MODEL_FILES, *REPORT_FILES, *TRAINING_FILES)


class PublicTrainer(Trainer):
    r"""
    A [`~transformers.Trainer`] that uploads only the files of its model.

    Transformers uploads the whole output folder, with the training arguments, which hold local paths and a token.
    """

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        **kwargs,
    ) -> CommitInfo | Future | None:
        """
        Save the model, write its card and upload both.

        Args:
            commit_message (`str`, *optional*, defaults to `"End of training"`):
                First line of the commit message.
            blocking (`bool`, *optional*, defaults to `True`):
                Wait for the upload.
            token (`str`, *optional*):
                Token for the Hub. Default: `args.hub_token`.
            revision (`str`, *optional*):
                Branch to push to. Default: `args.hub_revision`.
            kwargs (*optional*):
                Arguments of `create_model_card`, and `private` for a new repository.

        Returns:
            `CommitInfo` or `Future`: the commit, or its future if `blocking` is `False`.
        """
        args, private = self.args, kwargs.pop("private", None)
        self.callback_handler.on_push_begin(args, self.state, self.control)
        token = args.hub_token if token is None else token
        if self.hub_model_id is None:
            args.hub_private_repo = args.hub_private_repo if private is None else private
            self.init_hf_repo(token=token)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        given = kwargs.pop("tags", None) or []
        tags = [*([given] if isinstance(given, str) else given), *(getattr(self.model, "model_tags", None) or [])]
        name = kwargs.pop("model_name", None) or self.hub_model_id.split("/")[-1]
        self.create_model_card(model_name=name, tags=list(dict.fromkeys(tags)), **kwargs)
        self._finish_current_push()
        folder, files = Path(args.output_dir), self._find_output_files()
        report_left_out(folder, files)
        place = {"token": token, "revision": args.hub_revision if revision is None else revision}
        return self._upload(files, folder, not blocking, commit_message=commit_message, **place)

    def _push_from_checkpoint(self, checkpoint_folder: str):
        args, checkpoint, output = self.args, Path(checkpoint_folder), Path(self.args.output_dir)
        if not self.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
            return
        is_busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if is_busy and not args.hub_always_push:
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        # A checkpoint can be removed during the upload, so the output folder gets a copy.
        for path in find_model_files(checkpoint, (*MODEL_FILES, *TRAINING_FILES)).values():
            shutil.copy(path, output)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(output)
        by_step = args.save_strategy == SaveStrategy.STEPS
        place = f"step {self.state.global_step}" if by_step else f"epoch {int(self.state.epoch)}"
        message = f"Training in progress, {place}"
        target = {"token": args.hub_token, "revision": args.hub_revision}
        jobs = [self._upload(self._find_output_files(), output, True, commit_message=message, **target)]
        if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            target["path_in_repo"] = (
                "last-checkpoint" if args.hub_strategy == HubStrategy.CHECKPOINT else checkpoint.name
            )
            files = {
                str(path.relative_to(checkpoint)): path
                for path in checkpoint.rglob("*")
                if path.is_file() and path.name != TRAINING_ARGS_NAME
            }
            jobs.append(self._upload(files, checkpoint, True, commit_message=f"{message}, checkpoint", **target))
        if is_busy:
            self.push_in_progress.jobs.extend(jobs)
        else:
            self.push_in_progress = PushInProgress(jobs)

    def _find_output_files(self) -> dict[str, Path]:
        code = [path.name for path in sorted(PACKAGE.glob("*_xlm_swcm.py"))]
        return find_model_files(Path(self.args.output_dir), (*OUTPUT_FILES, *code))

    def _upload(self, files: dict[str, Path], folder: Path, run_as_future: bool, **options) -> CommitInfo | Future:
        """Upload files of `folder`, with `options` of `HfApi.upload_folder`."""
        staged = Path(tempfile.mkdtemp())
        job = None
        try:
            stage_public(files, folder, staged)
            upload: Callable[..., CommitInfo | Future] = HfApi().upload_folder
            job = upload(repo_id=self.hub_model_id, folder_path=staged, run_as_future=run_as_future, **options)
            return job
        finally:
            if isinstance(job, Future):
                job.add_done_callback(lambda _: shutil.rmtree(staged, ignore_errors=True))
            else:
                shutil.rmtree(staged, ignore_errors=True)
