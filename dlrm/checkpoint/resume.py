"""Which checkpoint a run begins with, and whether it fits the run.

Knows checkpoints as wholes; what is in their files is the business of `restore`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Callable, NamedTuple

from dlrm.checkpoint import directory as folder
from dlrm.checkpoint.manifest import Manifest, Position, read_manifest
from dlrm.checkpoint.restore import restore
from dlrm.checkpoint.state import MisfitError, Run, State, Told, unheard
from dlrm.config import SETTINGS
from dlrm.distributed.collective import Collective

_AFFECT_TRAINING = {setting.name for setting in SETTINGS if setting.affects_training}


class Resumed(NamedTuple):
    """A checkpoint that was loaded, and where the training goes on."""

    path: Path
    position: Position


def resume(
    option: str,
    directory: Path | None,
    run: Run,
    state: State,
    collective: Collective,
    *,
    pinned: Sequence[str] = (),
    ignore_data_change: bool = False,
    say: Told = unheard,
    moved: Told = unheard,
) -> Resumed | None:
    """Loads the checkpoint that `option` names into the state.

    Args:
        option: `auto` takes the newest whole one of `directory`, if there is any; `none` begins
            anew; else the path of a checkpoint, or of a folder whose newest is meant.
        directory: where the run writes its own checkpoints; None if it writes none.
        run: what the checkpoint must fit.
        state: overwritten.
        collective: the ranks.
        pinned: flags that must be the checkpoint's.
        ignore_data_change: go on with other data than the checkpoint's.
        say: told, on every rank, lines for the user: what was passed over, which flags differ.
        moved: told of each piece of work before it begins.

    Returns:
        What was loaded; None if the training begins anew.

    Raises:
        ValueError: on every rank: no whole checkpoint is left where there were some; the one named
            is damaged; or it does not fit the run, with each difference.
    """
    candidates = [Path(text) for text in _agreed(collective, lambda: _find(option, directory))]
    problems = []
    for path in candidates:
        try:
            manifest = collective.together(partial(_read_whole, path))
            _check_fit(path, manifest, run, pinned, ignore_data_change)
            restore(path, manifest, state, collective, moved)
        except MisfitError:
            raise
        except ValueError as error:
            problems.append(str(error))
            say(f"passed over a damaged checkpoint: {error}")
            continue
        for line in _changed_flags(manifest, run):
            say(line)
        say(f"resumed from {path}: {manifest.position.step} steps done")
        return Resumed(path, manifest.position)
    if problems:
        raise ValueError(
            f"no whole checkpoint to resume from: {'; '.join(problems)}; set --resume=PATH of "
            "another, or train anew in another --checkpoint_dir"
        )
    return None


def _agreed(collective: Collective, find: Callable[[], list[Path]]) -> list[str]:
    """What rank 0 found, on every rank: folders may look different from different machines."""
    found = collective.together(lambda: find() if collective.rank == 0 else [])
    text = collective.gather_text("\n".join(map(str, found)))[0]
    return text.splitlines()


def _find(option: str, directory: Path | None) -> list[Path]:
    """Checkpoints to try, the best one first."""
    own = folder.finished(directory) if directory else []
    if option == "auto":
        return own[::-1]
    if option == "none":
        if own:
            raise ValueError(
                f"{directory}: --resume=none would mix a new run's checkpoints with those that are "
                "there; remove them, or set another --checkpoint_dir"
            )
        return []
    path = Path(option)
    found = folder.finished(path)[::-1] or [path]
    later = [other for other in own if folder.is_later(other, found[0])]
    if later:
        raise ValueError(
            f"{later[-1]}: later than --resume={option}, and the next --resume=auto would take it; "
            "remove it, or set another --checkpoint_dir"
        )
    return found


def _read_whole(path: Path) -> Manifest:
    """The manifest of a checkpoint whose files are there and of their sizes."""
    manifest = read_manifest(path)
    for problem in manifest.damage(path):
        raise ValueError(problem)
    return manifest


def _check_fit(
    path: Path, manifest: Manifest, run: Run, pinned: Sequence[str], ignore_data_change: bool
) -> None:
    differences = manifest.model.differences(run.model)
    differences += [
        f"{name}: checkpoint {manifest.settings[name]}, run {run.settings[name]}"
        for name in pinned
        if name in manifest.settings and manifest.settings[name] != run.settings[name]
    ]
    if differences:
        raise MisfitError(
            f"{path}: a checkpoint of another run: {'; '.join(differences)}; give the run the "
            "checkpoint's flags and data, or set another --checkpoint_dir"
        )
    changed = [part for part in run.data if run.data[part] != manifest.data.get(part)]
    if changed and manifest.data and not ignore_data_change:
        raise MisfitError(
            f"{path}: the {' and '.join(changed)} data changed since this checkpoint; give the "
            "run the data it was trained on, or set --ignore_data_change"
        )


def _changed_flags(manifest: Manifest, run: Run) -> list[str]:
    return [
        f"--{name} was {manifest.settings[name]} when the checkpoint was written, now {value}"
        for name, value in run.settings.items()
        if name in _AFFECT_TRAINING
        and name in manifest.settings
        and manifest.settings[name] != (list(value) if isinstance(value, tuple) else value)
    ]
