"""One run of an experiment: plan, train, and score on speakers never heard in training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.special import softmax

from ser_ray.base.console import say, show_table
from ser_ray.base.errors import UserError
from ser_ray.experiment.experiment import Experiment, choose_rows
from ser_ray.experiment.heard import add_warning, warn_of_encoder
from ser_ray.experiment.splits import Split, check_leaks, split
from ser_ray.features.spec import Features, features_identity, write_features
from ser_ray.model.calibration import fit_temperature
from ser_ray.model.domain import Domain, domain_of, join_domains
from ser_ray.model.examples import Examples
from ser_ray.model.files import load_model, save_model
from ser_ray.model.model import Model, tell_rows
from ser_ray.model.speakers import TOLD, Known, Speakers, listen
from ser_ray.scores import metrics
from ser_ray.scores.run_folder import RunFolder
from ser_ray.scores.scores import Scores, used_versions
from ser_ray.scores.screen import show_epoch
from ser_ray.speech.emotions import parse_labels
from ser_ray.store.rows import Rows, open_rows
from ser_ray.store.store import Store, differences
from ser_ray.training.fit import train_many
from ser_ray.training.settings import Compute
from ser_ray.training.task import Fitted, Method, Place, Task, Tell
from ser_ray.training.worker_rows import usual_speech

TOLD_OF_SCORES = (  # what the model itself says of them
    *("description", "protocol", "fold", "notes", "made_speech", "num_test", "uar", "accuracy", "macro_f1"),
    *("interval", "confusion_matrix"),
)


@dataclass(frozen=True, eq=False)
class Plan:
    """A run before it is trained.

    Attributes:
        experiment: What is asked.
        rows: Rows of the chosen corpora.
        parts: Those that train, validate and test.
        leaks: What these share, counted.
        folder: Where the run is.
        start: The model that training starts from; None for drawn weights.
        tasks: What is to be trained; the first network is validated, the others learn from its speakers too.
        description: All of it in words.
    """

    experiment: Experiment
    rows: Rows
    parts: Split
    leaks: dict[str, Any]
    folder: RunFolder
    start: Model | None
    tasks: list[Task]
    description: str


def run(
    store: Store,
    experiment: Experiment,
    folder: RunFolder,
    compute: Compute | None = None,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Train and test once; an unfinished run of the same folder goes on.

    Args:
        store: Finished feature store.
        experiment: What to do.
        folder: Where the run is to be.
        compute: Where and how to train; None for what is there.
        tell: Called with the metrics of each epoch; None prints them.

    Returns:
        The content of `metrics.json`.

    Raises:
        UserError: The store or the cluster does not allow the experiment, or the split leaks.
    """
    folder.refuse_finished()
    rows = choose_rows(open_rows(store), experiment)
    known = listen(rows) if experiment.speaker_norm else None
    plan = plan_run(rows, experiment, folder, known)
    say(plan.description)
    show_table("Rows", _count_rows(plan.parts))
    tell = tell or partial(show_epoch, epochs=experiment.train.epochs)
    compute = compute or Compute()
    fitted = [one for _, one in train_many(plan.tasks, Place(compute), tell)]
    return finish_run(plan, fitted, compute.device)


def plan_run(
    rows: Rows,
    experiment: Experiment,
    folder: RunFolder,
    known: dict[str, Known] | None = None,
    names: dict[str, int] | None = None,
) -> Plan:
    """Choose who trains, validates and is tested, check that nothing leaks, and claim the run's folder.

    Args:
        rows: Those of the chosen corpora.
        experiment: What to do.
        folder: Where the run is to be.
        known: What is known of all speakers, where features are normalized by speaker.
        names: What tells its trainings from others that run beside them.

    Raises:
        UserError: The rows do not allow the experiment, the split leaks, or the folder holds another run.
    """
    parts = split(rows, parse_labels(experiment.labels), experiment.split)
    warning = warn_of_encoder(rows.recipe.features, parts.test)
    leaks = add_warning(check_leaks(parts, experiment.split.protocol), warning)
    refuse_untrained(parts)
    start = load_start(experiment, rows.recipe.features, parts) if experiment.start_from else None
    folder.claim(experiment.identity(rows))
    speakers = None
    if experiment.speaker_norm:
        speakers = Speakers.of(rows.recipe.features, usual_speech(parts.train), known or {})
    count = experiment.count_networks()
    starts = [network.state_dict() for network in start.members] if start else [None]
    tasks = []
    for k in range(count):
        config = replace(experiment.train, seed=experiment.train.seed + k)
        method = Method(experiment.network, rows.recipe.features, parts.labels, config, experiment.changes)
        task = Task(
            method,
            parts.train.union(parts.validation) if k else parts.train,
            parts.validation.take(np.zeros(0, int)) if k else parts.validation,
            folder.inner(f"member-{k}").root if count > 1 else folder.root,
            speakers,
            starts[k % len(starts)],
            {**(names or {}), **({"member": k} if count > 1 else {})},
        )
        tasks.append(task)
    return Plan(experiment, rows, parts, leaks, folder, start, tasks, _describe(experiment, parts))


def finish_run(plan: Plan, fitted: Sequence[Fitted], device: str) -> dict[str, Any]:
    """Make the model of trained networks, test it, and write the run's folder.

    Args:
        plan: The run.
        fitted: What each of its trainings gave.
        device: Where it answers (`Compute.device`).

    Returns:
        The content of `metrics.json`.
    """
    started = time.perf_counter()
    experiment, parts, rows = plan.experiment, plan.parts, plan.rows
    network, speakers = experiment.network, plan.tasks[0].speakers
    trained_on = parts.train.values("speaker_id") | parts.validation.values("speaker_id")
    model = Model(
        members=[one.network for one in fitted[experiment.train.refit :]],
        network=network,
        features=rows.recipe.features,
        labels=parts.labels,
        speaker_norm=experiment.speaker_norm,
        views=network.views,
        trained_on=tuple(sorted(trained_on.union(plan.start.trained_on if plan.start else ()))),
        trained_clips=_join_clips(parts, plan.start),
        device=device,
    )
    model.domain = _measure_domain(parts, plan.start)
    validation = _calibrate(model, fitted[0], parts.validation, speakers)
    predictions = model.predict_rows(parts.test, speakers.known if speakers else None)
    several = len(fitted) > 1
    history = [({"member": k} if several else {}) | epoch for k, one in enumerate(fitted) for epoch in one.history]
    made = any(part.made_speech for part in (parts.train, parts.validation, parts.test))
    scores = Scores(
        measured=metrics.score(predictions, parts.labels.names, seed=experiment.train.seed),
        protocol=experiment.split.protocol,
        fold=experiment.split.fold,
        description=plan.description,
        leaks=plan.leaks,
        config=experiment.identity(rows),
        command=plan.folder.command,
        timing={
            "train_s": sum(one.seconds for one in fitted),
            "test_s": time.perf_counter() - started,
            "num_workers": fitted[-1].num_workers,
            "clips_per_s": float(np.median([epoch["clips_per_s"] for epoch in history])),
        },
        made_speech=made or bool(plan.start and plan.start.made_speech),
        notes=(plan.leaks["encoder"],) if "encoder" in plan.leaks else (),
        excluded=parts.excluded,
        best_epoch=fitted[0].best_epoch,
        temperature=model.temperature,
    )
    content = scores.content()
    model.facts = _tell_facts(content, parts)
    model.facts["notes"] = [note for note in content["notes"] if note != plan.leaks.get("encoder")]  # of these scores
    save_model(model, plan.folder.inner("model").root)
    return plan.folder.finish(scores, predictions, rows.source.store, history, validation)


def _describe(experiment: Experiment, parts: Split) -> str:
    """Say in words who is tested on, and by what."""
    text = parts.description
    if experiment.train.refit:
        who = f"the {experiment.members} networks that answer" if experiment.members > 1 else "the network that answers"
        text += f" After validation {who} learned from validation speakers too."
    elif experiment.members > 1:
        text += (
            f" {experiment.members} networks answer together; only the first, which gives the scores on validation "
            "speakers, was not trained on these."
        )
    if experiment.start_from:
        text += f" Training starts from {experiment.start_from}, which heard none of the speakers tested here."
    return f"{text} {TOLD}" if experiment.speaker_norm else text


def _tell_facts(content: dict[str, Any], parts: Split) -> dict[str, Any]:
    """Return what the model itself says of its scores and of what it was trained on."""
    learned, of_a_corpus = parts.train.union(parts.validation), ("num_test", "uar", "accuracy", "interval")
    return {name: content[name] for name in TOLD_OF_SCORES if name in content} | {
        "per_corpus": {
            corpus: {name: scores[name] for name in of_a_corpus} for corpus, scores in content["per_corpus"].items()
        },
        "trained_corpora": sorted(learned.values("corpus")),
        "sample_rates": sorted(learned.values("sample_rate")),
        "versions": used_versions(),
    }


def _join_clips(parts: Split, start: Model | None) -> np.ndarray | None:
    """Return the digests of all files that were trained or validated on; None where some are not known."""
    clips = parts.train.union(parts.validation).digests()
    if start is None:
        return clips
    return None if start.trained_clips is None else np.union1d(clips, start.trained_clips)


def _measure_domain(parts: Split, start: Model | None) -> Domain | None:
    """Return in what condition all clips were that were trained or validated on; None where that is not known."""
    rows = parts.train.union(parts.validation)
    own = domain_of(rows, rows.recipe.features.sample_rate)
    return join_domains([own, start.domain]) if start else own


def _calibrate(model: Model, validated: Fitted, rows: Rows, speakers: Speakers | None) -> pa.Table:
    """Fit the temperature to what one network says of validation rows; the others, trained on them, take it.

    Returns:
        What it says of them with that temperature (`tell_rows`).
    """
    examples = Examples.from_rows(rows, model.labels, speakers)
    logits_NC = replace(model, members=[validated.network]).logits(examples).double().numpy()
    model.temperature = fit_temperature(logits_NC, examples.targets.numpy())
    return tell_rows(rows, softmax(logits_NC / model.temperature, axis=1), model.labels)


def load_start(experiment: Experiment, features: Features, parts: Split) -> Model:
    """Read the model that training starts from.

    Args:
        experiment: What is asked.
        features: Of the rows.
        parts: Who trains, validates and is tested; files may be unknown yet.

    Raises:
        UserError: It is another network, takes other features, or was trained on whom it must not.
    """
    start = load_model(experiment.start_from)
    normed = {"speaker_norm": start.speaker_norm}, {"speaker_norm": experiment.speaker_norm}
    changed = differences({"model": start.network.name}, {"model": experiment.network.name})
    changed = changed or differences(
        asdict(start.network) | normed[0], asdict(experiment.network) | normed[1]
    )  # of the same network
    if not changed and features_identity(start.features) != features_identity(features):
        changed = differences(write_features(start.features), write_features(features))
    if changed:
        raise UserError(f"--start-from {experiment.start_from} is another kind of network ({changed})")
    known = set(start.trained_on) & (parts.test.values("speaker_id") | parts.validation.values("speaker_id"))
    if known:
        raise UserError(
            f"--start-from {experiment.start_from} was trained on {len(known)} of the speakers that are tested or "
            f"validate here, such as {min(known)}; start from one that has not heard them"
        )
    for part in (parts.test, parts.validation):
        if count := int(start.was_trained_on(part).sum()):
            raise UserError(
                f"--start-from {experiment.start_from} was trained on {count} of the clips that are tested or validate "
                "here, under other names; start from one that has not heard them"
            )
    return start


def refuse_untrained(parts: Split) -> None:
    """Refuse to train on less than two clips or emotions, and to test emotions that no training clip has.

    Raises:
        UserError: There is such an emotion; the message names it.
    """
    trained, tested = (
        {parts.labels.index(emotion) for emotion in part.values("emotion")} for part in (parts.train, parts.test)
    )
    if len(parts.train.values("utterance_id")) < 2:
        raise UserError("one clip is left to train on: add clips of more speakers")
    if len(trained) < 2:
        (only,) = trained
        raise UserError(
            f"all training clips are {parts.labels.names[only]}: a classifier needs clips of two emotions or more"
        )
    if missing := [parts.labels.names[i] for i in sorted(tested - trained)]:
        raise UserError(
            f"no training clip is {missing[0]}, which is tested; add clips of more speakers, or name other --labels"
        )


def _count_rows(parts: Split) -> list[dict[str, Any]]:
    table = []
    for name in ("train", "validation", "test"):
        part = getattr(parts, name)
        clips, speakers = (len(part.values(column)) for column in ("utterance_id", "speaker_id"))
        table.append({"part": name, "rows": len(part), "clips": clips, "speakers": speakers})
    return table
