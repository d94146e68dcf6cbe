"""`RunFolder`: where a run is, and by which command; it claims, resumes, finishes.

RUN/run.json               what was asked for; the run's identity
RUN/checkpoints/           of the training, with the best weights so far; with several members under member-K/
RUN/model/                 the model
RUN/fold-K/                with `--fold all`: a run for each fold
RUN/validation.parquet     one row per validation clip, answered by the first network; of each fold in its own folder
RUN/predictions.parquet    one row per tested clip
RUN/history.csv            one row per epoch
RUN/report.html            the page for people
RUN/metrics.json           written last: a run that has it is finished
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ser_ray.base import storage
from ser_ray.base.console import say
from ser_ray.base.errors import UserError
from ser_ray.model.files import fold_roots
from ser_ray.model.together import VALIDATION
from ser_ray.scores import metrics
from ser_ray.scores.scores import Scores
from ser_ray.store.store import Store, differences


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run.

    Attributes:
        root: Path or URI.
        command: The command line, for the record.
        embed_audio: Put the sounds of the worst mistakes into the report.
    """

    root: str
    command: str = ""
    embed_audio: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", storage.normalize(self.root))  # Ray takes no relative paths

    @property
    def is_finished(self) -> bool:
        """Whether the run has its metrics, which are written last."""
        return storage.exists(storage.join(self.root, "metrics.json"))

    def refuse_finished(self) -> None:
        """Refuse to overwrite a finished run.

        Raises:
            UserError: The run has its metrics.
        """
        if self.is_finished:
            raise UserError(f"{self.root} holds a finished run; choose another --output")

    def claim(self, identity: dict[str, Any]) -> None:
        """Note what the run is for, or check that an unfinished one is for the same.

        Raises:
            UserError: The folder holds a run of other settings; the message names them.
        """
        path = storage.join(self.root, "run.json")
        if storage.exists(path):
            if changed := differences(storage.read_json(path)["identity"], identity):
                raise UserError(
                    f"{self.root} holds an unfinished run with other settings ({changed}); choose another --output"
                )
            say(f"Going on with the unfinished run {self.root}")
        storage.write_json(path, {"identity": identity, "command": self.command})

    def inner(self, name: str) -> RunFolder:
        """Return the folder of a run within this one, such as `fold-1`."""
        return replace(self, root=storage.join(self.root, name))

    def finish(
        self,
        scores: Scores,
        predictions: pa.Table,
        store: Store | None,
        history: Sequence[dict[str, Any]] = (),
        validation: pa.Table | None = None,
    ) -> dict[str, Any]:
        """Write predictions, history, report and, last, metrics.

        Args:
            scores: What the answers are worth.
            predictions: One row per tested clip, where it is known with a column `path` for the report.
            store: Where the clips came from; None where that is not known.
            history: One dict per epoch; empty where nothing was trained.
            validation: One row per validation clip; None where nothing was trained.

        Returns:
            The content of `metrics.json`.
        """
        from ser_ray.scores import report  # with matplotlib, which a job that is refused need not wait for

        if history:
            text = io.StringIO()
            writer = csv.DictWriter(text, fieldnames=list(history[0]))
            writer.writeheader()
            writer.writerows(history)
            storage.write_text(storage.join(self.root, "history.csv"), text.getvalue())
        content = scores.content()
        self._write_answers("predictions.parquet", predictions)
        if validation is not None:
            self._write_answers(VALIDATION, validation)
        corpora = report.Corpora(store.info()["audit"], [asdict(one) for one in store.rejects()]) if store else None
        page = report.run_page(
            title=self.root.rsplit("/", 1)[-1],
            metrics=content,
            predictions=predictions,
            history=history,
            corpora=corpora or report.Corpora((), ()),
            embed_audio=self.embed_audio,
        )
        storage.write_text(storage.join(self.root, "report.html"), page)
        storage.write_json(storage.join(self.root, "metrics.json"), content)
        return content

    def _write_answers(self, name: str, answers: pa.Table) -> None:
        table = answers.select([column for column in answers.column_names if column != "path"])
        storage.write(storage.join(self.root, name), lambda stream: pq.write_table(table, stream))


def fresh_root(what: str) -> str:
    """Return a name for a new run: `runs/<date>-<time>-<what>`."""
    return f"runs/{datetime.now():%Y%m%d-%H%M%S}-{what}"


def read_run(run_root: str) -> tuple[dict[str, Any], pa.Table]:
    """Return the metrics and the predictions of a finished run, or of the folds that an unfinished one has finished.

    Raises:
        UserError: Nothing there is finished.
    """
    folder = RunFolder(run_root)
    if folder.is_finished:
        files, inner = storage.filesystem(storage.join(run_root, "predictions.parquet"))
        return storage.read_json(storage.join(run_root, "metrics.json")), pq.read_table(inner, filesystem=files)
    folds = [read_run(fold) for fold in fold_roots(run_root) if RunFolder(fold).is_finished]
    if not folds:
        raise UserError(f"{run_root} holds no finished run (metrics.json is missing)")
    if len(folds) == 1:
        return folds[0]
    first, tables = folds[0][0], [table for _, table in folds]
    scores = first | metrics.pool(tables, first["labels"], seed=first["config"]["train"]["seed"])
    scores["fold"] = ", ".join(str(each["fold"]) for each, _ in folds)
    scores["notes"] = [f"Folds {scores['fold']} of a cross-validation that is not finished.", *first["notes"]]
    scores["timing"] = {"train_s": sum(each["timing"]["train_s"] for each, _ in folds)}
    return scores, pa.concat_tables(tables)
