"""``ala-metric policy``: learn a policy on one classification task, look at it, use it on another."""

from __future__ import annotations

from typing import Any

import torch

from .. import classification, controller, data, metrics, training
from ..ala_loss import ALALoss
from ..types import PhiSpec
from . import experiment, runs, tasks
from .arguments import UsageError
from .console import format_table, progress
from .options import PolicyOptions

DEFAULT_EVERY = 10
LEARNING_RATES = {"sgd": 0.05, "rmsprop": 0.001, "powersign": 0.05}
PROBED = (-2.0, -1.0, 0.0, 1.0, 2.0)


def run(options: PolicyOptions) -> int:
    """Do what the action says; 0 when it is done."""
    if options.action is None or options.file is None:
        raise UsageError("give the action and the file: ala-metric policy train|show|apply FILE")
    if options.save is not None and not (options.action == "apply" and options.fine_tune):
        raise UsageError("save is for policy apply with --fine-tune")
    if options.action == "show":
        print(described(controller.load_policy(options.file)))
        return 0
    policy = controller.load_policy(options.file) if options.action == "apply" else None
    target = options.file if options.action == "train" else options.save
    runs.check_target(target)
    loss_fn, result = trained(options, policy)
    if target is not None and loss_fn.policy is not None:
        controller.save_policy(target, loss_fn.policy)
    frozen = policy is not None and not options.fine_tune
    how = "" if policy is None else ", policy as it was" if frozen else ", policy fine-tuned"
    print(f"{options.data}, {loss_fn.loss.num_classes} classes, {options.optimizer}{how}: test split")
    print(tasks.table(result))
    print(f"phi now between {float(loss_fn.phi_vector.min()):.2f} and {float(loss_fn.phi_vector.max()):.2f}")
    if target is not None:
        print(f"policy written to {target}")
    return 0


def trained(options: PolicyOptions, policy: controller.Policy | None) -> tuple[ALALoss, dict[str, Any]]:
    """Train one classifier whose loss the policy moves; the loss and the test metrics."""
    splits = _splits(options)
    preset = classification.preset(options.preset)
    loss: Any = preset.loss(len(splits.class_names))
    torch.manual_seed(options.seed)
    device = experiment.pick_device(options.device)
    shape = tuple(splits.train[0][0].shape)
    classes = len(splits.class_names)
    model = training.models.make(options.network, classes, (shape[0], shape[1], shape[2])).to(device)
    loss_fn = ALALoss(
        loss,
        metric=metrics.ClassificationError(),
        validate=experiment.validating(model, splits.validation),
        total_steps=options.steps,
        every=min(options.every or (200 if options.preset == "paper" else DEFAULT_EVERY), options.steps),
        policy=policy,
        freeze=policy is not None and not options.fine_tune,
        beta=preset.beta,
        seed=options.seed,
    ).to(device)
    children = preset.children if policy is None else 1
    steps = children * options.steps
    per_class = 4 if classes >= 10 else 8
    with progress({"train": steps}) as bar:
        training.fit(
            model,
            loss_fn,
            splits.train,
            total_steps=options.steps,
            optimizer=_optimizer(options, model),
            batch_classes=min(32, classes),
            per_class=per_class,
            seed=options.seed,
            mode="paper" if children > 1 else None,
            children=children,
            on_step=lambda step, loss: bar.update("train", step, f"loss {loss:.4f}"),
        )
    return loss_fn, tasks.classification(*experiment.embed(model, splits.test))


def described(policy: controller.Policy) -> str:
    """What a policy was made for, and what it would do with a class that is easy or hard."""
    count = sum(weight.numel() for weight in policy.parameters())
    about = [
        ("statistics per parameter", str(policy.statistics_width)),
        ("parameters told apart", str(policy.identities) if policy.identities else "none: fits any number"),
        ("step size beta", f"{policy.beta:g}"),
        ("weights", str(count)),
    ]
    text = format_table(("policy", ""), about)
    if policy.identities:
        return text
    rows = []
    spec = (PhiSpec("phi", -1.0, 1.0),)
    for value in PROBED:
        history = controller.StateHistory(spec, policy.statistics_width, standardized=True)
        history.observe(torch.full((1, policy.statistics_width), 0.0).index_fill(1, torch.tensor([0]), value))
        with torch.no_grad():
            table = policy(history.encode([0.0], progress=0.5)).softmax(-1)[0].tolist()
        rows.append((f"{value:+.0f}", *(f"{share:.2f}" for share in table)))
    head = ("statistic (z-score), half way", "-beta", "stay", "+beta")
    return text + "\n" + format_table(head, rows)


def _splits(options: PolicyOptions) -> data.Splits:
    splits = experiment.load_data(options.data, options.root, options.image_size)
    return data.class_splits(splits, options.classes) if options.data == "glyphs" else splits


def _optimizer(options: PolicyOptions, model: torch.nn.Module) -> torch.optim.Optimizer:
    rate = LEARNING_RATES[options.optimizer] if options.lr is None else options.lr
    weights = list(model.parameters())
    if options.optimizer == "sgd":
        return torch.optim.SGD(weights, lr=rate, momentum=0.9, weight_decay=1e-4)
    if options.optimizer == "rmsprop":
        return torch.optim.RMSprop(weights, lr=rate, weight_decay=1e-4)
    return training.PowerSign(weights, lr=rate, total_steps=options.steps, weight_decay=1e-4)
