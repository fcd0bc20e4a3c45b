"""Critics on disk, in the same kind of file as policies."""

from __future__ import annotations

import os

from ..types import PhiSpec
from .critic import Critic
from .sealed_file import read_sealed, write_sealed

_KIND = "ala_metric.critic"


def save_critic(path: str | os.PathLike[str], critic: Critic) -> None:
    """Write a critic to one file, atomically.

    The file is in the safetensors format; its header carries a JSON description and a SHA-256 checksum of
    every byte.

    Parameters
    ----------
    path
        Target; replaced if it exists.
    critic
        What to save.

    Raises
    ------
    TypeError
        If it is no :class:`Critic`.
    ValueError
        If a number in it is not finite.
    OSError
        If the file cannot be written; a previous file is then intact.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> critic = Critic((PhiSpec("a", 0.0, 1.0),))
    >>> critic.observe([(0.1,), (0.9,)], [-1.0, 1.0])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_critic(pathlib.Path(folder) / "critic", critic)
    ...     twin = load_critic(pathlib.Path(folder) / "critic")
    >>> twin.predict([(0.5,)]) == critic.predict([(0.5,)])
    True
    """
    if not isinstance(critic, Critic):
        raise TypeError(f"critic must be a Critic, got {type(critic).__name__}")
    state = critic.state_dict()
    tensors = {name: state.pop(name) for name in ("moments", "targets")}
    write_sealed(path, _KIND, state, tensors)


def load_critic(path: str | os.PathLike[str]) -> Critic:
    """Read a critic that :func:`save_critic` wrote; nothing in the file is executed.

    A race that is given a critic of another task refuses it and names both values.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    Critic
        With the same weights, bit for bit.

    Raises
    ------
    CheckpointError
        If the file is damaged, truncated, oversized, or no critic.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "critic"
    ...     save_critic(path, Critic((PhiSpec("a", 0.0, 1.0),), noise=0.4))
    ...     load_critic(path).first_noise
    0.4
    """
    with read_sealed(path, _KIND) as (description, tensors):
        spec = tuple(PhiSpec(*row) for row in description["phi_spec"])
        critic = Critic(spec, description["quadratic"], description["noise"], description["decay"])
        expected = {"moments": critic.moments.shape, "targets": critic.targets.shape}
        found = {name: value.shape for name, value in tensors.items()}
        if found != expected:
            raise ValueError(f"tensors {found} do not fit the described critic {expected}")
        critic.load_state_dict({**description, **tensors})
        return critic
