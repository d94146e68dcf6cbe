"""What makes probabilities of logits honest, and of several answers one.

There is one rule for answers that are given together: the mean of their log-probabilities, normalized again. For the
members of one model, which share a temperature, that is the same as the mean of their logits.

Shape suffixes: N clips, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

TEMPERATURE_RANGE = (0.05, 20.0)


def pool_answers(probabilities_NC: Sequence[np.ndarray]) -> np.ndarray:
    """Return what several models say together of the same clips.

    Args:
        probabilities_NC: Probabilities of each model.

    Returns:
        Probabilities, `[N, C]`.
    """
    tiny = np.finfo(np.float64).tiny  # a probability of 0 would leave the other models no say
    return softmax(np.mean([np.log(np.maximum(each_NC, tiny)) for each_NC in probabilities_NC], axis=0), axis=1)


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
