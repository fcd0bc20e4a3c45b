"""Several arms in one: their weights along a new first dimension, one pass through the network for all."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, optim
from torch.func import functional_call, vmap

from .._arguments import divergence_told
from .._phi import read_phi, write_phi
from .arm import Phi
from .hidden import hidden_state, restore_hidden
from .parts import Parts
from .powersign import PowerSign
from .random_streams import restore_random_streams

ELEMENTWISE = (
    optim.SGD,
    optim.Adam,
    optim.AdamW,
    optim.Adamax,
    optim.NAdam,
    optim.RAdam,
    optim.RMSprop,
    optim.Adagrad,
    optim.Adadelta,
    optim.Rprop,
    PowerSign,
)
_COMMON = ("step", "mu_product")  # of an optimizer's state: counters, the same for all arms


def check_stackable(parts: Parts) -> None:
    """Refuse an optimizer that cannot step many arms at once.

    Parameters
    ----------
    parts
        What a step trains.

    Raises
    ------
    ValueError
        If the optimizer's update of a number depends on other numbers, as those of LBFGS or Adafactor, if
        it is not known to be elementwise, if it has hooks, or if it trains what is not in the model.
    """
    optimizer = parts.optimizer
    if type(optimizer) not in ELEMENTWISE:
        names = ", ".join(kind.__name__ for kind in ELEMENTWISE)
        raise ValueError(
            f"vectorised=True needs an elementwise optimizer ({names}), got {type(optimizer).__name__}"
        )
    hooks = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    if any(getattr(optimizer, name, None) for name in hooks):
        raise ValueError(
            "vectorised=True steps all arms at once: an optimizer with step hooks cannot be used"
        )
    known = {id(weight) for weight in parts.model.parameters()}
    if any(id(weight) not in known for group in optimizer.param_groups for weight in group["params"]):
        raise ValueError("vectorised=True stacks the weights of the model, the optimizer has others as well")


class Stacked:
    """Arms that train together, in the parts of one training.

    The network runs once per step under :func:`torch.func.vmap`, for all arms; miner and loss run once per
    arm, in copies of their own. The losses are added for one backward pass: the weights of the arms are
    disjoint, so each gets the gradient of its own loss. While a block ``with`` it is open, the optimizer
    holds the stacked weights in the place of the model's.

    Parameters
    ----------
    parts
        What a step trains.
    snapshots
        Where each arm stands; all after equally many steps.
    phis
        Loss parameters of each.

    Raises
    ------
    ValueError
        If the optimizer states of the arms differ in more than their numbers.

    Notes
    -----
    Random numbers in the network, such as masks of dropout, are the same for all arms, as they are where
    arms train in turn. Miners and losses that draw from torch's stream begin at the same place for all
    arms; those that draw from NumPy's or Python's draw one after the other.
    """

    def __init__(self, parts: Parts, snapshots: Sequence[dict[str, Any]], phis: Sequence[Phi]) -> None:
        self.parts, self.model, self.optimizer = parts, parts.model, parts.optimizer
        self.own = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        self._weights = {name for name, _ in self.model.named_parameters()}
        names = {id(tensor): name for name, tensor in self.own.items()}
        self._groups = [[names[id(weight)] for weight in group["params"]] for group in self._param_groups]
        self.losses: list[Any] = []
        self.miners: list[Any] = []
        tensors, states = [], []
        for snapshot, phi in zip(snapshots, phis):
            parts.restore(snapshot)
            write_phi(parts.loss_fn, phi)
            self.losses.append(copy.deepcopy(parts.loss_fn))
            self.miners.append(copy.deepcopy(parts.miner))
            tensors.append({name: tensor.detach().clone() for name, tensor in self.own.items()})
            # A restored optimizer has a new state, so these stay as they are.
            states.append({n: dict(self.optimizer.state.get(self.own[n], {})) for n in self._trained})
        restore_random_streams(snapshots[0]["random"], parts.device)
        self.tensors = {name: self._leaf(name, torch.stack([t[name] for t in tensors])) for name in self.own}
        self.states = {
            name: _joined([state[name] for state in states], self.own[name]) for name in self._trained
        }
        self._lent = False

    @property
    def _param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    @property
    def _trained(self) -> list[str]:
        return [name for group in self._groups for name in group]

    def _leaf(self, name: str, stack: Tensor) -> Tensor:
        return stack.requires_grad_(name in self._weights and self.own[name].requires_grad)

    def __enter__(self) -> Stacked:
        self._lend()
        return self

    def __exit__(self, *error: object) -> None:
        self._take_back()

    def _lend(self) -> None:
        """Let the optimizer hold the stacked weights."""
        for group, names in zip(self._param_groups, self._groups):
            group["params"] = [self.tensors[name] for name in names]
        self.optimizer.state = defaultdict(
            dict, {self.tensors[name]: state for name, state in self.states.items() if state}
        )
        self._lent = True

    def _take_back(self) -> None:
        """Give the optimizer the model's weights again."""
        self.states = {name: self.optimizer.state.get(self.tensors[name], {}) for name in self._trained}
        for group, names in zip(self._param_groups, self._groups):
            group["params"] = [self.own[name] for name in names]
        self.optimizer.state = defaultdict(dict)
        self._lent = False

    def step(self, number: int, inputs: Tensor, labels: Tensor) -> list[float | Exception]:
        """One optimizer step of all arms; the loss of each before it, or why the arm was dropped.

        Parameters
        ----------
        number
            Of the step, for the error messages.
        inputs, labels
            A batch, the same for all.

        Returns
        -------
        list
            A loss per arm. An arm whose loss is not finite, or whose miner or loss fails on outputs or
            weights that are not, has the error in its place and is no part of the stack any more.

        Raises
        ------
        RuntimeError
            If the network does not run under ``vmap``.
        """
        labels = labels.to(self.parts.device)
        outputs = self._outputs(inputs.to(self.parts.device))
        stream = torch.get_rng_state()
        losses: dict[int, Tensor] = {}
        errors: dict[int, Exception] = {}
        for index, output in enumerate(outputs.unbind(0)):
            torch.set_rng_state(stream)
            try:
                with divergence_told(output, f"the outputs of step {number}"):
                    losses[index] = self._loss(index, output, labels)
            except (FloatingPointError, ValueError, RuntimeError) as error:
                if not isinstance(error, FloatingPointError) and self._finite(index):
                    raise
                errors[index] = error
        values = torch.stack([loss.detach() for loss in losses.values()]).tolist() if losses else []
        results: dict[int, float | Exception] = errors | dict(zip(losses, values))
        for index, value in zip(tuple(losses), values):
            if not math.isfinite(value):
                results[index] = FloatingPointError(f"the loss of step {number} is {value}")
                del losses[index]
        if losses:
            self.optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            self.optimizer.step()
            if self.parts.scheduler is not None:
                self.parts.scheduler.step()
        if len(losses) < len(results):
            self._keep(list(losses))
        return [results[index] for index in range(len(results))]

    def _loss(self, index: int, outputs: Tensor, labels: Tensor) -> Tensor:
        """Loss of one arm."""
        miner = self.miners[index]
        mined = () if miner is None else (miner(outputs, labels),)
        loss: Tensor = self.losses[index](outputs, labels, *mined)
        return loss.reshape(())

    def _finite(self, index: int) -> bool:
        """Whether all weights of an arm are numbers."""
        return all(bool(self.tensors[name][index].isfinite().all()) for name in self._weights)

    def _keep(self, living: list[int]) -> None:
        """Go on with some of the arms."""
        self._take_back()
        self.losses = [self.losses[index] for index in living]
        self.miners = [self.miners[index] for index in living]
        with torch.no_grad():
            self.states = {
                name: {
                    key: value[living] if _per_arm(key, value, self.tensors[name]) else value
                    for key, value in state.items()
                }
                for name, state in self.states.items()
            }
            kept = {name: stack[living] for name, stack in self.tensors.items()}
        self.tensors = {name: self._leaf(name, stack) for name, stack in kept.items()}
        self._lend()

    @contextmanager
    def returned(self, index: int) -> Iterator[None]:
        """The parts hold this arm inside."""
        lent = self._lent
        if lent:
            self._take_back()
        try:
            with torch.no_grad():
                for name, tensor in self.own.items():
                    tensor.copy_(self.tensors[name][index])
            self.optimizer.state = defaultdict(
                dict,
                {self.own[name]: self._state_of(name, index) for name in self._trained if self.states[name]},
            )
            for part, mine in (("loss", self.losses[index]), ("miner", self.miners[index])):
                if part in self.parts.stateful:
                    self.parts.stateful[part].load_state_dict(mine.state_dict())
                    restore_hidden(self.parts.stateful[part], hidden_state(mine))
            write_phi(self.parts.loss_fn, read_phi(self.losses[index]))
            yield
        finally:
            if lent:
                self._lend()

    def _state_of(self, name: str, index: int) -> dict[str, Any]:
        return {
            key: value[index] if _per_arm(key, value, self.tensors[name]) else value
            for key, value in self.states[name].items()
        }

    def snapshot(self, index: int) -> dict[str, Any]:
        """The :meth:`Parts.snapshot` of one arm."""
        with self.returned(index):
            return self.parts.snapshot()

    def _outputs(self, inputs: Tensor) -> Tensor:
        """``[arms, B, ...]``."""

        def network(tensors: dict[str, Tensor], batch: Tensor) -> Any:
            held = dict(tensors)
            outputs = functional_call(self.model, held, (batch,))
            # Buffers that were assigned anew, instead of written to.
            return outputs, {name: held[name] for name in held if held[name] is not tensors[name]}

        outputs: Tensor
        try:
            outputs, assigned = vmap(network, in_dims=(0, None), randomness="same")(self.tensors, inputs)
        except (RuntimeError, ValueError) as error:
            raise RuntimeError(
                f"vectorised=True: the network does not run under torch.func.vmap, train with "
                f"vectorised=False; {error}"
            ) from error
        for name, value in assigned.items():
            self.tensors[name].copy_(value.detach())
        return outputs


def _per_arm(key: str, value: Any, like: Tensor) -> bool:
    """Whether a value of the optimizer's state belongs to the numbers of a weight, or of a stack of them."""
    return isinstance(value, Tensor) and key not in _COMMON and value.shape == like.shape


def _joined(states: list[dict[str, Any]], like: Tensor) -> dict[str, Any]:
    """Optimizer states of one weight of all arms as one."""
    joined: dict[str, Any] = {}
    for key, value in states[0].items():
        values: list[Any] = [state.get(key) for state in states]
        if _per_arm(key, value, like):
            joined[key] = torch.stack(values)
        elif any(other != value for other in values):
            raise ValueError(f"the arms of a stack differ in {key} of the optimizer")
        else:
            joined[key] = value
    return joined
