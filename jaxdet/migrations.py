"""Renamed options and values, and options that earlier runs lack; standard library only.

The `config.json` of a run is brought up to date when it is read.  On the command line old names are
refused, with the new name in the message.
"""

from collections.abc import Mapping
from typing import Any

_SCHEDULE = {
    "drops": "decay_at",
    "drop": "lr_decay",
    "drop_patience": "plateau_patience",
    "drop_on": "plateau_metric",
    "cycle": "restart_period",
    "cycle_factor": "restart_factor",
}
_SPLITS = {
    "cut_val": "val_fraction",
    "cut_test": "test_fraction",
    "train_frac": "train_fraction",
    "on_bad_row": "on_invalid",
}
_BACKBONE = {"freeze": "freeze_stages", "fixed_norm": "freeze_bn"}
_LIGHTING = {"light": "brightness_contrast"}

OPTIONS: dict[str, dict[str, str]] = {  # system: {old name: new name}
    "digits": {
        **_SCHEDULE,
        "stages": "layout",
        "widths": "channels",
        "dense": "fc_widths",
        "gate": "mask_loss_by",
        "box_start": "box_weight_start",
        "ramp": "box_weight_ramp",
        "score": "window_selection",
    },
    "objects": {
        **_SCHEDULE,
        **_SPLITS,
        **_LIGHTING,
        "backbone": "transfer",
        "learn_last": "unfreeze_last",
        "smoothing": "label_smoothing",
        "dropout": "dropout_scale",
    },
    "detect": {
        **_SCHEDULE,
        **_SPLITS,
        **_BACKBONE,
        **_LIGHTING,
        "slots": "max_boxes",
        "width": "neck_channels",
        "head": "background",
        "block": "neck_block",
        "bins": "reg_max",
        "positive": "positive_iou",
        "score": "score_threshold",
        "nms": "nms_iou",
        "nms_kind": "nms_type",
        "most": "max_detections",
        "sizes": "multiscale",
        "flip_down": "vflip",
        "crop": "crop_area",
        "colour": "color_jitter",
        "cutout": "cutout_holes",
        "plain_last": "close_mosaic_epochs",
    },
    "cifar10": {
        **_SCHEDULE,
        **_SPLITS,
        **_LIGHTING,
        "smoothing": "label_smoothing",
        "crop": "crop_padding",
        "colour": "color_jitter",
        "mixup": "mixup_alpha",
        "widths": "channels",
        "dense": "fc_widths",
    },
    "faces": {
        **_SCHEDULE,
        **_SPLITS,
        **_BACKBONE,
        **_LIGHTING,
        "people": "identities",
        "scale": "logit_scale",
        "zoom": "scale",
        "pull": "embedding_loss",
        "pull_weight": "embedding_loss_weight",
        "group": "samples_per_class",
        "smoothing": "label_smoothing",
        "mirrored": "tta",
        "parts": "backbone_stages",
        "dim": "embedding_dim",
        "hidden": "fc_widths",
        "width": "width_multiplier",
        "squeezes": "se_ratios",
    },
}

VALUES: dict[tuple[str, str], dict[str, str]] = {  # (system, new option): old value -> new value
    ("detect", "background"): {"noobj-zero": "zeros", "noobj-bg": "class", "yolox": "objectness"},
    ("objects", "box_head"): {"dense": "mlp", "cells": "per_cell"},
    ("cifar10", "activation"): {"own": "default"},
    ("faces", "activation"): {"own": "default"},
}

ABSENT: dict[str, dict[str, Any]] = {  # system: {option that earlier runs do not have: their value}
    "digits": {"box_loss": "mse"},
}

METADATA = {"normalisation": "normalization", "numbers": "category_ids"}


def migrate_names(system: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the fields of a configuration of schema 1 to their present names."""
    names = OPTIONS.get(system, {})
    return {names.get(name, name): value for name, value in fields.items()}


def migrate_values(system: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Replace renamed values in the fields of a configuration of any schema; add absent options."""
    tables = {name: values for (of, name), values in VALUES.items() if of == system}
    present = {
        name: tables[name].get(value, value) if name in tables else value
        for name, value in fields.items()
    }
    return ABSENT.get(system, {}) | present


def migrate_metadata(
    system: str, config: Mapping[str, Any], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Rename the metadata of a run of schema 1 to their present names.

    `config` is the configuration with present names.  The earliest runs of faces have no `record`;
    it is added.
    """
    found = {METADATA.get(name, name): value for name, value in about.items()}
    if system == "faces" and "record" not in found:
        image = ["uint8", [config["size"], config["size"], 3]]
        found["record"] = {"image": image, "label": ["int32", []], "id": ["int32", []]}
    return found


def renamed_option(word: str, system: str = "") -> str | None:
    """The present name of a renamed option such as `--cut-val`; None for any other word.

    Without a system, the result is None if the new name is not the same in all systems.
    """
    if not word.startswith("--"):
        return None
    old = word.removeprefix("--").removeprefix("no-").partition("=")[0].replace("-", "_")
    tables = [OPTIONS[system]] if system in OPTIONS else OPTIONS.values()
    new = {table[old] for table in tables if old in table}
    return f"--{new.pop().replace('_', '-')}" if len(new) == 1 else None
