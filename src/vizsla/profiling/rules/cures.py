"""Which setting cures a loop that waits for its data: vizsla's flags, or others' arguments."""

from __future__ import annotations

import numpy as np

from vizsla.errors import SettingError
from vizsla.profiling.record import ProfileRecord
from vizsla.profiling.rules.measures import Work, mean, percentile, processes_on
from vizsla.settings import Recipe

# Cores that are used less, in percent, have room for further loader processes.
_BUSY = 75.0
# A share of all cores' time, in percent, that waits for a disk and says that it is slow.
_DISK_BOUND = 15.0
_VIEWS = 8  # that are advised; in fewer epochs each would be computed once all the same
_MOST_WORKERS = 8  # that a recipe takes by itself


def recipe_of(record: ProfileRecord) -> Recipe | None:
    """The recipe of a training of vizsla's; None of other loops, and of one of another version."""
    settings = record.facts.get("recipe")
    try:
        return Recipe(**settings) if isinstance(settings, dict) and settings else None
    except (SettingError, TypeError):
        return None


def cores_each(record: ProfileRecord, work: Work) -> int:
    """Cores for each process of a training on a machine."""
    return max(1, work.cores // processes_on(record, work.node))


def loader_workers(record: ProfileRecord, work: Work | None) -> int | None:
    """Loader processes of each process of the training: by the recipe, or as many as come of it;
    None where nobody knows."""
    if (recipe := recipe_of(record)) is not None:
        if recipe.workers is not None:
            return recipe.workers
        return min(work.cores, _MOST_WORKERS) if work is not None else None
    processes = percentile(work.column("processes"), 50) if work is not None else float("nan")
    if work is None or not np.isfinite(processes):
        return None
    count = processes_on(record, work.node)
    if "command" in record.facts and count > 1:  # what starts them is followed, and so they all
        return max(0, round((processes - 1) / count) - 1)
    return max(0, round(processes) - 1)


def against_waiting(
    record: ProfileRecord, work: Work | None, share: float, slow_disk: bool = False
) -> str:
    """What to change where steps wait for data that share of their time, perhaps for a disk that
    is known to be slow."""
    workers = loader_workers(record, work)
    more = _more_workers(record, work, workers, share)
    recipe = recipe_of(record)
    if slow_disk or (work is not None and mean(work.iowait) > _DISK_BOUND):
        disk = " The disk is what is slow: put the pictures on a local or faster one."
    else:
        disk = ""
    if recipe is None:
        return _of_a_loop(more, workers) + disk
    if record.trunk is not None:
        return _of_kept_outputs(record, recipe)
    return _of_pictures(recipe, more) + disk


def _more_workers(
    record: ProfileRecord, work: Work | None, workers: int | None, share: float
) -> int | None:
    """How many loader processes would do, where cores have room for more; None where not."""
    if work is None or workers is None or workers >= (cores := cores_each(record, work)):
        return None
    if workers and percentile(work.use, 50) >= _BUSY:
        return None
    enough = int(np.ceil(max(workers, 1) / max(1 - share, 0.1)))
    return min(cores, max(enough, workers + 1))


def _of_a_loop(more: int | None, workers: int | None) -> str:
    if more is not None:
        now = "" if workers is None else f" instead of {workers}"
        return (
            f"Load in more processes: DataLoader(num_workers={more}, persistent_workers=True){now}."
        )
    return (
        "Make loading cheaper: keep decoded pictures, store them smaller, leave out costly "
        "augmentation; or load in more processes on a machine with more cores "
        "(DataLoader(num_workers=...))."
    )


def _of_kept_outputs(record: ProfileRecord, recipe: Recipe) -> str:
    place = (record.trunk or {}).get("place", recipe.cache)
    if place == "disk":
        return (
            "Kept outputs of frozen layers are read from disk: keep them in memory with --cache "
            "memory, or put the cache (VIZSLA_CACHE) on a faster disk."
        )
    return "What is left is fetching kept outputs: take larger batches, with --batch-size."


def _of_pictures(recipe: Recipe, more: int | None) -> str:
    """For a training that takes its batches from pictures."""
    # Brings in torch, which nobody needs who is well.
    from vizsla.data.fixed_views import has_fixed_views

    cures, is_off = [], recipe.cache == "off"
    is_frozen, is_fixed = recipe.unfreeze != "all", has_fixed_views(recipe)
    # What is kept is read no more at all, which more processes cannot do: it comes first.
    if is_frozen and not is_fixed and recipe.epochs > _VIEWS:
        cures.append(
            f"draw the variations once with {'--cache disk ' if is_off else ''}--views {_VIEWS}, "
            "so that outputs of frozen layers are kept and no picture is read again"
        )
    if recipe.epochs > 1 and is_off:
        kept = "outputs of frozen layers" if is_frozen and is_fixed else "decoded pictures"
        cures.append(f"keep {kept} with --cache disk")
    if more is not None:
        cures.append(f"load in more processes with --workers {more}")
    if not cures:
        side = f"{recipe.size_px} pixels" if recipe.size_px else "the network's input"
        cures.append(
            f"make pictures cheaper to load: store them smaller, near {side}, or leave out "
            "--augment; or train on a machine with more cores"
        )
    text = ", or ".join(cures)
    return f"{text[0].upper()}{text[1:]}."
