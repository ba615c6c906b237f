"""Train one network on several nodes of a Ray cluster: each takes its share of every batch.

Gradients are summed before each step, weighted so that the sum is the gradient of the whole batch
(synchronous data parallelism): only dropout and other chance is another than on one machine. The
night's process keeps what every pass came to. Where a worker dies, it calls the others off, gathers
those that find room, and repeats the pass from there. Ray's own trainer keeps such checkpoints in
a folder that all nodes must share, and tells of a pass only when all are done; here the passes go
to `training.fit` as they are made, which measures and stops as ever.
"""

from __future__ import annotations

import copy
import logging
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed, nn

from .batches import Documents, Watch
from .compute import ComputeConfig, be_like, connect, in_our_words, likeness, room
from .encoders import Network
from .errors import PassingError
from .inference import pick_device
from .recipe import TrainConfig
from .training import Passes, Run, Team

log = logging.getLogger(__name__)

GATHER_SECONDS = 60.0
"""How long workers may take to start; with those that are there by then the training begins."""
SILENCE_SECONDS = 600.0
"""A step that one of them does not take for so long has failed."""
ALIVE_SECONDS = 10.0
"""How long one that lives may take to say so."""
LOSSES = 5
"""Times that workers may die in one training."""


def passes_of(config: ComputeConfig) -> Passes | None:
    """How a pipeline's networks are trained; None for `training.alone`."""
    if config.engine == "local" or config.workers == 1:
        return None

    def passes(
        network: Network, train: Documents, recipe: TrainConfig, device: torch.device, watch: Watch
    ) -> Iterator[tuple[float, Network, Any]]:
        return _together(config, network, train, recipe)

    return passes


@dataclass
class _Told:
    """Stands for the schedule of the workers: what it is told, they are told with the next pass."""

    rate: float
    loss: float | None = None

    def epoch(self, validation_loss: float) -> None:
        self.loss = validation_loss


def _together(
    config: ComputeConfig, network: Network, train: Documents, recipe: TrainConfig
) -> Iterator[tuple[float, Network, _Told]]:
    ray = connect(config)
    like = likeness()
    device, needs = room(ray, recipe.device, like["threads"])
    recipe = recipe.model_copy(update={"device": device})
    # Token ids and labels of the training rows: once for each node, by Ray's shared memory.
    answering = copy.deepcopy(network)
    job = ray.put((copy.deepcopy(network).cpu(), train, recipe))
    state, told, index, lost = None, None, 0, 0
    group: list[Any] = []
    try:
        while index < int(recipe.epochs):
            try:
                with in_our_words(config.address, "lost a worker"):
                    if not group:
                        group = _gathered(ray, config, needs, like, job, state)
                    found = _all(ray, [one.one_pass.remote(index, told) for one in group])
            except (RuntimeError, PassingError) as error:
                lost += 1
                dead = _dead(ray, group)
                # Without a group it was the handshake that failed: a port that was taken just then.
                if group and isinstance(error, RuntimeError) and not dead:
                    raise  # not of a worker's death: such as memory that does not suffice
                if lost > LOSSES:
                    raise PassingError(
                        f"train: workers died {lost} times on the cluster at {config.address} "
                        f"({error}). Look at the nodes' memory; then run the night again."
                    ) from error
                if group:
                    log.warning(
                        "train     %d of %d workers were lost in pass %d; it is repeated from the "
                        "end of the last one", dead, len(group), index + 1,
                    )  # fmt: skip
                else:
                    log.warning("train     the workers did not meet (%s); once more", error)
                _dismiss(ray, group)
                group = []
                continue
            state = found[0]
            network.load_state_dict(state["network"])
            answering.load_state_dict(state["answering"])
            schedule = _Told(state["rate"])
            yield state["loss"], answering, schedule
            told, index = schedule.loss, index + 1
    finally:
        _dismiss(ray, group)


def _gathered(
    ray: Any,
    config: ComputeConfig,
    needs: dict[str, float],
    like: dict[str, Any],
    job: Any,
    state: dict[str, Any] | None,
) -> list[Any]:
    """Workers that stand where `state` says, as many as there is room for."""
    member = ray.remote(_Member).options(**needs, scheduling_strategy="SPREAD")
    asked = [member.remote() for _ in range(config.workers)]
    hello = {one.hello.remote(like): one for one in asked}
    ready, late = ray.wait([*hello], num_returns=len(asked), timeout=GATHER_SECONDS)
    _dismiss(ray, [hello[one] for one in late])
    group: list[Any] = []
    places: list[str] = []
    for one in ready:
        try:
            places.append(ray.get(one))
            group.append(hello[one])
        except ray.exceptions.RayActorError:
            continue  # its node died just now
    if not group:
        raise PassingError(
            f"train: none of {config.workers} workers started within {GATHER_SECONDS:.0f} s on "
            f"the cluster at {config.address}: it has no room. Add nodes, or wait for others."
        )
    if len(group) < config.workers:
        log.warning("train     %d of %d workers found room", len(group), config.workers)
    stands = ray.put(state)
    joined = [
        one.join.remote(places[0], rank, len(group), job, stands) for rank, one in enumerate(group)
    ]
    _all(ray, joined)
    log.info("train     on %d workers of the Ray cluster at %s", len(group), config.address)
    return group


def _all(ray: Any, asked: list[Any]) -> list[Any]:
    """Every answer, or the first error: whoever waits for one that died would never answer."""
    left = asked
    while left:
        done, left = ray.wait(left, num_returns=1)
        ray.get(done)
    return ray.get(asked)


def _dead(ray: Any, group: list[Any]) -> int:
    """How many do not live any more."""
    found = 0
    for one in [one.alive.remote() for one in group]:
        try:
            ray.get(one, timeout=ALIVE_SECONDS)
        except ray.exceptions.RayError:  # gone, or stuck in a step that others have left
            found += 1
    return found


def _dismiss(ray: Any, group: list[Any]) -> None:
    for one in group:
        with suppress(Exception):  # dead, or the cluster is gone
            ray.kill(one)


class _Member(Team):
    """One process of a training, on a node."""

    def hello(self, like: dict[str, Any]) -> str:
        """Where the others would meet this one."""
        import ray

        be_like(like)
        with socket.socket() as free:
            free.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def alive(self) -> bool:
        """That it answers."""
        return True

    def join(
        self, place: str, rank: int, size: int, job: Any, state: dict[str, Any] | None
    ) -> None:
        """Meet the others, and stand where the training stood."""
        network, train, recipe = job
        device = pick_device(recipe.device)
        self.rank, self.size, self._seed = rank, size, recipe.seed
        distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", f"tcp://{place}", rank=rank,
            world_size=size, timeout=timedelta(seconds=SILENCE_SECONDS),
        )  # fmt: skip
        self._used: list[nn.Parameter] | None = None
        self._run = Run(copy.deepcopy(network).to(device), train, recipe, device, self)
        if state is not None:
            self._run.load(state)

    def one_pass(self, index: int, told: float | None) -> dict[str, Any] | None:
        """Train on the shares of a pass; the first tells what it came to.

        Args: the validation loss after the pass before.
        """
        run = self._run
        if told is not None:
            run.schedule.epoch(told)
        # Chance of its own, and the same when the pass is repeated.
        torch.manual_seed(hash((self._seed, index, self.rank)) % 2**63)
        loss, rate = run.one_pass(index), run.schedule.rate
        if self.rank:
            return None
        state = {**run.state(), "answering": run.answering.state_dict()}
        return _on_cpu({**state, "loss": loss, "rate": rate})

    def add_up(self, network: nn.Module) -> None:
        """Make every process's gradients the sum of all."""
        if self._used is None:
            # Once: a weight that nobody has a gradient of must not get one, or it would decay.
            weights = [one for one in network.parameters() if one.requires_grad]
            there = torch.tensor([float(one.grad is not None) for one in weights])
            there = self.total(there.to(weights[0].device)).tolist()
            self._used = [one for one, known in zip(weights, there, strict=True) if known]
        parts = (torch.zeros_like(one) if one.grad is None else one.grad for one in self._used)
        flat = torch.cat([one.reshape(-1) for one in parts])
        distributed.all_reduce(flat)
        for one, whole in zip(
            self._used, flat.split([one.numel() for one in self._used]), strict=True
        ):
            one.grad = whole.view_as(one)

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a number over all processes."""
        distributed.all_reduce(value)
        return value


def _on_cpu(value: Any) -> Any:
    """The same state, of tensors that any process can hold."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: _on_cpu(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_on_cpu(one) for one in value)
    return value
