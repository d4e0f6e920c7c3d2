"""Whether the files of a corpus still hold what was written: their SHA-256, computed once and remembered.

A file that was right is not read again while its size and its time of change stay the same; `.verified.json` beside it
says so. A first look costs about a second per 1.5 GB and core (SHA-256 in hardware), later ones a stat. In a folder
that cannot be written nothing is remembered, and every process looks afresh. What changes under an unchanged time, as
on a failing disk, only `prepare --verify` finds.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gpt_lightning.files import lock, sha256, write_text
from gpt_lightning.terminal import progress

REMEMBERED = ".verified.json"


def check(folder: Path, digests: Mapping[str, str], afresh: bool = False) -> None:
    """Compare files of `folder` with the digests they should have; `afresh`: also those remembered as right.

    Raises ValueError naming the first file that has another digest. Processes that ask at the same time wait for the
    first one and find its answer.
    """
    if not afresh and not _changed(folder, digests):
        return
    with turn(folder / REMEMBERED):
        names = sorted(digests) if afresh else _changed(folder, digests)
        before = {name: _state(folder / name, digests[name]) for name in names}
        with progress() as bar, ThreadPoolExecutor(os.cpu_count()) as pool:
            paths = [folder / name for name in names]
            task = bar.add_task(f"checking {folder}", total=sum(path.stat().st_size for path in paths))
            for path, found in zip(paths, pool.map(sha256, paths), strict=True):
                bar.advance(task, path.stat().st_size)
                if found != digests[path.name]:
                    raise ValueError(
                        f"{path}: sha256 should be {digests[path.name]}, found {found}: it was changed since it was "
                        "written; prepare the corpus again"
                    )
        with contextlib.suppress(OSError):  # a folder that cannot be written
            write_text(folder / REMEMBERED, json.dumps(_remembered(folder) | before, indent=1) + "\n")


def _state(path: Path, digest: str) -> list[object]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, digest]


def _remembered(folder: Path) -> dict[str, list[object]]:
    try:
        known = json.loads((folder / REMEMBERED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _changed(folder: Path, digests: Mapping[str, str]) -> list[str]:
    """Files that are not remembered as they are now."""
    known = _remembered(folder)
    return [name for name in sorted(digests) if known.get(name) != _state(folder / name, digests[name])]


@contextlib.contextmanager
def turn(path: Path) -> Iterator[None]:
    """One process at a time works out what is remembered in `path`, where the folder can be written."""
    waiting = path.with_name(f"{path.name}.lock")
    try:
        held = lock(waiting, wait=True)
    except OSError:
        yield
        return
    try:
        yield
    finally:
        waiting.unlink(missing_ok=True)
        held.close()
