"""Checkpoints over Orbax: asynchronous, kept by policy, checked before they are believed.

`checkpoints/STEP/` appears by one rename, so a kill never leaves half a checkpoint. Just before, the CRC-32 of its files is written to
`checkpoints/checksums/STEP.json`; a checkpoint whose files no longer match is reported and the one before is taken.
"""

from __future__ import annotations

import json
import os
import pathlib
import warnings
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from lmx.train import hosts
from lmx.types import BadInput


class Damaged(Exception):
    """A checkpoint whose files are not what was written."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
      directory: `WORKDIR/checkpoints`.
      keep_last: how many of the newest to keep.
      best: an evaluation value such as 'validation/loss' whose best checkpoint is kept as well; None keeps none.
      mode: 'min' or 'max', what is best.
      read_only: for evaluation; nothing is created or cleaned up.
    """

    def __init__(
        self, directory: str | os.PathLike[str], *, keep_last: int = 2, best: str | None = None, mode: str = 'min', read_only: bool = False
    ):
        self.directory = pathlib.Path(directory).absolute()
        self.best, self.mode = best, mode
        self._saving: int | None = None
        policies: list[Any] = [checkpoint_managers.LatestN(keep_last)]
        tracked: dict[str, Any] = {}
        if best is not None:
            sign = 1.0 if mode == 'max' else -1.0
            score = lambda metrics: sign * metrics[best]  # noqa: E731
            tracked = {'best_fn': score, 'best_mode': 'max'}  # Orbax stores and reads back metrics only when it has a best_fn
            policies.append(checkpoint_managers.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False))
        if read_only and not self.directory.is_dir():
            raise BadInput(f'{self.directory.parent} holds no checkpoints; is it the --workdir of a run that has saved one?')
        self.manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
                create=not read_only,
                **tracked,
                async_options=ocp.options.AsyncOptions(post_finalization_callback=self._seal),
            ),
        )

    def steps(self) -> list[int]:
        return sorted(self.manager.all_steps())

    def save(self, step: int, state: Any, meta: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Starts to save; returns when the device arrays have been copied.

        Raises:
          BadInput: this or the previous save failed (a full disk); earlier checkpoints are untouched.
        """
        # A save that a dead process left under this name was never committed, and one that was committed holds the same step.
        if step in self.steps():
            return
        try:
            self.manager.wait_until_finished()
            self._saving = step
            known = {self.best: float(metrics[self.best])} if self.best in metrics else None
            items = ocp.args.Composite(state=ocp.args.StandardSave(_storable(state)), meta=ocp.args.JsonSave(dict(meta)))
            self.manager.save(step, args=items, metrics=known)
        except Exception as error:
            raise self._failed(step, error) from error

    def wait(self) -> None:
        """Returns when the last save is on disk. Raises BadInput if it failed."""
        try:
            self.manager.wait_until_finished()
        except Exception as error:
            raise self._failed(self._saving, error) from error

    def close(self) -> None:
        self.wait()
        self.manager.close()

    def _failed(self, step: int | None, error: Exception) -> BadInput:
        reason = next((line.strip() for line in str(error).splitlines() if 'No space left' in line or 'File too large' in line), str(error))
        good = [done for done in self._committed() if done != step]
        kept = f'the last good checkpoint is step {max(good)}' if good else 'there is no earlier checkpoint'
        short = 'No space left on device' if 'No space left' in reason else reason.splitlines()[0][:200] if reason else repr(error)
        return BadInput(f'could not save checkpoint {step} in {self.directory}: {short}; {kept}; free some space and run again')

    def _committed(self) -> list[int]:
        return [int(path.name) for path in self.directory.iterdir() if path.name.isdigit()]

    # -- integrity

    def _seal(self) -> None:
        """Writes the checksums of the step about to be committed; Orbax calls it in its saving thread, before the rename."""
        written = sorted(self.directory.glob(f'{self._saving}.*tmp*')) or [self.directory / str(self._saving)]
        if jax.process_index() != 0 or not written[-1].is_dir():
            return
        folder = self.directory / 'checksums'
        folder.mkdir(exist_ok=True)
        part = folder / f'{self._saving}.json.part'
        part.write_text(json.dumps(_checksums(written[-1])))
        part.rename(folder / f'{self._saving}.json')
        for path in folder.glob('*.json'):
            if path.stem != str(self._saving) and not (self.directory / path.stem).is_dir():
                path.unlink(missing_ok=True)

    def verify(self, step: int) -> None:
        """Raises Damaged if a file of this checkpoint is missing or differs from what was written."""
        path = self.directory / 'checksums' / f'{step}.json'
        if path.exists():
            expected, found = json.loads(path.read_text()), _checksums(self.directory / str(step))
            wrong = sorted(name for name in expected if expected[name] != found.get(name))
            if wrong:
                raise Damaged(f'{wrong[0]} {"differs from what was written" if wrong[0] in found else "is missing"}')

    # -- reading

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """(state, meta) of one step, laid out as `like` (arrays or ShapeDtypeStructs with shardings).

        Raises:
          Damaged: its files are not what was written, or cannot be read.
        """
        self.verify(step)
        try:
            items = ocp.args.Composite(state=ocp.args.StandardRestore(_storable(like)), meta=ocp.args.JsonRestore())
            out = self.manager.restore(step, args=items)
        except Exception as error:
            raise Damaged(str(error).splitlines()[0][:300] if str(error) else repr(error)) from error
        return _restored(out['state'], like), out['meta']

    def newest_good(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """(step, state, meta) of the newest checkpoint that can be believed; None when there is none at all.

        Raises:
          BadInput: there are checkpoints, and every one is damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                state, meta = self.restore(step, like)
            except Damaged as error:
                warnings.warn(f'checkpoint {step} is damaged ({error}); falling back to the one before', stacklevel=2)
                continue
            for bad in steps:
                if bad > step:  # out of the way, so that the resumed run can write this step again
                    self._set_aside(bad)
            return step, state, meta
        if steps:
            raise BadInput(f'all checkpoints in {self.directory} ({", ".join(map(str, steps))}) are damaged; restore them from a copy')
        return None

    def _set_aside(self, step: int) -> None:
        """Renames a damaged checkpoint; nothing that might be rescued by hand is deleted."""
        if jax.process_index() == 0:
            target = self.directory.parent / 'damaged' / str(step)
            target.parent.mkdir(exist_ok=True)
            while target.exists():
                target = target.with_name(target.name + '_')
            (self.directory / str(step)).rename(target)
            (self.directory / 'checksums' / f'{step}.json').unlink(missing_ok=True)
        hosts.barrier(f'set aside {step}')
        self.manager.reload()

    def choose(self, which: str) -> list[int]:
        """The steps that 'last', 'best', a step number or 'average:K' stands for.

        Raises:
          BadInput: none fits; the message lists what there is.
        """
        steps = self.steps()
        have = f'there are {", ".join(map(str, steps)) or "none"}'
        if which == 'last' and steps:
            return steps[-1:]
        if which == 'best':
            found = {step: self.manager.metrics(step) or {} for step in steps}
            scored = {step: metrics[self.best] for step, metrics in found.items() if self.best in metrics}
            if not scored:
                raise BadInput(f'no checkpoint carries the value to choose the best by (keep.best = {self.best!r}); {have}')
            choose = max if self.mode == 'max' else min
            return [choose(scored, key=scored.__getitem__)]
        name, _, count = which.partition(':')
        if name == 'average' and count.isdigit() and int(count) > 0:
            if int(count) > len(steps):
                raise BadInput(f'--checkpoint={which} needs {count} checkpoints, {have}; raise keep.last before training')
            return steps[-int(count) :]
        if which.isdigit() and int(which) in steps:
            return [int(which)]
        raise BadInput(f'no checkpoint {which!r}; use last, best, average:K or a step; {have}')


def average(trees: Sequence[Any]) -> Any:
    """The mean of parameter trees, added up in float32."""
    if len(trees) == 1:
        return trees[0]
    return jax.tree.map(lambda *leaves: (sum(leaf.astype('float32') for leaf in leaves) / len(leaves)).astype(leaves[0].dtype), *trees)


def _storable(state: Any) -> Any:
    """Typed random keys as their data, which every Orbax version stores."""
    return jax.tree.map(lambda leaf: _key_data(leaf) if _is_key(leaf) else leaf, state)


def _restored(state: Any, like: Any) -> Any:
    return jax.tree.map(lambda leaf, model: jax.random.wrap_key_data(leaf) if _is_key(model) else leaf, state, like)


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, 'dtype') and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_data(leaf: Any) -> Any:
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.random.key_data(leaf)
    shape = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=leaf.sharding)


def _checksums(folder: pathlib.Path) -> dict[str, int]:
    """By path, for the files of its items; the step's own metadata is still written to at the commit."""
    return {str(path.relative_to(folder)): _crc(path) for path in sorted(folder.glob('*/**/*')) if path.is_file()}


def _crc(path: pathlib.Path) -> int:
    value = 0
    with path.open('rb') as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value
