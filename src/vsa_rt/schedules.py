"""Training schedules of the papers, by name: what a recipe's ``fit.preset`` stands for."""

from __future__ import annotations

from typing import Any

#: SMAP 2021 (Pournaras et al.), section 3.3: both schedules of the mixture of experts, and the two-layer network.
_SMAP_MOE: dict[str, Any] = {
    "loss": "bce",
    "learning_rate": 1e-4,
    "batch_size": 256,
    "weight_decay": 1e-3,
    "factor": 0.1,
}
#: MediaEval 2021 (the same authors), table of training settings: batches of 64, halved every 70 epochs.
_MEDIAEVAL: dict[str, Any] = {"batch_size": 64, "factor": 0.5, "step": 70}

#: Preset to the keys of the recipe's ``fit`` table that it sets; keys beside it in the recipe go first.
PRESETS: dict[str, dict[str, Any]] = {
    "smap2021-nn": {"loss": "cross-entropy", "learning_rate": 1e-4, "batch_size": 8, "epochs": 20},
    "smap2021-moe-1": _SMAP_MOE | {"epochs": 120, "step": 40},
    "smap2021-moe-2": _SMAP_MOE | {"epochs": 60, "step": 20},
    "mediaeval2021-1": _MEDIAEVAL | {"loss": "cross-entropy", "learning_rate": 1e-5, "epochs": 300},
    "mediaeval2021-2": _MEDIAEVAL | {"loss": "bce", "learning_rate": 3e-6, "epochs": 300},
    "mediaeval2021-3": _MEDIAEVAL | {"loss": "bce", "learning_rate": 5e-6, "epochs": 200},
}
