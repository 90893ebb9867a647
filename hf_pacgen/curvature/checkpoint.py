"""The state of a long estimate on disk: a run that was killed goes on where it was last saved.

Every process keeps one safetensors file: its sums, and which batches are in them.  These are sums over disjoint sets
of batches, so the files need not be of one moment: nobody waits for anybody when saving, and any number of processes
can go on from any number of files.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hf_pacgen.curvature.run_identity import batch_checksum, differences
from hf_pacgen.curvature.tensor_file import write_tensors
from hf_pacgen.data.batches import Batches
from hf_pacgen.distributed.processes import Processes
from hf_pacgen.results.lipschitz import LipschitzEstimate

__all__ = ["Checkpoint", "TERMINATED"]

FORMAT = 3
"""Version of the form in which state is saved."""
TERMINATED = 143
"""Exit code after SIGTERM, 128 + 15 as a shell has it."""
SAMPLED = 64
"""Batches of the data that are compared with those of the checkpoint."""
NAME = re.compile(r"pacgen-(\d{4})-(\d{5})-of-(\d{5})\.safetensors")

logger = logging.getLogger(__name__)


class Checkpoint:
    """The saved state of a run that is shared by some processes.

    A generation of files begins when a run begins, or goes on with another number of processes.  The newest one of
    which all files are there counts.

    Args:
        folder: one for all processes; it is made if need be.
        identity: what the run is of; see :func:`~hf_pacgen.curvature.run_identity.identity`.
        every: batches of a process after which its state is saved.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, identity: Mapping[str, Any], processes: Processes, every: int
    ) -> None:
        self.folder, self.identity, self.processes, self.every = Path(folder), identity, processes, every
        self.lipschitz: LipschitzEstimate | None = None
        self._generation = 0
        self._mine: list[_State] = []  # files whose sums this process goes on with
        self._done: list[list[int]] = []  # pass, index and checksum of the batches in its sums
        self._skipped: set[tuple[int, int]] = set()  # pass and index of those in anybody's sums at the start
        self._goes_on = False  # whether the files found are those that this run will write
        self._unsaved = 0
        self._terminated = False

    # ------------------------------------------------------------------------------------------ beginning and end

    def open(self, batches: Batches) -> None:
        """Find the state to go on from, if there is one.  Every process calls this.

        Raises:
            ValueError: the folder cannot be used; a file is damaged or missing; the state is of another run.
        """
        with self.processes.together():
            states = self._newest()
            for state in states:
                self._check(state)
            done = {(sweep, index): check for state in states for sweep, index, check in state.done}
            self._compare(batches, done)
        if not states:
            return
        size, rank = self.processes.size, self.processes.rank
        self._goes_on = len(states) == size
        self._generation = states[0].generation + (not self._goes_on)
        self._mine = states[rank::size]
        self._done = [row for state in self._mine for row in state.done]
        self._skipped = set(done)
        if (values := states[0].metadata["lipschitz"]) is not None:
            lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
            self.lipschitz = LipschitzEstimate(**(values | lists))

    def start(self, sums: Mapping[str, Tensor]) -> None:
        """Load the sums of the state found, and make the files of this run.  Every process calls this.

        Raises:
            ValueError: the sums differ in name or shape, or the folder cannot be written to or is not shared.
        """
        with self.processes.together():
            for number, state in enumerate(self._mine):
                self._load(state, sums, first=number == 0)
            if not self._goes_on:
                self._first_save(sums)
        with self.processes.together():
            paths = [self._path(rank) for rank in range(self.processes.size)]
            unseen = [path.name for path in paths if not path.is_file()]
            if unseen:
                raise ValueError(
                    f"checkpoint_dir {str(self.folder)!r} must be one folder that all processes share: process "
                    f"{self.processes.rank} does not see {unseen[0]}, which another one wrote. "
                    "Name a folder on a shared file system."
                )
            if self.processes.is_main:  # while nobody writes
                self._remove(keep=paths)

    def close(self) -> None:
        """Remove the files of a run whose result is known; the folder stays."""
        if self.processes.is_main:
            self._remove(keep=[])

    # -------------------------------------------------------------------------------------------------- on the way

    def skipped(self, sweep: int) -> set[int]:
        """The batches of a pass that are in the sums already."""
        return {index for other, index in self._skipped if other == sweep}

    def record(self, sweep: int, index: int, batch: Any, sums: Mapping[str, Tensor]) -> None:
        """Note that a batch is in the sums, and save them if it is time.

        Raises:
            SystemExit: with code 143, after SIGTERM; the state is saved.
        """
        self._done.append([sweep, index, batch_checksum(batch)])
        self._unsaved += 1
        if self._unsaved >= self.every or self._terminated:
            self.save(sums)
        self.stop_if_asked()

    def save(self, sums: Mapping[str, Tensor]) -> None:
        """Save the state; where that fails, the earlier file stays, and a warning says so."""
        if not self._unsaved:
            return
        try:
            self._write(sums)
        except OSError as error:
            logger.warning(
                "The checkpoint in '%s' could not be saved (%s). The run goes on, and the earlier checkpoint stays "
                "good; make room on the disk.",
                self.folder,
                error.strerror or error,
            )
        self._unsaved = 0

    def stop_if_asked(self) -> None:
        """End the process if it was sent SIGTERM while :meth:`watching`.

        Raises:
            SystemExit: with code 143.
        """
        if self._terminated:
            logger.warning("Terminated. The same call goes on from what is saved in '%s'.", self.folder)
            raise SystemExit(TERMINATED)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Let SIGTERM end the process only at the next batch, unless the program handles SIGTERM itself."""
        in_main = threading.current_thread() is threading.main_thread()  # no other can take signals
        if not in_main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
            yield
            return

        def note(signum: int, frame: Any) -> None:
            self._terminated = True

        signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    # --------------------------------------------------------------------------------------------------- internals

    def _path(self, rank: int) -> Path:
        return self.folder / f"pacgen-{self._generation:04d}-{rank:05d}-of-{self.processes.size:05d}.safetensors"

    def _first_save(self, sums: Mapping[str, Tensor]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write(sums if self._done else {})  # sums of nothing are not worth the space
        except OSError as error:
            raise ValueError(
                f"checkpoint_dir {str(self.folder)!r} cannot be written to: {error.strerror or error}. "
                "Name a folder with room for the accumulators, which take up to 8 bytes a parameter and process."
            ) from error

    def _write(self, sums: Mapping[str, Tensor]) -> None:
        lipschitz = None if self.lipschitz is None else asdict(self.lipschitz)
        metadata = {"format": FORMAT, "identity": self.identity, "lipschitz": lipschitz}
        done = torch.tensor(self._done, dtype=torch.int64).view(-1, 3)
        write_tensors(self._path(self.processes.rank), {**sums, "done": done}, metadata)

    def _newest(self) -> list[_State]:
        """The files of the newest whole generation, by rank; none where there is nothing to go on from."""
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(
                f"checkpoint_dir {str(self.folder)!r} is a file: expected a folder, or a new name for one."
            )
        generations: dict[tuple[int, int], list[Path]] = {}
        for path in sorted(self.folder.glob("pacgen-*.safetensors")):
            if (match := NAME.fullmatch(path.name)) is not None:
                generation, _, size = map(int, match.groups())
                generations.setdefault((generation, size), []).append(path)
        whole = [key for key, paths in generations.items() if len(paths) == key[1]]
        if whole:
            return [_State.read(path, max(whole)[0]) for path in generations[max(whole)]]
        # a run that was killed while it made its first files leaves some without any work in them
        for (number, size), paths in generations.items():
            if any(_State.read(path, number).done for path in paths):
                raise ValueError(
                    f"The checkpoint in {str(self.folder)!r} is incomplete: it is of {size} processes, and only "
                    f"{', '.join(path.name for path in paths)} is there. Put the missing files back, or delete these "
                    "to start again."
                )
        return []

    def _compare(self, batches: Batches, done: Mapping[tuple[int, int], int]) -> None:
        """Compare some of the batches that are in the sums with the data."""
        seen = sorted({index for _, index in done})
        step = -(-len(seen) // SAMPLED) or 1
        wanted = {*seen[::step], *seen[-1:]}
        checks = {index: check for (_, index), check in done.items()}
        for index, batch in batches.only(wanted):
            wanted.discard(index)
            if batch_checksum(batch) != checks[index]:
                raise self._other_run(f"batch {index} of the data")
        if wanted:
            raise self._other_run(f"batch {min(wanted)} of the data (only in the checkpoint)")

    def _check(self, state: _State) -> None:
        """Raise where a file is of another run."""
        if state.metadata.get("format") != FORMAT:
            raise ValueError(
                f"The checkpoint in {str(self.folder)!r} was written by another version of hf_pacgen: expected format "
                f"{FORMAT}, got {state.metadata.get('format')}. Go on with that version, or delete it to start again."
            )
        mine = json.loads(json.dumps(self.identity))
        found = differences(state.metadata["identity"], mine, there="in the checkpoint", here="now")
        if found:
            raise self._other_run(found)

    def _load(self, state: _State, sums: Mapping[str, Tensor], *, first: bool) -> None:
        with safe_open(state.path, framework="pt") as file:
            names = set(file.keys()) - {"done"}
            if names and names != sums.keys():
                raise self._other_run(f"the sums {sorted(names ^ sums.keys())[:5]}")
            for name in names:
                saved = file.get_tensor(name)
                # the first is copied, not added to 0, so that every bit is what it was
                sums[name].copy_(saved) if first else sums[name].add_(saved.to(sums[name].device))

    def _other_run(self, what: str) -> ValueError:
        return ValueError(
            f"The checkpoint in {str(self.folder)!r} is of another run. These differ: {what}. "
            "Name another checkpoint_dir, or delete this one to start again."
        )

    def _remove(self, keep: list[Path]) -> None:
        for path in (*self.folder.glob("pacgen-*.safetensors"), *self.folder.glob("pacgen-*.safetensors.*.tmp")):
            if path not in keep and NAME.match(path.name):
                path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _State:
    """A file of the checkpoint; ``done`` are the pass, index and checksum of the batches in its sums."""

    path: Path
    generation: int
    metadata: dict[str, Any]
    done: list[list[int]]

    @classmethod
    def read(cls, path: Path, generation: int) -> _State:
        try:
            with safe_open(path, framework="pt") as file:
                metadata = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
                return cls(path, generation, metadata, file.get_tensor("done").tolist())
        except (OSError, ValueError, SafetensorError) as error:
            raise ValueError(
                f"The checkpoint file {str(path)!r} is damaged and cannot be read ({error}). "
                "Put back a good copy, or delete the folder's files to start again."
            ) from error
