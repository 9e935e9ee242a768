"""Chooses the checkpoint that a run starts from, and checks that it fits the run.

It treats checkpoints as a whole; `restore` reads their files.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Callable, NamedTuple

from dlrm.checkpoint import directory
from dlrm.checkpoint.manifest import Manifest, Position, read_manifest
from dlrm.checkpoint.restore import restore
from dlrm.checkpoint.state import MisfitError, RunRecord, State, TextCallback, ignore
from dlrm.distributed.collective import Collective


class Resumed(NamedTuple):
    """A checkpoint that was loaded, and where training continues: at 0 on a new day."""

    path: Path
    position: Position


def resume(
    option: str,
    checkpoint_dir: Path | None,
    run: RunRecord,
    state: State,
    collective: Collective,
    *,
    append_day: Path | None = None,
    pinned: Sequence[str] = (),
    ignore_data_change: bool = False,
    ignore_optimizer_change: bool | None = None,
    on_message: TextCallback = ignore,
    on_progress: TextCallback = ignore,
) -> Resumed | None:
    """Loads the checkpoint that `option` names into the state.

    Args:
        option: `auto` takes the newest complete checkpoint in `checkpoint_dir`, if there is one.
            `none` starts anew. Anything else is the path of a checkpoint, or of a directory whose
            newest checkpoint is meant.
        checkpoint_dir: The directory in which the run writes its checkpoints; None if it writes
            none.
        run: What the checkpoint must fit.
        state: The state to overwrite.
        collective: The ranks.
        append_day: An earlier day's checkpoint, or a directory whose newest one is meant. It is
            taken, with its tables widened to the run's, where `option` names none.
        pinned: Names of the flags whose values must equal the checkpoint's.
        ignore_data_change: Whether to accept a checkpoint that was trained on other data.
        ignore_optimizer_change: Whether to accept one of another optimizer; see `restore`.
        on_message: Called on every rank with lines for the user: which checkpoints were skipped and
            which flags differ.
        on_progress: Called before each piece of work, with what it is.

    Returns:
        What was loaded; None if training starts anew.

    Raises:
        ValueError: Every checkpoint in the directory is damaged, or the named one is, or it does
            not fit the run; the message lists the differences. Raised on every rank.
    """
    candidates = _agreed(collective, lambda: _find(option, checkpoint_dir))
    begins_day = append_day is not None and not candidates
    if begins_day:
        candidates = _agreed(collective, lambda: _find(str(append_day), None))
    problems = []
    for path in candidates:
        try:
            manifest = collective.together(partial(_read_whole, path))
            if begins_day:
                _check_widens(path, manifest, run)
            else:
                _check_fit(path, manifest, run, pinned, ignore_data_change)
            restore(
                path,
                manifest,
                state,
                collective,
                on_progress,
                vocab_sizes=run.model.vocab_sizes if begins_day else None,
                ignore_optimizer_change=ignore_optimizer_change,
            )
        except MisfitError:
            raise
        except ValueError as error:
            problems.append(str(error))
            on_message(f"passed over a damaged checkpoint: {error}")
            continue
        for line in _changed_flags(manifest, run):
            on_message(line)
        if begins_day:
            rows, more = (sum(model.vocab_sizes) for model in (manifest.model, run.model))
            counts = f": {rows} rows as trained, {more - rows} new ones"
            on_message(f"a new day from {path}{'' if run.model.dynamic else counts}")
            return Resumed(path, Position(0, 0, 0))
        on_message(f"resumed from {path}: {manifest.position.step} steps done")
        return Resumed(path, manifest.position)
    if problems:
        raise ValueError(
            f"no whole checkpoint to resume from: {'; '.join(problems)}; set --resume=PATH of "
            "another, or train anew in another --checkpoint_dir"
        )
    return None


def _agreed(collective: Collective, find: Callable[[], list[Path]]) -> list[Path]:
    """What rank 0 found, on every rank: folders may look different from different machines."""
    found = collective.together(lambda: find() if collective.rank == 0 else [])
    text = collective.gather_text("\n".join(map(str, found)))[0]
    return list(map(Path, text.splitlines()))


def _find(option: str, checkpoint_dir: Path | None) -> list[Path]:
    """Checkpoints to try, the best one first."""
    own = directory.finished(checkpoint_dir) if checkpoint_dir else []
    if option == "auto":
        return own[::-1]
    if option == "none":
        if own:
            raise ValueError(
                f"{checkpoint_dir}: --resume=none would mix a new run's checkpoints with those "
                "already there; remove them, or set another --checkpoint_dir"
            )
        return []
    path = Path(option)
    found = directory.finished(path)[::-1] or [path]
    later = [other for other in own if directory.is_later(other, found[0])]
    if later:
        raise ValueError(
            f"{later[-1]}: later than --resume={option}, and the next --resume=auto would take it; "
            "remove it, or set another --checkpoint_dir"
        )
    return found


def _read_whole(path: Path) -> Manifest:
    """Reads the manifest of a checkpoint; checks that its files exist and have their sizes."""
    manifest = read_manifest(path)
    for problem in manifest.damage(path):
        raise ValueError(problem)
    return manifest


def _check_fit(
    path: Path, manifest: Manifest, run: RunRecord, pinned: Sequence[str], ignore_data_change: bool
) -> None:
    """Refuses a checkpoint of another model, other pinned flags or other data.

    Raises:
        MisfitError: They differ; the message lists the differences.
    """
    differences = manifest.model.differences(run.model)
    widened = bool(differences) and not manifest.model.differences(run.model, may_widen=True)
    differences += [
        f"{name}: checkpoint {manifest.settings[name]}, run {run.settings[name]}"
        for name in pinned
        if name in manifest.settings and manifest.settings[name] != _as_read(run.settings[name])
    ]
    if differences:
        remedy = "give the run the checkpoint's flags and data, or set another --checkpoint_dir"
        if widened:
            remedy += f"; to go on with wider tables there, set --append_day={path}"
        raise MisfitError(
            f"{path}: a checkpoint of another run: {'; '.join(differences)}; {remedy}"
        )
    changed = [part for part in run.data if run.data[part] != manifest.data.get(part)]
    if changed and manifest.data and not ignore_data_change:
        raise MisfitError(
            f"{path}: the {' and '.join(changed)} data changed since this checkpoint; give the "
            "run the data it was trained on, or set --ignore_data_change"
        )


def _check_widens(path: Path, manifest: Manifest, run: RunRecord) -> None:
    """Refuses a checkpoint as the day before, of another model or of this day.

    Raises:
        MisfitError: The run's tables do not hold the checkpoint's, or its training data were the
            run's.
    """
    if differences := manifest.model.differences(run.model, may_widen=True):
        raise MisfitError(
            f"{path}: not of an earlier day of this run: {'; '.join(differences)}; give the run "
            "the checkpoint's flags, and data that `python3 -m preprocess --append_day` made from "
            "the checkpoint's"
        )
    if any(manifest.data.get(part) == found for part, found in run.data.items() if part != "test"):
        raise MisfitError(
            f"{path}: trained on the data of this day already; set --append_day to a checkpoint of "
            "the day before, or --resume instead to go on with this one"
        )


def _changed_flags(manifest: Manifest, run: RunRecord) -> list[str]:
    """A line for each flag that affects training and has changed since the checkpoint."""
    return [
        f"--{name} was {manifest.settings[name]} when the checkpoint was written, now {value}"
        for name, value in run.settings.items()
        if name in run.affect_training
        and name in manifest.settings
        and manifest.settings[name] != _as_read(value)
    ]


def _as_read(value: object) -> object:
    """A setting as a manifest gives it back."""
    return list(value) if isinstance(value, tuple) else value
