"""One rank's part of a run, from joining the others to the trained model.

    RUN (recipe, plan) -> engine -> where it stands -> packing proved -> steps -> model, card

The folder is ready before any rank starts; a rank takes nothing from anywhere else.
"""

from __future__ import annotations

import shutil
import signal
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import torch
import torch.distributed as dist

from adapt.jsonl import disk_fault
from adapt.models.merge import merge_adapter
from adapt.new_folder import new_folder
from adapt.quiet import quiet_training
from adapt.recipe import Recipe, load_recipe
from adapt.run_paths import RunFolder
from adapt.signals import stop_requests
from adapt.train.checkpoint import restore, save_checkpoint
from adapt.train.dataset import Lost, PackReader, UnreadableRecord
from adapt.train.disk import disk_faults_named
from adapt.train.engine import Engine, build_engine
from adapt.train.loop import Sharing, StepDone, Work, pack_totals, run_steps
from adapt.train.metrics import Metrics, keep_until, open_metrics
from adapt.train.model_card import write_card
from adapt.train.place import Place, joined
from adapt.train.run_state import RunState, find_latest, read_state
from adapt.train.schedule import make_schedule
from adapt.train.selfcheck import check_packing, choose_records
from adapt.train.weights import base_folder, gather_weights, write_weights

if TYPE_CHECKING:
    from adapt.mix import Mix
    from adapt.models.handle import ModelHandle
    from adapt.plan import Plan
    from adapt.train.collate import LoadedRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What a rank works on."""

    run: RunFolder
    recipe: Recipe
    plan: Plan
    mix: Mix
    handle: ModelHandle
    reader: PackReader
    engine: Engine
    work: Work


def run_rank(run: RunFolder, place: Place) -> int:
    """Train as one rank of a prepared run, from its last checkpoint if it has one.

    Returns:
        0, or the signal that asked to stop; then a checkpoint was written.
    """
    with joined(place) as device, quiet_training():
        # The folder is ready when rank 0, which made it, is here.
        dist.barrier()
        recipe = load_recipe(run.recipe)
        session = _open(run, recipe, device)
        try:
            return _train(session)
        finally:
            session.engine.deepspeed.destroy()


def _open(run: RunFolder, recipe: Recipe, device: torch.device) -> Session:
    from adapt.mix import read_mix
    from adapt.models.handle import open_model
    from adapt.plan import load_plan

    plan, mix, handle = load_plan(run.plan), read_mix(recipe.mix), open_model(recipe.model)
    ranks = dist.get_world_size()
    schedule = make_schedule(recipe, num_packs=plan.num_packs, world_size=ranks)
    totals = pack_totals(plan, recipe.loss)
    sharing = Sharing(
        schedule=schedule,
        order=plan.order,
        supervised=totals.supervised,
        rank=dist.get_rank(),
        ranks=ranks,
        chunk_tokens=recipe.loss_chunk_tokens,
    )
    reader = PackReader(recipe, plan, mix, handle)
    engine = build_engine(handle, recipe, device)
    work = Work(
        recipe=recipe,
        schedule=schedule,
        sharing=sharing,
        totals=totals,
        engine=engine,
        read=reader.read,
    )
    return Session(
        run=run,
        recipe=recipe,
        plan=plan,
        mix=mix,
        handle=handle,
        reader=reader,
        engine=engine,
        work=work,
    )


def _train(session: Session) -> int:
    total = session.work.schedule.total_steps
    state = _restore(session)
    _prove_packing(session)
    _say(f"{session.engine.counts}; {total - state.step} of {total} steps to go")
    lost = frozenset(state.lost)
    with stop_requests() as received, _metrics(session, state.step) as metrics:
        for done in run_steps(
            session.work, start=state.step, lost=lost, stopping=lambda: bool(received)
        ):
            _record(session, done, metrics)
            if done.stop and done.metrics.step < total:
                _say(f"stopped after step {done.metrics.step} with a checkpoint")
                return received[0] if received else signal.SIGTERM
    _finish(session)
    return 0


def _restore(session: Session) -> RunState:
    """Return where the run stands, the engine brought there."""
    checkpoint = find_latest(session.run.checkpoints)
    if checkpoint is None:
        return RunState(step=0, epoch=0, pack=0, plan=session.plan.hash, ranks=0)
    state = read_state(checkpoint)
    restore(checkpoint, session.engine, state, plan=session.plan.hash)
    _say(f"going on from {checkpoint} (epoch {state.epoch}, pack {state.pack})")
    return state


def _prove_packing(session: Session) -> None:
    records = _records_to_prove_with(session)
    if not records:
        _say("packing: not checked, the plan has no two records that could share a pack")
        return
    difference = check_packing(session.engine, records, session.reader.filler)
    _say(f"packing: two records in a pack equal the same apart (within {difference:.1e})")


def _records_to_prove_with(session: Session) -> list[LoadedRecord]:
    """Return two records; those that cannot be read are passed over as far as the recipe allows."""
    unreadable: set[int] = set()
    while True:
        planned = choose_records(session.plan, session.handle.rope_switch, without=unreadable)
        if len(planned) < 2:
            return []
        try:
            return [session.reader.record(one, epoch=0) for one in planned]
        except UnreadableRecord as error:
            # Neither counted nor listed here: that is done in the step they belong to.
            unreadable.add(error.lost.mix_index)
            if len(unreadable) > session.recipe.max_unreadable:
                raise


def _metrics(session: Session, start: int) -> AbstractContextManager[Metrics | None]:
    if dist.get_rank() != 0:
        return nullcontext()
    keep_until(session.run.unreadable, start)
    return open_metrics(
        session.run,
        start=start,
        total=session.work.schedule.total_steps,
        tensorboard=session.recipe.tensorboard,
    )


def _record(session: Session, done: StepDone, metrics: Metrics | None) -> None:
    """Write down a step, and a checkpoint when it is time for one."""
    step, recipe = done.metrics.step, session.recipe
    is_last = step == session.work.schedule.total_steps
    saving = is_last or done.stop or step % recipe.save_every == 0
    if metrics is not None:
        _note_lost(session.run, step, done.newly_lost)
        metrics.add(done.metrics, flush=saving or step % recipe.log_every == 0)
    if saving:
        epoch, places = session.work.schedule.places(step)
        state = RunState(
            step=step,
            epoch=epoch,
            pack=places.start,
            plan=session.plan.hash,
            ranks=dist.get_world_size(),
            lost=tuple(sorted(done.lost)),
        )
        folder, keep = session.run.checkpoints, recipe.keep_checkpoints
        save_checkpoint(folder, session.engine, state, session.handle, keep=keep)


def _note_lost(run: RunFolder, step: int, lost: tuple[Lost, ...]) -> None:
    if not lost:
        return
    try:
        with run.unreadable.open("ab") as file:
            for one in lost:
                line = {"step": step, "mix_index": one.mix_index, "id": one.id, "why": one.why}
                file.write(msgspec.json.encode(line) + b"\n")
    except OSError as error:
        raise disk_fault(error, run.unreadable) from error


def _finish(session: Session) -> None:
    """Write the trained model and its card."""
    run, handle, engine = session.run, session.handle, session.engine
    weights = gather_weights(engine)
    if dist.get_rank() == 0:
        result = run.model if engine.adapter is None else run.adapter
        # Of a run that was killed right here.
        shutil.rmtree(result, ignore_errors=True)
        with disk_faults_named(result), new_folder(result) as folder:
            write_weights(folder, weights, engine, handle)
        if engine.adapter is not None:
            _merge(session)
        write_card(run, session.recipe, handle, session.mix, engine.counts)
        _say(f"trained model: {run.model}")
    dist.barrier()


def _merge(session: Session) -> None:
    """Merge the adapter into its base, as `adapt models merge` does."""
    run = session.run
    base = base_folder(session.handle, session.recipe, run.folder)
    with disk_faults_named(run.model), base as folder:
        report = merge_adapter(run.adapter, folder, run.model)
    _say(f"adapter merged into its base: {report.difference}")


def _say(line: str) -> None:
    if dist.get_rank() == 0:
        print(line, flush=True)
