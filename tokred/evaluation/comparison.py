"""`compare`: match the budget, evaluate all methods in one pass, leave a leaderboard."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from tokred.core.backbone import num_patches
from tokred.core.fingerprint import software
from tokred.data import loading, preflight
from tokred.errors import TokredError
from tokred.evaluation import candidates, published_accuracy
from tokred.evaluation.calibration import measured_columns
from tokred.evaluation.config import PLACES, Config
from tokred.evaluation.config_file import NAME, config_text
from tokred.evaluation.engine import Pass, dense_model
from tokred.evaluation.folder import Folder
from tokred.evaluation.predictions import Evaluation, RunPredictions
from tokred.evaluation.recording import Record
from tokred.evaluation.rows import build_rows
from tokred.evaluation.setup import Setup
from tokred.evaluation.speed import measure
from tokred.tables import row as results
from tokred.tables.row import Row
from tokred.utils.atomic import replace_file
from tokred.utils.interrupts import Interrupts
from tokred.utils.provenance import versions

_EARLY = 200  # images after which a model at chance is noticed


@dataclass
class Comparison:
    """The results of a comparison.

    Attributes:
        rows: the baseline's row, then the other rows by accuracy.
        title: one line about model, images and budgets.
        out: the folder of the run; None if nothing is written.
        seconds: duration of the evaluation, including earlier, interrupted runs.
        waiting: fraction of this run's time spent idle, waiting for images.
        swept: whether there are several budgets. A method that cannot reach one of them then does not count
            as failed.
    """

    rows: list[Row]
    title: str
    out: Path | None
    seconds: float
    waiting: float = 0.0
    swept: bool = False

    @property
    def frame(self) -> pd.DataFrame:
        """The leaderboard as a data frame."""
        return results.frame(self.rows)

    @property
    def failed(self) -> list[Row]:
        """Rows of methods that should have run; unfitted methods do not count as failed."""
        expected = {"ok", "unfitted", "unreachable"} if self.swept else {"ok", "unfitted"}
        return [row for row in self.rows if row.status not in expected]


class Interrupted(Exception):
    """Raised on Ctrl-C; `comparison` has the results so far, and the same command resumes the run."""

    def __init__(self, comparison: Comparison) -> None:
        super().__init__(comparison.title)
        self.comparison = comparison


Outputs = Callable[["Job", Comparison], Mapping[str, str | bytes]]


class Job(Setup):
    """A comparison with checked input and matched plans: `describe` it, `open` its folder, `run` it.

    Args:
        config: what to compare.
        command: the command line, for readers of the results; empty if unknown.
        outputs: function that renders the files of a finished run, by name; `run.json` is always written.

    Raises:
        TokredError: the configuration is invalid. This is known before any image is read.
    """

    def __init__(self, config: Config, command: str = "", outputs: Outputs | None = None) -> None:
        super().__init__(config)
        self.command, self.outputs = command, outputs
        self.evaluation = Evaluation.empty(len(self.source), self.models)
        self.folder: Folder | None = None
        self.speeds: dict[str, dict[str, Any]] = {}

    @property
    def notes(self) -> list[str]:
        """Notes on the images and their labels that a reader of the results needs."""
        return [note for note in (self.source.note, self._at_chance()) if note]

    def _at_chance(self) -> str:
        """A warning if the dense model is no better than chance on the images so far; else empty."""
        evaluation = self.evaluation
        images = np.flatnonzero(evaluation.readable)
        if not self.source.labelled or not len(images):
            return ""
        right = int((evaluation.dense.prediction[images] == evaluation.labels[images]).sum())
        return preflight.at_chance(right, len(images), self.loaded.model.num_classes)

    def run_facts(self) -> dict[str, Any]:
        """The columns shared by all rows, see `build_rows`. Versions are those at the start of the run."""
        before = self.folder.run if self.folder else {}
        at_start = {name: str(before.get(name, version)) for name, version in versions().items()}
        limited = self.source.limited or not self.evaluation.done.all()
        return {**self.shared_columns(), "limited": limited, "versions": at_start}

    def measured_rows(self, predictions: RunPredictions) -> dict[str, Row]:
        """As `candidate_rows`, with the means over these images where token counts depend on the image."""
        rows = self.candidate_rows()
        for name, model in self.models.items():
            tokens = predictions.models[name].tokens if name in predictions.models else None
            if tokens is not None and tokens.any():
                places = np.flatnonzero(tokens.any(1))  # of images that could be read
                groups = predictions.groups[places]
                columns = measured_columns(self.costs, model.plan, tokens[places], groups, self.config.seed)
                rows[name] = replace(rows[name], **columns)
        return rows

    def predictions(self) -> RunPredictions:
        """The predictions for all images evaluated so far."""
        images = np.flatnonzero(self.evaluation.done)
        return self.evaluation.take(images, self.source.groups, self.evaluation.seconds)

    def _rows(self) -> list[Row]:
        predictions = self.predictions()
        return build_rows(self.run_facts(), self.measured_rows(predictions), predictions, self.speeds)

    def about(self, comparison: Comparison) -> dict[str, Any]:
        """The contents of run.json except for the configuration."""
        evaluation, kinds = self.evaluation, list(self.evaluation.kinds.values())
        rows = self.measured_rows(self.predictions())
        errors = {name: row.error for name, row in rows.items() if row.error}
        errors |= {name: failure.reason for name, failure in sorted(evaluation.failed.items())}
        return {
            "title": self.title,
            "notes": self.notes,
            "seconds": round(comparison.seconds, 1),
            "waiting_for_images": round(comparison.waiting, 3),
            "threads": torch.get_num_threads(),
            "processes": self.processes.world,
            "card": self.loaded.card,
            "published": self.loaded.published,
            "reference": published_accuracy.note(self.loaded, self.source, self.preparation),
            "adapters": {
                candidate.name: {"file": candidate.adapter.path.name, **candidate.adapter.card}
                for candidate in self.candidates
                if candidate.adapter
            },
            "errors": errors,
            "unreadable": {str(index): text for index, text in sorted(evaluation.unreadable.items())},
            "kinds": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
            "smallest_batch": evaluation.smallest_batch,
            "speeds": self.speeds,
            "patches": num_patches(self.loaded.model),
            "depth": len(self.loaded.model.blocks),
            "class_names": None if self.source.class_names is None else list(self.source.class_names),
            "command": self.command,
            "facts": self.run_facts(),
            "candidates": {
                name: {column: value for column, value in vars(row).items() if value not in (None, "")}
                for name, row in rows.items()
            },
        }

    def open(self, out: Path) -> str:
        """Open the output folder, and load the results of an earlier run of the same comparison.

        Returns:
            A sentence about the earlier run; empty if there was none.

        Raises:
            TokredError: the folder is not writable, is in use, or contains something other than a run.
        """
        first, used = self.processes.rank == 0, software(list(self.config.methods or ()))
        self.processes.alike("comparison", {**self.configuration, **used})
        about = {**{name: getattr(self.config, name) for name in PLACES}, **versions()}
        self.folder = Folder(
            out, self.configuration, {**used, "files": self.source.fingerprint}, about, lock=first
        )
        self.evaluation.key = self.processes.share(self.folder.key)
        if not first:
            return ""
        if not self.folder.read_only:
            replace_file(out / NAME, config_text(self.resolved_config(), out / NAME).encode())
        self.folder.load_predictions(self.evaluation)
        self.speeds = self.folder.run.get("speeds", {})
        done = int(self.evaluation.done.sum())
        if self.folder.read_only and done < len(self.source):
            raise TokredError(
                f"{out} cannot be written, and its predictions are damaged; choose another folder with --out."
            )
        if self.folder.finished and done == len(self.source):
            changed = ", ".join(self.folder.damaged)
            how = (
                "stay as they are, since the folder is read-only"
                if self.folder.read_only
                else "are written again"
            )
            again = f" Files that were changed or removed {how}: {changed}." if changed else ""
            date = self.folder.run["date"]
            return f"This comparison was finished on {date}; to run it again, delete {out}.{again}"
        return self.folder.notice or (
            f"Resuming: {done} of {len(self.source)} images were evaluated before." if done else ""
        )

    def run(
        self,
        workers: int | None = None,
        progress: Callable[[int], None] = lambda images: None,
        bench: int = 0,
        warn: Callable[[str], None] = lambda sentence: None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Comparison:
        """Evaluate the remaining images, and write the results if a folder was opened.

        In a distributed run only the first process has rows.

        Args:
            workers: number of processes that load images; by default 1 on a CPU and up to 8 on a GPU.
            progress: function called with the number of images in each finished batch; those of other
                processes are estimated.
            bench: number of rounds in which every model is timed alone after the evaluation; 0 for none.
            warn: function called at most once, with a sentence, if the dense model is no better than chance
                on the first images.
            meanwhile: function called about once a second while a batch runs; see `running_scores`.

        Raises:
            TokredError: an image cannot be read, the dense model fails, or the results cannot be written.
            Interrupted: the user pressed Ctrl-C.
        """
        try:
            return self._run(workers, progress, bench, warn, meanwhile)
        finally:
            if self.folder:
                self.folder.release()

    def _run(
        self,
        workers: int | None,
        progress: Callable[[int], None],
        bench: int,
        warn: Callable[[str], None],
        meanwhile: Callable[[], None],
    ) -> Comparison:
        share, record = self.processes, Record(self.evaluation, self.folder, self.processes.world)
        missing = share.share(record.missing(loading.ranges(len(self.source), self.batch_size)))
        mine = missing[share.rank :: share.world]
        run = Pass(
            dense_model(self.loaded.model, self.models.values()),
            self.models,
            self.evaluation,
            device=self.device,
            dtype=self.dtype,
        )
        with Interrupts() as interrupts:
            report = self._reporter(sum(map(len, missing)), progress, warn)

            def finished(images: np.ndarray) -> None:
                record.finished(images)
                interrupts.check()
                report(images)

            try:
                if mine:
                    run.run(self.batches(mine, workers), finished, meanwhile)
                interrupts.check()
            except KeyboardInterrupt:
                record.flush_all()
                raise Interrupted(self._comparison(run.waiting)) from None
            except TokredError:
                record.flush()
                raise
        record.flush()
        self._gather(mine)
        comparison = self._comparison(run.waiting)
        if share.rank:
            return comparison
        if self._is_unwritten(bool(missing)):
            self._finish(comparison)
        if bench:
            self.speeds = self._measure(bench)
            comparison = self._comparison(run.waiting)
            self._finish(comparison)
        return comparison

    def _reporter(
        self, missing: int, progress: Callable[[int], None], warn: Callable[[str], None]
    ) -> Callable[[np.ndarray], None]:
        """A function that reports each finished batch, and warns once if the dense model is at chance."""
        total, warned = len(self.source), False
        shown = total - missing
        progress(shown)

        def report(images: np.ndarray) -> None:
            nonlocal shown, warned
            step = min(len(images) * self.processes.world, total - shown)  # other processes are estimated
            shown += step
            progress(step)
            if not warned and self.evaluation.done.sum() >= min(_EARLY, total):
                warned = True
                if sentence := self._at_chance():
                    warn(sentence)

        return report

    def _is_unwritten(self, evaluated: bool) -> bool:
        """Whether files of the run have to be written: they are missing, changed or incomplete."""
        if self.folder is None or self.folder.read_only:
            return False
        return evaluated or not self.folder.finished or bool(self.folder.damaged)

    def _finish(self, comparison: Comparison) -> None:
        """Write the files of the run if it has a folder."""
        if self.folder is None:
            return
        files = self.outputs(self, comparison) if self.outputs else {}
        self.folder.finish(self.about(comparison), files)

    def _gather(self, mine: Sequence[range]) -> None:
        """Collect the predictions of all processes in the first one."""
        if self.processes.world == 1:
            return
        images = np.concatenate([np.empty(0, dtype=np.int64), *(np.arange(b.start, b.stop) for b in mine)])
        packed = self.evaluation.take(images, seconds=self.evaluation.seconds).pack()
        for rank, data in enumerate(self.processes.gather(packed)):
            if rank != self.processes.rank:
                self.evaluation.absorb(data)
        self.processes.close()

    def _measure(self, rounds: int) -> dict[str, dict[str, Any]]:
        """Measure the time, memory and speed-up of every model alone, in turns."""
        models = {name: model for name, model in self.models.items() if name not in self.evaluation.failed}
        size, failed = self.evaluation.smallest_batch or self.batch_size, dict[str, str]()
        speeds = measure(
            models,
            self.loaded.model,
            size,
            candidates.reductions(self.candidates, self.costs),
            rounds=rounds,
            device=self.device,
            dtype=self.dtype,
            failed=failed,
        )
        return {name: asdict(speed) for name, speed in speeds.items()}

    def _comparison(self, waiting: float) -> Comparison:
        """The results on all images evaluated so far."""
        done = self.evaluation.done
        rows = [] if self.processes.rank else self._rows()
        title = self.title if done.all() else f"{self.title}: INTERRUPTED after {int(done.sum())} images"
        path = self.folder.path if self.folder else None
        return Comparison(rows, title, path, self.evaluation.seconds, waiting, len(self.config.budgets) > 1)
