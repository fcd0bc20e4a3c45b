"""The fused kernels on NumPy arrays: gradient descent on the mixture loss. torch is not imported."""

import numpy as np

from ala_metric import numpy_api


def main() -> None:
    random = np.random.default_rng(0)
    points = random.normal(size=(300, 2)).astype(np.float32)
    labels = np.arange(300) % 3
    phi = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0]  # d^2 to pull, 0.5/d to push
    first = numpy_api.distance_mixture(points, labels, phi).mean()
    for _ in range(100):
        points -= 0.1 * numpy_api.distance_mixture_gradient(points, labels, phi).emb
    last = numpy_api.distance_mixture(points, labels, phi).mean()
    print(f"mean loss {first:.4f} -> {last:.4f}")
    assert last < 0.5 * first


if __name__ == "__main__":
    main()
