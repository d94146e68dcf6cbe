"""What makes probabilities of logits honest, and of several answers one.

There is one rule for answers that are given together: the weighted mean of their log-probabilities, normalized again (a
logarithmic opinion pool: Genest and Zidek, Statistical Science 1 (1), 1986). For the members of one model, which share
a temperature and count alike, that is the same as the mean of their logits.

Shape suffixes: A answers, N clips, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax

TEMPERATURE_RANGE = (0.05, 20.0)


def pool_answers(each_ANC: Sequence[np.ndarray], weights_A: Sequence[float] | None = None) -> np.ndarray:
    """Return what several answers to the same clips say together.

    Args:
        each_ANC: Probabilities.
        weights_A: How much each of them counts, 1 in all; None for alike.

    Returns:
        Probabilities, `[N, C]`.
    """
    return softmax(np.average(_logs(each_ANC), axis=0, weights=weights_A), axis=1)


def fit_weights(each_ANC: Sequence[np.ndarray], targets_N: np.ndarray) -> np.ndarray:
    """Find the weights by which several answers are most likely together, by `pool_answers`.

    The loss is convex in the weights, so that there is one least value.

    Args:
        each_ANC: Probabilities that were given to clips which none was trained on.
        targets_N: True class indices.

    Returns:
        Weights `[A]`, none below 0 and 1 in all, that minimize the mean negative log-likelihood.
    """
    logs_ANC, rows_N = _logs(each_ANC), np.arange(len(targets_N))
    true_AN = logs_ANC[:, rows_N, targets_N]

    def loss(weights_A: np.ndarray) -> tuple[float, np.ndarray]:
        pooled_NC = np.tensordot(weights_A, logs_ANC, 1)
        likely_NC = softmax(pooled_NC, axis=1)
        slope_A = (np.einsum("nc,anc->an", likely_NC, logs_ANC) - true_AN).mean(axis=1)
        return -log_softmax(pooled_NC, axis=1)[rows_N, targets_N].mean(), slope_A

    alike_A = np.full(len(logs_ANC), 1 / len(logs_ANC))
    whole = {"type": "eq", "fun": lambda weights_A: weights_A.sum() - 1, "jac": np.ones_like}
    found = minimize(
        loss, alike_A, jac=True, method="SLSQP", bounds=[(0, 1)] * len(alike_A), constraints=whole, tol=1e-10
    )
    weights_A = found.x.clip(0)
    return weights_A / weights_A.sum()


def fit_temperature(logits_NC: np.ndarray, targets_N: np.ndarray) -> float:
    """Find the temperature that makes `softmax(logits / temperature)` most likely (Guo et al., 2017).

    Args:
        logits_NC: Outputs of the model before softmax, on clips that it was not trained on.
        targets_N: True class indices.

    Returns:
        The scalar that minimizes the mean negative log-likelihood, within `TEMPERATURE_RANGE`; above 1 where the
        model is too sure of itself.
    """
    logits_NC, rows_N = np.asarray(logits_NC, np.float64), np.arange(len(targets_N))

    def loss(log_temperature: float) -> float:
        return -log_softmax(logits_NC / np.exp(log_temperature), axis=1)[rows_N, targets_N].mean()

    return float(np.exp(minimize_scalar(loss, bounds=np.log(TEMPERATURE_RANGE), method="bounded").x))


def _logs(each_ANC: Sequence[np.ndarray]) -> np.ndarray:
    tiny = np.finfo(np.float64).tiny  # a probability of 0 would leave the other answers no say
    return np.log(np.maximum(each_ANC, tiny))
